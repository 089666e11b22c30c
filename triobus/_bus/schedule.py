"""Events of a bus without a store that are published for later, and accepted when they are due."""

from collections.abc import Awaitable, Callable
from heapq import heappop, heappush
from uuid import UUID

import attrs
import trio

from triobus._errors import BusClosed
from triobus._events import DomainEvent
from triobus._events.batch import Batch
from triobus._groups.deadline import Deadline


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
    _numbers: dict[UUID, int] = attrs.field(factory=dict, init=False)
    """The entry of `_order` that counts: an event that was taken back leaves one behind."""
    _last: int = attrs.field(default=0, init=False)
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

    def add(self, batch: Batch, delay: float) -> bool:
        """Keep an event until its time has come; return False if one of its id is kept already."""
        event_id = batch.events[0].event_id
        if event_id in self._entries:
            return False
        self._last += 1
        due = trio.current_time() + delay
        self._entries[event_id], self._numbers[event_id] = batch, self._last
        heappush(self._order, (due, self._last, event_id))
        self._deadline.expect(due)
        self.on_first()
        return True

    def cancel(self, event_id: UUID) -> bool:
        """Take an event back; return whether it was there and not due."""
        if event_id not in self._entries or self._due_of(event_id) <= trio.current_time():
            return False
        del self._entries[event_id], self._numbers[event_id]
        return True

    def _due_of(self, event_id: UUID) -> float:
        number = self._numbers[event_id]
        return next(due for due, other, _ in self._order if other == number)

    def _forget_cancelled(self) -> None:
        while self._order and self._numbers.get(self._order[0][2]) != self._order[0][1]:
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
