"""A good store, and what somebody makes of it who can write to its file.

The tables are STRICT, so a value of a wrong type is put in while the schema says otherwise: only
its text is exchanged and put back, for SQLite keeps the type of a value beside the value.
"""

import re
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import trio
import trio.testing

from tests.events import Noted
from triobus import EventBus, Retry, SqliteEventStore

EVENTS = 12
FAILED = 4
"""The number of the event that one handler has failed for good."""
WAITING = 7
"""The number of the event that waits for its next attempt, so that those behind it are ranges."""
KEYS = ("a", "b", None)

_DECLARED = re.compile(r" (?:INTEGER(?! PRIMARY KEY)|TEXT|REAL)( NOT NULL)?")


def event_id(number: int) -> UUID:
    """Return the id of an event of the good store."""
    return UUID(int=(17 << 64) + number)


@cache
def good() -> bytes:
    """Return a store with rows in every table."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "good.db")
        trio.run(_make, path, clock=trio.testing.MockClock(autojump_threshold=0))
        return path.read_bytes()


async def _make(path: Path) -> None:
    bus = EventBus(SqliteEventStore(path), workers=2)

    @bus.subscribe(Noted, name="send", retry=Retry(attempts=1))
    async def send(event: Noted) -> None:
        if event.number == FAILED:
            raise ConnectionError("no network")

    @bus.subscribe(Noted, name="wait", retry=Retry(delay=3600, max_delay=7200))
    async def wait(event: Noted) -> None:
        if event.number == WAITING:
            raise ConnectionError("not yet")

    async with bus:
        await bus.publish_many(
            # Each is caused by the next one, and the last by the first.
            Noted(n, KEYS[n % 3], event_id=event_id(n), causation_id=event_id((n + 1) % EVENTS))
            for n in range(EVENTS)
        )
        await bus.stop(timeout=60)


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Give the file as plain SQLite sees it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        yield connection


def forge(
    path: Path, *statements: str, is_chained: bool = True, has_to_change: bool = True
) -> None:
    """Make a good store at a path and change it as if its schema allowed everything.

    With `is_chained` the checksums are made to fit again, as an attacker would do.
    """
    path.write_bytes(good())
    with opened(path) as connection:
        schema = connection.execute(
            "SELECT sql, name FROM sqlite_schema WHERE type = 'table'"
        ).fetchall()
        before = rows(connection)
        _exchange(connection, [(_loose(sql), name) for sql, name in schema])
    with opened(path) as connection:
        for statement in statements:
            connection.execute(statement)
        if is_chained:
            chain(connection)
        _exchange(connection, schema)
        assert not (statements and has_to_change) or rows(connection) != before


def chain(connection: sqlite3.Connection) -> None:
    """Give all events the checksums that they should have, so far as their values allow it."""
    connection.text_factory = bytes
    before, position = 0, 0
    rows = connection.execute("SELECT * FROM events ORDER BY position").fetchall()
    for position, *columns in rows:
        before = _checksum([position, *columns[:-2]], before)
        connection.execute("UPDATE events SET checksum = ? WHERE position = ?", (before, position))
    connection.execute(
        "UPDATE progress SET position = ?, checksum = ? WHERE name = ''", (position, before)
    )
    # Those of groups need not be there, so whoever takes them away need not compute them.
    connection.execute("UPDATE progress SET checksum = NULL WHERE name <> ''")
    for table in ("finished", "attempts", "dead_letters", "scheduled"):
        connection.execute(f"UPDATE {table} SET checksum = NULL")


def rows(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
    """Return all there is."""
    connection.text_factory = bytes
    return [
        (table, *row)
        for table in ("events", "progress", "finished", "attempts", "dead_letters")
        for row in connection.execute(f"SELECT * FROM {table}").fetchall()
    ]


def values(path: Path, table: str, column: str) -> list[Any]:
    """Return what a column of a file has, as SQLite gives it."""
    with opened(path) as connection:
        connection.text_factory = bytes
        return [value for (value,) in connection.execute(f"SELECT {column} FROM {table}")]


def _loose(sql: str) -> str:
    return _DECLARED.sub("", sql).replace(" STRICT,", "").replace(" STRICT", "")


def _exchange(connection: sqlite3.Connection, schema: Sequence[tuple[str, str]]) -> None:
    connection.execute("PRAGMA writable_schema = ON")
    connection.executemany("UPDATE sqlite_schema SET sql = ? WHERE name = ?", schema)


def _checksum(columns: Sequence[Any], before: int) -> int:
    shown = [b"" if value is None else _shown(value) for value in columns]
    return zlib.crc32(b"\0".join(shown), before)


def _shown(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
