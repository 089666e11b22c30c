"""What the model is told: plain values, of events, subscriptions and what a store has."""

from collections.abc import Callable
from typing import NoReturn

import attrs


class Broken(AssertionError):
    """A promise of the bus was broken."""


class Told(BaseException):
    """Ends a run in which a promise was broken; no bus takes it for the failure of a handler."""


@attrs.frozen
class Fact:
    """An event, as far as the promises are about it."""

    number: int
    """Identifies it."""
    kind: str
    """Its type."""
    key: str | None
    """Its aggregate."""
    cause: int | None = None
    """The event whose handler published it."""
    origin: int | None = None
    """The event at the beginning of the chain of causes."""


@attrs.frozen(kw_only=True)
class Terms:
    """What a subscription asks for."""

    group: str
    name: str
    kinds: frozenset[str]
    """The types that it wants, subclasses included."""
    parity: int | None = None
    """If it wants even or odd numbers alone."""
    priority: int = 0
    attempts: int = 1
    delay: float = 0.0
    factor: float = 1.0
    timeout: float | None = None
    hold: bool = False

    def wants(self, fact: Fact) -> bool:
        """Whether the handler is to be called with an event."""
        return fact.kind in self.kinds and self.parity in (None, fact.number % 2)

    def delay_after(self, attempt: int, error: str) -> float | None:
        """Return the seconds between a failed attempt and the next, None if it was the last."""
        if attempt >= self.attempts or error == "KeyError":
            return None
        return self.delay * self.factor ** (attempt - 1)


@attrs.frozen(kw_only=True)
class GroupTerms:
    """What a group is made with."""

    name: str
    workers: int = 1
    buffer: float = 1000
    is_ordered: bool = True
    is_from_beginning: bool = False


@attrs.define(eq=False)
class Known:
    """What is known of an event and of its publishing."""

    fact: Fact
    begun: int
    """When its publishing began; times are counted in things that happened."""
    batch: int
    """Its place among those that are published together."""
    returned: int | None = None
    """When its publishing returned."""
    position: int | None = None
    is_refused: bool = False
    """Whether its publishing raised."""
    is_shared: bool = False
    """Whether it was published more than once."""
    is_uncertain: bool = False
    """Whether what it raised leaves open if the event was accepted."""

    @property
    def is_accepted(self) -> bool:
        """Whether it was accepted for certain."""
        return self.returned is not None or self.position is not None

    def is_before(self, other: "Known") -> bool:
        """Whether it was published before another one for certain."""
        if self.position is not None and other.position is not None:
            return self.position < other.position
        if self.begun == other.begun:
            return self.batch < other.batch
        return self.returned is not None and self.returned < other.begun


@attrs.frozen
class Row:
    """An unfinished delivery, as a store has it."""

    number: int
    name: str
    """Whose turn it is."""
    attempts: int
    due: float
    done: tuple[str, ...]

    @property
    def is_begun(self) -> bool:
        """Whether an attempt has begun of which nothing else is recorded."""
        return self.due < 0


@attrs.frozen
class GroupTruth:
    """What a store has of a group."""

    offset: int
    settled: frozenset[int]
    """All positions that are finished."""
    rows: tuple[Row, ...]


@attrs.frozen
class LetterTruth:
    """A dead letter, as it is listed or stored."""

    id: int
    group: str
    name: str
    number: int
    attempts: int
    error: str


@attrs.frozen
class StoreTruth:
    """What a store has when its bus has ended."""

    log: tuple[int, ...]
    """The numbers of the events by position."""
    positions: tuple[int, ...]
    groups: dict[str, GroupTruth]
    letters: tuple[LetterTruth, ...]


@attrs.frozen
class Counted:
    """The counters of a group."""

    published: int
    handled: int
    failed_attempts: int
    retries: int
    dead_lettered: int
    queued: int
    in_flight: int
    waiting_for_retry: int
    lag: int


Breach = Callable[[str], NoReturn]
