"""How the events of one class are written and read: by a msgspec.Struct that is made for it."""

import enum
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from operator import attrgetter
from typing import Annotated, Any
from uuid import UUID

import attrs
import msgspec

from triobus._errors import InvalidEvent
from triobus._events import limits
from triobus._events.converters import Converters
from triobus._events.event import DomainEvent, FrozenDict
from triobus._events.hints import (
    alternatives,
    check_type,
    field_types,
    may_hold_more,
    name_of_type,
    with_integers,
)
from triobus._events.likeness import LEAVES, is_same
from triobus._text import shown

BASE_FIELDS = attrs.fields_dict(DomainEvent)
MISSING = object()
"""In place of the value of an attribute that an event lacks."""


@attrs.frozen
class Member:
    """One member of a JSON object."""

    type_name: str
    """What a message calls its type."""
    type: Any = Any
    """What it is read as."""
    is_required: bool = False
    attribute: str = ""
    """The attribute of an event that has its value."""


_STORED: Mapping[str, Mapping[str, Any]] = {
    # Another id or time at each reading would be another event, so these have to be there.
    "event_id": {"is_required": True},
    "occurred_at": {
        "is_required": True,
        "type": Annotated[datetime, msgspec.Meta(tz=True)],
        "type_name": "a time with its zone",
    },
    "metadata": {"type": dict[str, str], "type_name": "a JSON object of strings"},
}
_MADE_BY_BASE = {"occurred_at": datetime, "metadata": FrozenDict}
"""The types of what the converters of `DomainEvent` make."""
_NUMBERS: Mapping[type, Callable[[Any], bool]] = {
    int: limits.is_integer_kept,
    Decimal: limits.is_decimal_kept,
}
_EQUAL_IS_SAME = frozenset(type_ for type_, check in LEAVES.items() if check is None)


class Wire:
    """What JSON has of the events of one class, and the way there and back. Raises `Unkeepable`.

    Events for a store have all fields. Those of the command line may lack id and time, and have no
    metadata among their fields.
    """

    def __init__(self, cls: type[DomainEvent], converters: Converters, *, is_stored: bool) -> None:
        self.cls = cls
        self.converters = converters
        self.members = _members(cls, converters, is_stored=is_stored)
        """By the names that the class takes as arguments."""
        names = sorted(self.members, key=lambda name: self.members[name].attribute in BASE_FIELDS)
        types = [self.members[name].type for name in names]
        self.struct: Any = msgspec.defstruct(
            cls.__name__,
            [(name, type_, msgspec.UNSET) for name, type_ in zip(names, types, strict=True)],
            forbid_unknown_fields=True,
            eq=False,
            gc=False,
        )
        self.to_json = msgspec.json.Encoder(enc_hook=converters.write).encode
        self.from_json = msgspec.json.Decoder(self.struct, dec_hook=converters.read).decode
        self.values = attrgetter(*[self.members[name].attribute for name in names])
        """Returns the values of an event that are written, in their order."""
        self.made = [field.name for field in attrs.fields(cls) if field.eq and not field.init]
        """The attributes that the class sets itself, and that have to come back all the same."""
        self._required = {name for name in names if self.members[name].is_required}
        self._is_plain = _is_made_plainly(cls)
        self._loose = [place for place, type_ in enumerate(types) if may_hold_more(type_)]
        self._kinds = list(map(_kinds, names, types))
        places = enumerate(zip(names, self._kinds, strict=True))
        self._deep = [(place, name) for place, (name, kinds) in places if kinds is None]
        self._numbers = [
            name
            for name, kinds in zip(names, self._kinds, strict=True)
            if kinds is None or kinds & _NUMBERS.keys()
        ]
        self._proved: dict[tuple[type, ...], list[tuple[int, Callable[[Any], bool]]]] = {}

    def json_of(self, values: tuple[Any, ...]) -> bytes:
        """Return the JSON of an event with these values."""
        if self._loose:
            bare = list(values)
            for place in self._loose:
                bare[place] = limits.fields_alone(values[place])
            return self.to_json(self.struct(*bare))
        return self.to_json(self.struct(*values))

    def arguments(self, data: bytes) -> dict[str, Any]:
        """Return the arguments for the class that JSON has. Raises what msgspec does."""
        arguments = msgspec.structs.asdict(self.from_json(data))
        for value in arguments.values():
            if value is msgspec.UNSET:
                break
        else:
            return arguments
        found = {name: value for name, value in arguments.items() if value is not msgspec.UNSET}
        if not self._required <= found.keys():
            raise msgspec.ValidationError("a member is missing")
        return found

    def make(self, arguments: dict[str, Any]) -> DomainEvent:
        """Return the event. Raises what the class raises."""
        event = self.cls(**arguments)
        if not self._is_plain:
            _check_made(self.cls, event)
        return event

    def fault(self, arguments: Mapping[str, Any], data: bytes) -> str:
        """Return where a number is so great that computing with it could take for ever."""
        is_suspect = bool(self._deep) and limits.may_be_great(data)
        for name in self._numbers:
            value = arguments.get(name)
            check = _NUMBERS.get(type(value))
            if is_suspect if check is None else not check(value):
                for where, leaf in limits.leaves(name, value):
                    if isinstance(leaf, (Decimal, int)) and (fault := limits.fault_of(leaf)):
                        return f"{where}: found {shown(leaf)}, {fault}"
        return ""

    def comes_back(self, event: DomainEvent, values: tuple[Any, ...], data: bytes) -> bool:
        """Tell whether JSON is read as the event. Raises what reading or `==` raises.

        Reading it is the proof, and serves for all events with values of the same types. Of those
        are checked only the fields that depend on the value or have other values inside.
        """
        shape = tuple(map(type, values))
        checks = self._proved.get(shape)
        if checks is None:
            if not self._is_read_as(event, values, data):
                return False
            self._prove(shape)
            return True
        for place, check in checks:
            if not check(values[place]):
                return False
        if not self._deep:
            return True
        read = self.from_json(data)
        return all(is_same(values[place], getattr(read, name)) for place, name in self._deep)

    def _is_read_as(self, event: DomainEvent, values: tuple[Any, ...], data: bytes) -> bool:
        again = self.make(self.arguments(data))
        for given, back in zip(values, self.values(again), strict=True):
            kind = type(given)
            if kind in _EQUAL_IS_SAME and kind is type(back):  # saves calls, for most fields are so
                if given != back:
                    return False
            elif given is not back and not is_same(given, back):
                return False
        return all(
            is_same(getattr(event, name, MISSING), getattr(again, name, MISSING))
            for name in self.made
        )

    def _prove(self, shape: tuple[type, ...]) -> None:
        """Note that events of these types come back, if one of them is proof of the others."""
        if not self._is_plain:
            return
        checks = []
        for place, (type_, kinds) in enumerate(zip(shape, self._kinds, strict=True)):
            if kinds is not None:
                if type_ not in kinds:
                    return
                if check := LEAVES.get(type_):
                    checks.append((place, check))
        self._proved[shape] = checks


