"""The checksum of a row beside the log: one that was changed would let a group leave out events.

The events have theirs in a chain. That of a row here is the crc32 of its columns, joined by NUL and
begun with the name of the table. A row without one, NULL, is taken as it is: it comes from a store
of before there were checksums, or somebody has chosen to go on with what is there.
"""

import sqlite3
import zlib
from collections.abc import Sequence
from typing import Any

_KEYS = {
    "finished": "group_name, first_position",
    "attempts": "group_name, position",
    "dead_letters": "id",
}
"""The tables of version 1 whose rows get one, with their primary keys."""


def checksum_of(table: str, columns: Sequence[Any]) -> int:
    """Return the checksum of a row. Numbers of seconds have to be floats, as they come back."""
    parts = [table.encode(), *map(_bytes, columns)]
    return zlib.crc32(b"\0".join(parts))


def with_checksum(table: str, columns: Sequence[Any]) -> tuple[Any, ...]:
    """Return a row with its checksum as the last column."""
    return (*columns, checksum_of(table, columns))


def is_whole(table: str, row: Sequence[Any]) -> bool:
    """Whether a row, whose last column is its checksum, is what was written."""
    return row[-1] is None or row[-1] == checksum_of(table, row[:-1])


def add_to_version_1(connection: sqlite3.Connection) -> None:
    """Give the rows of a store of version 1 their checksums."""
    connection.execute("UPDATE progress SET checksum = NULL WHERE name > ''")
    for table, key in _KEYS.items():
        where = " AND ".join(f"{column} = ?" for column in key.split(", "))
        for found in connection.execute(f"SELECT {key}, * FROM {table}").fetchall():
            of_key, row = found[: key.count(",") + 1], found[key.count(",") + 1 : -1]
            connection.execute(
                f"UPDATE {table} SET checksum = ? WHERE {where}",
                (checksum_of(table, row), *(_as_stored(value) for value in of_key)),
            )


def _as_stored(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _bytes(value: Any) -> bytes:
    if value is None:
        return b"\1"
    if isinstance(value, str):
        return value.encode()
    return value if isinstance(value, bytes) else b"%a" % value
