"""A bus drains: what was accepted is handled, and outsiders are refused."""

import pytest
import trio

from tests.events import Noted
from tests.promises.lives import Gate, noting
from tests.settled import settled
from triobus import BusClosed, EventBus, Retry


async def test_leaving_the_block_handles_all_that_was_accepted(new_bus, autojump_clock):
    bus = new_bus(workers=2)
    seen = noting(bus)
    async with bus:
        await bus.publish_many([Noted(number, "one") for number in range(300)])
    assert seen == list(range(300))
    assert bus.statistics().handled == 300


async def test_leaving_the_block_waits_for_retries(new_bus, autojump_clock):
    attempts = []
    bus = new_bus()

    @bus.subscribe(Noted, retry=Retry(attempts=3, delay=10, factor=3, jitter=0))
    async def fails_twice(event):
        attempts.append(trio.current_time() - started)
        if len(attempts) < 3:
            raise OSError

    async with bus:
        started = trio.current_time()
        await bus.publish(Noted(1))
    assert attempts == [0, 10, 40]
    assert bus.statistics().handled == 1


async def test_handlers_may_publish_while_the_bus_drains_and_that_is_drained_too(
    new_bus, autojump_clock
):
    seen = []
    bus = new_bus(workers=1, buffer=1)

    @bus.subscribe(Noted)
    async def count_down(event):
        seen.append((event.number, bus.statistics().running))
        if event.number:
            await trio.lowlevel.checkpoint()
            await bus.publish(Noted(event.number - 1))

    async with bus:
        await bus.publish(Noted(20))
    assert seen[-1] == (0, False)
    assert [number for number, _ in seen] == list(range(20, -1, -1))


async def test_outsiders_get_bus_closed_while_the_bus_drains(autojump_clock):
    gate = Gate()
    bus = EventBus()
    bus.subscribe(Noted, gate)
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await bus.publish(Noted(1))
        nursery.start_soon(bus.stop)
        await settled()
        with pytest.raises(BusClosed, match="only its own handlers may still publish"):
            await bus.publish(Noted(2))
        with pytest.raises(BusClosed):
            bus.publish_nowait(Noted(2))
        with pytest.raises(BusClosed):
            await bus.publish_many([Noted(2)])
        gate.open.set()
    assert gate.finished == [1]
    assert bus.statistics().published == 1


async def test_publishers_that_wait_for_room_get_bus_closed_when_the_bus_stops(autojump_clock):
    gate = Gate()
    refused = []
    bus = EventBus(workers=1, buffer=1)
    bus.subscribe(Noted, gate)

    async def publish(publish, event):
        with pytest.raises(BusClosed, match="stop"):
            await publish(event)
        refused.append(publish)

    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await bus.publish(Noted(1))
        await settled()
        await bus.publish(Noted(2))
        ways = [bus.publish, bus.publish_and_wait]
        for way in ways:
            nursery.start_soon(publish, way, Noted(3))
        nursery.start_soon(publish, bus.publish_many, [Noted(4), Noted(5)])
        await settled()
        nursery.start_soon(bus.stop)
        await settled()
        assert len(refused) == 3
        gate.open.set()
    assert gate.finished == [1, 2]
