"""Events to JSON and back, checked field by field before an event is made of it.

The command line reads events by `EventDecoder`, one object a text:

    {"type": "price.closed", "data": {"symbol": "IBM", "close": "100.52"}}

Beside these it may have "aggregate", "metadata", "schema_version", and the place that the event had
in a log.

A store keeps them by `EventCodec`, where one object has all fields:

    {"symbol":"IBM","close":"100.52","event_id":"...","occurred_at":"...Z",...,"metadata":{}}

Both go through one msgspec.Struct for each class (`wire`). The event is made by calling its class,
so that converters and validators are asked.
"""

from collections.abc import Callable, Iterable
from typing import Any

import attrs
import msgspec

from triobus._errors import EventNotDecodable, EventNotEncodable
from triobus._events import limits
from triobus._events.classes import EventTypes, check_class, is_mere_base, only
from triobus._events.converters import Converter, Converters
from triobus._events.diagnosis import (
    Mismatch,
    fault_of_leaves,
    prefix,
    why_not_read,
    why_not_written,
)
from triobus._events.event import DomainEvent, classes_made, event_classes, key_of
from triobus._events.hints import Unkeepable
from triobus._events.upcasters import upcast
from triobus._events.wire import Member, Wire
from triobus._text import said, shown

_TOP = {
    "type": Member("str", is_required=True),
    "data": Member("a JSON object", is_required=True),
    "aggregate": Member("str | None"),
    "metadata": Member("a JSON object of strings"),
    "schema_version": Member("int"),
    "position": Member("int"),
    "sequence": Member("int | None"),
    "recorded_at": Member("str"),
}


