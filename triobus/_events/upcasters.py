"""Upcasters: how the data of an older schema version becomes that of the class as it is today."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from triobus._errors import EventNotDecodable, InvalidOption

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
_AnUpcaster = TypeVar("_AnUpcaster", bound=Upcaster)

_upcasters: dict[tuple[str, int], Upcaster] = {}


def upcaster(event_type: str, *, from_version: int) -> Callable[[_AnUpcaster], _AnUpcaster]:
    """Register a function that makes the data of version `from_version` that of the next one:

        @upcaster("order.placed", from_version=1)
        def _add_currency(data: dict[str, Any]) -> dict[str, Any]:
            return data | {"currency": "EUR"}

    It is called when an event of that version is read, and gets the event's own fields as JSON has
    them: a Decimal, a date or a UUID is a string. The fields of `DomainEvent` stay as they are.
    What it returns may have such types again. The upcasters of later versions follow, up to the
    `schema_version` of the class.

    Raises `InvalidOption` for a bad argument, or if another function does this already.
    """
    if not isinstance(event_type, str) or not event_type:
        raise InvalidOption(
            f"event_type={event_type!r}: give the type of the events, such as 'order.placed'"
        )
    if type(from_version) is not int or from_version < 1:
        raise InvalidOption(f"from_version={from_version!r}: give a whole number of 1 or more")

    def register(function: _AnUpcaster) -> _AnUpcaster:
        if not callable(function) or inspect.iscoroutinefunction(function):
            raise InvalidOption(
                f"upcaster={function!r}: give a plain function that takes the data, a dict, and "
                "returns that of the next version"
            )
        known = _upcasters.setdefault((event_type, from_version), function)
        if known is not function:
            raise InvalidOption(
                f"upcaster({event_type!r}, from_version={from_version}): "
                f"{name_of(known)} does this already: leave out {name_of(function)} or give it "
                "another version"
            )
        return function

    return register


def chain(event_type: str, version: int, wanted: int) -> list[Upcaster]:
    """Return the upcasters from a version to the one that is wanted.

    Raises `EventNotDecodable` if one is missing.
    """
    found = []
    for step in range(version, wanted):
        function = _upcasters.get((event_type, step))
        if function is None:
            raise EventNotDecodable(
                f"version {version} cannot become version {wanted}, for nothing leads from "
                f"{step} to {step + 1}: register a function with "
                f"@upcaster({event_type!r}, from_version={step})"
            )
        found.append(function)
    return found


def name_of(upcaster: Upcaster) -> str:
    """Return where an upcaster is to be found."""
    name = getattr(upcaster, "__qualname__", None) or repr(upcaster)
    return f"{getattr(upcaster, '__module__', '?')}.{name}"
