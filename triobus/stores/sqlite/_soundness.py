"""What can be wrong in a store beside its log: in its pages and indexes, and in what a bus keeps.

Everything is compared that has to agree. What is on record twice nowhere, such as the text of an
error, cannot be told from what it was before.
"""

import math
import sqlite3
from collections.abc import Iterator
from datetime import datetime

import msgspec

from triobus.stores.sqlite._seals import Seals

UNREADABLE = (ValueError, TypeError, AttributeError, OverflowError, msgspec.MsgspecError)
"""What comes of a row whose values are of other types than its columns, or no text or date."""

_SHOWN = 20
"""How many complaints of one kind are listed."""

_LAST = "(SELECT position FROM progress WHERE name = '')"
_RULES = (
    ("events", f"position NOT BETWEEN 1 AND {_LAST}"),
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
)
"""For each table what no row of it may be like."""


def problems(connection: sqlite3.Connection) -> list[str]:
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
    found += wrong_progress(connection)
    return found


def wrong_progress(connection: sqlite3.Connection) -> list[str]:
    """Return which groups have a progress that is not what was written, in sentences."""
    _, names = Seals.read(connection)
    return [
        f"the progress of the group {_text(name)!r} is not what was written (to go on with what "
        "is there, set its checksum in the table progress to NULL)"
        for name in names
    ]


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
