"""A dead letter holds back the later events of its aggregate."""

from collections.abc import Callable
from typing import Any

import pytest
import trio

from tests.events import Noted
from tests.promises.patients import ONCE, held, ids, numbers, patient_in, publish
from tests.settled import settled
from triobus import InvalidOption, Retry


async def test_with_hold_later_events_of_the_aggregate_follow_untried(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus()
    patient = patient_in(bus, hold=True, retry=Retry(attempts=2))
    async with bus:
        await publish(bus, *[Noted(n, "a") for n in (1, 2, 3)])
        letters = await bus.dead_letters.list()
        statistics = bus.statistics()
    assert patient.calls == [1, 1]
    assert numbers(letters) == [1, 2, 3]
    assert [letter.attempts for letter in letters] == [2, 0, 0]
    assert [letter.error_type for letter in letters] == ["ValueError", "HeldBack", "HeldBack"]
    assert letters[1].message == letters[2].message
    assert letters[1].message == (
        f"not tried, for dead letter {letters[0].id} is an earlier event of 'a': "
        "replay or discard that one first"
    )
    assert (statistics.failed_attempts, statistics.dead_lettered) == (2, 3)


async def test_hold_concerns_neither_other_aggregates_nor_other_handlers(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus(workers=1)
    calls: list[Any] = []

    def handler(name: str) -> Callable[[Noted], Any]:
        async def handle(event: Noted) -> None:
            calls.append((name, event.key, event.number))
            if name == "holds" and event.number == 1:
                raise ValueError

        return handle

    bus.subscribe(Noted, handler("holds"), name="holds", hold=True, retry=ONCE)
    bus.subscribe(Noted, handler("next"), name="next")
    bus.group("other", workers=1).subscribe(Noted, handler("other"), name="holds", hold=True)
    async with bus:
        await publish(
            bus, Noted(1, "a"), Noted(2, "a"), Noted(3, "b"), Noted(1, None), Noted(5, None)
        )
        letters = await bus.dead_letters.list()
    assert [call for call in calls if call[0] == "holds"] == [
        ("holds", "a", 1),
        ("holds", "b", 3),
        ("holds", None, 1),
        ("holds", None, 5),
    ]
    for name in ("next", "other"):
        assert [number for other, _, number in calls if other == name] == [1, 2, 3, 1, 5]
    assert [(letter.subscription, letter.group) for letter in letters] == [("holds", "default")] * 3


async def test_without_hold_later_events_are_tried(new_bus, autojump_clock) -> None:
    bus = new_bus()
    patient = patient_in(bus)
    async with bus:
        await publish(bus, Noted(1, "a"))
        patient.is_ill = False
        await publish(bus, Noted(2, "a"))
    assert patient.calls == [1, 2]


async def test_a_replay_in_order_lifts_the_hold(new_bus, autojump_clock) -> None:
    bus = new_bus()
    patient = patient_in(bus, hold=True)
    async with bus:
        letters = await held(bus, patient)
        assert await bus.dead_letters.replay(reversed(ids(letters))) == 3
        assert patient.calls == [1, 2, 3]
        await publish(bus, Noted(4, "a"))
        assert await bus.dead_letters.list() == []
    assert patient.calls == [1, 2, 3, 4]


async def test_what_is_published_during_the_replay_comes_after_it(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus()
    patient = patient_in(bus, hold=True)
    async with bus:
        letters = await held(bus, patient)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.dead_letters.replay, ids(letters))
            for number in (4, 5):
                await bus.publish(Noted(number, "a"))
        await bus.wait_idle()
        left = await bus.dead_letters.list()
    seen = patient.calls + numbers(left)
    assert seen == [1, 2, 3, 4, 5]


async def test_what_is_held_back_during_a_long_replay_goes_with_it(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus(buffer=10_000)
    patient = patient_in(bus, hold=True)
    async with bus:
        await publish(bus, *[Noted(n, "a") for n in range(250)])
        patient.calls.clear()
        patient.is_ill = False
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _publish() -> None:
                for number in range(250, 300):
                    await bus.publish(Noted(number, "a"))
                    for _ in range(10):
                        await trio.lowlevel.checkpoint()

            count = await bus.dead_letters.replay()
        await bus.wait_idle()
        assert await bus.dead_letters.list() == []
        await publish(bus, Noted(300, "a"))
    assert count >= 250
    assert patient.calls == list(range(301))


async def test_several_replays_at_once_keep_the_order_of_an_aggregate_and_leave_nothing_held_back(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus(buffer=10_000)
    patient = patient_in(bus, hold=True, seconds=1)
    async with bus:
        await publish(bus, *[Noted(n, "a") for n in range(250)])
        patient.calls.clear()
        patient.is_ill = False
        counts: dict[str, int] = {}

        async def replay(name: str, chosen: range) -> None:
            counts[name] = await bus.dead_letters.replay(chosen)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(replay, "first", range(1, 151))
            await trio.sleep(50.5)
            await bus.publish(Noted(250, "a"))
            await trio.sleep(60)
            assert ids(await bus.dead_letters.list(limit=1000))[-1] == 251
            nursery.start_soon(replay, "later", range(151, 251))
        assert await bus.dead_letters.list() == []
    assert counts == {"first": 150, "later": 101}
    assert patient.calls == list(range(251))


async def test_a_replay_does_not_wait_for_another_one_of_other_aggregates(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus(buffer=10_000)
    patient = patient_in(bus, retry=Retry(attempts=2, delay=60, max_delay=60, jitter=0))
    async with bus:
        await publish(bus, *[Noted(n, "a") for n in range(150)], Noted(150, "b"))
        *first, last = ids(await bus.dead_letters.list(limit=200))
        (letter,) = await bus.dead_letters.list(aggregate_id="b")
        chosen = [id_ for id_ in (*first, last) if id_ != letter.id]
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.dead_letters.replay, chosen)
            await settled()
            patient.is_ill = False
            assert await bus.dead_letters.replay(letter) == 1
            assert trio.current_time() == started
        assert await bus.dead_letters.list() == []


async def test_a_replay_that_is_cancelled_makes_way_for_a_later_one(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus(buffer=10_000)
    patient = patient_in(bus, hold=True, seconds=1)
    async with bus:
        await publish(bus, *[Noted(n, "a") for n in range(150)])
        patient.calls.clear()
        patient.is_ill = False
        counts = []

        async def replay_later() -> None:
            counts.append(await bus.dead_letters.replay(range(121, 151)))

        async with trio.open_nursery() as later:
            with trio.move_on_after(50):
                async with trio.open_nursery() as first:
                    first.start_soon(bus.dead_letters.replay, range(1, 121))
                    await trio.sleep(0.5)
                    later.start_soon(replay_later)
        await bus.wait_idle()
        assert counts == [0]  # for what the cancelled one had not begun comes before
        assert await bus.dead_letters.replay() == 50
    assert patient.calls == list(range(150))


async def test_a_subscription_that_goes_during_a_long_replay_leaves_what_it_held_back(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus(buffer=10_000)
    ill = True

    async def handle(event: Noted) -> None:
        if ill:
            raise ValueError
        if event.number == 149:
            subscription.unsubscribe()
        await trio.sleep(1)

    subscription = bus.subscribe(Noted, handle, hold=True, retry=ONCE)
    async with bus:
        await publish(bus, *[Noted(n, "a") for n in range(150)])
        ill = False
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _publish() -> None:
                await trio.sleep(0.5)
                await bus.publish(Noted(150, "a"))

            assert await bus.dead_letters.replay() == 150
        assert numbers(await bus.dead_letters.list()) == [150]


async def test_what_failed_by_itself_during_a_long_replay_does_not_go_with_it(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus(buffer=10_000)
    seen: list[int] = []

    @bus.subscribe(Noted, retry=ONCE)
    async def handle(event: Noted) -> None:
        seen.append(event.number)
        if len(seen) <= 250 or event.number == 999:
            raise ValueError

    async with bus:
        await publish(bus, *[Noted(n, "a") for n in range(250)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.publish, Noted(999, "a"))
            assert await bus.dead_letters.replay() == 250
        await bus.wait_idle()
        assert numbers(await bus.dead_letters.list()) == [999]
    assert seen.count(999) == 1


async def test_the_hold_stays_until_the_last_letter_is_dealt_with(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus()
    patient = patient_in(bus, hold=True)
    async with bus:
        first, second, third = await held(bus, patient)
        assert await bus.dead_letters.replay(first.id) == 1
        await publish(bus, Noted(4, "a"))
        letters = await bus.dead_letters.list()
        assert letters[:2] == [second, third]
        assert numbers(letters) == [2, 3, 4]
        assert await bus.dead_letters.replay(group="default") == 3
    assert patient.calls == [1, 2, 3, 4]


async def test_a_letter_is_not_replayed_before_an_earlier_one_of_its_aggregate(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus()
    patient = patient_in(bus, hold=True)
    async with bus:
        letters = await held(bus, patient)
        assert await bus.dead_letters.replay([letters[1].id, letters[2].id]) == 0
        assert await bus.dead_letters.list() == letters
    assert patient.calls == []


async def test_a_replay_that_fails_again_holds_the_rest_back(new_bus, autojump_clock) -> None:
    bus = new_bus()
    patient = patient_in(bus, hold=True)
    async with bus:
        first, second, third = await held(bus, patient)
        patient.is_ill = True
        assert await bus.dead_letters.replay(group="default") == 0
        assert patient.calls == [1]
        again, *others = await bus.dead_letters.list()
        assert (again.id, again.attempts) == (first.id, 2)
        assert others == [second, third]


async def test_discarding_lifts_the_hold(new_bus, autojump_clock) -> None:
    bus = new_bus()
    patient = patient_in(bus, hold=True)
    async with bus:
        first, second, third = await held(bus, patient)
        await bus.dead_letters.discard(first.id)
        assert await bus.dead_letters.replay([second.id, third.id]) == 2
        await publish(bus, Noted(4, "a"))
    assert patient.calls == [2, 3, 4]


async def test_with_hold_an_event_that_where_does_not_want_is_no_letter(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus()
    patient = patient_in(bus, hold=True, where=lambda event: event.number < 10)
    async with bus:
        await publish(bus, Noted(1, "a"), Noted(11, "a"), Noted(2, "a"))
        assert numbers(await bus.dead_letters.list()) == [1, 2]
    assert patient.calls == [1]


async def test_a_group_that_is_not_ordered_replays_what_it_held_back(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus()
    group = bus.group("unordered", ordering="none", workers=4)
    calls: list[Any] = []

    async def slow(event: Noted) -> None:
        calls.append(event.number)
        await trio.sleep(1)
        if len(calls) == 1:
            raise ValueError

    group.subscribe(Noted, slow, hold=True, retry=ONCE)
    async with bus:
        for number in (1, 2, 3):
            await publish(bus, Noted(number, "a"))
        assert numbers(await bus.dead_letters.list()) == [1, 2, 3]
        assert await bus.dead_letters.replay(group="unordered") == 3
    assert calls == [1, 1, 2, 3]


async def test_replaying_a_group_that_is_not_there_names_those_that_are(
    new_bus, autojump_clock
) -> None:
    bus = new_bus()
    bus.group("mail")
    async with bus:
        with pytest.raises(InvalidOption, match=r"'male': .* it has: 'default', 'mail'"):
            await bus.dead_letters.replay(group="male")
