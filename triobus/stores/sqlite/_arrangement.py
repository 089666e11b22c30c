"""The arrangement of a commit: which place each of its events gets, before anything is written.

Plain data but for the two questions that it asks the log.
"""

import zlib
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import attrs

from triobus._errors import StoreCorrupt
from triobus.stores._duplicates import (
    Differs,
    Known,
    difference,
    known_places,
    may_be_refused,
    refusal,
)
from triobus.stores._values import Append, LogPosition, NewRow, conflict

_BYTES_BESIDE = 200
"""About how many bytes a row has beside the event in JSON."""


@attrs.define(eq=False)
class Arrangement:
    """What a transaction makes of the log."""

    position: int
    """The position of the log's last event."""
    checksum: int
    """The checksum of that event."""
    _now: datetime
    _looks: bool
    """Whether to look for events that the log has already, or cannot have. That is rare."""
    _last_sequence: Callable[[str], int]
    """Returns the last sequence that an aggregate has in the log."""
    _known: Callable[[str], Known | None]
    """Returns what the log has under an id."""
    _scheduled: Callable[[str], NewRow | None] | None = None
    """Returns what is scheduled under an id; None if nothing is scheduled at all."""
    unscheduled: list[str] = attrs.field(factory=list, init=False)
    """Ids that are in the log now, and are to be scheduled no more."""
    rows: list[tuple[Any, ...]] = attrs.field(factory=list, init=False)
    sequences: dict[str, int] = attrs.field(factory=dict, init=False)
    """The last sequence of each aggregate that is appended to."""
    results: list[Any] = attrs.field(factory=list, init=False)
    """What becomes of each append: where its events are, or why they are not in the log."""
    bytes: int = attrs.field(default=0, init=False)
    _seen: dict[str, Known] = attrs.field(factory=dict, init=False)

    def add(self, append: Append) -> bool:
        """Give the events of an append their places, or say in `results` why they get none.

        Return False if that cannot be said without looking whether the log has some of them.
        """
        records, expected, _ = append
        if self._scheduled is not None:
            conflict_ = self._conflict_with_scheduled(append, self._scheduled)
            if conflict_ is not None:
                self.results.append(conflict_)
                return True
        known: list[LogPosition | None] = [None] * len(records)
        if self._looks:
            looked_up = refusal(append) or known_places(append, self._find)
            if isinstance(looked_up, Exception):
                self.results.append(looked_up)
                return True
            known = looked_up
        if expected is not None and records and not all(known):
            aggregate_id = records[0].aggregate_id
            assert aggregate_id is not None
            found = self._sequence(aggregate_id)
            if found != expected:
                if not self._looks and self._has_any(records):
                    return False
                self.results.append(conflict(aggregate_id, expected, found))
                return True
        self.results.append(self._placed(records, known))
        return True

    def _conflict_with_scheduled(
        self, append: Append, scheduled: Callable[[str], NewRow | None]
    ) -> Exception | None:
        """Return why events cannot be in the log, for others of their ids are scheduled."""
        for index, record in enumerate(append.records):
            event_id = str(record.event_id)
            try:
                there = scheduled(event_id)
            except StoreCorrupt as error:
                return error
            if there is None:
                continue
            field = difference(there, record)
            if field is not None and index not in append.same:
                return Differs(index, there, None, field, is_scheduled=True)
            self.unscheduled.append(event_id)
        return None

    def part(self) -> "Arrangement":
        """Return what goes on behind it, and can be forgotten without it."""
        part = Arrangement(
            self.position,
            self.checksum,
            self._now,
            looks=True,
            last_sequence=self._sequence,
            known=self._known,
            scheduled=self._scheduled,
        )
        part._seen.update(self._seen)
        return part

    def adopt(self, part: "Arrangement") -> None:
        """Take over a part, whose rows are in the log."""
        self.position, self.checksum = part.position, part.checksum
        self.rows += part.rows
        self.bytes += part.bytes
        self.sequences.update(part.sequences)
        self._seen.update(part._seen)
        self.unscheduled += part.unscheduled

    def place(self, append: Append) -> list[LogPosition] | Exception:
        """Give the events of an append their places, and return these, or why they get none."""
        self.add(append)
        found: list[LogPosition] | Exception = self.results.pop()
        return found

    def place_at(self, append: Append, recorded_at: datetime) -> list[LogPosition] | Exception:
        """Do the same for events that were recorded at a time of their own."""
        self._now = recorded_at
        return self.place(append)

    def _placed(
        self, records: Sequence[NewRow], known: Sequence[LogPosition | None]
    ) -> list[LogPosition]:
        # One loop with its attributes in locals: every event that is stored goes through it.
        recorded, now, crc, new = self._now.isoformat(), self._now, zlib.crc32, tuple.__new__
        position, checksum, seen, places = self.position, self.checksum, self._seen, []
        for record, place in zip(records, known, strict=True):
            event_id, event_type, version, aggregate_id, data, correlation_id = record
            text_id = str(event_id)
            if place is None and text_id in seen:  # it is twice in this append
                place = seen[text_id].place
            if place is not None:
                places.append(place)
                continue
            if not self._looks and may_be_refused(record):
                raise ValueError("it is looked at, for it may be no row")
            position += 1
            sequence = None
            if aggregate_id is not None:
                sequence = self._sequence(aggregate_id) + 1
                self.sequences[aggregate_id] = sequence
            head = (
                f"{position}\0{text_id}\0{event_type}\0{version}\0{aggregate_id or ''}\0"
                f"{'' if sequence is None else sequence}\0{recorded}\0"
            )
            checksum = crc(data, crc(head.encode(), checksum))
            row = (position, text_id, event_type, version, aggregate_id, sequence, recorded)
            self.rows.append((*row, data.decode(), checksum, correlation_id))
            self.bytes += len(data) + _BYTES_BESIDE
            places.append(new(LogPosition, (position, sequence, now, True)))
            if self._looks:
                seen[text_id] = Known(LogPosition(position, sequence, now, False), record)
        self.position, self.checksum = position, checksum
        return places

    def _sequence(self, aggregate_id: str) -> int:
        """Return the last sequence of an aggregate, 0 if there is none."""
        found = self.sequences.get(aggregate_id)
        if found is None:
            found = self.sequences[aggregate_id] = self._last_sequence(aggregate_id)
        return found

    def _find(self, event_id: str) -> Known | None:
        """Return what an id stands for, in this transaction or in the log."""
        return self._seen.get(event_id) or self._known(event_id)

    def _has_any(self, records: Sequence[NewRow]) -> bool:
        """Whether some of the records are in the log, or among the rows that come before them."""
        ids = {str(record.event_id) for record in records}
        return any(row[1] in ids for row in self.rows) or any(map(self._known, ids))
