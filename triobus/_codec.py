"""Events from JSON: one object a text, checked field by field before an event is made of it.

    {"type": "price.closed", "data": {"symbol": "IBM", "close": "100.52"}}

msgspec checks and converts each field by its declared type. The event is then made by calling its
class, because msgspec's own way to an attrs class would pass over converters and validators.
"""

import reprlib
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
import msgspec

from triobus._errors import EventNotDecodable
from triobus._events import DomainEvent, event_classes

_EXCERPT_LENGTH = 60
_REASON_LENGTH = 300
_BOM = b"\xef\xbb\xbf"


@attrs.frozen
class _Field:
    """One member of a JSON object: how it is read, and what a message calls its type."""

    decoder: msgspec.json.Decoder[Any]
    type_name: str
    is_required: bool

    @classmethod
    def of(cls, type_: Any, *, is_required: bool, name: str | None = None) -> "_Field":
        if name is None:
            name = type_.__name__ if isinstance(type_, type) else str(type_).replace("typing.", "")
        return cls(msgspec.json.Decoder(type_), name, is_required)


_OBJECT = _Field.of(dict[str, msgspec.Raw], is_required=True, name="a JSON object")
_TOP = {
    "type": _Field.of(str, is_required=True),
    "data": _OBJECT,
    "aggregate": _Field.of(str | None, is_required=False),
    "metadata": _Field.of(dict[str, str], is_required=False, name="a JSON object of strings"),
}


@attrs.define(eq=False)
class EventDecoder:
    """Makes events from JSON. It finds their classes by type among those that are loaded."""

    _classes: Callable[[], Iterable[type[DomainEvent]]] = event_classes
    _known: dict[str, tuple[type[DomainEvent], Mapping[str, _Field]]] = attrs.field(
        factory=dict, init=False
    )

    def decode(self, text: bytes) -> DomainEvent:
        """Return the event that a JSON text describes; raises `EventNotDecodable`."""
        if text.startswith(_BOM):
            raise EventNotDecodable("the text begins with a byte order mark: give UTF-8 without it")
        try:
            text.decode()
        except UnicodeDecodeError as error:
            raise EventNotDecodable(
                f"the text is not UTF-8: byte {error.start} is 0x{text[error.start]:02x}"
            ) from None
        top = _read_object(_read(_OBJECT, text, ""), _TOP, "", "an event in JSON")
        cls, fields = self._find(top["type"])
        values = _read_object(top["data"], fields, "data", cls.__qualname__)
        if "metadata" in top:
            values["metadata"] = top["metadata"]
        event, aggregate_id = _make(cls, values)
        if "aggregate" in top and top["aggregate"] != aggregate_id:
            raise EventNotDecodable(
                f"aggregate: expected {_shown(aggregate_id)}, which is the event's aggregate_id, "
                f"found {_shown(top['aggregate'])}"
            )
        return event

    def _find(self, event_type: str) -> tuple[type[DomainEvent], Mapping[str, _Field]]:
        known = self._known.get(event_type)
        if known is not None:
            return known
        classes = list(self._classes())
        found = [cls for cls in classes if cls.event_type == event_type]
        if not found:
            types = ", ".join(sorted({repr(cls.event_type) for cls in classes})) or "none"
            raise EventNotDecodable(
                f"type: {_shown(event_type)} is unknown; the known types are: {types}"
            )
        if len(found) > 1:
            names = " and ".join(sorted(f"{cls.__module__}.{cls.__qualname__}" for cls in found))
            raise EventNotDecodable(
                f"type: {_shown(event_type)} is the type of {names}: give one of them another "
                "event_type"
            )
        known = self._known[event_type] = (found[0], _fields_of(found[0]))
        return known


