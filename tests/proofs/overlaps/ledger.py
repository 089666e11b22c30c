"""What a run knows: who published what, what became of it, and what handlers and listeners saw."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from uuid import UUID, uuid5

import attrs

from tests.events import Noted
from triobus import DomainEvent, OutcomeUnknown

_NAMESPACE = UUID("8f3e3a52-3a0c-4b57-9f5e-2f6b1f0f9b11")

Sub = tuple[str, str]
"""The names of a group and of a subscription in it."""


def number_of(event: DomainEvent | None) -> int:
    """Return the number of an event; all events here have one."""
    assert isinstance(event, Noted)
    return event.number


@attrs.frozen
class Finish:
    """A handler that has come to its end for one event."""

    life: int
    sub: Sub
    number: int
    position: int | None


@attrs.define(eq=False)
class Heard:
    """What one listener got."""

    entered: int
    """The moment when it was listening."""
    numbers: list[int] = attrs.field(factory=list)
    ended: int | None = None
    """The moment when its iteration ended by itself, if it went on until then."""


@attrs.define(eq=False)
class Ledger:
    """Everything that is known about one run, over all lives of its bus."""

    life: int = 1
    is_crashed: bool = False
    keys: dict[int, str | None] = attrs.field(factory=dict)
    began: dict[int, int] = attrs.field(factory=dict)
    """The moment when somebody first began to publish a number."""
    accepted: dict[int, list[int | None]] = attrs.field(factory=dict)
    """The positions that were told for a number, one for each acceptance."""
    published: set[int] = attrs.field(factory=set)
    """Those of them that were accepted by the bus, and not by its store alone."""
    refused: set[int] = attrs.field(factory=set)
    unsure: set[int] = attrs.field(factory=set)
    """Numbers for which a call raised in a way that leaves it open."""
    finished: list[Finish] = attrs.field(factory=list)
    attempts: Counter[tuple[Sub, int]] = attrs.field(factory=Counter)
    subscribed: dict[Sub, int] = attrs.field(factory=dict)
    """The moment from which on a subscription has to get what is published."""
    leaving: set[Sub] = attrs.field(factory=set)
    """The subscriptions that somebody takes away."""
    discarded: set[int] = attrs.field(factory=set)
    replayed: set[int] = attrs.field(factory=set)
    """The numbers of dead letters that somebody replays."""
    heard: list[Heard] = attrs.field(factory=list)
    waiting: set[int] = attrs.field(factory=set)
    """The numbers that somebody is publishing right now, without threads."""
    problems: list[str] = attrs.field(factory=list)
    """What was seen to be wrong while it ran."""
    _moments: Iterator[int] = attrs.field(factory=lambda: count(1))

    def now(self) -> int:
        """Return a number for this moment, which is higher than all before."""
        return next(self._moments)

    def demand(self, is_kept: bool, problem: str) -> None:
        """Note a problem unless the promise is kept."""
        if not is_kept:
            self.problems.append(problem)

    def event(self, number: int, key: str | None = None) -> Noted:
        """Return the event of a number, with the same id each time."""
        self.keys.setdefault(number, key)
        return Noted(number, self.keys[number], event_id=uuid5(_NAMESPACE, str(number)))

    @contextmanager
    def publishing(
        self, *numbers: int, may_stay: bool = False, by_bus: bool = True
    ) -> Iterator[None]:
        """Note what becomes of numbers that are published inside the block.

        `may_stay` is for a call that waits for more than acceptance.
        """
        for number in numbers:
            self.began.setdefault(number, self.now())
        self.waiting.update(() if may_stay else numbers)
        try:
            yield
        except BaseException as error:
            is_open = may_stay or isinstance(error, OutcomeUnknown)
            (self.unsure if is_open else self.refused).update(numbers)
            raise
        finally:
            self.waiting.difference_update(numbers)
        if by_bus:
            self.published.update(numbers)

    def accept(self, number: int, position: int | None) -> None:
        """Note that a number was accepted, at a position if there is a store."""
        self.accepted.setdefault(number, []).append(position)

    def times(self, sub: Sub, number: int) -> int:
        """Return how often a subscription has finished a number."""
        return sum((found.sub, found.number) == (sub, number) for found in self.finished)
