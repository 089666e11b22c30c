"""Events to JSON and back, checked field by field before an event is made of it.

The command line reads events by `EventDecoder`, one object a text:

    {"type": "price.closed", "data": {"symbol": "IBM", "close": "100.52"}}

A store keeps them by `EventCodec`, where one object has all fields:

    {"symbol":"IBM","close":"100.52","event_id":"...","occurred_at":"...Z",...,"metadata":{}}

Both go through one msgspec.Struct for each class (`wire`), which has its fields and their types.
The event is made by calling its class, so that converters and validators have their say.
"""

import gc
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
import msgspec

from triobus._errors import EventNotDecodable, EventNotEncodable, InvalidOption
from triobus._events import limits
from triobus._events.converters import Converter, Converters
from triobus._events.diagnosis import (
    OBJECT,
    Mismatch,
    fault_of_leaves,
    inside,
    members_of,
    prefix,
    read_member,
    read_object,
    why_not_read,
    why_not_written,
)
from triobus._events.event import DomainEvent, classes_made, event_classes
from triobus._events.hints import Unkeepable
from triobus._events.upcasters import chain, name_of
from triobus._events.wire import BASE_FIELDS, Member, Wire
from triobus._text import said, shown

_TYPES_SHOWN = 20
_TOP = {
    "type": Member.of(str, is_required=True),
    "data": OBJECT,
    "aggregate": Member.of(str | None, is_required=False),
    "metadata": Member.of(dict[str, str], is_required=False, name="a JSON object of strings"),
}
_ANYTHING = Member.of(Any, is_required=False)
_encode = msgspec.json.Encoder().encode


@attrs.define(eq=False)
class EventDecoder:
    """Makes events from JSON. It finds their classes by type among those that are loaded."""

    _classes: Callable[[], Iterable[type[DomainEvent]]] = event_classes
    _converters: Converters = attrs.field(factory=Converters)
    _known: dict[str, Wire] = attrs.field(factory=dict, init=False)

    def decode(self, text: bytes) -> DomainEvent:
        """Return the event that a JSON text describes; raises `EventNotDecodable`."""
        members = members_of(text)
        top = read_object(members, _TOP, "", "an event in JSON")
        wire = self._find(top["type"])
        arguments = _arguments(wire, bytes(members["data"]), "data")
        if "metadata" in top:
            arguments["metadata"] = top["metadata"]
        event = _made(wire, arguments, "data")
        aggregate_id = _aggregate_id_of(event)
        if "aggregate" in top and top["aggregate"] != aggregate_id:
            raise EventNotDecodable(
                f"aggregate: expected {shown(aggregate_id)}, which is the event's aggregate_id, "
                f"found {shown(top['aggregate'])}"
            )
        return event

    def _find(self, event_type: str) -> Wire:
        wire = self._known.get(event_type)
        if wire is None:
            classes = list(self._classes())
            found = [cls for cls in classes if cls.event_type == event_type]
            cls = _only(event_type, found, classes, "give one of them another event_type")
            try:
                wire = Wire.of(cls, self._converters, is_stored=False)
            except Unkeepable as error:
                raise EventNotDecodable(
                    f"type: {event_type!r} cannot be read from JSON, {cls.__qualname__}.{error}"
                ) from error.__cause__
            self._known[event_type] = wire
        return wire


