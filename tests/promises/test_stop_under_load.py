"""A bus is stopped while 256 publishers publish: each of them knows what became of its events."""

import itertools
from collections import Counter, defaultdict

import pytest
import trio

from tests.events import Noted
from triobus import BusClosed, EventBus, OutcomeUnknown, current_delivery

PUBLISHERS = 256


class Publishers:
    """Publish until the bus refuses, and note what was said of each event."""

    def __init__(self, bus):
        self.bus = bus
        self.published = {}
        self.refused = set()
        self.unknown = set()

    async def publish(self, key):
        for number in itertools.count():
            event = Noted(number, key)
            try:
                place = await self.bus.publish(event)
            except BusClosed:
                self.refused.add(event.event_id)
                return
            except OutcomeUnknown:
                self.unknown.add(event.event_id)
                return
            self.published[event.event_id] = place.position


async def stopped_under_load(new_store, accepted, timeout, rest):
    """Stop a bus once so many events are accepted, start another one, and compare."""
    positions = defaultdict(list)

    async def handler(event):
        await trio.sleep(rest)
        positions[event.key].append(current_delivery().position)

    def new_bus():
        bus = EventBus(new_store(), buffer=float("inf"))
        bus.subscribe(Noted, handler, name="handler")
        return bus

    bus = new_bus()
    publishers = Publishers(bus)
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        for number in range(PUBLISHERS):
            nursery.start_soon(publishers.publish, str(number % 32))
        while len(publishers.published) < accepted:
            await trio.lowlevel.checkpoint()
        report = await bus.stop(timeout=timeout)
    assert len(publishers.refused) + len(publishers.unknown) == PUBLISHERS
    async with new_store() as store:
        stored = {s.event.event_id: s.position async for s in store.read()}
    assert stored.keys() - publishers.unknown == publishers.published.keys()
    assert publishers.published.items() <= stored.items()
    handled = sum(map(len, positions.values()))
    assert (report.settled["default"], report.left["default"]) == (handled, len(stored) - handled)

    async with new_bus():
        pass  # what was left is handled, and nothing again
    for places in positions.values():
        assert places == sorted(places)
    assert Counter(itertools.chain(*positions.values())) == Counter(stored.values())
    return report.left["default"]


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize("timing", range(10))
async def test_publishers_know_what_was_accepted_when_a_bus_is_stopped(new_store, timing):
    await stopped_under_load(new_store, timing * 40, timeout=timing * 0.0005, rest=0)


@pytest.mark.parametrize("timing", range(5))
async def test_publishers_know_it_in_virtual_time_too(new_store, timing, autojump_clock):
    left = await stopped_under_load(new_store, 1 + timing * 80, timeout=timing * 0.1, rest=0.01)
    assert left > 0  # 4 workers cannot handle so many in that time
