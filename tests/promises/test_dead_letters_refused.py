"""Dead letters: what is refused, and what a letter is whose subscription is gone."""

from typing import Any

import pytest
import trio

from tests.events import Noted
from tests.promises.patients import ONCE, Patient, ids, numbers, patient_in, publish, three_letters
from triobus import EventBus, InvalidOption, UnknownDeadLetter, UnknownSubscription


def gone(letter_id: object, count: int) -> str:
    return (
        f"there is no dead letter {letter_id!r}: it never was, or it has been replayed, "
        f"discarded or dropped; dead_letters.list() shows the {count} there are"
    )


async def test_an_unknown_id_is_refused_and_nothing_happens(new_bus, autojump_clock) -> None:
    bus = new_bus()
    patient = patient_in(bus)
    async with bus:
        letters = await three_letters(bus, patient)
        for call in (bus.dead_letters.replay, bus.dead_letters.discard):
            with pytest.raises(UnknownDeadLetter) as caught:
                await call([letters[0].id, 99])
            assert str(caught.value) == gone(99, 3)
            with pytest.raises(UnknownDeadLetter):
                await call(-1)
        await bus.wait_idle()
        assert await bus.dead_letters.list() == letters
    assert patient.calls == []


async def test_a_letter_is_unknown_once_it_is_dealt_with(new_bus, autojump_clock) -> None:
    bus = new_bus()
    patient = patient_in(bus)
    async with bus:
        first, second, _ = await three_letters(bus, patient)
        await bus.dead_letters.replay(first.id)
        await bus.dead_letters.discard(second.id)
        for letter in (first, second):
            with pytest.raises(UnknownDeadLetter) as caught:
                await bus.dead_letters.replay(letter.id)
            assert str(caught.value) == gone(letter.id, 1)


async def test_without_ids_and_group_all_letters_of_the_bus_are_replayed(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus()
    patients = patient_in(bus), patient_in(bus.group("further"))
    async with bus:
        await publish(bus, Noted(1), Noted(2))
        for patient in patients:
            patient.is_ill = False
        assert await bus.dead_letters.replay() == 4
        assert await bus.dead_letters.list() == []
        assert await bus.dead_letters.replay() == 0


async def test_ids_and_a_group_together_are_refused(new_bus, autojump_clock) -> None:
    bus = new_bus()
    async with bus:
        with pytest.raises(InvalidOption, match="give either, or nothing for all of the bus"):
            await bus.dead_letters.replay(1, group="default")


async def test_a_letter_is_taken_as_its_id(new_bus, autojump_clock) -> None:
    bus = new_bus()
    patient = patient_in(bus)
    async with bus:
        first, second, third = await three_letters(bus, patient)
        assert await bus.dead_letters.replay(first) == 1
        assert await bus.dead_letters.discard([second, third.id]) == 2
        with pytest.raises(UnknownDeadLetter) as caught:
            await bus.dead_letters.replay([first])
        assert str(caught.value) == gone(first.id, 0)


@pytest.mark.parametrize("wrong", ["1", 1.0, True, b"1", [None], [[1]], {"a": 1}])
async def test_what_is_no_dead_letter_is_refused(new_bus, autojump_clock, wrong: Any) -> None:
    bus = new_bus()
    patient = patient_in(bus)
    async with bus:
        letters = await three_letters(bus, patient)
        for call in (bus.dead_letters.replay, bus.dead_letters.discard):
            with pytest.raises(InvalidOption, match="is no dead letter: give what"):
                await call(wrong)
        assert await bus.dead_letters.list() == letters


async def test_the_dead_letters_of_a_bus_are_one_object_that_shows_its_count_on_one_line(
    autojump_clock,
) -> None:
    bus = EventBus()
    patient_in(bus)
    found = bus.dead_letters
    async with bus:
        await publish(bus, Noted(1))
        assert repr(found) == "<DeadLetters, 1 of them>"
    async with bus:
        assert bus.dead_letters is found
        assert await found.list() == []
        await publish(bus, Noted(2))
        assert numbers(await found.list()) == [2]


async def test_a_subscription_that_is_gone_is_named_with_those_that_exist(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus()
    patient = patient_in(bus)
    group = bus.group("mail")
    subscription = group.subscribe(Noted, Patient(), name="old", retry=ONCE)
    async with bus:
        await publish(bus, Noted(1, "a"))
        patient.is_ill = False
        patient.calls.clear()
        subscription.unsubscribe()
        [letter] = await bus.dead_letters.list(group="mail")
        with pytest.raises(UnknownSubscription) as caught:
            await bus.dead_letters.replay(ids(await bus.dead_letters.list()))
        assert str(caught.value) == (
            f"dead letter {letter.id} belongs to 'old' in group 'mail', which has no such "
            "subscription now; it has: none. Subscribe under that name again, or discard the letter"
        )
        assert patient.calls == []
        for name in ("new", "newer"):
            patient_in(group, name)
        with pytest.raises(UnknownSubscription, match="it has: 'new', 'newer'"):
            await bus.dead_letters.replay(letter.id)
        again = patient_in(group, "old")
        again.is_ill = False
        assert await bus.dead_letters.replay(letter.id) == 1
    assert again.calls == [1]


async def test_a_letter_stays_if_its_subscription_goes_before_its_turn(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus(workers=1)
    calls: list[int] = []

    async def slow(event: Noted) -> None:
        calls.append(event.number)
        if len(calls) == 1:
            raise ValueError
        await trio.sleep(10)

    subscription = bus.subscribe(Noted, slow, retry=ONCE)
    async with bus:
        await publish(bus, Noted(1))
        letters = await bus.dead_letters.list()
        await bus.publish(Noted(2))  # it has the only worker for ten seconds
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _unsubscribe() -> None:
                await trio.sleep(5)
                subscription.unsubscribe()

            assert await bus.dead_letters.replay(group="default") == 0
        assert await bus.dead_letters.list() == letters
    assert calls == [1, 2]
