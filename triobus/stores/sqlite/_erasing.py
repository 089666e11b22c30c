"""Erasing what the log has of one aggregate, so that no byte of it is left in the file.

An event cannot be taken out, for positions have no gaps; `Erased` stands in its place. The chain of
checksums is made anew from there on, after each event was compared with its old one.
"""

import sqlite3
import zlib
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import attrs

from triobus._errors import StoreInUse
from triobus._events import EventCodec
from triobus._events.erased import Erased
from triobus.stores._values import Erasure, Row
from triobus.stores.sqlite._connection import Database
from triobus.stores.sqlite._log import COLUMNS, record_of
from triobus.stores.sqlite._writing import Writer

_AT_ONCE = 1000
_LETTERS = (
    "dead_letters WHERE aggregate_id = :id "
    "OR position IN (SELECT position FROM events WHERE aggregate_id = :id)"
)
_ATTEMPTS = "attempts WHERE position IN (SELECT position FROM events WHERE aggregate_id = :id)"
_SCHEDULED = "scheduled WHERE aggregate_id = :id"


@attrs.define(eq=False)
class Eraser:
    """Erases an aggregate from a store that nothing else uses."""

    _db: Database
    _writer: Writer
    _codec: EventCodec

    def look(self, aggregate_id: str) -> Erasure:
        """Return what there is to be erased."""
        with self._db.faults.explained("be read"):
            return Erasure(
                *(
                    self._count(table, aggregate_id)
                    for table in ("events WHERE aggregate_id = :id", _LETTERS, _SCHEDULED)
                )
            )

    def _count(self, table: str, aggregate_id: str) -> int:
        query = f"SELECT count(*) FROM {table}"
        (count,) = self._db.ready().execute(query, {"id": aggregate_id}).fetchone()
        return int(count)

    def erase(self, aggregate_id: str) -> Erasure:
        """Erase all of an aggregate in one commit, and then what SQLite has left of it.

        The second part can be made up for by another call. Raises `StoreError`.
        """
        self._writer.claim()
        found = self.look(aggregate_id)
        connection = self._db.ready()
        with self._db.faults.explained("be written"):
            connection.execute("PRAGMA secure_delete = ON").fetchall()
            connection.execute("BEGIN IMMEDIATE")
            try:
                for table in (_LETTERS, _ATTEMPTS, _SCHEDULED):
                    connection.execute(f"DELETE FROM {table}", {"id": aggregate_id})
                checksum = self._chain_anew(connection, aggregate_id)
                connection.execute("UPDATE progress SET checksum = ? WHERE name = ''", (checksum,))
                self._writer._finish_commit(connection)
            except BaseException:
                self._db.roll_back()
                raise
        self._db.checksum = checksum
        self._writer.forget_sequences()
        self._writer.scheduled.look()
        self._overwrite(connection)
        return found

    def _chain_anew(self, connection: sqlite3.Connection, aggregate_id: str) -> int:
        """Put `Erased` into the places of the events; return the checksum of the last event."""
        (first,) = connection.execute(
            "SELECT min(position) FROM events WHERE aggregate_id = ?", (aggregate_id,)
        ).fetchone()
        if first is None:
            return self._db.checksum
        after, old, checksum = first - 1, None, 0
        while True:
            rows = connection.execute(
                f"SELECT {COLUMNS} FROM events WHERE position > ? ORDER BY position LIMIT ?",
                (after, _AT_ONCE),
            ).fetchall()
            if not rows:
                return checksum
            if old is None:
                old = checksum = rows[0][9] or 0
            checksums = []
            for row in rows:
                record = record_of(self._db.faults, row, old)
                after, old = record.position, row[8]
                if record.aggregate_id == aggregate_id:
                    row = self._erased(connection, row, record)
                checksum = _checksum_of(row, checksum)
                checksums.append((checksum, after))
            connection.executemany("UPDATE events SET checksum = ? WHERE position = ?", checksums)

    def _erased(
        self, connection: sqlite3.Connection, row: Sequence[Any], record: Row
    ) -> Sequence[Any]:
        """Erase one event, and return the row in its place."""
        event = Erased(
            record.event_type, event_id=UUID(record.event_id), occurred_at=record.recorded_at
        )
        kind, version, data = event.event_type, event.schema_version, self._codec.encode(event)
        connection.execute(
            "UPDATE events SET event_type = ?, schema_version = ?, aggregate_id = NULL, "
            "sequence = NULL, data = ?, correlation_id = NULL WHERE position = ?",
            (kind, version, data.decode(), record.position),
        )
        return (*row[:2], kind.encode(), version, None, None, row[6], data)

    def _overwrite(self, connection: sqlite3.Connection) -> None:
        """Leave nothing of what was deleted in free pages and in the `-wal`, now or earlier."""
        self._db.checkpoint("TRUNCATE")
        with self._db.faults.explained("be written"):
            connection.execute("VACUUM")
        self._db.checkpoint("TRUNCATE")
        if self._db.warning is not None:
            raise StoreInUse(
                f"{self._db.faults.shown}: the data are erased from the log, and some may be left "
                "in the '-wal' until no other program reads the store: end it, then erase again"
            )


def _checksum_of(row: Sequence[Any], before: int) -> int:
    position, id_, type_, version, aggregate, sequence, recorded, data, *_ = row
    place = b"" if sequence is None else b"%d" % sequence
    names = (position, id_, type_, version, aggregate or b"", place, recorded)
    return zlib.crc32(data, zlib.crc32(b"%d\0%b\0%b\0%d\0%b\0%b\0%b\0" % names, before))
