"""Events of a bus without a store that are published for later, and accepted when they are due."""

from collections.abc import Awaitable, Callable
from heapq import heappop, heappush
from uuid import UUID

import attrs
import trio

from triobus._errors import BusClosed, EventIdConflict
from triobus._events import DomainEvent
from triobus._events.batch import Batch
from triobus._events.moments import Moment, Moments
from triobus._groups.deadline import Deadline
from triobus.stores._duplicates import has_same_content

_LEFT_BEHIND = 100
"""How many events that were taken back may stay in the order, beside as many as wait."""


@attrs.define(eq=False)
class MemorySchedule:
    """The scheduled events of one life of a bus."""

    _accept: Callable[[Batch], Awaitable[None]]
    """Accepts an event that is due as soon as there is room for it. Raises `BusClosed`."""
    on_first: Callable[[], None] = attrs.field(init=False)
    """Called when something is scheduled, so that a task runs that waits for it."""
    on_released: Callable[[], None] = attrs.field(init=False)
    """Called when an event that was due is accepted."""
    _entries: dict[UUID, Batch] = attrs.field(factory=dict, init=False)
    _order: list[tuple[float, int, UUID]] = attrs.field(factory=list, init=False)
    """When each is due, and which was published before the other."""
    _numbers: dict[UUID, tuple[float, int]] = attrs.field(factory=dict, init=False)
    """The entry of `_order` that counts: an event that was taken back leaves one behind."""
    _last: int = attrs.field(default=0, init=False)
    _moments: Moments | None = attrs.field(default=None, init=False)
    _deadline: Deadline = attrs.field(factory=Deadline, init=False)

    @property
    def count(self) -> int:
        """How many events are not due yet, or wait for room."""
        return len(self._entries)

    @property
    def events(self) -> list[DomainEvent]:
        """These events."""
        return [event for batch in self._entries.values() for event in batch.events]

    @property
    def is_due(self) -> bool:
        """Whether an event is due that is not accepted yet."""
        self._forget_cancelled()
        return bool(self._order) and self._order[0][0] <= trio.current_time()

    def moment(self) -> Moment:
        """Return the present moment."""
        if self._moments is None:
            self._moments = Moments()
        return self._moments.now()

    def add(self, batch: Batch, due_at: float) -> bool:
        """Keep an event until its time has come; return False if it is kept already.

        Raises `EventIdConflict` if another one of its id is.
        """
        (event,) = batch.events
        event_id = event.event_id
        if event_id in self._entries:
            if has_same_content(self._entries[event_id].events[0], event):
                return False
            raise EventIdConflict(
                f"event {event_id} was not accepted: another event of this id is scheduled. Give "
                "each event an id of its own"
            )
        self._last += 1
        assert self._moments is not None  # it was asked for the due time
        due = self._moments.on_trios_clock(due_at)
        self._entries[event_id], self._numbers[event_id] = batch, (due, self._last)
        heappush(self._order, (due, self._last, event_id))
        self._deadline.expect(due)
        self.on_first()
        return True

    def cancel(self, event_id: UUID) -> bool:
        """Take an event back; return whether it was there and not due."""
        if event_id not in self._entries or self._numbers[event_id][0] <= trio.current_time():
            return False
        del self._entries[event_id], self._numbers[event_id]
        if len(self._order) > 2 * len(self._numbers) + _LEFT_BEHIND:
            self._order = sorted((*place, event_id) for event_id, place in self._numbers.items())
        return True

    def _forget_cancelled(self) -> None:
        while self._order and self._numbers.get(self._order[0][2]) != self._order[0][:2]:
            heappop(self._order)

    async def run(self) -> None:
        """Accept what is due, in its order, until the bus stops."""
        while True:
            while self.is_due:
                event_id = self._order[0][2]
                try:
                    await self._accept(self._entries[event_id])
                except BusClosed:
                    return
                heappop(self._order)
                del self._entries[event_id], self._numbers[event_id]
                self.on_released()
            if self._order:
                self._deadline.expect(self._order[0][0])
            await self._deadline.sleep()