def _members(
    cls: type[DomainEvent], converters: Converters, *, is_stored: bool
) -> dict[str, Member]:
    members = {}
    for name, hint in field_types(cls).items():
        field = attrs.fields_dict(cls)[name]
        if not field.init or (name == "metadata" and not is_stored):
            continue
        check_type(name, hint, converters)
        alias = field.alias or name
        members[alias] = Member(
            type=_readable(hint, converters) if is_stored else hint,
            type_name=name_of_type(hint),
            is_required=field.default is attrs.NOTHING,
            attribute=name,
        )
        if is_stored and alias in _STORED:
            members[alias] = attrs.evolve(members[alias], **_STORED[alias])
    return members


def _readable(hint: Any, converters: Converters) -> Any:
    """Return the type with whole numbers beside floats, unless JSON could not tell them apart."""
    wider = with_integers(hint)
    if wider != hint:
        try:
            msgspec.json.Decoder(wider, dec_hook=converters.read)
        except Exception:  # noqa: BLE001  # such as one in a union with whole numbers of an enum
            return hint
    return wider


def _kinds(name: str, hint: Any) -> frozenset[Any] | None:
    """Return the types of which all values come back if one does, or None if there may be others.

    Some values of these types are exceptions: `LEAVES` has the checks that find them.
    """
    if name in _MADE_BY_BASE:
        return frozenset([_MADE_BY_BASE[name]])
    found = alternatives(hint)
    return found if all(type_ in LEAVES or _is_closed(type_) for type_ in found) else None


def _is_closed(type_: Any) -> bool:
    """Tell whether it is an enum of which each member comes back."""
    if not isinstance(type_, type) or not issubclass(type_, enum.Enum):
        return False
    if issubclass(type_, enum.Flag):
        return False
    try:
        decode = msgspec.json.Decoder(type_).decode
        members = type_.__members__.values()
        return all(decode(msgspec.json.encode(member)) is member for member in members)
    except Exception:  # noqa: BLE001  # each event is looked at then, and its error says more
        return False


def _is_made_plainly(cls: type[DomainEvent]) -> bool:
    """Tell whether making an event does nothing but set its fields to the arguments."""
    code = getattr(cls.__init__, "__code__", None)
    return (
        code is not None
        and code.co_filename.startswith("<attrs generated")
        and cls.__new__ is object.__new__
        and cls.__getattribute__ is object.__getattribute__
        and not hasattr(cls, "__attrs_pre_init__")
        and not hasattr(cls, "__attrs_post_init__")
        and all(
            field.init
            and field.validator is None
            and field.converter is getattr(BASE_FIELDS.get(field.name), "converter", None)
            for field in attrs.fields(cls)
        )
    )


def _check_made(cls: type, event: object) -> None:
    """Raise `InvalidEvent` if code of the class has made anything but an event of it."""
    if type(event) is not cls:
        raise InvalidEvent(f"it made a {type(event).__qualname__}")
    for name, type_ in (("event_id", UUID), *_MADE_BY_BASE.items()):
        value = getattr(event, name, None)
        if type(value) is not type_:
            raise InvalidEvent(f"it set {name} to {shown(value)}")