def _fields_of(cls: type[DomainEvent]) -> dict[str, _Field]:
    """Return what "data" may hold for a class, by the names that its `__init__` takes.

    `metadata` has a place of its own beside "data".
    """
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
        return {
            field.alias or field.name: _Field.of(
                hints.get(field.name, Any), is_required=field.default is attrs.NOTHING
            )
            for field in attrs.fields(cls)
            if field.init and field.name != "metadata"
        }
    except (NameError, TypeError) as error:
        raise EventNotDecodable(
            f"type: {cls.event_type!r} cannot be read from JSON, for a field of "
            f"{cls.__qualname__} has a type that cannot: {_plain(str(error))}"
        ) from error


def _read_object(
    members: Mapping[str, msgspec.Raw], fields: Mapping[str, _Field], path: str, owner: str
) -> dict[str, Any]:
    """Return the members of a JSON object, after refusing the first that is surplus or missing."""
    for name in members:
        if name not in fields:
            names = ", ".join(map(repr, fields))
            raise EventNotDecodable(
                f"{_member(path, name)}: no field of {owner}, which has: {names}"
            )
    for name, field in fields.items():
        if field.is_required and name not in members:
            raise EventNotDecodable(
                f"{_member(path, name)}: expected {field.type_name}, found nothing"
            )
    return {name: _read(fields[name], raw, _member(path, name)) for name, raw in members.items()}


def _read(field: _Field, raw: bytes | msgspec.Raw, path: str) -> Any:
    try:
        return field.decoder.decode(raw)
    except RecursionError:
        raise EventNotDecodable(f"{_prefix(path)}the JSON is nested too deeply") from None
    except msgspec.ValidationError as error:
        reason, _, inner = str(error).rstrip("`").partition(" - at `$")
        if inner:
            raise EventNotDecodable(
                f"{_plain(path + inner)}: {_plain(reason[:1].lower() + reason[1:])}"
            ) from None
        raise EventNotDecodable(
            f"{_prefix(path)}expected {field.type_name}, found {_excerpt(raw)}"
        ) from None
    except msgspec.DecodeError as error:
        reason = str(error).removeprefix("JSON is malformed: ")
        if "truncated" in reason or "end of hex escape" in reason:
            # So msgspec calls half of a surrogate pair too, by how much text comes after it.
            reason = "it ends too early, or an escape is half of a surrogate pair"
        raise EventNotDecodable(f"{_prefix(path)}not JSON: {_plain(reason)}") from None


def _make(cls: type[DomainEvent], values: dict[str, Any]) -> tuple[DomainEvent, str | None]:
    """Return the event with its aggregate id."""
    try:
        event = cls(**values)
        aggregate_id = event.aggregate_id
    except Exception as error:
        # Converters, validators and properties of the user's class may raise anything. Those of
        # attrs put the message first and objects behind it.
        message = error.args[0] if error.args else ""
        raise EventNotDecodable(
            f"data: {cls.__qualname__} refuses it: {type(error).__name__}: {_plain(str(message))}"
        ) from error
    if aggregate_id is not None and not isinstance(aggregate_id, str):
        raise EventNotDecodable(
            f"data: {cls.__qualname__}.aggregate_id is {_shown(aggregate_id)}, not a string"
        )
    return event, aggregate_id


def _prefix(path: str) -> str:
    return f"{path}: " if path else ""


def _member(path: str, name: str) -> str:
    if name.isascii() and name.isidentifier() and len(name) <= _EXCERPT_LENGTH:
        return f"{path}.{name}" if path else name
    return f"{path}[{_shown(name)}]"


def _excerpt(raw: bytes | msgspec.Raw) -> str:
    text = bytes(raw).strip().decode()
    if len(text) > _EXCERPT_LENGTH:
        text = text[:_EXCERPT_LENGTH] + "..."
    return _plain(text)


def _shown(value: object) -> str:
    shorten = reprlib.Repr()
    shorten.maxstring = shorten.maxother = _EXCERPT_LENGTH
    return shorten.repr(value)


def _plain(text: str) -> str:
    """Return the text without anything that a terminal would take for a command."""
    text = text if len(text) <= _REASON_LENGTH else text[:_REASON_LENGTH] + "..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
