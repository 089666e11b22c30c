"""Events of a store in memory that are not due yet."""

from collections.abc import Iterator

import attrs

from triobus._events.agenda import Agenda
from triobus.stores._duplicates import Differs, Known, difference, refused
from triobus.stores._values import Append, NewRow, Schedule, Waiting


@attrs.define(eq=False)
class ScheduledEvents:
    """These events, and the order in which they are due."""

    _agenda: Agenda[str, Schedule] = attrs.field(factory=Agenda)
    """By id."""

    def __len__(self) -> int:
        return len(self._agenda)

    def add(self, item: Schedule, known: Known | None) -> Waiting | Exception:
        """Keep an event until it is due, unless the log has it, which is `known`, or it is here."""
        event_id = str(item.record.event_id)
        kept = self._agenda.get(event_id)
        place = None if known is None else known.place.position
        there = known.content if known else kept and kept.record
        refusal_ = refused(item, there, place)
        if refusal_ is not None:
            return refusal_
        if there is None:
            self._agenda.add(event_id, item.due_at, item)
        return Waiting(place, is_new=there is None)

    def remove(self, event_id: str, now: float) -> bool:
        """Take an event back that is not due; return whether it was there."""
        due_at = self._agenda.due_at(event_id)
        if due_at is None or due_at <= now:
            return False
        self._agenda.remove(event_id)
        return True

    def forget(self, event_id: str) -> None:
        """Take an event out that is in the log, or was not to be kept after all."""
        self._agenda.remove(event_id)

    def take_due(self, now: float, limit: int) -> Iterator[NewRow]:
        """Yield the first events that are due, and take them out."""
        for _ in range(limit):
            found = self._agenda.first_due(now)
            if found is None:
                return
            event_id, item = found
            self._agenda.remove(event_id)
            yield item.record

    def next_due(self) -> float | None:
        """Return when the next one is due."""
        return self._agenda.next_due()

    def conflict_with(self, append: Append) -> Differs | None:
        """Return why events cannot be in the log: another one of its id is scheduled."""
        for index, record in enumerate(append.records if self._agenda else ()):
            kept = self._agenda.get(str(record.event_id))
            if kept is None or index in append.same:
                continue
            field = difference(kept.record, record)
            if field is not None:
                return Differs(index, kept.record, None, field, is_scheduled=True)
        return None
