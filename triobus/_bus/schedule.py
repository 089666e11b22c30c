"""Events of a bus without a store that are published for later, and accepted when they are due."""

from collections.abc import Awaitable, Callable
from uuid import UUID

import attrs
import trio

from triobus._errors import BusClosed, EventIdConflict
from triobus._events import DomainEvent
from triobus._events.agenda import Agenda
from triobus._events.batch import Batch
from triobus._events.moments import Moment, Moments
from triobus._groups.deadline import Deadline
from triobus.stores._duplicates import has_same_content


@attrs.define(eq=False)
class MemorySchedule:
    """The scheduled events of one life of a bus."""

    _accept: Callable[[Batch], Awaitable[None]]
    """Accepts an event that is due as soon as there is room for it. Raises `BusClosed`."""
    _commit: Callable[[Batch], None]
    """Accepts an event whether there is room or not."""
    on_first: Callable[[], None] = attrs.field(init=False)
    """Called when something is scheduled, so that a task runs that waits for it."""
    on_released: Callable[[], None] = attrs.field(init=False)
    """Called when an event that was due is accepted."""
    _agenda: Agenda[UUID, Batch] = attrs.field(factory=Agenda, init=False)
    """The events, each in a batch of its own, on Trio's clock."""
    _moments: Moments = attrs.field(factory=Moments, init=False)
    _deadline: Deadline = attrs.field(factory=Deadline, init=False)

    @property
    def count(self) -> int:
        """How many events are not due yet, or wait for room."""
        return len(self._agenda)

    @property
    def events(self) -> list[DomainEvent]:
        """These events."""
        return [event for batch in self._agenda for event in batch.events]

    @property
    def is_due(self) -> bool:
        """Whether an event is due that is not accepted yet."""
        return self._agenda.first_due(trio.current_time()) is not None

    def moment(self) -> Moment:
        """Return the present moment."""
        return self._moments.now()

    def add(self, batch: Batch, due_at: float) -> bool:
        """Keep an event until its time has come; return False if it is kept already.

        Raises `EventIdConflict` if another one of its id is.
        """
        (event,) = batch.events
        event_id = event.event_id
        kept = self._agenda.get(event_id)
        if kept is not None:
            if has_same_content(kept.events[0], event):
                return False
            raise EventIdConflict(
                f"event {event_id} was not accepted: another event of this id is scheduled. Give "
                "each event an id of its own"
            )
        due = self._moments.on_trios_clock(due_at)
        self._agenda.add(event_id, due, batch)
        self._deadline.expect(due)
        self.on_first()
        return True

    def cancel(self, event_id: UUID) -> bool:
        """Take an event back; return whether it was there and not due."""
        due_at = self._agenda.due_at(event_id)
        if due_at is None or due_at <= trio.current_time():
            return False
        self._agenda.remove(event_id)
        return True

    def drain(self) -> None:
        """Accept what is due and waits for room: a bus that stops leaves only what is not due."""
        while found := self._agenda.first_due(trio.current_time()):
            event_id, batch = found
            self._agenda.remove(event_id)
            if not batch.is_accepted:
                self._commit(batch)

    async def run(self) -> None:
        """Accept what is due, in its order, until the bus stops."""
        while True:
            while found := self._agenda.first_due(trio.current_time()):
                event_id, batch = found
                try:
                    await self._accept(batch)
                except BusClosed:
                    return
                self._agenda.remove(event_id)
                self.on_released()
            next_due = self._agenda.next_due()
            if next_due is not None:
                self._deadline.expect(next_due)
            await self._deadline.sleep()
