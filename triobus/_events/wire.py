"""How the events of one class are written and read: by a msgspec.Struct that is made for it."""

import enum
import math
import types
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
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
from triobus._events.likeness import LEAVES, is_kept_moment, is_same
from triobus._text import shown

BASE_FIELDS = attrs.fields_dict(DomainEvent)
_MISSING = object()


@attrs.frozen
class Member:
    """One member of a JSON object: how it is read, and what a message calls its type."""

    type: Any
    type_name: str
    is_required: bool

    @classmethod
    def of(cls, type_: Any, *, is_required: bool, name: str | None = None) -> "Member":
        return cls(type_, name or name_of_type(type_), is_required)


_METADATA = Member.of(dict[str, str], is_required=False, name="a JSON object of strings")
_STORED = {
    # Another id or time at each reading would be another event, so these have to be there.
    "event_id": Member.of(UUID, is_required=True),
    "occurred_at": Member.of(
        Annotated[datetime, msgspec.Meta(tz=True)], is_required=True, name="a time with its zone"
    ),
    "metadata": _METADATA,
}


_CHECKS: Mapping[type, Callable[[Any], bool] | None] = {
    str: None,  # what is no text cannot be encoded, and NUL is looked for in the JSON
    bool: None,
    bytes: None,
    UUID: None,
    date: None,
    timedelta: None,
    types.NoneType: None,
    int: limits.is_integer_kept,
    float: math.isfinite,
    Decimal: limits.is_decimal_kept,
    datetime: is_kept_moment,
    time: is_kept_moment,
}
"""Types of which a value always comes back as it was, if another one did and this says yes."""

Checks = tuple[tuple[int, Callable[[Any], bool]], ...]


