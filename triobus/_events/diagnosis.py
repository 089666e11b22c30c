"""Why an event cannot be written or read: slow, value by value, for the message of an error."""

from collections.abc import Iterable, Mapping
from datetime import datetime, time
from typing import Any

import msgspec

from triobus._errors import EventNotDecodable
from triobus._events import limits
from triobus._events.converters import Converters, NotConvertible
from triobus._events.event import DomainEvent
from triobus._events.likeness import TooDeep, is_kept_moment, is_same
from triobus._events.wire import Member, Wire
from triobus._text import LONGEST_SHOWN, line, said, shown

_BOM = b"\xef\xbb\xbf"
OBJECT = Member.of(dict[str, msgspec.Raw], is_required=True, name="a JSON object")
_NO_CONVERTERS = Converters()


class Mismatch(EventNotDecodable):
    """JSON has other members than the class has fields, or of other types."""


def members_of(text: bytes) -> dict[str, msgspec.Raw]:
    """Return the members of a JSON object, each as it is written."""
    if text.startswith(_BOM):
        raise EventNotDecodable("the text begins with a byte order mark: give UTF-8 without it")
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise EventNotDecodable(
            f"the text is not UTF-8: byte {error.start} is 0x{text[error.start]:02x}"
        ) from None
    members: dict[str, msgspec.Raw] = read_member(OBJECT, text, "")
    return members


def read_object(
    members: Mapping[str, msgspec.Raw],
    known: Mapping[str, Member],
    path: str,
    owner: str,
    converters: Converters = _NO_CONVERTERS,
) -> dict[str, Any]:
    """Return the values of an object, or raise `Mismatch` for the first that is wrong, surplus or
    missing.
    """
    for name in members:
        if name not in known:
            names = ", ".join(map(repr, known))
            raise Mismatch(f"{inside(path, name)}: no field of {owner}, which has: {names}")
    for name, member in known.items():
        if member.is_required and name not in members:
            raise Mismatch(f"{inside(path, name)}: expected {member.type_name}, found nothing")
    return {
        name: read_member(known[name], raw, inside(path, name), converters)
        for name, raw in members.items()
    }


def read_member(
    member: Member,
    raw: bytes | msgspec.Raw,
    path: str,
    converters: Converters = _NO_CONVERTERS,
) -> Any:
    """Return the value of one member, or raise `EventNotDecodable` with its path."""
    try:
        return msgspec.json.decode(raw, type=member.type, dec_hook=converters.read)
    except RecursionError:
        raise EventNotDecodable(f"{prefix(path)}the JSON is nested too deeply") from None
    except msgspec.ValidationError as error:
        raise _mismatch(member, raw, path, error) from error.__cause__
    except msgspec.DecodeError as error:
        reason = str(error).removeprefix("JSON is malformed: ")
        if "truncated" in reason or "end of hex escape" in reason or "surrogate pair" in reason:
            # So msgspec calls half of a surrogate pair too, by how much text comes after it.
            reason = "it ends too early, or an escape is half of a surrogate pair"
        raise EventNotDecodable(f"{prefix(path)}not JSON: {line(reason)}") from None
    except Exception as error:  # a nested class may raise anything when it is made
        raise EventNotDecodable(f"{prefix(path)}{said(error)}") from error


def _mismatch(
    member: Member, raw: bytes | msgspec.Raw, path: str, error: Exception
) -> EventNotDecodable:
    reason, _, inner = str(error).rstrip("`").partition(" - at `$")
    by_converter = isinstance(error.__cause__, NotConvertible)
    if inner:
        reason = reason if by_converter else reason[:1].lower() + reason[1:]
        return Mismatch(f"{line(path + inner)}: {line(reason)}")
    found = f"{prefix(path)}expected {member.type_name}, found {_excerpt(raw)}"
    return Mismatch(f"{found}: {line(reason)}" if by_converter else found)


def why_not_read(wire: Wire, data: bytes, path: str, error: Exception) -> EventNotDecodable:
    """Return why JSON is no event, which has failed with `error`."""
    try:
        read_object(members_of(data), wire.members, path, wire.cls.__qualname__, wire.converters)
    except EventNotDecodable as found:
        return found
    return EventNotDecodable(f"{prefix(path)}{said(error)}")


def why_not_written(
    wire: Wire, event: DomainEvent, error: Exception | None, max_event_bytes: int
) -> str:
    """Return why an event cannot be kept, beginning with the path of what is wrong."""
    owner = wire.cls.__qualname__
    fault = fault_of_leaves(wire, event) or limits.fault_of_metadata(event.metadata, owner)
    if fault:
        return fault
    for name, attribute in wire.names.items():
        if fault := _fault_of_value(wire, name, getattr(event, attribute), f"{owner}.{attribute}"):
            return fault
    try:
        data = wire.write(event)
    except Exception as caught:  # noqa: BLE001  # what user code in it raises, is what is told
        return f"{owner}: {said(caught)}: give what JSON has, such as str or int"
    if len(data) > max_event_bytes:
        return (
            f"{owner}: its JSON has {len(data):,} bytes, more than "
            f"max_event_bytes={max_event_bytes:,}: keep large data elsewhere, or give the store a "
            "greater max_event_bytes"
        )
    try:
        again = wire.read(data)
    except Exception as caught:  # noqa: BLE001  # as above
        return (
            f"{owner}: it would not be read again: {owner} refuses it: {said(caught)}: let the "
            "class take the values that its fields have"
        )
    return _where_different(wire, event, again) or (
        f"{owner}: it would not come back as it is"
        f"{f' ({said(error)})' if error else ''}: give what JSON has, such as str or int"
    )


