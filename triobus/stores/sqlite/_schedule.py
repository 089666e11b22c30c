"""The rows of events that are not due yet."""

import math
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
    count: int = 0
    """How many there are, those of the transaction under way included."""
    damaged: dict[int, str] = attrs.field(factory=dict)
    """What is said of those that cannot be read, by their numbers; they stay where they are."""

    def _execute(self, statement: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        return self._db.ready().execute(statement, values)

    def add(self, item: Schedule, known: Known | None) -> Waiting | Exception:
        """Keep an event until it is due, unless the log has it, which is `known`, or it is here."""
        record = item.record
        event_id = str(record.event_id)
        place = None if known is None else known.place.position
        try:
            there = self.find(event_id) if known is None else known.content
        except StoreCorrupt as error:
            return error
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
        self.count += 1
        return Waiting(None, is_new=True)

    def remove(self, event_id: str, now: float = -math.inf) -> bool:
        """Take an event back that is not due; return whether it was there."""
        statement = "DELETE FROM scheduled WHERE event_id = ? AND due_at > ?"
        found = self._execute(statement, (event_id, now)).rowcount
        self.count -= found
        return found > 0

    def take_due(self, now: float, limit: int) -> Iterator[NewRow]:
        """Yield the first events that are due, and take them out."""
        query = (
            f"SELECT {_COLUMNS} FROM scheduled WHERE due_at <= ? AND {self._sound} "
            "ORDER BY due_at, number LIMIT ?"
        )
        for row in self._execute(query, (now, limit)).fetchall():
            try:
                record = self._record(row)
            except StoreCorrupt as error:
                self.damaged[int(row[0])] = str(error)
                continue
            self._execute("DELETE FROM scheduled WHERE number = ?", (row[0],))
            self.count -= 1
            yield record

    def next_due(self) -> float | None:
        """Return when the next one is due that can be read."""
        query = f"SELECT due_at FROM scheduled WHERE {self._sound} ORDER BY due_at, number LIMIT 1"
        row = self._execute(query).fetchone()
        return None if row is None else _rows.seconds(row[0])

    def look(self) -> None:
        """Count them anew."""
        (self.count,) = self._execute("SELECT count(*) FROM scheduled").fetchone()
        self.damaged.clear()

    @property
    def _sound(self) -> str:
        return f"number NOT IN ({', '.join(map(str, self.damaged))})"

    def find(self, event_id: str) -> NewRow | None:
        """Return the event of an id. Raises `StoreCorrupt`."""
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
