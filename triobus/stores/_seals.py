"""A checksum of each group's progress: a number that was changed would let it leave out events.

1. The seal of a group is the sum of the checksums of all its rows in `progress`, `finished` and
   `attempts`, so that a commit has to know only those that it writes. (The exclusive or would not
   do: the same change in two rows changes the crc32 of both by the same bits.)
2. What a commit makes of it counts only once the commit has succeeded.
3. A group of a store from before there were seals has none until its next commit.
"""

import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from triobus._progress import ProgressChange

AttemptsRow = tuple[str, int, str, int, float, float, str]
"""As it goes into the table."""


@attrs.define(eq=False)
class Seals:
    """The seals of all groups of a store that is open for writing."""

    _rows: dict[tuple[bytes, bytes, int], int] = attrs.field(factory=dict)
    """The checksums of rows by table, group and position."""
    _sums: dict[bytes, int] = attrs.field(factory=dict)
    """What those of a group come to."""
    _written: dict[tuple[bytes, bytes, int], int] = attrs.field(factory=dict)
    """The rows of the commit that is being made; 0 for one that is deleted."""

    @classmethod
    def read(cls, connection: sqlite3.Connection) -> tuple["Seals", list[bytes]]:
        """Return the seals of a store, and the names of groups whose rows have another one.

        Raises `TypeError` for a row that has something else than numbers where they belong.
        """
        seals = cls()
        for name, first, last in connection.execute("SELECT * FROM finished").fetchall():
            seals._note((b"finished", name, first), _of_range(name, first, last))
        for name, position, *rest in connection.execute("SELECT * FROM attempts").fetchall():
            seals._note((b"attempts", name, position), _of_attempts(name, position, rest))
        groups = connection.execute(
            "SELECT name, position, checksum FROM progress WHERE name > ''"
        ).fetchall()
        wrong = [
            name
            for name, offset, seal in groups
            if seal is not None and seal != seals._sum(name, _of_offset(name, offset))
        ]
        return seals, wrong

    def begin(self) -> None:
        """Forget what a commit has written that did not succeed."""
        self._written.clear()

    def written(
        self,
        group: str,
        progress: ProgressChange,
        gone: Iterable[tuple[str, int]],
        attempts: Iterable[AttemptsRow],
    ) -> int:
        """Return the seal that a group has after what a commit writes of it."""
        name = group.encode()
        rows = {
            (b"finished", name, first): 0 if last is None else _of_range(name, first, last)
            for first, last in progress.ranges
        }
        rows.update(((b"attempts", name, position), 0) for _, position in gone)
        rows.update(
            ((b"attempts", name, position), _of_attempts(name, position, rest))
            for _, position, *rest in attempts
        )
        change = sum(rows.values()) - sum(self._rows.get(key, 0) for key in rows)
        self._written.update(rows)
        return self._sum(name, _of_offset(name, progress.offset) + change)

    def commit(self) -> None:
        """What was written is on disk."""
        for key, checksum in self._written.items():
            self._note(key, checksum)
        self._written.clear()

    def _note(self, key: tuple[bytes, bytes, int], checksum: int) -> None:
        before = self._rows.pop(key, 0)
        if checksum:
            self._rows[key] = checksum
        self._sums[key[1]] = self._sum(key[1], checksum - before)

    def _sum(self, group: bytes, more: int) -> int:
        return (self._sums.get(group, 0) + more) & 0xFFFFFFFF


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
