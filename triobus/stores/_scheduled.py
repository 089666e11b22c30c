"""Events of a store in memory that are not due yet."""

from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import count

import attrs

from triobus.stores._duplicates import Differs, Known, difference, refused
from triobus.stores._values import Append, NewRow, Schedule, Waiting


@attrs.define(eq=False)
class ScheduledEvents:
    """These events, and the order in which they are due."""

    waiting: dict[str, Schedule] = attrs.field(factory=dict)
    """By id."""
    _order: list[tuple[float, int, str]] = attrs.field(factory=list)
    """When they are due, and the order of their publication; those that are gone stay there."""
    _numbers: Iterator[int] = attrs.field(factory=count)

    def add(self, item: Schedule, known: Known | None) -> Waiting | Exception:
        """Keep an event until it is due, unless the log has it, which is `known`, or it is here."""
        event_id = str(item.record.event_id)
        kept = self.waiting.get(event_id)
        place = None if known is None else known.place.position
        there = known.content if known else kept and kept.record
        refusal_ = refused(item, there, place)
        if refusal_ is not None:
            return refusal_
        if there is None:
            self.waiting[event_id] = item
            heappush(self._order, (item.due_at, next(self._numbers), event_id))
        return Waiting(place, is_new=there is None)

    def remove(self, event_id: str, now: float) -> bool:
        """Take an event back that is not due; return whether it was there."""
        kept = self.waiting.get(event_id)
        if kept is None or kept.due_at <= now:
            return False
        del self.waiting[event_id]
        return True

    def take_due(self, now: float, limit: int) -> Iterator[NewRow]:
        """Yield the first events that are due, and take them out."""
        for _ in range(limit):
            due = self.next_due()
            if due is None or due > now:
                return
            yield self.waiting.pop(heappop(self._order)[2]).record

    def next_due(self) -> float | None:
        """Return when the next one is due."""
        while self._order:
            due_at, _, event_id = self._order[0]
            kept = self.waiting.get(event_id)
            if kept is not None and kept.due_at == due_at:
                return due_at
            heappop(self._order)  # it was taken back, or published at once
        return None

    def conflict_with(self, append: Append) -> Differs | None:
        """Return why events cannot be in the log: another one of its id is scheduled."""
        for index, record in enumerate(append.records if self.waiting else ()):
            kept = self.waiting.get(str(record.event_id))
            if kept is None or index in append.same:
                continue
            field = difference(kept.record, record)
            if field is not None:
                return Differs(index, kept.record, None, field, is_scheduled=True)
        return None
