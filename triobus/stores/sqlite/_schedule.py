"""The rows of events that are not due yet."""

import sqlite3
from collections.abc import Iterator
from typing import Any

import attrs

from triobus._errors import StoreCorrupt
from triobus.stores._duplicates import Known, refused
from triobus.stores._values import NewRow, Schedule, Waiting
from triobus.stores.sqlite import _rows
from triobus.stores.sqlite._checksums import with_checksum
from triobus.stores.sqlite._connection import Database
from triobus.stores.sqlite._faults import RESTORE

_COLUMNS = (
    "number, due_at, event_id, event_type, schema_version, aggregate_id, data, correlation_id, "
    "checksum"
)


@attrs.define(eq=False)
class ScheduleRows:
    """Reads and writes the scheduled events of one open file, in the transaction of the caller."""

    _db: Database

    def _execute(self, statement: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        return self._db.ready().execute(statement, values)

    def add(self, item: Schedule, known: Known | None) -> Waiting | Exception:
        """Keep an event until it is due, unless the log has it, which is `known`, or it is here."""
        record = item.record
        event_id = str(record.event_id)
        place = None if known is None else known.place.position
        there = self._find(event_id) if known is None else known.content
        refusal = refused(item, there, place)
        if refusal is not None:
            return refusal
        if there is not None:
            return Waiting(place, is_new=False)
        (number,) = self._execute("SELECT coalesce(max(number), 0) + 1 FROM scheduled").fetchone()
        row = (
            _rows.whole(number),
            float(item.due_at),
            event_id,
            *record[1:4],
            record.data.decode(),
            record.correlation_id,
        )
        self._execute(
            "INSERT INTO scheduled VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            with_checksum("scheduled", row),
        )
        return Waiting(None, is_new=True)

    def remove(self, event_id: str) -> bool:
        """Take an event back; return whether it was there."""
        return self._execute("DELETE FROM scheduled WHERE event_id = ?", (event_id,)).rowcount > 0

    def take_due(self, now: float, limit: int) -> Iterator[NewRow]:
        """Yield the first events that are due, and take them out."""
        query = (
            f"SELECT {_COLUMNS} FROM scheduled WHERE due_at <= ? ORDER BY due_at, number LIMIT ?"
        )
        for row in self._execute(query, (now, limit)).fetchall():
            yield self._record(row)
            self._execute("DELETE FROM scheduled WHERE number = ?", (row[0],))

    def summary(self) -> tuple[int, float | None]:
        """Return how many there are, and when the next one is due."""
        count, due = self._execute("SELECT count(*), min(due_at) FROM scheduled").fetchone()
        return count, due

    def _find(self, event_id: str) -> NewRow | None:
        query = f"SELECT {_COLUMNS} FROM scheduled WHERE event_id = ?"
        row = self._execute(query, (event_id,)).fetchone()
        return None if row is None else self._record(row)

    def _record(self, row: tuple[Any, ...]) -> NewRow:
        try:
            return _rows.scheduled(row)
        except _rows.UNREADABLE as error:
            raise StoreCorrupt(
                f"{self._db.faults.shown} is damaged: a scheduled event cannot be read ({error}). "
                f"{RESTORE}"
            ) from error
