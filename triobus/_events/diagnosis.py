"""What a message says about JSON or an event that is refused: where it is wrong, and how."""

from collections.abc import Mapping
from datetime import datetime, time
from typing import Any

import msgspec

from triobus._errors import EventNotDecodable
from triobus._events import limits
from triobus._events.converters import NotConvertible
from triobus._events.event import DomainEvent
from triobus._events.likeness import TooDeep, is_kept_moment, is_same
from triobus._events.wire import MISSING, Member, Wire
from triobus._text import LONGEST_SHOWN, line, said, shown

_NO_OFFSET = (
    "has a zone whose distance from UTC JSON cannot have, for it depends on the day or is no whole "
    "number of minutes: give it in UTC, or without a zone and the zone's name in a field beside it"
)


class Mismatch(EventNotDecodable):
    """JSON has other members than the class has fields, or of other types."""


def why_not_read(
    error: Exception, text: bytes, known: Mapping[str, Member], path: str = "", owner: str = ""
) -> EventNotDecodable:
    """Return why no event can be made of JSON, at a path; `error` was raised in trying to."""
    if text.startswith(b"\xef\xbb\xbf"):
        return EventNotDecodable("the text begins with a byte order mark: give UTF-8 without it")
    try:
        text.decode()
    except UnicodeDecodeError as wrong:
        byte = f"byte {wrong.start} is 0x{text[wrong.start]:02x}"
        return EventNotDecodable(f"the text is not UTF-8: {byte}")
    if isinstance(error, msgspec.ValidationError):
        try:
            members = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        except msgspec.ValidationError:
            return Mismatch(f"{prefix(path)}expected a JSON object, found {_excerpt(text)}")
        except (msgspec.DecodeError, RecursionError) as worse:
            error = worse
        else:
            return Mismatch(_mismatch(error, members, known, path, owner))
    if isinstance(error, RecursionError):
        return EventNotDecodable(f"{prefix(path)}the JSON is nested too deeply")
    if not isinstance(error, msgspec.DecodeError):  # a nested class may raise anything
        return EventNotDecodable(f"{prefix(path)}{said(error)}")
    reason = str(error).removeprefix("JSON is malformed: ")
    if "truncated" in reason or "end of hex escape" in reason or "surrogate pair" in reason:
        # msgspec calls half of a surrogate pair so too, depending on how much text follows.
        reason = "it ends too early, or an escape is half of a surrogate pair"
    return EventNotDecodable(f"{prefix(path)}not JSON: {line(reason)}")


def _mismatch(
    error: Exception,
    members: Mapping[str, msgspec.Raw],
    known: Mapping[str, Member],
    path: str,
    owner: str,
) -> str:
    """Return which member of an object is the first that is unknown, missing or of a wrong type."""
    for name in members:
        if name not in known:
            names = ", ".join(map(repr, known))
            return f"{_inside(path, name)}: no field of {owner}, which has: {names}"
    for name, member in known.items():
        if member.is_required and name not in members:
            return f"{_inside(path, name)}: expected {member.type_name}, found nothing"
    reason, _, where = str(error).rstrip("`").partition(" - at `$")
    by_converter = isinstance(error.__cause__, NotConvertible)
    name = where.removeprefix(".")
    if name not in known:  # it is deeper inside a member
        reason = reason if by_converter else reason[:1].lower() + reason[1:]
        return f"{line((path + where).removeprefix('.'))}: {line(reason)}"
    found = f"expected {known[name].type_name}, found {_excerpt(bytes(members[name]))}"
    return f"{_inside(path, name)}: {found}" + (f": {line(reason)}" if by_converter else "")


def _excerpt(text: bytes) -> str:
    found = text.strip().decode()
    return line(found if len(found) <= LONGEST_SHOWN else found[:LONGEST_SHOWN] + "...")


