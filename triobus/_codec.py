"""Events to JSON and back, checked field by field before an event is made of it.

The command line reads events by `EventDecoder`, one object a text:

    {"type": "price.closed", "data": {"symbol": "IBM", "close": "100.52"}}

A store keeps them by `EventCodec`, where one object has all fields:

    {"symbol":"IBM","close":"100.52","event_id":"...","occurred_at":"...Z",...,"metadata":{}}

msgspec checks and converts each field by its declared type. The event is then made by calling its
class, because msgspec's own way to an attrs class would pass over converters. Where a class has
none, and what comes out is written in the same bytes again, that way is the shorter one.
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from operator import attrgetter
from typing import Annotated, Any
from uuid import UUID

import attrs
import msgspec

from triobus._errors import EventNotDecodable, EventNotEncodable, InvalidOption
from triobus._events import _NO_METADATA, DomainEvent, _FrozenDict, event_classes
from triobus._text import LONGEST_SHOWN, line, shown
from triobus._upcasters import chain, name_of

_TYPES_SHOWN = 20
_BOM = b"\xef\xbb\xbf"

_METADATA_KEYS = 64
_METADATA_LENGTH = 1024
"""How many characters a key or a value of the metadata may have."""
_EXPONENT = 6144
"""The greatest exponent of IEEE 754's decimal128. With a thousand million, which a dozen characters
are enough to write, the first `int()` of the number would fill the memory."""
_DEPTH_SEARCHED = 500


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
_STORED = {
    # Another id or time at each reading would be another event, so these have to be there.
    "event_id": _Field.of(UUID, is_required=True),
    "occurred_at": _Field.of(
        Annotated[datetime, msgspec.Meta(tz=True)], is_required=True, name="a time with its zone"
    ),
    "metadata": _TOP["metadata"],
}
_BASE_FIELDS = attrs.fields_dict(DomainEvent)
_ANYTHING = _Field.of(Any, is_required=False)
_encode = msgspec.json.Encoder().encode
_has_great_exponent = re.compile(rb"E[+-]\d{4}").search
_has_long_number = re.compile(rb"[:,\[]-?\d{19}").search
_INTEGERS = range(-(2**63), 2**64)
_HARMLESS = frozenset([str, bool, float, datetime, date, UUID, type(None)])
"""Types of which every value that JSON can have is harmless."""
_SIMPLE = frozenset([str, int, float, bool, Decimal, datetime, date, UUID, type(None)])


@attrs.define(eq=False)
class EventDecoder:
    """Makes events from JSON. It finds their classes by type among those that are loaded."""

    _classes: Callable[[], Iterable[type[DomainEvent]]] = event_classes
    _known: dict[str, tuple[type[DomainEvent], Mapping[str, _Field]]] = attrs.field(
        factory=dict, init=False
    )

    def decode(self, text: bytes) -> DomainEvent:
        """Return the event that a JSON text describes; raises `EventNotDecodable`."""
        top = _read_object(_members_of(text), _TOP, "", "an event in JSON")
        cls, fields = self._find(top["type"])
        values = _read_object(top["data"], fields, "data", cls.__qualname__)
        _check_values(values, "data")
        if "metadata" in top:
            values["metadata"] = top["metadata"]
            if fault := _fault_of_metadata(top["metadata"]):
                raise EventNotDecodable(fault)
        event, aggregate_id = _make(cls, values, "data")
        if "aggregate" in top and top["aggregate"] != aggregate_id:
            raise EventNotDecodable(
                f"aggregate: expected {shown(aggregate_id)}, which is the event's aggregate_id, "
                f"found {shown(top['aggregate'])}"
            )
        return event

    def _find(self, event_type: str) -> tuple[type[DomainEvent], Mapping[str, _Field]]:
        known = self._known.get(event_type)
        if known is not None:
            return known
        classes = list(self._classes())
        found = [cls for cls in classes if cls.event_type == event_type]
        cls = _only(event_type, found, classes, "give one of them another event_type")
        fields = _fields_of(cls)
        del fields["metadata"]  # it has a place of its own beside "data"
        known = self._known[event_type] = (cls, fields)
        return known


@attrs.define
class _Plan:
    """How the events of one class are written and read."""

    cls: type[DomainEvent]
    version: int
    fields: Mapping[str, _Field]
    """What JSON has, by the names that `__init__` takes."""
    names: Mapping[str, str]
    """The attributes that these names are the arguments of."""
    values: Callable[[DomainEvent], tuple[Any, ...]]
    """All that has to come back. Not by `==`, from which a class may except fields."""
    integers: tuple[str, ...]
    """The attributes that may be whole numbers."""
    is_deep: bool
    """Whether there may be whole numbers elsewhere in it."""
    shortcut: msgspec.json.Decoder[DomainEvent] | None
    """Makes an event at once, where that comes to the same as calling the class."""

    @classmethod
    def of(cls, event_class: type[DomainEvent]) -> "_Plan":
        """Raises `EventNotDecodable` if events of this class cannot be kept."""
        version = event_class.schema_version
        if type(version) is not int or version < 1:
            raise EventNotDecodable(
                f"{event_class.__qualname__}.schema_version is {shown(version)}: give a whole "
                "number of 1 or more"
            )
        if fault := _fault_of_text(event_class.event_type):
            raise EventNotDecodable(
                f"{event_class.__qualname__}.event_type is {shown(event_class.event_type)}, {fault}"
            )
        fields = attrs.fields(event_class)
        members = _fields_of(event_class) | _STORED
        hints = typing.get_type_hints(event_class)
        own = {
            field.name: _alternatives(hints.get(field.name, Any))
            for field in fields
            if field.name not in _BASE_FIELDS
        }
        return cls(
            cls=event_class,
            version=version,
            fields=members,
            names={field.alias or field.name: field.name for field in fields if field.init},
            values=attrgetter(*(field.name for field in fields if field.init or field.eq)),
            integers=tuple(name for name, found in own.items() if int in found),
            is_deep=not all(found <= _SIMPLE for found in own.values()),
            shortcut=(
                msgspec.json.Decoder(event_class)
                if all(map(_is_plain, fields)) and _is_made_plainly(event_class)
                else None
            ),
        )

    def write(self, event: DomainEvent) -> bytes:
        if self.shortcut is not None:
            return _encode(event)
        return _encode({name: getattr(event, field) for name, field in self.names.items()})

    def may_have_great_integer(self, event: DomainEvent, data: bytes) -> bool:
        """Whether a whole number of more than 64 bits may be in an event, of which this is JSON."""
        if self.is_deep and _has_long_number(data):
            return True
        for name in self.integers:
            number = getattr(event, name)
            if type(number) is int and number not in _INTEGERS:
                return True
        return False

    def read(self, members: Mapping[str, msgspec.Raw]) -> DomainEvent:
        """Return the event of a JSON object, or say what is wrong with it."""
        values = _read_object(members, self.fields, "", self.cls.__qualname__)
        if fault := _fault_of_metadata(values.get("metadata", {})):
            raise EventNotDecodable(fault)
        _check_values(values, "")
        return _make(self.cls, values, "")[0]

    def read_at_once(self, data: bytes) -> DomainEvent | None:
        """Return the event if its JSON is as `write` would write it, else None.

        So there is nothing missing, surplus or double in it.
        """
        if self.shortcut is None or b"NaN" in data or _has_great_exponent(data):
            return None
        try:
            event = self.shortcut.decode(data)
            if event.occurred_at.tzinfo is not UTC or self.may_have_great_integer(event, data):
                return None
            metadata: Mapping[str, str] = _NO_METADATA
            if event.metadata:
                metadata = _FrozenDict(event.metadata)
                if _fault_of_metadata(metadata):
                    return None
            object.__setattr__(event, "metadata", metadata)
            aggregate_id = event.aggregate_id
            if aggregate_id is not None and not isinstance(aggregate_id, str):
                return None
            return event if _encode(event) == data else None
        except Exception:  # noqa: BLE001  # `read` meets it again, and says what and where it is
            return None


class EventCodec:
    """Makes JSON of events, for a store to keep, and events of what is kept.

    An event that would not come back equal is refused when it is written, and so are whole numbers
    of more than 64 bits, a Decimal beyond the range of decimal128, NUL in any string, and
    metadata of more than 64 keys, or of more than 1,024 characters in a key or value. What is read
    may come from anywhere: nothing is imported or evaluated, and whatever it is, it becomes an
    event or `EventNotDecodable`. Of a key that a JSON object has twice, the last one counts.

    `types` are classes that are meant where several have the same event type. `max_event_bytes` is
    how long the JSON of an event may be when it is written.
    """

    def __init__(
        self, types: Iterable[type[DomainEvent]] = (), max_event_bytes: int = 1_048_576
    ) -> None:
        self._types = _by_event_type(types)
        self._max_event_bytes = max_event_bytes
        self._plans: dict[type[DomainEvent], _Plan] = {}
        self._plans_by_type: dict[str, _Plan] = {}

    def encode(self, event: DomainEvent) -> bytes:
        """Return an event as one JSON object; raises `EventNotEncodable`."""
        plan = self._plans.get(type(event)) or self._new_plan(type(event))
        error: Exception | None = None
        try:
            aggregate_id = event.aggregate_id
            data = plan.write(event)
            if plan.shortcut is not None:
                again = plan.shortcut.decode(data)
            else:
                again = plan.read(_members_of(data))
            if (
                plan.values(again) == plan.values(event)
                and len(data) <= self._max_event_bytes
                and (aggregate_id is None or not _fault_of_text(aggregate_id))
                and not (event.metadata and _fault_of_metadata(event.metadata))
                # Text may look like these, so a look at the values themselves decides.
                and not (_has_great_exponent(data) and _fault_of_leaves(plan, event))
                and not (plan.may_have_great_integer(event, data) and _fault_of_leaves(plan, event))
                and not (b"\\u0000" in data and _fault_of_leaves(plan, event))
            ):
                return data
        except Exception as caught:  # noqa: BLE001  # all that user code raises; it is the cause
            error = caught
        try:
            reason = _why_not(plan, event, self._max_event_bytes)
        except Exception as caught:  # noqa: BLE001  # as above: the search runs user code too
            error = error or caught
            reason = f"{plan.cls.__qualname__}: {_said(error)}"
        raise EventNotEncodable(reason) from error

    def decode(self, event_type: str, schema_version: int, data: bytes) -> DomainEvent:
        """Return the event that `encode` made JSON of; raises `EventNotDecodable`.

        Data of an older version of the class goes through its upcasters.
        """
        try:
            plan = self._plans_by_type.get(event_type)
            if plan is None:
                plan = self._find(event_type)
            if schema_version == plan.version:
                event = plan.read_at_once(data)
                if event is not None:
                    return event
            return plan.read(_upcast(plan, schema_version, _members_of(data)))
        except EventNotDecodable as error:
            raise EventNotDecodable(f"event {shown(event_type)}: {error}") from error.__cause__

    def classes(self, event_type: str) -> list[type[DomainEvent]]:
        """Return the classes that events of a type may be of: none, one, or several.

        With more than one the events cannot be read, until one of the classes is in `types`.
        """
        meant = self._types.get(event_type)
        if meant is not None:
            return [meant]
        return [cls for cls in event_classes() if cls.event_type == event_type]

    def _find(self, event_type: str) -> _Plan:
        cls = _only(
            event_type,
            self.classes(event_type),
            event_classes(),
            "give one of them another event_type, or the store the one that is meant, in "
            "types=[...]",
        )
        plan = self._plans_by_type[event_type] = self._plans.get(cls) or _Plan.of(cls)
        return plan

    def _new_plan(self, cls: type[DomainEvent]) -> _Plan:
        if not issubclass(cls, DomainEvent):
            raise EventNotEncodable(f"a {cls.__qualname__} is no event: give a DomainEvent")
        if cls is DomainEvent or "__attrs_attrs__" not in cls.__dict__:
            raise EventNotEncodable(
                f"{cls.__qualname__} is no event class that can be found again: derive one from "
                "DomainEvent, and decorate it with @attrs.frozen"
            )
        meant = self._types.get(cls.event_type, cls)
        if meant is not cls:
            raise EventNotEncodable(
                f"{_full_name(cls)} would come back as {_full_name(meant)}, which is given in "
                f"types=[...] and has the same event_type, {cls.event_type!r}"
            )
        try:
            plan = _Plan.of(cls)
        except EventNotDecodable as error:
            raise EventNotEncodable(str(error)) from error.__cause__
        self._plans[cls] = plan
        return plan


def _alternatives(hint: Any) -> frozenset[Any]:
    """Return the types of which a value may be."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return frozenset(typing.get_args(hint)) if is_union else frozenset([hint])


