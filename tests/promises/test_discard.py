"""Dead letters are discarded, before and while they are replayed."""

import pytest
import trio

from tests.events import Noted
from tests.promises.patients import ONCE, numbers, patient_in, publish, three_letters
from tests.settled import settled
from triobus import EventBus, Retry, UnknownDeadLetter


async def test_discarded_letters_are_forgotten(new_bus, autojump_clock) -> None:
    bus = new_bus()
    patient = patient_in(bus)
    async with bus:
        first, second, third = await three_letters(bus, patient)
        assert await bus.dead_letters.discard([third.id, first.id]) == 2
        assert await bus.dead_letters.list() == [second]
        assert await bus.dead_letters.discard([]) == 0
    assert patient.calls == []


async def test_a_letter_that_is_discarded_before_its_replay_is_not_delivered(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus(workers=1)
    calls: list[int] = []

    async def slow(event: Noted) -> None:
        calls.append(event.number)
        if event.number < 3 and len(calls) <= 2:
            raise ValueError
        await trio.sleep(1)

    bus.subscribe(Noted, slow, retry=ONCE)
    async with bus:
        await publish(bus, Noted(1), Noted(2))
        first, second = await bus.dead_letters.list()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _discard() -> None:
                await trio.sleep(0.5)
                await bus.dead_letters.discard(second.id)

            assert await bus.dead_letters.replay([first.id, second.id]) == 1
        assert await bus.dead_letters.list() == []
    assert calls == [1, 2, 1]


async def test_a_letter_that_is_discarded_while_its_replay_waits_for_a_retry_holds_up_nothing(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus()
    patient = patient_in(bus, retry=Retry(attempts=2, delay=60, max_delay=60, jitter=0))
    async with bus:
        await publish(bus, Noted(1, "a"))
        (letter,) = await bus.dead_letters.list()
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.dead_letters.replay, letter.id)
            await settled()
            patient.is_ill = False
            await bus.publish(Noted(2, "a"))
            await bus.dead_letters.discard(letter.id)
            await bus.wait_idle()
        assert trio.current_time() == started
        assert await bus.dead_letters.list() == []
    assert patient.calls == [1, 1, 1, 2]


async def test_a_letter_that_is_discarded_while_its_replay_runs_is_not_retried_when_that_fails(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus()
    calls: list[int] = []

    @bus.subscribe(Noted, retry=Retry(attempts=2, delay=60, max_delay=60, jitter=0))
    async def handle(event: Noted) -> None:
        calls.append(event.number)
        if event.number == 1:
            await trio.sleep(1)
            raise ValueError

    async with bus:
        await publish(bus, Noted(1, "a"))
        (letter,) = await bus.dead_letters.list()
        calls.clear()
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.dead_letters.replay)
            await trio.sleep(0.5)
            await bus.dead_letters.discard(letter)
            await bus.publish(Noted(2, "a"))
        assert trio.current_time() == started + 1
        await bus.wait_idle()
        assert await bus.dead_letters.list() == []
    assert calls == [1, 2]


async def test_a_letter_of_an_earlier_start_is_not_taken_for_one_of_now(
    autojump_clock,
) -> None:
    bus = EventBus()
    patient_in(bus)
    async with bus:
        await publish(bus, Noted(1))
        (before,) = await bus.dead_letters.list()
    async with bus:
        await publish(bus, Noted(2))
        with pytest.raises(UnknownDeadLetter):
            await bus.dead_letters.discard(before)
        with pytest.raises(UnknownDeadLetter):
            await bus.dead_letters.replay(before)
        assert numbers(await bus.dead_letters.list()) == [2]
