"""Reading a store: the log, and what the groups of a bus have come to."""

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import attrs

from triobus.stores._values import (
    DeadLetterKey,
    DeadLetterRow,
    GroupRow,
    Row,
    StoredGroup,
    StoreStatistics,
)
from triobus.stores.sqlite import _rows
from triobus.stores.sqlite._connection import Database
from triobus.stores.sqlite._log import COLUMNS, head, last_position, record_of, row_of_id

_BYTES_A_BATCH = 4 * 2**20
"""After how many bytes of events a batch ends that is read."""
_ENDLESS = 2**63 - 1
_LAST_AND_MORE = (
    "SELECT min(position, :up_to), "
    "EXISTS (SELECT 1 FROM events WHERE events.position > :after AND events.position <= :up_to) "
    "FROM progress WHERE name = ''"
)
_OFFSETS = "SELECT name, position FROM progress WHERE name > '' ORDER BY name"
_LETTER_COLUMNS = (
    "id, position, group_name, subscription, aggregate_id, attempts, first_failed_at, "
    "last_failed_at, error_type, message, traceback"
)


@attrs.define(eq=False)
class Reader:
    """Reads one open file."""

    _db: Database

    def fetch(
        self,
        after: int,
        limit: int,
        up_to: int | None = None,
        aggregate_id: str | None = None,
        types: Sequence[str] | None = None,
    ) -> list[Row]:
        """Return the first events behind a position; by bytes, fewer of them."""
        if after >= _ENDLESS or not _rows.is_text(aggregate_id, *types or ()):
            return []  # SQLite knows no such number or text, so that nothing can have it
        terms = ["position > ?"]
        terms += ["position <= ?"] if up_to is not None else []
        terms += ["aggregate_id = ?"] if aggregate_id is not None else []
        terms += [f"event_type IN ({', '.join('?' * len(types))})"] if types is not None else []
        given = (after, up_to, aggregate_id, *(types or ()))
        values = [value for value in given if value is not None]
        is_whole = aggregate_id is None and types is None
        query = (
            f"SELECT {COLUMNS} FROM events WHERE {' AND '.join(terms)} ORDER BY position LIMIT ?"
        )
        connection = self._db.ready()
        with self._db.faults.explained("be read"):
            with closing(connection.execute(query, (*values, limit))) as cursor:
                records = self._batch(
                    cursor, after, is_whole=is_whole, is_lane=types is None and not is_whole
                )
            if is_whole and not records:
                self._check_end(after, _ENDLESS if up_to is None else up_to)
        return records

    def _batch(
        self, cursor: sqlite3.Cursor, after: int, *, is_whole: bool, is_lane: bool
    ) -> list[Row]:
        """Return the events of a cursor, up to some bytes; raise if they do not come as they must.

        That is without gaps in the whole log, and in the lane of an aggregate by sequences.
        """
        records: list[Row] = []
        size = 0
        for row in cursor:
            if is_whole and row[0] != after + 1:
                raise self._db.faults.corrupt(after + 1, "the event is missing")
            record = record_of(self._db.faults, row, row[9] or 0)
            if row[0] <= after:
                raise self._db.faults.corrupt(row[0], f"it comes behind position {after}")
            if is_lane and records:
                self._check_next(record, records[-1])
            after = row[0]
            records.append(record)
            size += len(row[7]) + len(row[2]) + len(row[4] or b"")
            if size >= _BYTES_A_BATCH:
                break
        return records

    def _check_end(self, after: int, up_to: int) -> None:
        """Raise `StoreCorrupt` if the log should go on behind a position, and does not."""
        # In one statement, for a writer may have added what has not been seen.
        end, has_more = (
            self._db.ready().execute(_LAST_AND_MORE, {"after": after, "up_to": up_to}).fetchone()
        )
        if after < end and not has_more:
            raise self._db.faults.corrupt(after + 1, "the event is missing")

    def _check_next(self, record: Row, before: Row) -> None:
        """Raise `StoreCorrupt` unless an event of an aggregate comes right after another."""
        if record.sequence != (before.sequence or 0) + 1:
            raise self._db.faults.corrupt(
                record.position, f"sequence {record.sequence} comes after {before.sequence}"
            )

    def find(self, event_id: str) -> Row | None:
        """Return the event of an id."""
        with self._db.faults.explained("be read"):
            row = row_of_id(self._db, event_id)
            return None if row is None else record_of(self._db.faults, row, row[9] or 0)

    def last_position(self) -> int:
        """Return the position of the last event."""
        with self._db.faults.explained("be read"):
            return head(self._db)[0]

    def groups(self) -> list[GroupRow]:
        """Return the progress of all groups."""
        with self._db.faults.explained("be read"), self._db.one_moment():
            last = last_position(self._db)
            finished: dict[bytes, list[Any]] = {}
            for name, *row in self._rows_of("SELECT * FROM finished", 2):
                finished.setdefault(name, []).append(row)
            attempts: dict[bytes, list[Any]] = {}
            for name, *row in self._rows_of("SELECT * FROM attempts", 2):
                attempts.setdefault(name, []).append(row)
            return [
                _rows.group(name, offset, finished.get(name, ()), attempts.get(name, ()), last)
                for name, offset in self._rows_of(_OFFSETS, 1)
            ]

    def letter_keys(self) -> list[DeadLetterKey]:
        """Return what identifies each dead letter."""
        query = (
            "SELECT id, position, group_name, subscription, aggregate_id "
            "FROM dead_letters ORDER BY id"
        )
        with self._db.faults.explained("be read"):
            return [_rows.letter_key(row) for row in self._rows_of(query, 1)]

    def letters(self, ids: Sequence[int]) -> list[tuple[DeadLetterRow, Row]]:
        """Return dead letters with their events; without those that are no more."""
        connection = self._db.ready()
        found = []
        with self._db.faults.explained("be read"):
            for id_ in ids:
                row = connection.execute(
                    f"SELECT {_LETTER_COLUMNS} FROM dead_letters WHERE id = ?", (id_,)
                ).fetchone()
                if row is None:
                    continue
                event = connection.execute(
                    f"SELECT {COLUMNS} FROM events WHERE position = ?", (row[1],)
                ).fetchone()
                if event is None:
                    raise self._db.faults.corrupt(
                        row[1], f"dead letter {id_} is about it, and it is missing"
                    )
                found.append((_rows.letter(row), record_of(self._db.faults, event, event[9] or 0)))
        return found

    def statistics(self) -> StoreStatistics:
        """Return what the store holds."""
        with self._db.faults.explained("be read"), self._db.one_moment():
            last = last_position(self._db)
            moments = [
                _rows.moment(self._one("SELECT recorded_at FROM events WHERE position = ?", at))
                for at in (1, last)
                if last
            ]
            aggregates = self._one(
                "SELECT count(DISTINCT aggregate_id) FROM events WHERE aggregate_id IS NOT NULL"
            )
            types = self._counts("count(*)", "events", "event_type")
            return StoreStatistics(
                events=last,
                aggregates=aggregates,
                types={_rows.text(name): count for name, count in types.items()},
                first_recorded_at=moments[0] if moments else None,
                last_recorded_at=moments[-1] if moments else None,
                size_bytes=self._size(),
                groups=self._statistics_of_groups(last),
            )

    def _statistics_of_groups(self, last: int) -> dict[str, StoredGroup]:
        finished = self._counts("sum(last_position - first_position + 1)", "finished", "group_name")
        letters = self._counts("count(*)", "dead_letters", "group_name")
        return {
            _rows.text(name): StoredGroup(
                offset=_rows.whole(offset, least=0, most=last),
                lag=_rows.whole(last - offset - finished.get(name, 0), least=0),
                dead_letters=letters.get(name, 0),
            )
            for name, offset in self._rows_of(_OFFSETS, 1)
        }

    def _one(self, query: str, *values: object) -> Any:
        return self._db.ready().execute(query, values).fetchone()[0]

    def _counts(self, count: str, table: str, column: str) -> dict[bytes, int]:
        query = f"SELECT {column}, {count} FROM {table} GROUP BY 1 ORDER BY 1"
        return {name: _rows.whole(found) for name, found in self._rows_of(query, 1)}

    def _rows_of(self, query: str, key: int) -> list[Any]:
        """Return what a query finds, in the order of the first columns."""
        with closing(self._db.ready().execute(query)) as cursor:
            return list(_rows.ascending(cursor, key, self._db.faults.room()))

    def _size(self) -> int:
        if self._db.at is None:
            return int(self._one("PRAGMA page_count") * self._one("PRAGMA page_size"))
        paths = (self._db.at.path, self._db.at.path + "-wal")
        return sum(os.stat(path).st_size for path in paths if os.path.exists(path))
