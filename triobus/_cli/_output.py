"""What commands print: tables that fit their terminal, and JSON that is safe on one."""

import os
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence, Set
from datetime import UTC, datetime
from typing import Any

import msgspec

from triobus._text import escaped

Rows = Sequence[Mapping[str, Any]]

_NARROWEST = 6
"""No column becomes narrower than that, however narrow the terminal."""


def json_text(value: object) -> str:
    """Return a value as JSON for people and programs, indented."""
    return _printable(msgspec.json.format(msgspec.json.encode(value).decode(), indent=2))


def json_line(value: object) -> str:
    """Return a value as JSON on one line."""
    return _printable(msgspec.json.encode(value).decode())


def _printable(text: str) -> str:
    """Return JSON in which all that a terminal could take for a command is escaped.

    msgspec leaves DEL, C1 controls and what turns the direction of writing as they are.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else _escape(c) for c in text)


def _escape(character: str) -> str:
    """Return how JSON writes a character if not as itself."""
    return re.sub("....", r"\\u\g<0>", character.encode("utf-16-be").hex())


def width() -> int | None:
    """Return how many columns the terminal has; None if the output goes elsewhere."""
    stream = sys.__stdout__
    if stream is None or stream.closed or not stream.isatty():
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except OSError:
        return None


def table(rows: Rows, *, columns: int | None = None, right: Set[str] = frozenset()) -> str:
    """Return rows as lines below their names; numbers are at the right, and `right` too.

    Where it is wider than `columns` the widest columns are cut.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        return ""
    body = [[cell(row.get(name, "")) for name in names] for row in rows]
    widths = [
        max(columns_of(line) for line in (name, *column))
        for name, column in zip(names, zip(*body, strict=True), strict=True)
    ]
    if columns is not None:
        _narrow(widths, columns - 2 * (len(widths) - 1))
    at_right = [name in right or _are_numbers([row.get(name) for row in rows]) for name in names]
    lines = [names, ["-" * width for width in widths], *body]
    return "\n".join("  ".join(map(_fitted, line, widths, at_right)).rstrip() for line in lines)


def _are_numbers(values: Sequence[object]) -> bool:
    return any(isinstance(value, int) for value in values) and all(
        isinstance(value, int | None) for value in values
    )


def _narrow(widths: list[int], room: int) -> None:
    while sum(widths) > room and max(widths) > _NARROWEST:
        widest = widths.index(max(widths))
        others = sum(widths) - widths[widest]
        second = max([_NARROWEST, *widths[:widest], *widths[widest + 1 :]])
        widths[widest] = max(room - others, min(second, widths[widest] - 1), _NARROWEST)


def _fitted(text: str, width: int, is_at_right: bool) -> str:
    text = cut(text, width)
    padding = " " * (width - columns_of(text))
    return padding + text if is_at_right else text + padding


def cut(text: str, width: int) -> str:
    """Return a text, or as much of its beginning as fits, with dots behind it."""
    if columns_of(text) <= width:
        return text
    while columns_of(text) > max(width - 3, 0):
        text = text[:-1] if len(text) <= width else text[:width]
    return (text + "...")[:width]


def columns_of(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def cell(value: Any) -> str:
    """Return a value as one line of a table."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return moment(value)
    return escaped(f"{value:,}" if type(value) is int else str(value))


def moment(value: datetime) -> str:
    """Return a time as people read it; what is behind the seconds is left out."""
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def at(seconds: float | None) -> datetime | None:
    """Return a time that a store keeps as seconds since 1970, if it is one."""
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def duration(seconds: float) -> str:
    """Return a number of seconds in the unit that people would take."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def size(count: int) -> str:
    """Return a number of bytes in the unit that people would take."""
    for unit, length in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count} bytes"


def counted(count: int, what: str) -> str:
    """Return "1 event" or "3 events"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