def _by_event_type(types: Iterable[type[DomainEvent]]) -> dict[str, type[DomainEvent]]:
    known: dict[str, type[DomainEvent]] = {}
    if isinstance(types, (str, type)) or not isinstance(types, Iterable):
        raise InvalidOption(f"types={shown(types)}: give a list of event classes")
    for cls in types:
        if not isinstance(cls, type) or cls not in event_classes():
            raise InvalidOption(
                f"types has {shown(cls)}: give classes derived from DomainEvent and decorated "
                "with @attrs.frozen"
            )
        same = known.setdefault(cls.event_type, cls)
        if same is not cls:
            raise InvalidOption(
                f"types has {_full_name(same)} and {_full_name(cls)}, which have the same "
                f"event_type, {cls.event_type!r}: give the one that is meant"
            )
    return known


def _is_plain(field: "attrs.Attribute[Any]") -> bool:
    """Tell whether msgspec reads and writes this field as its class would."""
    base = _BASE_FIELDS.get(field.name)
    converter = None if base is None else base.converter  # `read_at_once` does what these two do
    return (
        field.init
        and field.alias == field.name
        and not field.name.startswith("_")
        and field.converter is converter
        and (base is None or field.type == base.type)
    )


def _is_made_plainly(cls: type[DomainEvent]) -> bool:
    """Tell whether nothing is done for a new object that msgspec would leave undone."""
    code = getattr(cls.__hash__, "__code__", None)
    return (
        cls.__new__ is object.__new__
        and not hasattr(cls, "__attrs_init__")  # the class has an `__init__` of its own
        and (code is None or "_attrs_cached_hash" not in code.co_names)
    )