def why_not_written(
    wire: Wire, event: DomainEvent, error: Exception | None, max_event_bytes: int
) -> str:
    """Return why an event cannot be kept, beginning with the path of the fault."""
    owner = wire.cls.__qualname__
    try:
        return (
            fault_of_leaves(wire, event)
            or limits.fault_of_metadata(event.metadata, owner)
            or _fault_of_fields(wire, event)
            or _fault_of_whole(wire, event, max_event_bytes)
            or f"{owner}: {said(error) if error else 'it would not come back as it is'}: give what "
            "JSON has, such as str or int"
        )
    except Exception as caught:  # noqa: BLE001  # the search runs user code, which may raise it
        return f"{owner}: {said(error or caught)}"


def fault_of_leaves(wire: Wire, event: DomainEvent) -> str:
    """Return the first value inside an event that is wrong by itself."""
    for member in wire.members.values():
        path = f"{wire.cls.__qualname__}.{member.attribute}"
        for where, leaf in limits.leaves(path, getattr(event, member.attribute)):
            if fault := limits.fault_of(leaf):
                return f"{where}: found {shown(leaf)}, {fault}"
    return ""


def _fault_of_fields(wire: Wire, event: DomainEvent) -> str:
    """Return the first field whose value cannot be written by itself."""
    for member in wire.members.values():
        path = f"{wire.cls.__qualname__}.{member.attribute}"
        value = getattr(event, member.attribute)
        try:
            wire.to_json(limits.fields_alone(value))
            is_same(value, value)
        except (TooDeep, RecursionError):
            return (
                f"{path}: values are inside each other more than {limits.DEPTH} times, or contain "
                "themselves: give plain data"
            )
        except Exception as error:  # noqa: BLE001  # user code in the value may raise anything
            return f"{path}: {said(error)}: give what JSON has, such as str, int or Decimal"
    return ""


def _fault_of_whole(wire: Wire, event: DomainEvent, max_event_bytes: int) -> str:
    """Return the first difference of an event from what is read back."""
    owner = wire.cls.__qualname__
    data = wire.json_of(wire.values(event))
    if len(data) > max_event_bytes:
        return (
            f"{owner}: its JSON has {len(data):,} bytes, more than "
            f"max_event_bytes={max_event_bytes:,}: keep large data elsewhere, or give the store a "
            "greater max_event_bytes"
        )
    try:
        arguments = wire.arguments(data)
    except Exception as error:  # noqa: BLE001  # code of a nested class may raise anything
        fault = why_not_read(error, data, wire.members, owner, owner)
        return f"{fault}: give a value of the type that the field is declared with"
    try:
        again = wire.make(arguments)
    except Exception as error:  # noqa: BLE001  # so may code of the event class
        return (
            f"{owner}: it would not be read again: {owner} refuses it: {said(error)}: let the "
            "class take the values that its fields have"
        )
    names = {member.attribute: name for name, member in wire.members.items()}
    for attribute in [*names, *wire.made]:
        value, back = getattr(event, attribute, MISSING), getattr(again, attribute, MISSING)
        if not is_same(value, back):
            remedy = ""
            if attribute not in names:
                remedy = ", or leave the field out of comparing with eq=False"
            elif is_same(value, arguments[names[attribute]]):
                remedy = ", and let its converter leave alone what it has made"
            return _difference(f"{owner}.{attribute}", value, back) + remedy
    return ""


def _difference(path: str, given: Any, back: Any) -> str:
    if type(given) in (datetime, time) and not is_kept_moment(given):
        return f"{path}: {shown(given)} {_NO_OFFSET}"
    kinds = type(given).__qualname__, type(back).__qualname__
    return (
        f"{path}: {shown(given)} ({kinds[0]}) would come back as {shown(back)} ({kinds[1]}): "
        "declare the field with its type, or give what JSON has"
    )


def _inside(path: str, name: str) -> str:
    """Return the path of a member."""
    if name.isascii() and name.isidentifier() and len(name) <= LONGEST_SHOWN:
        return f"{path}.{name}" if path else name
    return f"{path}[{shown(name)}]"


def prefix(path: str) -> str:
    """Return the beginning of a message about the value at a path."""
    return f"{path}: " if path else ""
