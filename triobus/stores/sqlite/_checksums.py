"""A checksum of each group's progress: a number that was changed would let it leave out events.

1. The checksum of a group is the sum of those of all its rows in `progress`, `finished` and
   `attempts`, so that a commit has to look only at those that it writes. (The exclusive or would
   not do: the same change in two rows changes the crc32 of both by the same bits.)
2. What a commit makes of it counts only once the commit has succeeded.
3. A group of a store from before there were checksums has none until its next commit.
"""

import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import attrs

from triobus.stores._values import ProgressChange

AttemptsRow = tuple[str, int, str, int, float, float, str]
"""As it goes into the table."""


@attrs.define(eq=False)
class Checksums:
    """The checksums of all groups of a store that is open for writing."""

    _sums: dict[bytes, int] = attrs.field(factory=dict)
    """What the checksums of a group's rows come to, its offset's aside."""
    _written: dict[bytes, int] = attrs.field(factory=dict)
    """The same after the commit that is being made."""

    @classmethod
    def read(cls, connection: sqlite3.Connection) -> tuple["Checksums", list[bytes]]:
        """Return the checksums of a store, and the names of groups whose rows have another one.

        Raises `TypeError` for a row that has something else than numbers where they belong.
        """
        checksums = cls()
        for name, first, last in _rows_of(connection, "SELECT * FROM finished"):
            checksums._sums[name] = checksums._sum(name, _of_range(name, first, last))
        for name, position, *rest in _rows_of(connection, "SELECT * FROM attempts"):
            checksums._sums[name] = checksums._sum(name, _of_attempts(name, position, rest))
        groups = connection.execute(
            "SELECT name, position, checksum FROM progress WHERE name > ''"
        ).fetchall()
        wrong = [
            name
            for name, offset, group_checksum in groups
            if group_checksum is not None
            and group_checksum != checksums._sum(name, _of_offset(name, offset))
        ]
        return checksums, wrong

    def begin(self) -> None:
        """Forget what a commit has written that did not succeed."""
        self._written.clear()

    def written(
        self,
        connection: sqlite3.Connection,
        group: str,
        progress: ProgressChange,
        gone: Sequence[tuple[str, int]],
        attempts: Sequence[AttemptsRow],
    ) -> int:
        """Return the checksum of a group after a commit that is about to be written."""
        name = group.encode()
        change = 0
        for first, last in progress.ranges:
            change -= _of_range_before(connection, name, first)
            change += 0 if last is None else _of_range(name, first, last)
        for _, position in gone:
            change -= _of_attempts_before(connection, name, position)
        for _, position, *rest in attempts:
            change -= _of_attempts_before(connection, name, position)
            change += _of_attempts(name, position, rest)
        self._written[name] = self._sum(name, change)
        return self._sum(name, change + _of_offset(name, progress.offset))

    def commit(self) -> None:
        """What was written is on disk."""
        self._sums.update(self._written)
        self._written.clear()

    def _sum(self, group: bytes, more: int) -> int:
        return (self._sums.get(group, 0) + more) & 0xFFFFFFFF


def _of_range_before(connection: sqlite3.Connection, name: bytes, first: int) -> int:
    row = connection.execute(
        "SELECT last_position FROM finished WHERE group_name = ? AND first_position = ?",
        (name.decode(), first),
    ).fetchone()
    return 0 if row is None else _of_range(name, first, row[0])


def _of_attempts_before(connection: sqlite3.Connection, name: bytes, position: int) -> int:
    row = connection.execute(
        "SELECT subscription, attempts, due_at, delay, done FROM attempts "
        "WHERE group_name = ? AND position = ?",
        (name.decode(), position),
    ).fetchone()
    return 0 if row is None else _of_attempts(name, position, row)


def _rows_of(connection: sqlite3.Connection, query: str) -> Iterator[Any]:
    """Yield rows one by one, for there may be many."""
    with closing(connection.execute(query)) as cursor:
        yield from cursor


def _of_offset(name: bytes, offset: int) -> int:
    return zlib.crc32(b"progress\0%b\0%d" % (name, offset))


def _of_range(name: bytes, first: int, last: int) -> int:
    return zlib.crc32(b"finished\0%b\0%d\0%d" % (name, first, last))


def _of_attempts(name: bytes, position: int, rest: Sequence[Any]) -> int:
    subscription, attempts, due_at, delay, done = rest
    row = b"attempts\0%b\0%d\0%b\0%d\0%a\0%a\0%b" % (
        name,
        position,
        subscription if isinstance(subscription, bytes) else subscription.encode(),
        attempts,
        float(due_at),  # a whole number comes back as 0.0
        float(delay),
        done if isinstance(done, bytes) else done.encode(),
    )
    return zlib.crc32(row)
