"""Whether a value came back as it was: equal, and of the same types all the way down."""

from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from triobus._events.limits import DEPTH, field_names, is_decimal_kept, is_integer_kept

_MISSING = object()
LEAVES = frozenset([str, bool, float, bytes, UUID, date, timedelta, type(None)])
"""Types of which two values are the same if they are equal."""
_TEXT = {str}


class TooDeep(ValueError):
    """Values are inside each other more often than is allowed."""


def is_same(given: Any, back: Any, depth: int = 0) -> bool:
    """Tell whether a value is equal to another and has the same types in it, by fields and not by
    `==`, from which a class may except some. Raises what the `==` of a class raises, and `TooDeep`.
    """
    kind = type(given)
    if kind is not type(back):
        return False
    if kind in LEAVES:
        return bool(given == back)
    if kind is int:
        return is_integer_kept(given) and bool(given == back)
    if kind is Decimal:
        return is_decimal_kept(given) and bool(given == back)
    if kind is datetime or kind is time:
        return _is_same_moment(given, back)
    if depth > DEPTH:
        raise TooDeep
    if isinstance(given, Enum):
        return given is back or bool(given == back)
    if isinstance(given, (list, tuple)):
        if len(given) != len(back):
            return False
        for one, other in zip(given, back, strict=True):  # noqa: SIM110  # half the time of `all`
            if not is_same(one, other, depth + 1):
                return False
        return True
    if isinstance(given, (set, frozenset)):
        return len(given) == len(back) and _has_same_keys(given, {key: key for key in back}, depth)
    if isinstance(given, dict):
        return _is_same_dict(given, back, depth)
    if names := field_names(given):
        return all(
            is_same(getattr(given, name, _MISSING), getattr(back, name, _MISSING), depth + 1)
            for name in names
        )
    return bool(given == back)


def _is_same_dict(given: Any, back: Any, depth: int) -> bool:
    if len(given) != len(back):
        return False
    if not {*map(type, given), *map(type, back)} <= _TEXT and not _has_same_keys(
        given, {key: key for key in back}, depth
    ):
        return False
    for key, item in given.items():
        if key not in back or not is_same(item, back[key], depth + 1):
            return False
    return True


def is_kept_moment(moment: datetime | time) -> bool:
    """Tell whether JSON has a time as it is: without a zone, or with whole minutes from UTC.

    A time of day in a zone whose distance depends on the day has none of its own.
    """
    if moment.tzinfo is None:
        return True
    offset = moment.utcoffset()
    return offset is not None and not offset.microseconds and not offset.seconds % 60


def _is_same_moment(given: Any, back: Any) -> bool:
    if given.tzinfo is back.tzinfo:
        return bool(given == back)
    # Between two zones `==` is False for every time in the hour in which the clocks are put back.
    return (
        (given.tzinfo is None) == (back.tzinfo is None)
        and given.utcoffset() == back.utcoffset()
        and bool(given.replace(tzinfo=None, fold=0) == back.replace(tzinfo=None, fold=0))
    )


def _has_same_keys(given: Any, back: Mapping[Any, Any], depth: int) -> bool:
    return all(key in back and is_same(key, back[key], depth + 1) for key in given)
