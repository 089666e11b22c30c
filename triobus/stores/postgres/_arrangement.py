"""The places of events of which some are known already, or may not be stored: one by one.

It is used where the log's lock is held, so that what was looked up stays so.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

import attrs

from triobus.stores._duplicates import Differs, Known, difference, known_places, refused
from triobus.stores._values import (
    Append,
    LogPosition,
    NewRow,
    Schedule,
    Waiting,
    conflict,
)
from triobus.stores.postgres._rows import NewRows, refusal_of

_LATER = datetime.max.replace(tzinfo=UTC)
"""The time of events that are not stored yet."""

Find = Callable[[Iterable[str]], tuple[dict[str, Known], dict[str, NewRow]]]
"""Returns what the log has under some ids, and what is scheduled."""


@attrs.define(eq=False)
class Arrangement:
    """What a transaction makes of the log, before it is written."""

    base: int
    """The position of the log's last event."""
    _find: Find
    _last_sequence: Callable[[str], int]
    _new_behind: int | None
    """What is known behind this position was stored by an earlier try of the same transaction."""
    rows: NewRows = attrs.field(factory=NewRows, init=False)
    """What is to be appended."""
    records: list[NewRow] = attrs.field(factory=list, init=False)
    unscheduled: list[str] = attrs.field(factory=list, init=False)
    """Ids that get into the log, and are to be scheduled no more."""
    _known: dict[str, Known | None] = attrs.field(factory=dict, init=False)
    _scheduled: dict[str, NewRow] = attrs.field(factory=dict, init=False)
    _sequences: dict[str, int] = attrs.field(factory=dict, init=False)
    _places: list[list[LogPosition]] = attrs.field(factory=list, init=False)

    def look_up(self, event_ids: Iterable[str]) -> None:
        """Learn what ids stand for."""
        unknown = [each for each in dict.fromkeys(event_ids) if each not in self._known]
        if unknown:
            known, scheduled = self._find(unknown)
            self._known.update(dict.fromkeys(unknown))
            self._known.update(known)
            self._scheduled.update(scheduled)

    def place(self, append: Append) -> list[LogPosition] | Exception:
        """Give the events of an append their places, or say why they get none."""
        records, expected, _ = append
        self.look_up(str(record.event_id) for record in records)
        other = self._conflict_with_scheduled(append)
        known = other or refusal_of(append) or known_places(append, self._known.get)
        if isinstance(known, Exception):
            return known
        if expected is not None and records and not all(known):
            aggregate_id = records[0].aggregate_id
            assert aggregate_id is not None
            found = self._sequence(aggregate_id)
            if found != expected:
                return conflict(aggregate_id, expected, found)
        places = [self._placed(record, place) for record, place in zip(records, known, strict=True)]
        self._places.append(places)
        return places

    def _conflict_with_scheduled(self, append: Append) -> Differs | None:
        for index, record in enumerate(append.records):
            event_id = str(record.event_id)
            there = self._scheduled.get(event_id)
            if there is None:
                continue
            field = difference(there, record)
            if field is not None and index not in append.same:
                return Differs(index, there, None, field, is_scheduled=True)
        return None

    def _placed(self, record: NewRow, place: LogPosition | None) -> LogPosition:
        event_id = str(record.event_id)
        seen = self._known.get(event_id)
        if place is None and seen is not None:  # it is twice in this append
            place = seen.place
        if place is not None:
            was_stored_now = self._new_behind is not None and self._new_behind < place.position
            return place._replace(is_new=True) if was_stored_now else place
        sequence = None
        if record.aggregate_id is not None:
            sequence = self._sequence(record.aggregate_id) + 1
            self._sequences[record.aggregate_id] = sequence
        self.records.append(record)
        new = LogPosition(self.base + len(self.records), sequence, _LATER, True)
        self._known[event_id] = Known(new._replace(is_new=False), record)
        if self._scheduled.pop(event_id, None) is not None:
            self.unscheduled.append(event_id)
        return new

    def _sequence(self, aggregate_id: str) -> int:
        if aggregate_id not in self._sequences:
            self._sequences[aggregate_id] = self._last_sequence(aggregate_id)
        return self._sequences[aggregate_id]

    def schedule(self, item: Schedule, keep: Callable[[Schedule], None]) -> Waiting | Exception:
        """Have an event kept until it is due, or say why not."""
        event_id = str(item.record.event_id)
        self.look_up([event_id])
        known = self._known.get(event_id)
        there = known.content if known is not None else self._scheduled.get(event_id)
        position = None if known is None else known.place.position
        found = refusal_of(Append([item.record])) or refused(item, there, position)
        if found is not None:
            return found
        if there is None:
            keep(item)
            self._scheduled[event_id] = item.record
        return Waiting(position, is_new=there is None)

    def position_of(self, event_id: str) -> LogPosition | None:
        """Return where an event is, if it is in the log."""
        self.look_up([event_id])
        known = self._known.get(event_id)
        return None if known is None else known.place

    def stored(self, recorded_at: datetime) -> None:
        """The events are stored at this time."""
        for places in self._places:
            places[:] = [
                place._replace(recorded_at=recorded_at) if place.recorded_at is _LATER else place
                for place in places
            ]


def ids_of(records: Sequence[NewRow]) -> list[str]:
    """Return the ids of events."""
    return [str(record.event_id) for record in records]
