"""Arrays as PostgreSQL writes them, made of many values at once.

The driver makes them value by value in Python, which for a batch of events would take longer than
the database takes to store it.
"""

from collections.abc import Iterable, Sequence

_MARK = "\x01"
"""Stands between texts while all of them are escaped at once; hardly any text has it inside."""


def numbers(values: Iterable[int]) -> str:
    """Return an array of numbers."""
    return f"{{{','.join(map(str, values))}}}"


def optional(values: Iterable[object]) -> str:
    """Return an array of numbers or ids, some of which may be None."""
    return f"{{{','.join('NULL' if value is None else str(value) for value in values)}}}"


def texts(values: Sequence[str]) -> str:
    """Return an array of texts."""
    if not values:
        return "{}"
    joined = _MARK.join(values)
    if joined.count(_MARK) == len(values) - 1:
        return f'{{"{_escaped(joined).replace(_MARK, _BETWEEN)}"}}'
    return f"{{{','.join(f'{_QUOTE}{_escaped(value)}{_QUOTE}' for value in values)}}}"


_QUOTE, _BETWEEN = '"', '","'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