def _upcast(
    plan: _Plan, version: int, members: Mapping[str, msgspec.Raw]
) -> Mapping[str, msgspec.Raw]:
    """Return the members of an event in JSON as those of the version that its class has."""
    event_type, wanted = plan.cls.event_type, plan.version
    if type(version) is not int or version < 1:
        raise EventNotDecodable(f"version {shown(version)} is no whole number of 1 or more")
    if version > wanted:
        raise EventNotDecodable(
            f"version {version} is newer than {plan.cls.__qualname__}, which is of version "
            f"{wanted}: a newer program has written it"
        )
    if version == wanted:
        return members
    upcasters = chain(event_type, version, wanted)
    base = {name: raw for name, raw in members.items() if name in _BASE_FIELDS}
    own: Any = {
        name: _read(_ANYTHING, raw, _member("", name))
        for name, raw in members.items()
        if name not in base
    }
    for step, upcaster in enumerate(upcasters, version):
        who = f"the upcaster {name_of(upcaster)}, from version {step},"
        try:
            own = upcaster(own)
        except Exception as error:
            raise EventNotDecodable(f"{who} raised {_said(error)}") from error
        if not isinstance(own, dict):
            raise EventNotDecodable(
                f"{who} returned {shown(own)}: let it return the data of version {step + 1}, a dict"
            )
        if taken := [name for name in _BASE_FIELDS if name in own]:
            raise EventNotDecodable(
                f"{who} returned a member {taken[0]!r}: let it leave the fields of DomainEvent "
                "alone"
            )
    try:
        return _members_of(_encode(own)) | base
    except Exception as error:
        raise EventNotDecodable(
            f"what {name_of(upcasters[-1])} returned cannot be read as JSON: {_said(error)}"
        ) from error


