"""What runs while everything that reaches the disk is recorded: `power_recording` starts it.

It tells the recording, between the system calls, what it knows: which events were accepted, which
were handled by whom, and which progress was recorded.
"""

import ctypes
import logging
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import attrs
import trio

import triobus
from tests.proofs.torture import power_effects
from tests.proofs.torture.power_effects import Booked
from triobus._groups.instruments import Range, Watcher
from triobus.stores.sqlite import _connection, _writing

LIVES = 3
"""The first ends as a killed process does, the others as they should."""
PUBLISHERS = 3
EVENTS_OF_PUBLISHER = 9
POISON = 13
"""Every number that is divisible by it fails for good."""
FRAMES_BEFORE_CHECKPOINT = 60
"""So few, so that even a short life sees several checkpoints."""


@attrs.frozen
class Moved(triobus.DomainEvent):
    """Something has happened to an aggregate."""

    event_type: ClassVar[str] = "power.moved"
    number: int
    more: str = ""

    @property
    def aggregate_id(self) -> str:
        return f"aggregate-{self.number % 5}"


@attrs.frozen
class Looked(triobus.DomainEvent):
    """Something that the group "mail" does not want to know."""

    event_type: ClassVar[str] = "power.looked"
    number: int


TYPES = (Moved, Looked, Booked)
GROUPS = ("all", "mail", power_effects.GROUP)


@attrs.define(eq=False)
class Recorded(Watcher):
    """Hears when the progress of a group is in the store."""

    mark: Callable[..., None]

    def recorded(self, group: str, offset: int, ranges: Sequence[Range]) -> None:
        ranges = [f"{first}-{last}" for first, last in ranges if last is not None]
        self.mark("recorded", group, offset, *ranges)


@contextmanager
def quiet() -> Iterator[None]:
    """Log nothing of the dead letters that there are to be."""
    logger, handler = logging.getLogger("triobus"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def events(life: int, publisher: int) -> list[triobus.DomainEvent]:
    """Return what one of the publishers publishes, some of it larger than a page."""
    numbers = range(1 + 100 * life + 10 * publisher, 1 + 100 * life + 10 * publisher + 9)
    return [
        Looked(number) if number % 4 == 2 else Moved(number, "x" * (6000 if number % 7 == 0 else 9))
        for number in numbers[:EVENTS_OF_PUBLISHER]
    ]


def new_bus(path: str, synchronous: str, handled: Callable[..., None]) -> triobus.EventBus:
    """Return a bus with three groups; `handled(group, position)` is told what they have done.

    "all" wants every event, "mail" and "books" want those that have moved something.
    """
    store = triobus.SqliteEventStore(
        path,
        synchronous="full" if synchronous == "full" else "normal",
        types=TYPES,
    )
    bus = triobus.EventBus(store, workers=2)
    retry = triobus.Retry(attempts=2, delay=0.0001)

    def handler(group: str) -> Callable[[triobus.DomainEvent], object]:
        async def handle(event: Moved | Looked | Booked) -> None:
            await trio.lowlevel.checkpoint()
            delivery = triobus.current_delivery()
            if _fails(event.number, delivery.attempt):
                raise ValueError(event.number)
            handled(group, delivery.position)

        return handle

    bus.group("all", workers=2, start="beginning").subscribe(
        TYPES, handler("all"), name="it", retry=retry
    )
    bus.group("mail", workers=2, start="beginning").subscribe(
        Moved, handler("mail"), name="it", retry=retry
    )
    power_effects.keep_books(bus, Moved, retry, _fails, handled)
    return bus


def _fails(number: int, attempt: int) -> bool:
    return number % POISON == 0 or (number % 11 == 0 and attempt == 1)


async def open_books(bus: triobus.EventBus) -> None:
    """Make the table of the books in the store of a bus, unless it is there."""
    assert bus.store is not None
    await bus.store.transact(power_effects.make_table)


async def live(path: str, life: int, synchronous: str, mark: Callable[..., None]) -> None:
    """Publish and handle; the first life ends in the middle of that."""
    bus = new_bus(path, synchronous, lambda *words: mark("handled", *words))
    bus.add_instrument(Recorded(mark))

    def accepted(published: triobus.Published) -> None:
        mark("accepted", published.position, published.event_id)

    async def publish_singly(publisher: int) -> None:
        for event in events(life, publisher):
            accepted(await bus.publish(event))

    async def publish_together(publisher: int) -> None:
        batch = events(life, publisher)
        for published in await bus.publish_many(batch[:4]) + await bus.publish_many(batch[4:]):
            accepted(published)

    async with bus:
        await open_books(bus)
        async with trio.open_nursery() as nursery:
            for publisher in range(PUBLISHERS):
                nursery.start_soon(publish_singly, publisher)
            nursery.start_soon(publish_together, PUBLISHERS)
        if life == 0:
            os._exit(0)


def switch_off() -> None:
    """Let no store of this process synchronise anything from the moment when it writes."""
    begin = _writing.Writer._begin_to_write

    def begin_without(self: _writing.Writer, connection: sqlite3.Connection) -> None:
        begin(self, connection)
        connection.execute("PRAGMA synchronous = OFF")

    _writing.Writer._begin_to_write = begin_without  # type: ignore[method-assign]  # a sabotage


def main(path: str, life: str, synchronous: str, bug: str = "") -> None:
    """Live once, perhaps with a bug. The shim must be preloaded, or there is nobody to tell."""
    logging.getLogger("triobus").addHandler(logging.NullHandler())
    shim = ctypes.CDLL(None)
    _connection.FRAMES_BEFORE_CHECKPOINT = FRAMES_BEFORE_CHECKPOINT
    if synchronous == "off":
        switch_off()
    power_effects.plant(bug)

    def mark(*words: object) -> None:
        shim.power_mark(" ".join(map(str, words)).encode())

    trio.run(live, path, int(life), synchronous, mark)


if __name__ == "__main__":
    main(*sys.argv[1:])
