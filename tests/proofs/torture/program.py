"""The program under test, as it lives in a child: what it does, it reports in lines.

A line is there whole or not at all, and outlives the process:

    phase P                 what the program is about to do
    publishing N, accepted N POSITION, refused N, unknown N
    attempt G N K           attempt K of event N in group G begins; failed G N K
    handled G N
    replaying G N           the same for a dead letter; replayed G N
    committing T, committed a commit begins, at that time; it is over and was good
    stopped E               the bus ended with an error of its store
    done
"""

import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, ClassVar
from uuid import UUID

import attrs
import trio

import triobus
from triobus.stores import EventStore

GROUPS = ("default", "mail")
AGGREGATES = 7
POISON = 13
"""Every number that is divisible by it fails for good, until it is replayed."""
SHAKY = 11
"""Every number that is divisible by it fails once."""
ATTEMPTS = 2


@attrs.frozen
class Moved(triobus.DomainEvent):
    """Something has happened to an aggregate."""

    event_type: ClassVar[str] = "torture.moved"
    number: int
    padding: str = ""

    @property
    def aggregate_id(self) -> str:
        return f"aggregate-{self.number % AGGREGATES}"


def moved(number: int, size: int = 0) -> Moved:
    """Return the event of a number, which is the same one in every life."""
    return Moved(number, "x" * size, event_id=UUID(int=number))


def fails(number: int, attempt: int) -> bool:
    """Whether the handlers fail that attempt of an event, which is not being replayed."""
    return number % POISON == 0 or (number % SHAKY == 0 and attempt == 1)


def report(*words: object) -> None:
    """Write a line that is there whole or not at all, and that outlives the process."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class ReportingStore(triobus.SqliteEventStore):
    """Says when it commits."""

    async def _commit(self, transaction: Any) -> Any:
        report("committing", time.monotonic_ns())
        results = await super()._commit(transaction)
        report("committed")
        return results


@attrs.define
class Program:
    """A bus with handlers that report, and what is done with it."""

    bus: triobus.EventBus
    _healed: set[tuple[str, int]] = attrs.field(factory=set)

    @classmethod
    def made(
        cls,
        path: str,
        groups: Iterable[str] = GROUPS,
        *,
        delay: float = 0.0001,
        store: EventStore | None = None,
    ) -> "Program":
        """Make a bus on a store; it is started by whoever has it."""
        logging.getLogger("triobus").addHandler(logging.NullHandler())
        bus = triobus.EventBus(store or ReportingStore(path), workers=3, buffer=20)
        program = cls(bus)
        retry = triobus.Retry(attempts=ATTEMPTS, delay=delay, jitter=0)
        for name in groups:
            subscribe = (
                bus.subscribe
                if name == "default"
                else bus.group(name, workers=2, start="beginning").subscribe
            )
            subscribe(Moved, program._handler(name), name="it", retry=retry)
        return program

    def _handler(self, group: str) -> Callable[[Moved], Awaitable[None]]:
        async def handle(event: Moved) -> None:
            number = event.number
            if (group, number) in self._healed:
                report("replaying", group, number)
                await trio.lowlevel.checkpoint()
                report("replayed", group, number)
                return
            attempt = triobus.current_delivery().attempt
            report("attempt", group, number, attempt)
            await trio.lowlevel.checkpoint()
            if fails(number, attempt):
                report("failed", group, number, attempt)
                raise ValueError(number)
            report("handled", group, number)

        return handle

    async def publish(self, *numbers: int, size: int = 0) -> bool:
        """Publish, together if there are several; return whether they were accepted."""
        events = [moved(number, size) for number in numbers]
        for number in numbers:
            report("publishing", number)
        try:
            if len(events) == 1:
                published = [await self.bus.publish(events[0])]
            else:
                published = await self.bus.publish_many(events)
        except triobus.OutcomeUnknown:
            for number in numbers:
                report("unknown", number)
            return False
        except triobus.StoreError as error:
            for number in numbers:
                report("refused", number, type(error).__name__)
            return False
        for number, place in zip(numbers, published, strict=True):
            report("accepted", number, place.position)
        return True

    async def replay(self) -> None:
        """Replay all dead letters there are; now their handler succeeds."""
        for group in GROUPS:
            letters = await self.bus.dead_letters.list(group, limit=10**6)
            for letter in letters:
                assert isinstance(letter.event, Moved)
                self._healed.add((group, letter.event.number))
            await self.bus.dead_letters.replay([letter.id for letter in letters])