def _why_not(plan: _Plan, event: DomainEvent, max_event_bytes: int) -> str:
    """Return why an event cannot be kept, beginning with the path of what is wrong.

    Slow: it goes through the event value by value.
    """
    owner = plan.cls.__qualname__
    try:
        aggregate_id = event.aggregate_id
    except Exception as error:  # noqa: BLE001  # a property of the user's may raise anything
        return f"{owner}.aggregate_id raised {_said(error)}"
    if aggregate_id is not None and (fault := _fault_of_text(aggregate_id)):
        return f"{owner}.aggregate_id is {shown(aggregate_id)}, {fault}"
    fault = _fault_of_leaves(plan, event) or _fault_of_metadata(event.metadata, owner)
    if fault:
        return fault
    members = {}
    for name, attribute in plan.names.items():
        value, path = getattr(event, attribute), f"{owner}.{attribute}"
        try:
            members[name] = msgspec.Raw(_encode(value))
            _read(plan.fields[name], members[name], path)
        except RecursionError:
            return f"{path}: it is nested too deeply, or contains itself: give plain data"
        except EventNotDecodable as error:
            return f"{error}: give a value of the type that the field is declared with"
        except Exception as error:  # noqa: BLE001  # also what user code raises below the field
            return f"{path}: {_said(error)}: give what JSON has, such as str, int or Decimal"
    size = len(plan.write(event))
    if size > max_event_bytes:
        return (
            f"{owner}: its JSON has {size:,} bytes, more than max_event_bytes={max_event_bytes:,}: "
            "keep large data elsewhere, or give the store a greater max_event_bytes"
        )
    try:
        again = plan.read(members)
    except EventNotDecodable as error:
        return f"{owner}: it would not be read again: {error}"
    for field in attrs.fields(plan.cls):
        if field.init or field.eq:
            given, back = getattr(event, field.name), getattr(again, field.name)
            if not _are_equal(given, back):
                return _difference(f"{owner}.{field.name}", given, back)
    return f"{owner}: it would not come back as it is: give what JSON has, such as str or int"


