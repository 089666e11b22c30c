"""Reading a store: the log, and what the groups of a bus have come to."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, nullcontext, suppress
from typing import Any

import attrs
import outcome

from triobus.stores._transaction import Call
from triobus.stores._values import (
    EVERYTHING,
    DeadLetterKey,
    DeadLetterRow,
    GroupRow,
    Row,
    Selection,
    StoredGroup,
    StoreStatistics,
)
from triobus.stores.sqlite import _rows
from triobus.stores.sqlite._connection import Database
from triobus.stores.sqlite._log import COLUMNS, head, last_position, record_of, row_of_id
from triobus.stores.sqlite._transaction import SqliteTransaction

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
    "last_failed_at, error_type, message, traceback, checksum"
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
        selected: Selection = EVERYTHING,
        backwards: bool = False,  # a thread's call has no keywords
    ) -> list[Row]:
        """Return the first events behind a position, or the last ones; by bytes, fewer of them."""
        aggregate_id, types, correlation_id = selected
        if after >= _ENDLESS or not _rows.is_text(aggregate_id, *types or ()):
            return []  # SQLite knows no such number or text, so that nothing can have it
        up_to = _ENDLESS if up_to is None else min(up_to, _ENDLESS)
        terms = ["position > ?", "position <= ?"]
        terms += ["aggregate_id = ?"] if aggregate_id is not None else []
        terms += ["correlation_id = ?"] if correlation_id is not None else []
        terms += [f"event_type IN ({', '.join('?' * len(types))})"] if types is not None else []
        given = (after, up_to, aggregate_id, correlation_id, *(types or ()))
        query = (
            f"SELECT {COLUMNS} FROM events WHERE {' AND '.join(terms)} "
            f"ORDER BY position {'DESC' if backwards else ''} LIMIT ?"
        )
        values = [value for value in given if value is not None]
        # Backwards the end is looked at apart, which a writer may move meanwhile.
        moment = self._db.one_moment() if backwards else nullcontext()
        with self._db.faults.explained("be read"), moment:
            with closing(self._db.ready().execute(query, (*values, limit))) as cursor:
                before, step = (up_to + 1, -1) if backwards else (after, 1)
                if selected == EVERYTHING:
                    if backwards:
                        before = min(before, last_position(self._db) + 1)
                    rows = self._without_gaps(cursor, before, step)
                else:
                    rows = self._in_order(cursor, before, step)
                records = self._batch(rows)
            if selected == EVERYTHING and not records:
                self._check_end(after, up_to)
            if aggregate_id is not None and types is None and correlation_id is None:
                self._check_sequences(records, step)
        return records

    def _batch(self, rows: Iterable[Any]) -> list[Row]:
        """Return events, up to some bytes."""
        records: list[Row] = []
        size = 0
        for row in rows:
            records.append(record_of(self._db.faults, row, row[9] or 0))
            size += len(row[7]) + len(row[2]) + len(row[4] or b"")
            if size >= _BYTES_A_BATCH:
                break
        return records

    def _without_gaps(self, rows: Iterable[Any], before: int, step: int) -> Iterator[Any]:
        """Yield the rows of the whole log; raise `StoreCorrupt` where one is missing."""
        for row in rows:
            before += step
            if row[0] != before:
                raise self._db.faults.corrupt(before, "the event is missing")
            yield row

    def _in_order(self, rows: Iterable[Any], before: int, step: int) -> Iterator[Any]:
        """Yield rows; raise `StoreCorrupt` where they are not in the order of the log."""
        for row in rows:
            if (row[0] - before) * step <= 0:
                raise self._db.faults.corrupt(row[0], f"it comes behind position {before}")
            before = row[0]
            yield row

    def _check_sequences(self, records: Sequence[Row], step: int) -> None:
        """Raise `StoreCorrupt` unless an aggregate's events come one after the other."""
        for record, before in zip(records[1:], records, strict=False):
            if record.sequence != (before.sequence or 0) + step:
                raise self._db.faults.corrupt(
                    record.position, f"sequence {record.sequence} comes after {before.sequence}"
                )

    def position_of(self, aggregate_id: str, sequence: int) -> int | None:
        """Return where an aggregate has its event of a sequence, by the index alone."""
        if not _rows.is_text(aggregate_id) or sequence >= _rows.GREATEST:
            return None
        query = "SELECT position, sequence FROM events WHERE aggregate_id = ? ORDER BY position"
        with self._db.faults.explained("be read"), self._db.one_moment():
            execute = self._db.ready().execute
            newest = execute(f"{query} DESC LIMIT 1", (aggregate_id,)).fetchone()
            if newest is None or sequence > (last := _rows.whole(newest[1])):
                return None
            # The index has no sequences, which count its entries: from the nearer end.
            steps, order = min((sequence - 1, ""), (last - sequence, "DESC"))
            values = (aggregate_id, steps)
            found = execute(f"{query} {order} LIMIT 1 OFFSET ?", values).fetchone()
            if found is None or found[1] != sequence:
                raise self._db.faults.corrupt(
                    newest[0], f"the index does not lead to sequence {sequence} of its aggregate"
                )
            return _rows.whole(found[0])

    def _check_end(self, after: int, up_to: int) -> None:
        """Raise `StoreCorrupt` if the log should go on behind a position, and does not."""
        # In one statement, for a writer may have added what has not been seen.
        end, has_more = (
            self._db.ready().execute(_LAST_AND_MORE, {"after": after, "up_to": up_to}).fetchone()
        )
        if after < end and not has_more:
            raise self._db.faults.corrupt(after + 1, "the event is missing")

    def ask(self, call: Call) -> Any:
        """Make a call that only reads, at one moment."""
        connection, is_writer = self._db.ready(), self._db.is_writer
        transaction = SqliteTransaction(
            call, connection, self._db.access, self._db.faults, is_read_only=True
        )
        with self._db.faults.explained("be asked"), self._db.one_moment():
            connection.execute("PRAGMA query_only = ON")
            found = outcome.capture(transaction._run)
            connection.execute(f"PRAGMA query_only = {'OFF' if is_writer else 'ON'}")
        return found.unwrap()  # what the function raises is no fault of the store

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
            finished, attempts = self._by_group("finished"), self._by_group("attempts")
            query = "SELECT name, position, checksum FROM progress WHERE name > '' ORDER BY name"
            return [
                _rows.group(row, finished.get(row[0], ()), attempts.get(row[0], ()), last)
                for row in self._rows_of(query, 1)
            ]

    def _by_group(self, table: str) -> dict[bytes, list[Any]]:
        rows: dict[bytes, list[Any]] = {}
        for row in self._rows_of(f"SELECT * FROM {table}", 2):
            rows.setdefault(row[0], []).append(row)
        return rows

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

    def letter(self, id_: int) -> DeadLetterRow:
        """Return a dead letter that is there, in the transaction of the caller."""
        query = f"SELECT {_LETTER_COLUMNS} FROM dead_letters WHERE id = ?"
        return _rows.letter(self._db.ready().execute(query, (id_,)).fetchone())

    def statistics(self) -> StoreStatistics:
        """Return what the store holds."""
        with self._db.faults.explained("be read"), self._db.one_moment():
            aggregates = self._one(
                "SELECT count(DISTINCT aggregate_id) FROM events WHERE aggregate_id IS NOT NULL"
            )
            types = self._counts("count(*)", "events", "event_type")
            return attrs.evolve(
                self.counted(),
                aggregates=aggregates,
                types={_rows.text(name): count for name, count in types.items()},
            )

    def counted(self) -> StoreStatistics:
        """Return what can be had without a look at every event, in the transaction of the caller.

        That is all but the aggregates and the types.
        """
        last = last_position(self._db)
        moments = [
            _rows.moment(self._one("SELECT recorded_at FROM events WHERE position = ?", at))
            for at in (1, last)
            if last
        ]
        return StoreStatistics(
            events=last,
            aggregates=0,
            types={},
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
        return size_of(self._db.at.path)


def size_of(path: str) -> int:
    """Return how many bytes the files of a store take."""
    size = 0
    for name in (path, path + "-wal"):
        with suppress(FileNotFoundError):
            size += os.stat(name).st_size
    return size