class EventCodec:
    """Makes JSON of events, for a store to keep, and events of what is kept.

    An event that would not come back equal, and of the same types all the way down, is refused when
    it is written, and so are whole numbers of more than 64 bits, a Decimal beyond the range of
    decimal128, NUL in any string, values inside each other more than 100 times, and metadata of
    more than 64 keys, or of more than 1,024 characters in a key or value. What is read may come
    from anywhere: nothing is imported or evaluated, and whatever it is, it becomes an event or
    `EventNotDecodable`. Of a key that a JSON object has twice, the last one counts.

    `types` are classes that are meant where several have the same event type. `max_event_bytes` is
    how long the JSON of an event may be when it is written. `converters` are for types that JSON
    does not know.
    """

    def __init__(
        self,
        types: Iterable[type[DomainEvent]] = (),
        max_event_bytes: int = 1_048_576,
        converters: Iterable[Converter] = (),
    ) -> None:
        self._types = _by_event_type(types)
        self._max_event_bytes = max_event_bytes
        self.converters = Converters.of(converters)
        """What the program has given for types of its own."""
        self._wires: dict[type[DomainEvent], Wire] = {}
        self._written: dict[type[DomainEvent], Wire] = {}
        """Those whose events this process can read back, as long as no class is defined."""
        self._read: dict[str, Wire] = {}
        self._classes_made = classes_made()

    def check_class(self, cls: type[DomainEvent]) -> None:
        """Raise `EventNotEncodable` if no event of a class could be kept.

        A base without fields of its own that is no attrs class is none to publish, and fine.
        """
        if cls is DomainEvent or inspect.isabstract(cls) or _is_mere_base(cls):
            return
        self._wire(cls)

    def encode(self, event: DomainEvent) -> bytes:
        """Return an event as one JSON object; raises `EventNotEncodable`."""
        if self._classes_made != classes_made():
            self._forget()
        wire = self._written.get(type(event)) or self._new_written(type(event))
        error: Exception | None = None
        try:
            values = wire.values(event)
            data = wire.json_of(values)
            shape = tuple(map(type, values))
            checks = wire.proved.get(shape)
            if checks is None:
                if wire.comes_back(event, data) and self._is_within_limits(wire, event, data):
                    wire.prove(shape)
                    return data
            else:
                for index, check in checks:
                    if not check(values[index]):
                        break
                else:
                    if (
                        not wire.deep or wire.deep_ones_come_back(values, data)
                    ) and self._is_within_limits(wire, event, data):
                        return data
        except Exception as caught:  # noqa: BLE001  # all that user code raises; it is the cause
            error = caught
        try:
            reason = why_not_written(wire, event, error, self._max_event_bytes)
        except Exception as caught:  # noqa: BLE001  # as above: the search runs user code too
            error = error or caught
            reason = f"{wire.cls.__qualname__}: {said(error)}"
        raise EventNotEncodable(reason) from error

    def decode(self, event_type: str, schema_version: int, data: bytes) -> DomainEvent:
        """Return the event that `encode` made JSON of; raises `EventNotDecodable`.

        Data of an older version of the class goes through its upcasters.
        """
        if self._classes_made != classes_made():
            self._forget()
        try:
            wire = self._read.get(event_type) or self._find(event_type)
            if schema_version != wire.cls.schema_version:
                data = _upcast(wire, schema_version, members_of(data))
            return _made(wire, _arguments(wire, data, ""), "")
        except Mismatch as error:
            raise EventNotDecodable(
                f"event {shown(event_type)}: {error}; if the class has changed since, raise its "
                f"schema_version and register an @upcaster({shown(event_type)}, "
                f"from_version={shown(schema_version)})"
            ) from error.__cause__
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

    def _forget(self) -> None:
        """Look again which class an event type has, for there are new ones."""
        self._classes_made = classes_made()
        self._written.clear()
        self._read.clear()

    def _is_within_limits(self, wire: Wire, event: DomainEvent, data: bytes) -> bool:
        return (
            len(data) <= self._max_event_bytes
            and not (event.metadata and limits.fault_of_metadata(event.metadata))
            # Text may look like it, so a look at the values themselves decides.
            and not (b"\\u0000" in data and fault_of_leaves(wire, event))
        )

    def _find(self, event_type: str) -> Wire:
        cls = _only(
            event_type,
            self.classes(event_type),
            event_classes(),
            "give one of them another event_type, or the store the one that is meant, in "
            "types=[...]",
            "; import the module of its class, and if that has another name now, write "
            f"event_type = {shown(event_type)} in it",
        )
        try:
            wire = self._wire(cls)
        except EventNotEncodable as error:
            raise EventNotDecodable(str(error)) from error.__cause__
        self._read[event_type] = wire
        return wire

    def _new_written(self, cls: type[DomainEvent]) -> Wire:
        wire = self._wire(cls)
        found = self.classes(cls.event_type)
        if found != [cls] and cls.event_type not in self._types:
            del found
            gc.collect()  # of a function that has ended, the classes may still be there
            found = self.classes(cls.event_type)
        if found != [cls]:
            raise EventNotEncodable(_why_not_found(cls, found, cls.event_type in self._types))
        self._written[cls] = wire
        return wire

    def _wire(self, cls: type[DomainEvent]) -> Wire:
        """Return how events of a class are kept. Raises `EventNotEncodable`."""
        wire = self._wires.get(cls)
        if wire is None:
            _check_class(cls)
            try:
                wire = Wire.of(cls, self.converters, is_stored=True)
            except Unkeepable as error:
                raise EventNotEncodable(f"{cls.__qualname__}.{error}") from error.__cause__
            except Exception as error:
                raise EventNotEncodable(
                    f"{cls.__qualname__} cannot be kept, for its fields cannot be had: "
                    f"{said(error)}: let them be fields of attrs with types that JSON has"
                ) from error
            self._wires[cls] = wire
        return wire


