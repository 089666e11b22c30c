"""Many of everything at once, and statistics that are exact when it is over."""

import gc
from collections import defaultdict
from itertools import chain

import trio

from tests.events import Noted
from triobus import EventBus, Retry, SqliteEventStore


def finished(bus: EventBus) -> dict[str, int]:
    """Return what each group has handled, after a look whether the counters add up."""
    found = bus.statistics()
    for name in ("handled", "failed_attempts", "retries", "dead_lettered", "worker_count"):
        assert getattr(found, name) == sum(getattr(g, name) for g in found.groups.values()), name
    for group in found.groups.values():
        assert (group.queued, group.in_flight, group.waiting_for_retry, group.lag) == (0, 0, 0, 0)
        assert group.published == group.handled
    return {name: group.handled for name, group in found.groups.items()}


async def test_100_000_aggregates_go_through_a_durable_bus_in_order_and_leave_nothing(tmp_path):
    handled = defaultdict(list)

    async def handler(event):
        handled[event.key].append(event.number)

    bus = EventBus(SqliteEventStore(tmp_path / "a.db"), buffer=6000)
    bus.subscribe(Noted, handler)
    keys = [str(key) for key in range(100_000)]
    async with bus:
        for first in range(0, 100_000, 5000):
            batch = [Noted(1, key) for key in keys[first : first + 5000]]
            await bus.publish_many(batch)
        await bus.publish_many([Noted(2, key) for key in keys[::100]])
        await bus.wait_idle()
        assert finished(bus) == {"default": 101_000}
        # An aggregate with nothing to do costs nothing.
        assert not bus._life.shells["default"].lanes._lanes
    assert list(map(len, handled.values())).count(2) == 1000
    assert handled == {key: [1, 2] if int(key) % 100 == 0 else [1] for key in keys}


async def test_256_publishers_that_are_faster_than_the_disk_get_every_event_stored_in_order(
    tmp_path,
):
    positions = {}
    handled = defaultdict(list)

    async def publish(key):
        positions[key] = [(await bus.publish(Noted(n, key))).position for n in range(8)]

    async def handler(event):
        handled[event.key].append(event.number)

    store = SqliteEventStore(tmp_path / "a.db")
    bus = EventBus(store, buffer=50)
    bus.subscribe(Noted, handler)
    async with bus:
        async with trio.open_nursery() as nursery:
            for publisher in range(256):
                nursery.start_soon(publish, str(publisher))
        await bus.wait_idle()
        assert finished(bus) == {"default": 2048}
    assert sorted(chain(*positions.values())) == list(range(1, 2049))
    async with store:
        stored = {s.position: (s.event.key, s.event.number) async for s in store.read()}
    for key, places in positions.items():
        assert [stored[place] for place in places] == [(key, n) for n in range(8)]
        assert handled[key] == list(range(8))


async def test_a_slow_group_holds_up_no_other_and_its_backlog_is_on_disk_and_not_in_memory(
    tmp_path,
):
    gate, started, caught_up = trio.Event(), trio.Event(), trio.Event()
    fast, slow = [], defaultdict(list)

    async def handle_slowly(event):
        started.set()
        await gate.wait()
        slow[event.key].append(event.number)

    async def handler(event):
        fast.append(event.number)
        if len(fast) == 10_000:
            caught_up.set()

    bus = EventBus(SqliteEventStore(tmp_path / "a.db"), buffer=100)
    bus.subscribe(Noted, handler)
    bus.group("slow", buffer=100, workers=2).subscribe(Noted, handle_slowly)
    async with bus:
        for first in range(0, 10_000, 500):
            await bus.publish_many([Noted(n, str(n % 50)) for n in range(first, first + 500)])
        await caught_up.wait()
        await started.wait()
        while bus.statistics().groups["default"].lag:  # what is being recorded is in memory too
            await trio.lowlevel.checkpoint()
        found = bus.statistics().groups["slow"]
        gc.collect()
        alive = sum(type(thing) is Noted for thing in gc.get_objects())
        gate.set()  # before anything is asserted: an error would wait for the handlers
        await bus.wait_idle()
        assert finished(bus) == {"default": 10_000, "slow": 10_000}
    assert (found.lag, found.handled, found.in_flight) == (10_000, 0, 2)
    # The buffer of 100, what workers have, and what a commit or two have just let go.
    assert alive < 200
    assert sorted(fast) == list(range(10_000))
    assert slow == {str(key): list(range(key, 10_000, 50)) for key in range(50)}


async def test_10_000_retries_that_wait_at_once_occupy_nobody_and_come_when_they_are_due(
    autojump_clock,
):
    attempts = defaultdict(list)

    async def handler(event):
        attempts[event.number].append(trio.current_time())
        if event.number < 10_000 and len(attempts[event.number]) == 1:
            raise ValueError(event.number)

    retry = Retry(attempts=2, delay=60, max_delay=120, jitter=1)
    bus = EventBus(buffer=float("inf"))
    bus.subscribe(Noted, handler, retry=retry)
    async with bus:
        await bus.publish_many([Noted(n, str(n)) for n in range(10_000)])
        while bus.statistics().waiting_for_retry < 10_000:
            await trio.lowlevel.checkpoint()
        await bus.publish_and_wait(Noted(10_000))
        found = bus.statistics()
        assert (found.in_flight, found.handled, found.failed_attempts) == (0, 1, 10_000)
        await bus.wait_idle()
        assert finished(bus) == {"default": 10_001}
        assert bus.statistics().retries == 10_000
    waits = [times[1] - times[0] for number, times in attempts.items() if number < 10_000]
    assert len(waits) == 10_000
    assert 60 <= min(waits) < 61 < 119 < max(waits) <= 120
    assert len(set(waits)) > 9000  # the jitter has spread them
