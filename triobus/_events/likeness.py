"""Whether a value came back as it was: equal, and of the same types all the way down."""

import math
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from triobus._events.limits import DEPTH, field_names, is_decimal_kept, is_integer_kept

_MISSING = object()
_TEXT = {str}


class TooDeep(ValueError):
    """Values are inside each other more often than is allowed."""


def is_kept_moment(moment: datetime | time) -> bool:
    """Tell whether JSON has a time as it is: without a zone, or with whole minutes from UTC.

    A time of day in a zone whose distance from UTC depends on the day has no distance of its own.
    """
    if moment.tzinfo is None:
        return True
    offset = moment.utcoffset()
    return offset is not None and not offset.microseconds and not offset.seconds % 60


LEAVES: Mapping[type, Callable[[Any], bool] | None] = {
    str: None,  # a wrong text cannot be encoded, and the codec looks for NUL in the JSON
    bool: None,
    bytes: None,
    UUID: None,
    date: None,
    timedelta: None,
    type(None): None,
    int: is_integer_kept,
    float: math.isfinite,
    Decimal: is_decimal_kept,
    datetime: is_kept_moment,
    time: is_kept_moment,
}
"""Types of which every value comes back as it was, if one does and the check allows this one."""


def is_same(given: Any, back: Any, depth: int = 0) -> bool:
    """Tell whether a value is equal to another and has the same types in it.

    Objects are compared by their fields, for a class may leave some of them out of its `==`. Raises
    what the `==` of a class raises, and `TooDeep`.
    """
    kind = type(given)
    if kind is not type(back):
        return False
    if kind in LEAVES:
        if kind is datetime or kind is time:
            return _is_same_moment(given, back)
        check = LEAVES[kind]
        return (check is None or check(given)) and bool(given == back)
    if depth > DEPTH:
        raise TooDeep
    if isinstance(given, (list, tuple)):
        if len(given) != len(back):
            return False
        for one, other in zip(given, back, strict=True):  # noqa: SIM110  # half the time of `all`
            if not is_same(one, other, depth + 1):
                return False
        return True
    if isinstance(given, (set, frozenset)):
        return len(given) == len(back) and _has_same_keys(given, back, depth)
    if isinstance(given, dict):
        are_texts = {*map(type, given), *map(type, back)} <= _TEXT
        return (
            len(given) == len(back)
            and (are_texts or _has_same_keys(given, back, depth))
            and all(key in back and is_same(given[key], back[key], depth + 1) for key in given)
        )
    names = () if isinstance(given, Enum) else field_names(given)
    for name in names:
        if not is_same(getattr(given, name, _MISSING), getattr(back, name, _MISSING), depth + 1):
            return False
    return bool(names or given is back or given == back)


def _has_same_keys(given: Any, back: Any, depth: int) -> bool:
    keys = {key: key for key in back}
    return all(key in keys and is_same(key, keys[key], depth + 1) for key in given)


def _is_same_moment(given: Any, back: Any) -> bool:
    if given.tzinfo is back.tzinfo:
        return bool(given == back)
    # Between two zones `==` is False for every time in the hour in which the clocks are put back.
    return (
        (given.tzinfo is None) == (back.tzinfo is None)
        and given.utcoffset() == back.utcoffset()
        and bool(given.replace(tzinfo=None, fold=0) == back.replace(tzinfo=None, fold=0))
    )