def _arguments(wire: Wire, data: bytes, path: str) -> dict[str, Any]:
    """Return what a class is called with, or raise `EventNotDecodable`."""
    try:
        arguments = wire.arguments(data)
        found = wire.fault(arguments, data)
    except Exception as error:  # noqa: BLE001  # nested classes may raise anything
        raise why_not_read(wire, data, path, error) from None
    if found is not None:
        where, number = found
        where = f"{path}.{where}" if path else where
        raise EventNotDecodable(f"{where}: found {shown(number)}, {limits.fault_of(number)}")
    return arguments


def _made(wire: Wire, arguments: dict[str, Any], path: str) -> DomainEvent:
    metadata = arguments.get("metadata")
    if metadata and (fault := limits.fault_of_metadata(metadata)):
        raise EventNotDecodable(fault)
    try:
        return wire.make(arguments)
    except Exception as error:
        # Converters and validators of the user's class may raise anything.
        raise EventNotDecodable(
            f"{prefix(path)}{wire.cls.__qualname__} refuses it: {said(error)}"
        ) from error


def _aggregate_id_of(event: DomainEvent) -> str | None:
    owner = type(event).__qualname__
    try:
        aggregate_id = event.aggregate_id
    except Exception as error:
        raise EventNotDecodable(f"data: {owner} refuses it: {said(error)}") from error
    if aggregate_id is not None and not isinstance(aggregate_id, str):
        raise EventNotDecodable(
            f"data: {owner}.aggregate_id is {shown(aggregate_id)}, not a string"
        )
    return aggregate_id


def check_aggregate_id(cls: type[DomainEvent], aggregate_id: str | None) -> None:
    """Raise `EventNotEncodable` unless it can stand in a row of a store."""
    if aggregate_id is not None and (fault := limits.fault_of_name(aggregate_id)):
        raise EventNotEncodable(
            f"{cls.__qualname__}.aggregate_id is {shown(aggregate_id)}, {fault}"
        )


def _check_class(cls: type[DomainEvent]) -> None:
    """Raise `EventNotEncodable` for a class whose name or version cannot stand in a row."""
    name = cls.__qualname__
    if not issubclass(cls, DomainEvent):
        raise EventNotEncodable(f"a {name} is no event: give a DomainEvent")
    if "__dataclass_fields__" in cls.__dict__:
        raise EventNotEncodable(f"{name} is a dataclass: decorate it with @attrs.frozen instead")
    if cls is DomainEvent or "__attrs_attrs__" not in cls.__dict__:
        raise EventNotEncodable(
            f"{name} is no event class that can be found again: derive one from DomainEvent, and "
            "decorate it with @attrs.frozen"
        )
    for field in attrs.fields(cls):
        if field.name in ("event_type", "schema_version"):
            raise EventNotEncodable(
                f"{name}.{field.name} is a field of each event, and it belongs to the class: write "
                "it without annotation, or as ClassVar"
            )
    if fault := limits.fault_of_name(cls.event_type):
        raise EventNotEncodable(f"{name}.event_type is {shown(cls.event_type)}, {fault}")
    version = cls.schema_version
    if type(version) is not int or not 1 <= version <= limits.GREATEST_VERSION:
        raise EventNotEncodable(
            f"{name}.schema_version is {shown(version)}: give a whole number of 1 or more, and at "
            f"most {limits.GREATEST_VERSION:,}"
        )


