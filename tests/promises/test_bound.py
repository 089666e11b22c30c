"""Dead letters of a bus without a store are bounded in number."""

import trio

from tests.events import Noted, Other
from tests.promises.patients import ONCE, numbers, patient_in, publish
from tests.settled import settled
from triobus import DomainEvent, EventBus, Retry


async def fail(event: DomainEvent) -> None:
    raise ValueError


async def test_a_thousand_letters_are_kept_and_the_dropped_are_counted(
    autojump_clock,
) -> None:
    bus = EventBus(workers=1, buffer=10_000)
    patient_in(bus)
    async with bus:
        await publish(bus, *[Noted(n) for n in range(1000)])
        assert bus.dead_letters.dropped == 0
        await publish(bus, *[Noted(n) for n in range(1000, 1003)])
        assert bus.dead_letters.dropped == 3
        letters = await bus.dead_letters.list(limit=5000)
    assert numbers(letters) == list(range(3, 1003))


async def test_a_letter_that_holds_back_its_aggregate_is_not_dropped_for_newer_ones(
    autojump_clock,
) -> None:
    bus = EventBus(workers=1, buffer=10_000)
    patient = patient_in(bus, hold=True)
    async with bus:
        await publish(bus, Noted(0, "held"), Noted(1, "held"))
        await publish(bus, *[Noted(n) for n in range(2, 2002)])
        assert numbers(await bus.dead_letters.list(aggregate_id="held")) == [0]
        assert bus.dead_letters.dropped == 1001
        patient.is_ill = False
        await publish(bus, Noted(2002, "held"))
        assert numbers(await bus.dead_letters.list(aggregate_id="held")) == [0, 2002]
        assert await bus.dead_letters.replay() == 1001
    replayed = patient.calls[-1001:]
    assert sorted(replayed) == [0, *range(1003, 2003)]
    assert replayed.index(0) < replayed.index(2002)


async def test_a_letter_that_is_being_replayed_is_not_dropped_for_newer_ones(
    autojump_clock,
) -> None:
    bus = EventBus(workers=2, buffer=10_000)
    patient = patient_in(bus, retry=Retry(attempts=2, delay=60, max_delay=60, jitter=0))
    bus.subscribe(Other, fail, retry=ONCE)
    async with bus:
        await publish(bus, Noted(1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.dead_letters.replay)
            await settled()
            patient.is_ill = False
            await bus.publish_many([Other(n) for n in range(1001)])
            await settled()
            assert bus.dead_letters.dropped == 1
        letters = await bus.dead_letters.list(limit=2000)
    assert patient.calls == [1, 1, 1, 1]
    assert len(letters) == 1000


async def test_no_more_than_the_bound_are_kept_once_a_replay_has_failed_again(
    autojump_clock,
) -> None:
    bus = EventBus(workers=2, buffer=10_000)
    patient_in(bus, retry=Retry(attempts=2, delay=60, max_delay=60, jitter=0))
    bus.subscribe(Other, fail, retry=ONCE)
    async with bus:
        await publish(bus, *[Noted(n) for n in range(1000)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.dead_letters.replay)
            await settled()
            await bus.publish_many([Other(n) for n in range(50)])
            await settled()
        letters = await bus.dead_letters.list(limit=2000)
        assert len(letters) == 1050
        await publish(bus, Other(50))
        letters = await bus.dead_letters.list(limit=2000)
        assert len(letters) == 1000
        assert bus.dead_letters.dropped == 51


async def test_a_letter_from_before_its_handler_held_back_is_not_dropped_when_it_does(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus(workers=1, buffer=10_000)
    before = bus.subscribe(Noted, fail, name="it", retry=ONCE)
    async with bus:
        await publish(bus, Noted(0, "held"))
        before.unsubscribe()
        patient_in(bus, name="it", hold=True)
        await publish(bus, Noted(1, "held"), *[Noted(n) for n in range(2, 1100)])
        assert numbers(await bus.dead_letters.list(limit=1)) == [0]