def _fault_of_value(wire: Wire, name: str, value: Any, path: str) -> str:
    """Return why one value would not come back, by itself."""
    member = wire.members[name]
    try:
        raw = wire.to_json(limits.fields_alone(value))
        back = read_member(
            Member(wire.types[name], member.type_name, is_required=True), raw, path, wire.converters
        )
    except RecursionError:
        return f"{path}: it is nested too deeply, or contains itself: give plain data"
    except EventNotDecodable as error:
        return f"{error}: give a value of the type that the field is declared with"
    except Exception as error:  # noqa: BLE001  # also what user code raises below the field
        return f"{path}: {said(error)}: give what JSON has, such as str, int or Decimal"
    try:
        if is_same(value, back) or name == "metadata":
            return ""
    except (TooDeep, RecursionError):
        return (
            f"{path}: values are inside each other more than {limits.DEPTH} times, or contain "
            "themselves: give plain data"
        )
    except Exception:  # noqa: BLE001  # what is different says what was raised
        pass
    return difference(path, value, back)


def _where_different(wire: Wire, event: DomainEvent, again: DomainEvent) -> str:
    owner = wire.cls.__qualname__
    for attribute in wire.kept:
        given, back = getattr(event, attribute, _NOTHING), getattr(again, attribute, _NOTHING)
        if not _is_same(given, back):
            found = difference(f"{owner}.{attribute}", given, back)
            if attribute in wire.names.values():
                return f"{found}, and let its converter leave alone what it has made"
            return f"{found}, or leave the field out of comparing with eq=False"
    return ""


class _Nothing:
    def __repr__(self) -> str:
        return "nothing"


_NOTHING = _Nothing()


def difference(path: str, given: Any, back: Any) -> str:
    """Return what a value would come back as, and where in it the difference is."""
    while True:
        for (part, inner), (_, inner_back) in _pairs_of_parts(given, back):
            if not _is_same(inner, inner_back):
                path, given, back = path + part, inner, inner_back
                break
        else:
            break
    try:
        given == back  # noqa: B015  # to see what it raises
    except Exception as error:  # noqa: BLE001  # whatever the `__eq__` of the user's raises
        return f"{path}: comparing {shown(given)} with what it comes back as raised {said(error)}"
    if type(given) in (datetime, time) and not is_kept_moment(given):
        return f"{path}: {shown(given)} {_NO_OFFSET}"
    kinds = type(given).__qualname__, type(back).__qualname__
    return (
        f"{path}: {shown(given)} ({kinds[0]}) would come back as {shown(back)} ({kinds[1]}): "
        "declare the field with its type, or give what JSON has"
    )


_NO_OFFSET = (
    "has a zone whose distance from UTC JSON cannot have, for it depends on the day or is no whole "
    "number of minutes: give it in UTC, or without a zone and the zone's name in a field beside it"
)


def fault_of_leaves(wire: Wire, event: DomainEvent) -> str:
    """Return the first value inside an event that is wrong by itself."""
    for attribute in wire.names.values():
        path = f"{wire.cls.__qualname__}.{attribute}"
        for where, leaf in limits.leaves(path, getattr(event, attribute)):
            if fault := limits.fault_of(leaf):
                return f"{where}: found {shown(leaf)}, {fault}"
    return ""


def inside(path: str, name: str) -> str:
    """Return the path of a member."""
    if name.isascii() and name.isidentifier() and len(name) <= LONGEST_SHOWN:
        return f"{path}.{name}" if path else name
    return f"{path}[{shown(name)}]"


def prefix(path: str) -> str:
    """Return the beginning of a message about what is at a path."""
    return f"{path}: " if path else ""


def _is_same(given: Any, back: Any) -> bool:
    try:
        return is_same(given, back)
    except Exception:  # noqa: BLE001  # `difference` says what was raised
        return False


def _pairs_of_parts(given: Any, back: Any) -> Iterable[tuple[tuple[str, Any], tuple[str, Any]]]:
    if type(given) is not type(back) or isinstance(given, (set, frozenset)):
        return ()
    parts, parts_back = list(limits.parts(given)), list(limits.parts(back))
    return zip(parts, parts_back, strict=True) if len(parts) == len(parts_back) else ()


def _excerpt(raw: bytes | msgspec.Raw) -> str:
    text = bytes(raw).strip().decode()
    if len(text) > LONGEST_SHOWN:
        text = text[:LONGEST_SHOWN] + "..."
    return line(text)
