"""What the groups of a bus have come to, as arguments of the function that records it."""

import math
from collections.abc import Iterable
from typing import Any

import attrs
import msgspec

from triobus.stores._values import Attempts, Changes, DeadLetterRow
from triobus.stores.postgres import _arrays
from triobus.stores.postgres._node import Node

Recorded = (
    "%s::bigint, %s::bigint, %s::text[], %s::bigint[], %s::text[], %s::bigint[], %s::text[], "
    "%s::bigint[], %s::bigint[], %s::text[], %s::bigint[], %s::json, %s::bigint[], %s::json"
)
"""The parameters of that function."""
_NOTHING = (None,) * 12


def arguments_of(node: Node, changes: Changes) -> tuple[Any, ...]:
    """Return the arguments; None for all of which there is nothing."""
    if not (changes.groups or changes.letters):
        return (node.number, node.token, *_NOTHING)
    groups = changes.groups
    ranges = [
        (name, first, last)
        for name, group in groups.items()
        for first, last in _merged(group.progress.ranges).items()
    ]
    gone = [(name, first) for name, first, last in ranges if last is None]
    there = [each for each in ranges if each[2] is not None]
    attempts = [
        (name, at, row) for name, group in groups.items() for at, row in group.attempts.items()
    ]
    over = [(name, at) for name, at, row in attempts if row is None]
    rows = [_attempts(name, row) for name, _, row in attempts if row is not None]
    discarded = [id_ for id_, letter in changes.letters.items() if letter is None]
    letters = [_letter(letter) for letter in changes.letters.values() if letter is not None]
    return (
        node.number,
        node.token,
        *_columns([(name, group.progress.offset) for name, group in groups.items()], 2),
        *_columns(gone, 2),
        *_columns(there, 3),
        *_columns(over, 2),
        msgspec.json.encode(rows).decode() if rows else None,
        _arrays.numbers(discarded) if discarded else None,
        msgspec.json.encode(letters).decode() if letters else None,
    )


def _merged(ranges: Iterable[tuple[int, int | None]]) -> dict[int, int | None]:
    """Return the last word on each range."""
    return dict(ranges)


def _columns(rows: list[Any], count: int) -> Iterable[str | None]:
    """Return rows of a name and numbers as an array for each column."""
    if not rows:
        return (None,) * count
    names, *others = zip(*rows, strict=True)
    return (_arrays.texts(names), *map(_arrays.numbers, others))


def _attempts(name: str, row: Attempts) -> dict[str, Any]:
    return {
        "group_name": name,
        "position": row.position,
        "subscription": row.subscription,
        "attempts": row.attempts,
        "due_at": row.due_at if math.isfinite(row.due_at) else "Infinity",
        "delay": row.delay if math.isfinite(row.delay) else "Infinity",
        "done": msgspec.json.encode(row.done).decode(),
    }


def _letter(letter: DeadLetterRow) -> dict[str, Any]:
    row = attrs.asdict(letter)
    row["group_name"] = row.pop("group")
    # PostgreSQL keeps no NUL in a text.
    return {
        key: value.replace("\0", "\\0") if isinstance(value, str) else value
        for key, value in row.items()
    }
