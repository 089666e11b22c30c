"""A `MemoryEventStore` with a lease, as one of its buses has it."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

import trio
from trio.lowlevel import checkpoint

from triobus._errors import StoreClosed
from triobus.stores._memory_sharing import MemorySharing
from triobus.stores._scheduled import ScheduledEvents
from triobus.stores._shared import Joined, Looked, News, SharedEventStore, Taken
from triobus.stores._sharing import Claim, Fence, SegmentKey
from triobus.stores._store import EventStore
from triobus.stores._transaction import Call
from triobus.stores._values import (
    EVERYTHING,
    Commit,
    DeadLetterKey,
    DeadLetterRow,
    GroupRow,
    Row,
    Selection,
    Snapshot,
    StoreStatistics,
)


def _ignore(_: News) -> None:
    """Nobody listens yet."""


class MemoryNode(SharedEventStore):
    """A shared store in memory with a commit queue of its own: what a process has to itself.

    Everything else is the store's that it is a node of.
    """

    def __init__(
        self,
        store: EventStore,
        sharing: MemorySharing,
        later: ScheduledEvents,
        perform: Callable[[Commit], Awaitable[list[Any]]],
    ) -> None:
        super().__init__()
        self._codec = store._codec
        self._whole = store
        self._sharing = sharing
        self._later = later
        self._perform = perform
        self._node: int | None = None
        """Its number, once it has joined."""
        self._tell: Callable[[News], None] = _ignore
        self._reachable = trio.Event()
        """Not set while a test has cut it off."""
        self._awake = trio.Event()
        """Not set while a test has stopped the process that the node is for others."""
        self._reachable.set()
        self._awake.set()
        self._is_killed = False

    def __repr__(self) -> str:
        return repr(self._whole)

    async def _open(self) -> None:
        """Have the store open."""
        await self._whole.__aenter__()

    async def _close(self) -> None:
        """Need the store no more."""
        await self._whole.__aexit__(None, None, None)

    async def _abandon(self) -> None:
        """Need the store no more, which does not know."""
        if self._node is not None:
            self._sharing.cut_off(self._node)
        await self._close()

    # What a test may do with it

    def cut_off(self, *, is_stopped: bool = False) -> None:
        """Let nothing reach the store, nor come from there, as if the network were cut.

        With `is_stopped`, as if the process were: it does not see either that its lease is over.
        """
        self._reachable = trio.Event()
        if is_stopped:
            self._awake = trio.Event()

    def reconnect(self) -> None:
        """Let everything go on that has waited for that."""
        self._reachable.set()
        self._awake.set()
        self._hear(News(self._sharing.head, self._later.next_due(), is_of_shares=True))

    def _on_halt(self) -> None:
        """What waits for the store to be reached never reaches it."""
        self._is_killed = True
        self._reachable.set()
        self._awake.set()

    def _hear(self, news: News) -> None:
        if self._reachable.is_set() and not self._is_killed:
            self._tell(news)

    async def _reach(self) -> None:
        if not self._reachable.is_set():
            await self._reachable.wait()
            if self._is_killed:
                raise StoreClosed("the bus was crashed while nothing reached its store")
        await checkpoint()

    async def _while_stopped(self) -> None:
        """Wait until the process is stopped no more."""
        await self._awake.wait()

    # What it is to be a node

    async def _join(self, name: str, tell: Callable[[News], None]) -> Joined:
        """Become a node."""
        await self._reach()
        self._tell = tell
        joined = self._sharing.join(name, self._hear, self._later)
        self._node = joined.node
        return joined

    async def _renew(self, node: int) -> int | None:
        """Renew the lease."""
        await self._reach()
        return self._sharing.renew(node)

    async def _take(self, node: int, claim: Claim) -> Taken | None:
        """Get segments."""
        await self._reach()
        return self._sharing.take(node, claim)

    async def _pause(self, node: int, group: str) -> None:
        """Let nobody have a share."""
        await self._reach()
        self._sharing.pause(node, group)

    async def _resume(self, group: str) -> None:
        """Share a group again."""
        await self._reach()
        self._sharing.resume(group)

    async def _has_owner(self, group: str) -> bool:
        """Whether somebody has a segment."""
        await self._reach()
        return self._sharing.assignments.has_owner(group)

    async def _release(self, fences: Mapping[SegmentKey, Fence]) -> None:
        """Let segments go."""
        await self._reach()
        self._sharing.release(fences)

    async def _leave(self, node: int) -> None:
        """Be no node any more."""
        with trio.CancelScope(shield=True):
            await self._reach()
        self._sharing.leave(node)

    async def _asked_for(self) -> tuple[int, ...]:
        """Return which dead letters are to be replayed."""
        await self._reach()
        return tuple(sorted(self._sharing.asked))

    async def _look(
        self, after: int, limit: int, up_to: int, segments: int, numbers: Iterable[int]
    ) -> Looked:
        """Return events of some segments."""
        await self._reach()
        return self._sharing.look(after, limit, up_to, segments, numbers)

    async def _commit(self, commit: Commit) -> list[Any]:
        """Store what is pending, and tell the other nodes."""
        with trio.CancelScope(shield=True):
            await self._reach()
        results = await self._perform(commit)
        self._sharing.tell_of_commit(self._later, but=self._node)
        return results

    # What is the store's

    @property
    def _scheduled_count(self) -> int:
        """How many events are scheduled."""
        return self._whole._scheduled_count

    @property
    def _is_writer(self) -> bool:
        """Every node is."""
        return True

    async def _claim(self) -> Snapshot:
        """It belongs to no bus alone."""
        return await self._whole._claim()

    async def _ask(self, call: Call) -> Any:
        """Make a call that only reads."""
        return await self._whole._ask(call)

    async def _fetch(
        self,
        after: int,
        limit: int,
        up_to: int | None = None,
        selected: Selection = EVERYTHING,
        *,
        backwards: bool = False,
    ) -> list[Row]:
        """Return events of the log."""
        await self._reach()
        return await self._whole._fetch(after, limit, up_to, selected, backwards=backwards)

    async def _position_of(self, aggregate_id: str, sequence: int) -> int | None:
        """Return where an aggregate has its event of that sequence."""
        return await self._whole._position_of(aggregate_id, sequence)

    async def _find(self, event_id: UUID) -> Row | None:
        """Return an event by its id."""
        return await self._whole._find(event_id)

    async def _last_position(self) -> int:
        """Return the position of the last event."""
        return await self._whole._last_position()

    async def _groups(self) -> list[GroupRow]:
        """Return the progress of every group."""
        return await self._whole._groups()

    async def _letter_keys(self) -> list[DeadLetterKey]:
        """Return what identifies each dead letter."""
        return await self._whole._letter_keys()

    async def _letters(self, ids: Sequence[int]) -> list[tuple[DeadLetterRow, Row]]:
        """Return dead letters with their events."""
        return await self._whole._letters(ids)

    async def statistics(self) -> StoreStatistics:
        """Return what the store holds."""
        return await self._whole.statistics()
