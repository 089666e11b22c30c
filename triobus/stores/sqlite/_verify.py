"""What `verify` compares: the log with its checksums, and the rest with what it must agree with.

Beside the log these are pages and indexes, and what a bus keeps. What is on record twice nowhere,
such as the text of an error, cannot be told from what it was before.
"""

import math
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime
from typing import Any

import attrs
import msgspec

from triobus._errors import StoreCorrupt
from triobus.stores.sqlite import _rows, _wal
from triobus.stores.sqlite._checksums import is_whole
from triobus.stores.sqlite._connection import Database
from triobus.stores.sqlite._log import COLUMNS, last_position, record_of
from triobus.stores.sqlite._rows import UNREADABLE

_is_uuid = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}").fullmatch
_SHOWN = 20
"""How many complaints of one kind are listed."""

_LAST = "(SELECT position FROM progress WHERE name = '')"
_RULES = (
    (
        "events",
        f"position NOT BETWEEN 1 AND {_LAST} "
        "OR (json_valid(data) AND correlation_id IS NOT data ->> 'correlation_id')",
    ),
    (
        "progress",
        f"position NOT BETWEEN 0 AND {_LAST} "
        "OR (name = '') <> (fences IS NOT NULL) OR (name = '' AND checksum IS NULL)",
    ),
    (
        "finished",
        f"first_position < 1 OR last_position NOT BETWEEN first_position AND {_LAST} "
        "OR group_name NOT IN (SELECT name FROM progress WHERE name > '')",
    ),
    (
        "attempts",
        f"position NOT BETWEEN 1 AND {_LAST} OR attempts < 0 "
        "OR group_name NOT IN (SELECT name FROM progress WHERE name > '')",
    ),
    (
        "dead_letters",
        "id < 1 OR attempts < 0 OR NOT EXISTS (SELECT 1 FROM events "
        "WHERE events.position = dead_letters.position "
        "AND events.aggregate_id IS dead_letters.aggregate_id)",
    ),
    ("scheduled", "number < 1"),
)
"""For each table what no row of it may be like."""
_WITH_CHECKSUMS = {
    "progress": "SELECT name, position, checksum FROM progress WHERE name > ''",
    **{
        table: f"SELECT * FROM {table}"
        for table in ("finished", "attempts", "dead_letters", "scheduled")
    },
}
"""The tables whose rows have a checksum each, as the last column, and how they are read."""


@attrs.define(eq=False)
class Verifier:
    """Compares everything in one open file."""

    _db: Database

    def check(self, after: int, limit: int) -> tuple[int, list[int]]:
        """Compare a piece of the log with its checksums.

        Returns the position up to which it has been looked at (`after` at the end) and those of the
        events that are damaged or missing.
        """
        connection = self._db.ready()
        damaged: list[int] = []
        with self._db.faults.explained("be read"), self._db.one_moment():
            (newest,) = connection.execute("SELECT max(position) FROM events").fetchone()
            # So many may be missing at the end; a number beyond that is wrong itself.
            last = min(last_position(self._db), (newest or 0) + limit)
            query = f"SELECT {COLUMNS} FROM events WHERE position > ? AND position <= ? "
            due = after + 1
            bounds = (after, after + limit)
            with closing(connection.execute(query + "ORDER BY position", bounds)) as cursor:
                for row in _rows.ascending(cursor, 1, self._db.faults.room()):
                    damaged.extend(range(due, row[0]))
                    due = row[0] + 1
                    if row[0] > last or not self._is_whole(row):
                        damaged.append(row[0])
            end = min(after + limit, last)
            damaged.extend(range(due, end + 1))
        return max(end, after), sorted(set(damaged))

    def _is_whole(self, row: Sequence[Any]) -> bool:
        try:
            return bool(_is_uuid(record_of(self._db.faults, row, row[9] or 0).event_id))
        except StoreCorrupt:
            return False

    def problems(self) -> list[str]:
        """Return what is wrong beside the log, in sentences."""
        with self._db.faults.explained("be read"), self._db.one_moment():
            found = _problems(self._db.ready())
        file = self._db.at
        if file is not None and (passed := _wal.commits_passed_over(file.path + "-wal")):
            found.append(
                f"at least {passed:,} commits are in its '-wal' behind a damaged place: they "
                "cannot be read"
            )
        return found

    def check_sequences(self, limit: int) -> list[int]:
        """Return the positions of events whose sequences do not count their aggregates' events."""
        query = (
            "SELECT position FROM (SELECT position, sequence, row_number() OVER "
            "(PARTITION BY aggregate_id ORDER BY position) AS due FROM events "
            "WHERE aggregate_id IS NOT NULL) WHERE sequence <> due ORDER BY position LIMIT ?"
        )
        with self._db.faults.explained("be read"):
            return [row[0] for row in self._db.ready().execute(query, (limit,)).fetchall()]


def _problems(connection: sqlite3.Connection) -> list[str]:
    """Return what is wrong, in sentences. Raises `sqlite3.Error` where nothing can be read."""
    found = [
        _text(said)
        for (said,) in connection.execute(f"PRAGMA integrity_check({_SHOWN})").fetchall()
    ]
    if found == ["ok"]:
        found = []
    for table, rule in _RULES:
        (rows,) = connection.execute(f"SELECT count(*) FROM {table} WHERE {rule}").fetchone()
        if rows:
            found.append(f"the table {table} has {rows:,} rows that cannot be")
    found += _unreadable(connection)
    found += _changed(connection)
    return found


def _changed(connection: sqlite3.Connection) -> Iterator[str]:
    """Yield a sentence for every table with rows that are not what was written."""
    for table, query in _WITH_CHECKSUMS.items():
        wrong = sum(not is_whole(table, row) for row in connection.execute(query))
        if wrong:
            yield (
                f"the table {table} has {wrong:,} rows that are not what was written (to go on "
                "with what is there, set their checksum to NULL)"
            )


def _unreadable(connection: sqlite3.Connection) -> Iterator[str]:
    rows = connection.execute("SELECT subscription, due_at, delay, done FROM attempts").fetchall()
    wrong = sum(not _is_attempt(*row) for row in rows)
    if wrong:
        yield f"the table attempts has {wrong:,} rows that cannot be read"
    wrong = 0
    for row in connection.execute(
        "SELECT first_failed_at, last_failed_at, group_name, subscription, error_type, message, "
        "traceback FROM dead_letters"
    ):
        wrong += not _is_letter(*row)
    if wrong:
        yield f"the table dead_letters has {wrong:,} rows that cannot be read"


def _is_attempt(subscription: bytes, due_at: float, delay: float, done: bytes) -> bool:
    try:
        subscription.decode()
        msgspec.json.decode(done, type=list[str])
        return math.isfinite(due_at) and math.isfinite(delay) and delay >= 0
    except UNREADABLE:
        return False


def _is_letter(first: bytes, last: bytes, *texts: bytes) -> bool:
    try:
        for text in texts:
            text.decode()
        moments = [datetime.fromisoformat(moment.decode()) for moment in (first, last)]
    except UNREADABLE:
        return False
    return all(moment.tzinfo is not None for moment in moments)


def _text(said: object) -> str:
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
