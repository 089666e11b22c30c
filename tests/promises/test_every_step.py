"""A durable bus is cancelled before every step of the scheduler, and started again.

The store in memory keeps what it has, as a file does, so that each of these crashes is followed by
a recovery in the same program.
"""

import attrs
import trio

from tests.events import Noted
from tests.every_step import at_every_step
from triobus import EventBus, MemoryEventStore, Retry


@attrs.define
class Record:
    """What one run has seen."""

    store: MemoryEventStore = attrs.field(factory=MemoryEventStore)
    attempted: set = attrs.field(factory=set)
    accepted: dict = attrs.field(factory=dict)
    """Positions by number."""
    handled: list = attrs.field(factory=list)
    """Group, key and number, and which life of the bus it was."""
    life: int = 0
    settled: set = attrs.field(factory=set)
    """Group and number of what was recorded as handled when the first life ended."""


def make_bus(record, fails_once):
    bus = EventBus(record.store, workers=2, buffer=2)
    retry = Retry(delay=5, factor=1, jitter=0)

    def handler(group):
        async def handle(event):
            await trio.lowlevel.checkpoint()
            if (group, event.number) in fails_once:
                fails_once.discard((group, event.number))
                raise OSError
            record.handled.append((group, event.key, event.number, record.life))

        return handle

    bus.subscribe(Noted, handler("default"), name="it", retry=retry)
    bus.group("mail", workers=1).subscribe(Noted, handler("mail"), name="it", retry=retry)
    return bus


async def publish(record, bus, numbers):
    events = [Noted(number, "ab"[number % 2]) for number in numbers]
    record.attempted.update(numbers)
    published = await bus.publish_many(events)
    record.accepted.update(
        (number, place.position) for number, place in zip(numbers, published, strict=True)
    )


async def crash_and_recover(record, scope):
    fails_once = {("default", 1), ("mail", 2), ("default", 4)}
    with scope:
        async with make_bus(record, fails_once) as bus:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publish, record, bus, [0])
                nursery.start_soon(publish, record, bus, [1, 2, 3])
            await publish(record, bus, [4, 5])
            await bus.wait_idle()
            await publish(record, bus, [6])
    record.life = 1
    async with record.store:
        groups = {group.name: group for group in await record.store._groups()}
        async for stored in record.store.read():
            for name, group in groups.items():
                ranges = [(1, group.offset), *group.ranges]
                if any(first <= stored.position <= last for first, last in ranges):
                    record.settled.add((name, stored.event.number))
    async with make_bus(record, set()) as bus:
        await bus.publish(Noted(100, "a"))


def check(record):
    stored = [(r.position, r.data) for r in record.store._log]
    assert [position for position, _ in stored] == list(range(1, len(stored) + 1))
    for group in ("default", "mail"):
        mine = [(key, n, life) for name, key, n, life in record.handled if name == group]
        numbers = {n for _, n, _ in mine}
        # Nothing that was accepted is lost, and nothing that was not even tried appears.
        if record.accepted or (group, 0) in record.settled:
            assert set(record.accepted) <= numbers <= record.attempted | {100}
        # What was recorded is not handled again, and the rest at most once more.
        for number in numbers:
            lives = [life for _, n, life in mine if n == number]
            assert lives in ([0], [1], [0, 1]), (group, number, lives)
            if (group, number) in record.settled:
                assert lives == [0], (group, number)
        # Every aggregate is handled in order, in each life.
        for key in "ab":
            for life in (0, 1):
                order = [n for k, n, when in mine if (k, when) == (key, life)]
                positions = record.store._log
                by_number = {_number(r): r.position for r in positions}
                assert order == sorted(order, key=by_number.__getitem__), (group, key, life)


def _number(record):
    return int(record.data.split(b'"number":')[1].split(b",")[0].rstrip(b"}"))


def test_a_bus_that_is_cancelled_at_any_step_loses_nothing_and_repeats_only_what_was_not_recorded():
    steps = at_every_step(Record, crash_and_recover, check)
    assert steps > 50