def _difference(path: str, given: Any, back: Any) -> str:
    """Return what a value would come back as, and where in it the difference is."""
    while True:
        for (part, inner), (_, inner_back) in _pairs_of_parts(given, back):
            if not _are_equal(inner, inner_back):
                path, given, back = path + part, inner, inner_back
                break
        else:
            break
    try:
        given == back  # noqa: B015  # to see what it raises
    except Exception as error:  # noqa: BLE001  # whatever the `__eq__` of the user's raises
        return f"{path}: comparing {shown(given)} with what it comes back as raised {_said(error)}"
    kinds = type(given).__qualname__, type(back).__qualname__
    return (
        f"{path}: {shown(given)} ({kinds[0]}) would come back as {shown(back)} ({kinds[1]}): "
        "declare the field with its type, or give what JSON has"
    )


def _are_equal(given: Any, back: Any) -> bool:
    try:
        return bool(given == back)
    except Exception:  # noqa: BLE001  # `_difference` says what was raised
        return False


def _pairs_of_parts(given: Any, back: Any) -> Iterable[tuple[tuple[str, Any], tuple[str, Any]]]:
    if type(given) is not type(back) or isinstance(given, (set, frozenset)):
        return ()
    parts, parts_back = list(_parts(given)), list(_parts(back))
    return zip(parts, parts_back, strict=True) if len(parts) == len(parts_back) else ()


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what is directly inside a value, each part with the end of its path."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"[{shown(key)}]", item
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield f"[{index}]", item
    elif isinstance(value, (set, frozenset)):
        for item in value:
            yield "", item
    elif attrs.has(type(value)):
        for field in attrs.fields(type(value)):
            yield f".{field.name}", getattr(value, field.name)
    elif dataclasses.is_dataclass(value):
        for data_field in dataclasses.fields(value):
            yield f".{data_field.name}", getattr(value, data_field.name)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield f".{name}", getattr(value, name)


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield a value and all that is inside it, in order, each once; keys too."""
    waiting = [(path, value, 0)]
    seen: set[int] = set()
    while waiting:
        path, value, depth = waiting.pop()
        yield path, value
        if isinstance(value, (str, int, float, Decimal)) or id(value) in seen:
            continue
        if depth >= _DEPTH_SEARCHED:
            continue
        seen.add(id(value))
        inner = [(path + part, item, depth + 1) for part, item in _parts(value)]
        if isinstance(value, dict):
            inner += [(f"{path}[{shown(key)}]", key, depth + 1) for key in value]
        waiting += reversed(inner)


def _fault_of_leaves(plan: _Plan, event: DomainEvent) -> str:
    for attribute in plan.names.values():
        path = f"{plan.cls.__qualname__}.{attribute}"
        for where, leaf in _leaves(path, getattr(event, attribute)):
            if fault := _fault_of(leaf):
                return f"{where}: found {shown(leaf)}, {fault}"
    return ""


def _fault_of(value: Any) -> str:
    """Return what is wrong with a value by itself, with what to do; "" if nothing is."""
    if isinstance(value, str):
        return _fault_of_text(value)
    if isinstance(value, Decimal):
        return _fault_of_decimal(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "and JSON has no such number: give a finite one, or None"
    if isinstance(value, int) and value not in _INTEGERS:
        return "a whole number of more than 64 bits: give it as a str or a Decimal"
    return ""


def _fault_of_text(text: object) -> str:
    if not isinstance(text, str):
        return f"a {type(text).__qualname__}: give a str, or None"
    if "\0" in text:
        return "which contains NUL: remove it"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "which contains half of a surrogate pair and is no text: replace it"
    return ""


def _fault_of_decimal(number: Decimal) -> str:
    if number.is_nan():
        return "which equals nothing, not even itself: give a number, or None"
    exponent = number.as_tuple().exponent
    if isinstance(exponent, int) and (exponent > _EXPONENT or number.adjusted() < -_EXPONENT):
        return f"and its exponent is beyond {_EXPONENT:,}: give a number within the range"
    return ""


def _fault_of_metadata(metadata: Mapping[str, str], owner: str = "") -> str:
    path = f"{owner}.metadata" if owner else "metadata"
    if len(metadata) > _METADATA_KEYS:
        return f"{path}: found {len(metadata):,} keys: give at most {_METADATA_KEYS}"
    for key, value in metadata.items():
        for what, text in (("key", key), ("value", value)):
            if len(text) > _METADATA_LENGTH:
                return (
                    f"{path}[{shown(key)}]: found a {what} of {len(text):,} characters: give at "
                    f"most {_METADATA_LENGTH:,}"
                )
    return ""


def _members_of(text: bytes) -> dict[str, msgspec.Raw]:
    """Return the members of a JSON object, each as it is written."""
    if text.startswith(_BOM):
        raise EventNotDecodable("the text begins with a byte order mark: give UTF-8 without it")
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise EventNotDecodable(
            f"the text is not UTF-8: byte {error.start} is 0x{text[error.start]:02x}"
        ) from None
    members: dict[str, msgspec.Raw] = _read(_OBJECT, text, "")
    return members


def _only(
    event_type: str,
    found: list[type[DomainEvent]],
    loaded: Iterable[type[DomainEvent]],
    advice: str,
) -> type[DomainEvent]:
    """Return the one class that an event type has."""
    if not found:
        known = sorted({shown(cls.event_type) for cls in loaded})
        types = ", ".join(known[:_TYPES_SHOWN]) or "none"
        more = f" and {len(known) - _TYPES_SHOWN:,} more" if len(known) > _TYPES_SHOWN else ""
        raise EventNotDecodable(
            f"type: {shown(event_type)} is unknown; the known types are: {types}{more}"
        )
    if len(found) > 1:
        names = " and ".join(sorted(map(_full_name, found)))
        raise EventNotDecodable(f"type: {shown(event_type)} is the type of {names}: {advice}")
    return found[0]


def _full_name(cls: type[DomainEvent]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _fields_of(cls: type[DomainEvent]) -> dict[str, _Field]:
    """Return the fields of a class by the names that its `__init__` takes."""
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
        return {
            field.alias or field.name: _Field.of(
                hints.get(field.name, Any), is_required=field.default is attrs.NOTHING
            )
            for field in attrs.fields(cls)
            if field.init
        }
    except Exception as error:  # a type that is given as text can be any text
        raise EventNotDecodable(
            f"type: {cls.event_type!r} cannot be read from JSON, for a field of "
            f"{cls.__qualname__} has a type that cannot: {line(str(error))}"
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


def _check_values(values: Mapping[str, Any], path: str) -> None:
    """Refuse the first number that would be too much for whoever computes with it."""
    for name, value in values.items():
        if type(value) in _HARMLESS or (type(value) is int and value in _INTEGERS):
            continue  # without a look at its path, and it is most
        for where, leaf in _leaves(_member(path, name), value):
            if isinstance(leaf, (Decimal, int)) and (fault := _fault_of(leaf)):
                raise EventNotDecodable(f"{where}: found {shown(leaf)}, {fault}")


def _read(field: _Field, raw: bytes | msgspec.Raw, path: str) -> Any:
    try:
        return field.decoder.decode(raw)
    except RecursionError:
        raise EventNotDecodable(f"{_prefix(path)}the JSON is nested too deeply") from None
    except msgspec.ValidationError as error:
        reason, _, inner = str(error).rstrip("`").partition(" - at `$")
        if inner:
            raise EventNotDecodable(
                f"{line(path + inner)}: {line(reason[:1].lower() + reason[1:])}"
            ) from None
        raise EventNotDecodable(
            f"{_prefix(path)}expected {field.type_name}, found {_excerpt(raw)}"
        ) from None
    except msgspec.DecodeError as error:
        reason = str(error).removeprefix("JSON is malformed: ")
        if "truncated" in reason or "end of hex escape" in reason or "surrogate pair" in reason:
            # So msgspec calls half of a surrogate pair too, by how much text comes after it.
            reason = "it ends too early, or an escape is half of a surrogate pair"
        raise EventNotDecodable(f"{_prefix(path)}not JSON: {line(reason)}") from None


def _make(
    cls: type[DomainEvent], values: dict[str, Any], path: str
) -> tuple[DomainEvent, str | None]:
    """Return the event with its aggregate id."""
    try:
        event = cls(**values)
        aggregate_id = event.aggregate_id
    except Exception as error:
        # Converters, validators and properties of the user's class may raise anything.
        raise EventNotDecodable(
            f"{_prefix(path)}{cls.__qualname__} refuses it: {_said(error)}"
        ) from error
    if aggregate_id is not None and not isinstance(aggregate_id, str):
        raise EventNotDecodable(
            f"{_prefix(path)}{cls.__qualname__}.aggregate_id is {shown(aggregate_id)}, not a string"
        )
    return event, aggregate_id


def _prefix(path: str) -> str:
    return f"{path}: " if path else ""


def _member(path: str, name: str) -> str:
    if name.isascii() and name.isidentifier() and len(name) <= LONGEST_SHOWN:
        return f"{path}.{name}" if path else name
    return f"{path}[{shown(name)}]"


def _excerpt(raw: bytes | msgspec.Raw) -> str:
    text = bytes(raw).strip().decode()
    if len(text) > LONGEST_SHOWN:
        text = text[:LONGEST_SHOWN] + "..."
    return line(text)


def _said(error: Exception) -> str:
    """Return the type of an error and what it says, if it can say anything."""
    try:
        # attrs puts the message first and objects behind it.
        message = str(error.args[0] if error.args else error)
    except Exception:  # noqa: BLE001  # a `__str__` may raise anything
        message = ""
    return f"{type(error).__name__}: {line(message)}" if message else type(error).__name__