class _Top(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """An event in JSON, as the command line reads it."""

    type: str
    data: msgspec.Raw
    aggregate: str | msgspec.UnsetType | None = msgspec.UNSET
    metadata: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    schema_version: int | msgspec.UnsetType = msgspec.UNSET
    # What a log knows of an event, which has a place of its own in another one.
    position: int | msgspec.UnsetType = msgspec.UNSET
    sequence: int | msgspec.UnsetType | None = msgspec.UNSET
    recorded_at: str | msgspec.UnsetType = msgspec.UNSET


_read_top = msgspec.json.Decoder(_Top).decode


@attrs.define(eq=False)
class EventDecoder:
    """Makes events from JSON. It finds their classes by type among those that are loaded."""

    _classes: Callable[[], Iterable[type[DomainEvent]]] = event_classes
    _converters: Converters = attrs.field(factory=Converters)
    _known: dict[str, Wire] = attrs.field(factory=dict, init=False)

    def decode(self, text: bytes) -> DomainEvent:
        """Return the event that a JSON text describes; raises `EventNotDecodable`."""
        try:
            top = _read_top(text)
        except Exception as error:  # noqa: BLE001  # msgspec's errors are of several kinds
            raise why_not_read(error, text, _TOP, owner="an event in JSON") from None
        wire = self._find(top.type)
        data = bytes(top.data)
        if top.schema_version not in (msgspec.UNSET, wire.cls.schema_version):
            data = upcast(wire.cls, top.schema_version, data)
        event = _made(wire, data, "data", metadata=top.metadata)
        try:
            key = key_of(event)
        except Exception as error:
            raise EventNotDecodable(f"data: {type(event).__qualname__}: {said(error)}") from error
        if top.aggregate not in (msgspec.UNSET, key):
            raise EventNotDecodable(
                f"aggregate: expected {shown(key)}, which is the event's aggregate_id, found "
                f"{shown(top.aggregate)}"
            )
        return event

    def _find(self, event_type: str) -> Wire:
        wire = self._known.get(event_type)
        if wire is None:
            classes = list(self._classes())
            found = [cls for cls in classes if cls.event_type == event_type]
            cls = only(event_type, found, classes, if_several="give one of them another event_type")
            try:
                wire = Wire(cls, self._converters, is_stored=False)
            except Unkeepable as error:
                raise EventNotDecodable(
                    f"type: {event_type!r} cannot be read from JSON, {cls.__qualname__}.{error}"
                ) from error.__cause__
            self._known[event_type] = wire
        return wire


class EventCodec:
    """Makes JSON of events, for a store to keep, and events of that JSON.

    An event that would not come back equal, and of the same types all the way down, is refused when
    it is written, and so are whole numbers of more than 64 bits, a Decimal beyond the range of
    decimal128, NUL in any string, values inside each other more than 100 times, and metadata of
    more than 64 keys, or of more than 1,024 characters in a key or value. JSON that is read may
    come from anywhere: nothing is imported or evaluated, and it becomes an event or
    `EventNotDecodable`. Of a key that an object has twice, the last one counts.

    `types` are classes that are meant where several have the same event type. `max_event_bytes`
    limits the JSON of an event that is written. `converters` are for types that JSON does not know.
    """

    def __init__(
        self,
        types: Iterable[type[DomainEvent]] = (),
        max_event_bytes: int = 1_048_576,
        converters: Iterable[Converter] = (),
    ) -> None:
        self._types = EventTypes.of(types)
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
        if not is_mere_base(cls):
            self._wire(cls)

    def encode(self, event: DomainEvent) -> bytes:
        """Return an event as one JSON object; raises `EventNotEncodable`."""
        if self._classes_made != classes_made():
            self._forget()
        wire = self._written.get(type(event))
        if wire is None:
            wire = self._wire(type(event))
            self._types.check_found(wire.cls)
            self._written[wire.cls] = wire
        error: Exception | None = None
        try:
            values = wire.values(event)
            data = wire.json_of(values)
            if wire.comes_back(event, values, data) and self._is_within_limits(wire, event, data):
                return data
        except Exception as caught:  # noqa: BLE001  # all that user code raises; it is the cause
            error = caught
        raise EventNotEncodable(
            why_not_written(wire, event, error, self._max_event_bytes)
        ) from error

    def decode(self, event_type: str, schema_version: int, data: bytes) -> DomainEvent:
        """Return the event that `encode` made JSON of; raises `EventNotDecodable`.

        Data of an older version of the class goes through its upcasters.
        """
        if self._classes_made != classes_made():
            self._forget()
        try:
            wire = self._read.get(event_type) or self._find(event_type)
            if schema_version != wire.cls.schema_version:
                data = upcast(wire.cls, schema_version, data)
            return _made(wire, data)
        except Mismatch as error:
            raise EventNotDecodable(
                f"event {shown(event_type)}: {error}; if the class has changed since, raise its "
                f"schema_version and decorate a function with @upcaster({wire.cls.__qualname__}, "
                f"from_version={shown(schema_version)})"
            ) from error.__cause__
        except EventNotDecodable as error:
            raise EventNotDecodable(f"event {shown(event_type)}: {error}") from error.__cause__

    def classes(self, event_type: str) -> list[type[DomainEvent]]:
        """Return the classes that events of a type may be of: none, one, or several.

        With more than one the events cannot be read, until one of the classes is in `types`.
        """
        return self._types.find(event_type)

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
        cls = only(
            event_type,
            self.classes(event_type),
            event_classes(),
            if_several="give one of them another event_type, or the store the one that is meant, "
            "in types=[...]",
            if_none="; import the module of its class, and if that has another name now, write "
            f"event_type = {shown(event_type)} in it",
        )
        try:
            wire = self._wire(cls)
        except EventNotEncodable as error:
            raise EventNotDecodable(str(error)) from error.__cause__
        self._read[event_type] = wire
        return wire

    def _wire(self, cls: type[DomainEvent]) -> Wire:
        """Return how events of a class are kept. Raises `EventNotEncodable`."""
        wire = self._wires.get(cls)
        if wire is None:
            check_class(cls)
            try:
                wire = Wire(cls, self.converters, is_stored=True)
            except Unkeepable as error:
                raise EventNotEncodable(f"{cls.__qualname__}.{error}") from error.__cause__
            except Exception as error:
                raise EventNotEncodable(
                    f"{cls.__qualname__} cannot be kept, for its fields cannot be had: "
                    f"{said(error)}: let them be fields of attrs with types that JSON has"
                ) from error
            self._wires[cls] = wire
        return wire


def _made(wire: Wire, data: bytes, path: str = "", metadata: Any = msgspec.UNSET) -> DomainEvent:
    """Return the event that JSON describes, or raise `EventNotDecodable`."""
    owner = wire.cls.__qualname__
    try:
        arguments = wire.arguments(data)
        fault = wire.fault(arguments, data)
    except Exception as error:  # noqa: BLE001  # nested classes may raise anything
        raise why_not_read(error, data, wire.members, path, owner) from error.__cause__
    if fault:
        raise EventNotDecodable(f"{path}.{fault}" if path else fault)
    if metadata is not msgspec.UNSET:
        arguments["metadata"] = metadata
    found = arguments.get("metadata")
    if found and (fault := limits.fault_of_metadata(found)):
        raise EventNotDecodable(fault)
    try:
        return wire.make(arguments)
    except Exception as error:
        # Converters and validators of the user's class may raise anything.
        raise EventNotDecodable(f"{prefix(path)}{owner} refuses it: {said(error)}") from error


def check_aggregate_id(cls: type[DomainEvent], aggregate_id: str | None) -> None:
    """Raise `EventNotEncodable` unless it can stand in a row of a store."""
    if aggregate_id is not None and (fault := limits.fault_of_name(aggregate_id)):
        raise EventNotEncodable(
            f"{cls.__qualname__}.aggregate_id is {shown(aggregate_id)}, {fault}"
        )