@attrs.define(eq=False)
class Wire:
    """What JSON has of the events of one class, and the way there and back."""

    cls: type[DomainEvent]
    members: Mapping[str, Member]
    """What JSON has, by the names that `__init__` takes."""
    names: Mapping[str, str]
    """The attributes that these names are the arguments of, in the order in which they are
    written."""
    converters: Converters
    kept: tuple[str, ...]
    """The attributes that have to come back."""
    get_kept: Callable[[DomainEvent], tuple[Any, ...]]
    is_plain: bool
    """Whether making an event is but setting its fields."""
    types: Mapping[str, Any]
    """What the members are read as."""
    values: Callable[[DomainEvent], tuple[Any, ...]]
    struct: Callable[..., msgspec.Struct]
    """Takes the values by their places."""
    to_json: Callable[[Any], bytes]
    from_json: Callable[[bytes], Any]
    allowed: tuple[frozenset[Any] | None, ...]
    """For each value the types of which every one comes back if one does; None if none is known."""
    watched: tuple[str, ...]
    """The members that may be a number which is too much for whoever computes with it."""
    deep: tuple[str, ...]
    """The members with values inside them."""
    deep_places: tuple[tuple[int, str], ...]
    """They, with their places among the values."""
    loose: tuple[int, ...]
    """The places of values with objects in them that may have more than their fields."""
    proved: dict[tuple[type, ...], Checks] = attrs.field(factory=dict, init=False)
    """Types of fields of which events come back, with what has to be asked of each event."""

    @classmethod
    def of(
        cls, event_class: type[DomainEvent], converters: Converters, *, is_stored: bool
    ) -> "Wire":
        """Raises `Unkeepable`.

        What a person writes may lack id and time, and has no metadata.
        """
        hints = field_types(event_class)
        fields = [field for field in attrs.fields(event_class) if field.init]
        members: dict[str, Member] = {}
        for field in fields:
            alias, hint = field.alias or field.name, hints[field.name]
            check_type(field.name, hint, converters)
            members[alias] = Member.of(hint, is_required=field.default is attrs.NOTHING)
        if is_stored:
            members |= {name: member for name, member in _STORED.items() if name in members}
        else:
            members.pop("metadata", None)
        names = {
            field.alias or field.name: field.name
            for field in sorted(fields, key=lambda field: field.name in BASE_FIELDS)
            if (field.alias or field.name) in members
        }
        types_ = {
            alias: _readable(member.type, converters) if is_stored else member.type
            for alias, member in members.items()
        }
        read = [
            (alias, types_[alias]) + (() if members[alias].is_required else (msgspec.UNSET,))
            for alias in names
        ]
        reader: Any = msgspec.defstruct(
            event_class.__name__, read, kw_only=True, forbid_unknown_fields=True, eq=False
        )
        kept = tuple(field.name for field in attrs.fields(event_class) if field.init or field.eq)
        return cls(
            cls=event_class,
            members=members,
            names=names,
            converters=converters,
            kept=kept,
            get_kept=attrgetter(*kept),
            is_plain=_is_made_plainly(event_class),
            types=types_,
            values=attrgetter(*names.values()),  # of several, for `DomainEvent` has some
            struct=msgspec.defstruct(event_class.__name__, list(names), eq=False),
            to_json=msgspec.json.Encoder(enc_hook=converters.write).encode,
            from_json=msgspec.json.Decoder(reader, dec_hook=converters.read).decode,
            allowed=tuple(_allowed(alias, types_[alias]) for alias in names),
            deep=tuple(alias for alias in names if _allowed(alias, types_[alias]) is None),
            loose=tuple(place for place, alias in enumerate(names) if may_hold_more(types_[alias])),
            deep_places=tuple(
                (place, alias)
                for place, alias in enumerate(names)
                if _allowed(alias, types_[alias]) is None
            ),
            watched=tuple(
                alias
                for alias in names
                if not alternatives(types_[alias]).isdisjoint([int, Decimal])
            ),
        )

    def write(self, event: DomainEvent) -> bytes:
        """Return the JSON of an event, whatever comes of it."""
        return self.json_of(self.values(event))

    def json_of(self, values: tuple[Any, ...]) -> bytes:
        """Return the JSON of an event with these values."""
        if self.loose:
            bare = list(values)
            for place in self.loose:
                bare[place] = limits.fields_alone(values[place])
            return self.to_json(self.struct(*bare))
        return self.to_json(self.struct(*values))

    def read(self, data: bytes) -> DomainEvent:
        """Return the event of a JSON text. Raises what msgspec and the class raise."""
        return self.make(self.arguments(data))

    def arguments(self, data: bytes) -> dict[str, Any]:
        """Return what the class is called with, as a JSON text says. Raises what msgspec does."""
        arguments = msgspec.structs.asdict(self.from_json(data))
        for value in arguments.values():
            if value is msgspec.UNSET:
                return {name: kept for name, kept in arguments.items() if kept is not msgspec.UNSET}
        return arguments

    def make(self, arguments: dict[str, Any]) -> DomainEvent:
        """Return the event. Raises what the class raises."""
        event = self.cls(**arguments)
        if not self.is_plain:
            _check_made(self.cls, event)
        return event

    def fault(self, arguments: Mapping[str, Any], data: bytes) -> tuple[str, Any] | None:
        """Return the first member whose number would be too much for whoever computes with it."""
        for name in self.watched:
            value = arguments.get(name)
            check = _CHECKS.get(type(value))
            if check is not None and not check(value):
                return name, value
        if self.deep and limits.may_be_great(data):
            for name in self.deep:
                for where, leaf in limits.leaves(name, arguments.get(name)):
                    if isinstance(leaf, (Decimal, int)) and limits.fault_of(leaf):
                        return where, leaf
        return None

    def comes_back(self, event: DomainEvent, data: bytes) -> bool:
        """Tell whether the JSON is read as the event. Raises what stands in its way."""
        again = self.read(data)
        try:
            pairs = zip(self.get_kept(event), self.get_kept(again), strict=True)
        except AttributeError:  # one that `__init__` does not take, and nobody has set
            pairs = zip(self._all_kept(event), self._all_kept(again), strict=True)
        for given, back in pairs:
            if given is back:
                continue
            kind = type(given)
            if kind is type(back) and kind in LEAVES:
                if given != back:
                    return False
            elif not is_same(given, back):
                return False
        return True

    def _all_kept(self, event: DomainEvent) -> tuple[Any, ...]:
        return tuple(getattr(event, name, _MISSING) for name in self.kept)

    def deep_ones_come_back(self, values: tuple[Any, ...], data: bytes) -> bool:
        """Tell it of values with others inside them alone, which no proof for others covers."""
        read = self.from_json(data)
        return all(is_same(values[place], getattr(read, name)) for place, name in self.deep_places)

    def prove(self, shape: tuple[type, ...]) -> None:
        """Note that events of these types come back, if that is true of all of them.

        Values with others inside them are looked at in each event all the same.
        """
        if not self.is_plain:
            return
        for type_, allowed in zip(shape, self.allowed, strict=True):
            if allowed is not None and type_ not in allowed:
                return
        self.proved[shape] = tuple(
            (index, check)
            for index, type_ in enumerate(shape)
            if self.allowed[index] is not None and (check := _CHECKS.get(type_)) is not None
        )


