"""The way of one event through the package: which functions it enters, in how many files.

`python -m benchmarks.trips` prints a table. For each trip it counts the calls of the package's
functions (`entries`), the files that these are in (`files`), and how often a function is in another
file than the one that was entered before it (`moves`), in Trio's thread and in that of the store.
A coroutine that goes on after it has waited is not entered again. A trip ends when the event is
handled and, with a store, recorded. Each is made once before it is counted.
"""

import logging
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import attrs
import trio

import triobus
from benchmarks.work import Ticked, events_of
from triobus import EventBus, Retry, SqliteEventStore

PACKAGE = str(Path(triobus.__file__).parent) + "/"

_INNER = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>", "<lambda>"}
_ENOUGH = 0.1
"""Seconds after which a trip is over, commits included."""

Step = Callable[[Ticked], Awaitable[object]]


@attrs.frozen
class Trip:
    """What was counted of one trip."""

    name: str
    entries: int
    files: int
    moves: int


@attrs.define(eq=False)
class Counter:
    """Notes the functions of the package that are called while it is on."""

    is_on: bool = False
    names: list[str] = attrs.field(factory=list)
    _frames: set[FrameType] = attrs.field(factory=set)
    """All that were ever entered: a coroutine may go on in a later trip."""

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """Note a call, as `sys.setprofile` reports it."""
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PACKAGE) or code.co_name in _INNER:
            return
        is_new = frame not in self._frames
        self._frames.add(frame)
        if is_new and self.is_on:
            self.names.append(f"{code.co_filename.removeprefix(PACKAGE)}:{code.co_name}")

    def trip(self, name: str) -> Trip:
        """Return what was counted, and begin anew."""
        files = [entry.partition(":")[0] for entry in self.names]
        moves = sum(one != other for one, other in pairwise(files))
        found = Trip(name, len(files), len(set(files)), moves)
        self.names = []
        return found


async def _counted(counter: Counter, name: str, step: Step, *events: Ticked) -> Trip:
    for event in events:
        counter.trip(name)
        counter.is_on = True
        await step(event)
        await trio.sleep(_ENOUGH)
        counter.is_on = False
    return counter.trip(name)


async def _in_memory(counter: Counter) -> list[Trip]:
    bus = EventBus()
    bus.subscribe(Ticked, _handle)
    async with bus:
        events = events_of(4, 1)
        one = await _counted(counter, "publish in memory", bus.publish, *events[:2])
        many = await _counted(
            counter, "publish_many in memory", lambda event: bus.publish_many([event]), *events[2:]
        )
    return [one, many]


async def _with_sqlite(counter: Counter, path: Path) -> list[Trip]:
    fails: set[int] = set()

    async def handle(event: Ticked) -> None:
        if id(event) in fails:
            fails.discard(id(event))
            raise ValueError("once")

    async def fail_once(event: Ticked) -> None:
        fails.add(id(event))
        await bus.publish(event)

    async def replay(_: Ticked) -> int:
        return await bus.dead_letters.replay()

    async def lose(event: Ticked) -> None:
        if event in lost:
            raise ValueError("for good")

    lost: list[Ticked] = []
    events = events_of(6, 1)
    bus = EventBus(SqliteEventStore(path))
    bus.subscribe(Ticked, handle, retry=Retry(delay=0))
    trips = []
    async with bus:
        trips.append(await _counted(counter, "publish with SQLite", bus.publish, *events[:2]))
        trips.append(
            await _counted(counter, "publish and retry with SQLite", fail_once, *events[2:4])
        )
    for _ in range(2):
        bus = EventBus(SqliteEventStore(path))
        bus.subscribe(Ticked, handle, retry=Retry(delay=0))
        counter.trip("")
        counter.is_on = True
        async with bus:
            counter.is_on = False
            entered = counter.trip("entering the block with SQLite")
    trips.append(entered)
    bus = EventBus(SqliteEventStore(path.with_name("letters.db")))
    bus.subscribe(Ticked, lose, retry=Retry(attempts=1))
    async with bus:
        for event in events[4:]:
            lost.append(event)
            await bus.publish(event)
            await bus.wait_idle()
            lost.remove(event)
            trip = await _counted(counter, "replay of one with SQLite", replay, event)
        trips.append(trip)
    return trips


async def _handle(event: Ticked) -> None:
    pass


def trips() -> list[Trip]:
    """Make all trips, and return what was counted."""
    counter = Counter()
    logging.getLogger("triobus").addHandler(logging.NullHandler())
    threading.setprofile(counter)
    sys.setprofile(counter)
    try:
        with tempfile.TemporaryDirectory() as directory:
            found = trio.run(_in_memory, counter)
            found += trio.run(_with_sqlite, counter, Path(directory) / "trips.db")
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return found


def main() -> None:
    """Print the table."""
    print(f"{'trip':<32}{'entries':>9}{'files':>7}{'moves':>7}")
    for trip in trips():
        print(f"{trip.name:<32}{trip.entries:>9}{trip.files:>7}{trip.moves:>7}")


if __name__ == "__main__":
    main()
