"""Upcasters: how the data of an older schema version becomes that of the class as it is today.

They belong to the event class. Two classes with one event type do not share them, and a class that
is defined again, by a reload or in a notebook, begins without any.
"""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from triobus._checks import whole_number
from triobus._errors import EventNotDecodable, InvalidOption
from triobus._events.diagnosis import why_not_read
from triobus._events.event import DomainEvent
from triobus._events.wire import BASE_FIELDS
from triobus._text import said, shown

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
_AnUpcaster = TypeVar("_AnUpcaster", bound=Upcaster)

_ATTRIBUTE = "__triobus_upcasters__"
"""The attribute of an event class that holds its upcasters, by the version they start from."""
_encode = msgspec.json.Encoder().encode
_members_of = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def upcaster(
    event_class: type[DomainEvent], *, from_version: int
) -> Callable[[_AnUpcaster], _AnUpcaster]:
    """Decorate a function that turns data of version `from_version` into data of the next version:

        @upcaster(OrderPlaced, from_version=1)
        def _add_currency(data: dict[str, Any]) -> dict[str, Any]:
            return data | {"currency": "EUR"}

    A store calls it when it reads an event of that version. It gets the fields that the event class
    itself declares, as JSON has them: a Decimal, a date or a UUID is a string. It may return such
    strings, or values of these types. The fields of `DomainEvent` are not part of the data. The
    upcasters of later versions follow, up to the `schema_version` of the class.

    The function belongs to `event_class` alone: neither subclasses nor other classes with the same
    `event_type` use it.

    Raises `InvalidOption` for a bad argument, or if the class has another function for the version.
    """
    if not isinstance(event_class, type) or not issubclass(event_class, DomainEvent):
        raise InvalidOption(
            f"upcaster({shown(event_class)}): give the class of the events, such as OrderPlaced"
        )
    whole_number("from_version", from_version, least=1)

    def attach(function: _AnUpcaster) -> _AnUpcaster:
        if not callable(function) or inspect.iscoroutinefunction(function):
            raise InvalidOption(
                f"upcaster={function!r}: give a plain function that takes the data, a dict, and "
                "returns that of the next version"
            )
        upcasters = _upcasters_of(event_class)
        known = upcasters.setdefault(from_version, function)
        if known is not function:
            raise InvalidOption(
                f"upcaster({event_class.__qualname__}, from_version={from_version}): "
                f"{_name_of(known)} does this already: leave out {_name_of(function)} or give it "
                "another version"
            )
        setattr(event_class, _ATTRIBUTE, upcasters)
        return function

    return attach


def _upcasters_of(event_class: type[DomainEvent]) -> dict[int, Upcaster]:
    """Return the upcasters of a class, without those of its bases."""
    found: dict[int, Upcaster] = event_class.__dict__.get(_ATTRIBUTE, {})
    return found


def upcast(event_class: type[DomainEvent], version: int, data: bytes) -> bytes:
    """Return the JSON of an event of `version` as JSON of the version that its class has."""
    chain = _chain(event_class, version)
    try:
        own: Any = _members_of(data)
        base = {name: own.pop(name) for name in own.keys() & BASE_FIELDS.keys()}
        own = msgspec.json.decode(_encode(own))
    except Exception as error:  # noqa: BLE001  # msgspec's errors are of several kinds
        raise why_not_read(error, data, {}) from None
    for step, function in enumerate(chain, version):
        own = _call(function, step, own)
    try:
        return _encode(_members_of(_encode(own)) | base)
    except Exception as error:
        raise EventNotDecodable(
            f"what {_name_of(chain[-1])} returned cannot be read as JSON: {said(error)}"
        ) from error


def _chain(event_class: type[DomainEvent], version: int) -> list[Upcaster]:
    """Return the functions to call one after the other, or raise `EventNotDecodable`."""
    name, wanted = event_class.__qualname__, event_class.schema_version
    if type(version) is not int or version < 1:
        raise EventNotDecodable(f"version {shown(version)} is no whole number of 1 or more")
    if version > wanted:
        raise EventNotDecodable(
            f"version {version} is newer than {name}, which is of version {wanted}: a newer "
            "program has written it"
        )
    upcasters = _upcasters_of(event_class)
    for step in range(version, wanted):
        if step not in upcasters:
            raise EventNotDecodable(
                f"version {version} cannot become version {wanted}, for nothing leads from "
                f"{step} to {step + 1}: decorate a function with "
                f"@upcaster({name}, from_version={step})"
            )
    return [upcasters[step] for step in range(version, wanted)]


def _call(function: Upcaster, version: int, data: dict[str, Any]) -> dict[str, Any]:
    who = f"the upcaster {_name_of(function)}, from version {version},"
    try:
        newer = function(data)
    except Exception as error:
        raise EventNotDecodable(f"{who} raised {said(error)}") from error
    if not isinstance(newer, dict):
        raise EventNotDecodable(
            f"{who} returned {shown(newer)}: let it return the data of version {version + 1}, a "
            "dict"
        )
    for name in newer.keys() & BASE_FIELDS.keys():
        raise EventNotDecodable(
            f"{who} returned a member {name!r}: let it leave the fields of DomainEvent alone"
        )
    return newer


def _name_of(function: Upcaster) -> str:
    name = getattr(function, "__qualname__", None) or repr(function)
    return f"{getattr(function, '__module__', '?')}.{name}"