def _readable(hint: Any, converters: Converters) -> Any:
    """Return the type with whole numbers beside floats, unless JSON could not tell them apart."""
    wider = with_integers(hint)
    if wider != hint:
        try:
            msgspec.json.Decoder(wider, dec_hook=converters.read)
        except Exception:  # noqa: BLE001  # such as one in a union with whole numbers of an enum
            return hint
    return wider


def _allowed(alias: str, hint: Any) -> frozenset[Any] | None:
    if alias == "occurred_at":
        return frozenset([datetime])
    if alias == "metadata":
        return frozenset([FrozenDict])
    found = alternatives(hint)
    return found if all(type_ in _CHECKS or _is_closed(type_) for type_ in found) else None


def _is_closed(type_: Any) -> bool:
    """Tell whether it is an enum, of which all that there are come back."""
    if not isinstance(type_, type) or not issubclass(type_, enum.Enum):
        return False
    if issubclass(type_, enum.Flag):
        return False
    try:
        decode = msgspec.json.Decoder(type_).decode
        members = type_.__members__.values()
        return all(decode(msgspec.json.encode(member)) is member for member in members)
    except Exception:  # noqa: BLE001  # it is asked for each event then, which says what is wrong
        return False


def _is_made_plainly(cls: type[DomainEvent]) -> bool:
    code = getattr(cls.__init__, "__code__", None)
    return (
        cls.__new__ is object.__new__
        and cls.__getattribute__ is object.__getattribute__
        and code is not None
        and code.co_filename.startswith("<attrs generated")
        and not hasattr(cls, "__attrs_pre_init__")
        and not hasattr(cls, "__attrs_post_init__")
        and all(map(_is_plain, attrs.fields(cls)))
    )


def _is_plain(field: "attrs.Attribute[Any]") -> bool:
    """Tell whether a field is set to what is given, or is one of `DomainEvent`'s."""
    base = BASE_FIELDS.get(field.name)
    if base is not None:
        return field.init and field.converter is base.converter and field.validator is None
    return field.init and field.converter is None and field.validator is None


def _check_made(cls: type, event: object) -> None:
    """Raise `InvalidEvent` if code of the class has made something else than an event of it."""
    if type(event) is not cls:
        raise InvalidEvent(f"it made a {type(event).__qualname__}")
    for name, type_ in (("event_id", UUID), ("occurred_at", datetime), ("metadata", FrozenDict)):
        value = getattr(event, name, None)
        if type(value) is not type_:
            raise InvalidEvent(f"it set {name} to {shown(value)}")
