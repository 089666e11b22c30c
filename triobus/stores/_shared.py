"""`SharedEventStore`: what a bus needs of a store whose groups several buses share.

Each bus is a node there. Whatever a node asks is answered at one moment of the store. Leases are on
the store's clock, which no node reads: to a node a lease is some seconds from before it has asked.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import NamedTuple

import attrs

from triobus.stores._sharing import Claim, Fence, SegmentKey
from triobus.stores._store import EventStore
from triobus.stores._values import Attempts, DeadLetterKey, Row

PROVISIONAL = 2**62
"""From here on are the ids of dead letters to which the store has not given one yet."""


class News(NamedTuple):
    """What the store tells its nodes; each may come late, twice, or together with others."""

    head: int = 0
    """The log ends there at least."""
    due: float | None = None
    """Something has been scheduled that is due then, in seconds since 1970."""
    is_of_shares: bool = False
    """Whether nodes have come or gone, or segments have no owner: look at your shares."""
    is_of_letters: bool = False
    """Whether dead letters are to be replayed, or were or are gone: look at these."""


@attrs.frozen
class Joined:
    """What a node has to know when it begins, all of one moment."""

    node: int
    """Its number, which no node had before."""
    lease: float
    """Seconds for which it lives without being renewed."""
    last: int
    """The position of the last event; 0 if there is none."""
    letters: tuple[DeadLetterKey, ...] = ()
    """What identifies each dead letter, by rising id."""
    scheduled: int = 0
    """How many events are scheduled."""
    next_due: float | None = None
    """When the first of them is due, in seconds since 1970."""


@attrs.frozen
class TakenSegment:
    """A segment that a node has been given, and how far its owners before have come."""

    key: SegmentKey
    fence: Fence
    """By what right this node records something of it."""
    is_unclean: bool
    """Whether the owner before has died."""
    offset: int
    """Everything of the segment up to there is finished."""
    ranges: tuple[tuple[int, int], ...] = ()
    """First and last position of ranges in which everything of the segment is finished."""
    attempts: tuple[Attempts, ...] = ()
    letters: tuple[DeadLetterKey, ...] = ()
    """The dead letters of its events."""


@attrs.frozen
class Taken:
    """What a node may have of a group, and what it has been given now."""

    share: int
    """How many segments in all; it has to let go of what it has beside them."""
    segments: tuple[TakenSegment, ...]
    last: int
    """The position of the last event."""
    is_paused: bool = False
    """Whether nobody has a share of the group for now."""


class Looked(NamedTuple):
    """What was found of some segments."""

    rows: Sequence[Row]
    to: int
    """There is nothing else of them up to here."""


@attrs.frozen
class Recorded:
    """What came of the changes of segments in a commit; the last of its results."""

    lost: Set[SegmentKey] = frozenset()
    """The segments of which nothing was recorded, for the node does not have them any more."""
    letters: Mapping[int, int] = attrs.field(factory=dict)
    """The ids of new dead letters, by those that they had provisionally."""


class SharedEventStore(EventStore):
    """A store for several nodes, as one of them has it.

    In a commit with `changes.segments` each of these is recorded if the node still has it, and left
    out if not; the last result is a `Recorded` then. They go before the calls of the same commit. A
    call with `settled` of a segment that the node does not have fails with `SegmentLost`.
    """

    @property
    def is_shared(self) -> bool:
        """Whether several buses may use it at a time."""
        return True

    @abstractmethod
    async def _join(self, name: str, tell: Callable[[News], None]) -> Joined:
        """Become a node, which hears the news from here on until it leaves.

        `tell` is called in the task that asks or between any two steps of others, and never waits.
        """

    @abstractmethod
    async def _renew(self, node: int) -> int | None:
        """Renew the lease of a node, and return where the log ends; None if the node is dead."""

    @abstractmethod
    async def _take(self, node: int, claim: Claim) -> Taken | None:
        """Serve a group, and get of it what has no owner, up to the share; None if it is dead.

        Nodes whose lease is over are removed before. Others hear of it if their share is another.
        """

    @abstractmethod
    async def _pause(self, node: int, group: str) -> None:
        """Let nobody have a share of a group until it is resumed, or this node is gone."""

    @abstractmethod
    async def _resume(self, group: str) -> None:
        """Share a group again, whoever has paused it. Harmless if nobody has."""

    @abstractmethod
    async def _has_owner(self, group: str) -> bool:
        """Whether a node that is alive has a segment of a group."""

    @abstractmethod
    async def _release(self, fences: Mapping[SegmentKey, Fence]) -> None:
        """Let segments go that the node has finished with, so that others take them."""

    @abstractmethod
    async def _leave(self, node: int) -> None:
        """Be no node any more, and let everything go. Harmless for one that is dead."""

    @abstractmethod
    async def _asked_for(self) -> Sequence[int]:
        """Return the ids of the dead letters that were asked for by `AskReplay`, and are there."""

    def _on_halt(self) -> None:  # only one that can be cut off has to know
        """Nothing is to be stored any more, as by a process that was killed. For tests."""

    async def _while_stopped(self) -> None:
        """Wait while a test has stopped the process that this node is to others."""

    @abstractmethod
    async def _look(
        self, after: int, limit: int, up_to: int, segments: int, numbers: Iterable[int]
    ) -> Looked:
        """Return events of some of a group's segments behind a position, at most `limit`.

        It may look less far than there is something; then `to` says how far, which is farther than
        `after` unless that is `up_to`.
        """
