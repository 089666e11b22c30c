"""The values of a file's rows, each looked at before it is used.

SQLite does not say that a column holds what it was declared with, nor that rows come once and in
their order: a file may come from anywhere. Everything here raises `ValueError`, of which the
database makes a `StoreCorrupt`.
"""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from triobus._text import MESSAGE_LENGTH, TRACEBACK_LENGTH, shown
from triobus.stores._values import Attempts, DeadLetterKey, DeadLetterRow, GroupRow, NewRow
from triobus.stores.sqlite._checksums import is_whole

UNREADABLE = (ValueError, TypeError, AttributeError, OverflowError, msgspec.MsgspecError)
"""What comes of a row whose values are of other types than its columns, or no text or date."""

GREATEST = 2**62
"""No number in a store is greater; SQLite ends at twice as much, and numbers grow."""


def text(value: object) -> str:
    """Return a text column."""
    if type(value) is not bytes:
        raise ValueError(f"expected text, found {shown(value)}")
    return value.decode()


def is_text(*values: str | None) -> bool:
    """Whether all that is there can be looked for: halves of surrogate pairs are no text."""
    try:
        for value in values:
            if value is not None:
                value.encode()
    except UnicodeEncodeError:
        return False
    return True


def whole(value: object, *, least: int = 1, most: int = GREATEST) -> int:
    """Return a column of whole numbers."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"expected a whole number from {least} to {most:,}, found {shown(value)}")
    return value


def moment(value: object) -> datetime:
    """Return a column with a time."""
    found = datetime.fromisoformat(text(value))
    if found.utcoffset() is None:
        raise ValueError(f"expected a time with its zone, found {shown(value)}")
    return found


def ascending(rows: Iterable[Any], columns: int, room: float) -> Iterator[Any]:
    """Yield rows that come in the order of their first columns, each of them once.

    In a file whose pages refer to each other in a circle they would never end. Nor can all of them
    be longer than the file, which is `room`.
    """
    before = None
    for row in rows:
        key = row[:columns]
        if before is not None and not before < key:
            raise ValueError(f"row {shown(key)} comes behind row {shown(before)}")
        before = key
        for value in row:  # not by sum(): the rows may be many
            if type(value) is bytes:
                room -= len(value)
        if room < 0:
            raise ValueError("its rows are longer than the file")
        yield row


def whole_row(table: str, row: Sequence[Any]) -> Sequence[Any]:
    """Return the columns of a row, after comparing them with its checksum, which is its last."""
    if not is_whole(table, row):
        raise ValueError(f"a row of the table {table} is not what was written: {shown(row)}")
    return row[:-1]


def group(
    row: Sequence[Any], ranges: Iterable[Any], attempts_of: Iterable[Any], last: int
) -> GroupRow:
    """Return how far a group is in a log that ends at position `last`, from its rows."""
    name, offset = whole_row("progress", row)
    settled = whole(offset, least=0, most=last)
    found: list[tuple[int, int]] = []
    end = 0
    for range_ in ranges:
        _, first, final = whole_row("finished", range_)
        first = whole(first, least=end + 1, most=last)
        end = whole(final, least=first, most=last)
        found.append((first, end))
    return GroupRow(
        text(name), settled, tuple(found), tuple(attempts(row, last) for row in attempts_of)
    )


def attempts(row: Sequence[Any], last: int) -> Attempts:
    """Return how far an event has come in a group."""
    _, position, subscription, count, due_at, delay, done = whole_row("attempts", row)
    return Attempts(
        whole(position, most=last),
        sys.intern(text(subscription)),  # there may be many of the same
        whole(count, least=0),
        seconds(due_at),
        max(seconds(delay), 0.0),
        () if done == b"[]" else tuple(msgspec.json.decode(text(done), type=list[str])),
    )


def letter_key(row: Sequence[Any]) -> DeadLetterKey:
    """Return what identifies a dead letter."""
    id_, position, group, subscription, aggregate = row
    return DeadLetterKey(
        whole(id_), whole(position), text(group), text(subscription), aggregate_id(aggregate)
    )


def letter(row: Sequence[Any]) -> DeadLetterRow:
    """Return a dead letter; what its error said is cut where a bus would have cut it."""
    row = whole_row("dead_letters", row)
    key, (count, first, last, error_type, message, traceback) = letter_key(row[:5]), row[5:]
    return DeadLetterRow(
        **key._asdict(),
        attempts=whole(count, least=0),
        first_failed_at=moment(first),
        last_failed_at=moment(last),
        error_type=_said(error_type)[:MESSAGE_LENGTH],
        message=_said(message)[:MESSAGE_LENGTH],
        traceback=_said(traceback)[-TRACEBACK_LENGTH:],
    )


def scheduled(row: Sequence[Any]) -> NewRow:
    """Return a scheduled event."""
    _, due_at, event_id, event_type, version, aggregate, data, correlation_id = whole_row(
        "scheduled", row
    )
    seconds(due_at)
    return NewRow(
        UUID(text(event_id)),
        text(event_type),
        whole(version, least=0),
        aggregate_id(aggregate),
        text(data).encode(),
        None if correlation_id is None else text(correlation_id),
    )


def aggregate_id(value: object) -> str | None:
    """Return the column of an aggregate, which not every event has."""
    return None if value is None else text(value)


def _said(value: object) -> str:
    """Return what an error said, of which nothing has to be right."""
    if type(value) is not bytes:
        raise ValueError(f"expected text, found {shown(value)}")
    return value.decode("utf-8", "replace")


def seconds(value: object) -> float:
    """Return a column with a number of seconds."""
    if type(value) is not float or not math.isfinite(value):
        raise ValueError(f"expected a number of seconds, found {shown(value)}")
    return value