def _is_mere_base(cls: type) -> bool:
    """Tell whether nobody would publish events of a class, though it derives from the base."""
    decorated = {"__attrs_attrs__", "__dataclass_fields__"} & cls.__dict__.keys()
    try:
        annotations = inspect.get_annotations(cls)
    except Exception:  # noqa: BLE001  # newer Pythons evaluate them, and that may raise anything
        return False
    return not decorated and all("ClassVar" in str(hint) for hint in annotations.values())


def _why_not_found(
    cls: type[DomainEvent], found: list[type[DomainEvent]], is_in_types: bool
) -> str:
    """Return why this very process could not read an event of a class back."""
    name, type_ = _full_name(cls), cls.event_type
    if is_in_types:
        return (
            f"{name} would come back as {_full_name(found[0])}, which is given in types=[...] and "
            f"has the same event_type, {type_!r}"
        )
    same = [other for other in found if other is not cls and _full_name(other) == name]
    if same:
        return (
            f"{name} has been defined again since this event was made, and would come back as one "
            "of the new class: make the event with that"
        )
    others = " and ".join(sorted(_full_name(other) for other in found if other is not cls))
    reason = (
        f"{name} could not be read back, for {others} has the same event_type, {type_!r}: give one "
        "of them another event_type, or the store the one that is meant, in types=[...]"
    )
    if "__main__" in {other.__module__ for other in (cls, *found)}:
        reason += (
            "; if it is one file, run as a program and imported too, move the class to a module "
            "that both import"
        )
    return reason


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


def _upcast(wire: Wire, version: int, members: Mapping[str, msgspec.Raw]) -> bytes:
    """Return the JSON of an event as that of the version that its class has."""
    event_type, wanted = wire.cls.event_type, wire.cls.schema_version
    if type(version) is not int or version < 1:
        raise EventNotDecodable(f"version {shown(version)} is no whole number of 1 or more")
    if version > wanted:
        raise EventNotDecodable(
            f"version {version} is newer than {wire.cls.__qualname__}, which is of version "
            f"{wanted}: a newer program has written it"
        )
    upcasters = chain(event_type, version, wanted)
    base = {name: raw for name, raw in members.items() if name in BASE_FIELDS}
    own: Any = {
        name: read_member(_ANYTHING, raw, inside("", name))
        for name, raw in members.items()
        if name not in base
    }
    for step, upcaster in enumerate(upcasters, version):
        who = f"the upcaster {name_of(upcaster)}, from version {step},"
        try:
            own = upcaster(own)
        except Exception as error:
            raise EventNotDecodable(f"{who} raised {said(error)}") from error
        if not isinstance(own, dict):
            raise EventNotDecodable(
                f"{who} returned {shown(own)}: let it return the data of version {step + 1}, a dict"
            )
        if taken := [name for name in BASE_FIELDS if name in own]:
            raise EventNotDecodable(
                f"{who} returned a member {taken[0]!r}: let it leave the fields of DomainEvent "
                "alone"
            )
    try:
        return _encode(members_of(_encode(own)) | base)
    except Exception as error:
        raise EventNotDecodable(
            f"what {name_of(upcasters[-1])} returned cannot be read as JSON: {said(error)}"
        ) from error


def _only(
    event_type: str,
    found: list[type[DomainEvent]],
    loaded: Iterable[type[DomainEvent]],
    advice: str,
    advice_if_none: str = "",
) -> type[DomainEvent]:
    """Return the one class that an event type has."""
    if not found:
        known = sorted({shown(cls.event_type) for cls in loaded})
        types = ", ".join(known[:_TYPES_SHOWN]) or "none"
        more = f" and {len(known) - _TYPES_SHOWN:,} more" if len(known) > _TYPES_SHOWN else ""
        raise EventNotDecodable(
            f"type: {shown(event_type)} is unknown; the known types are: {types}{more}"
            f"{advice_if_none}"
        )
    if len(found) > 1:
        names = " and ".join(sorted(map(_full_name, found)))
        raise EventNotDecodable(f"type: {shown(event_type)} is the type of {names}: {advice}")
    return found[0]


def _full_name(cls: type[DomainEvent]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
