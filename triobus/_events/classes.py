"""Which class the events of a type have: the loaded one, or the one that the program gives."""

import gc
import inspect
from collections.abc import Iterable, Mapping

import attrs

from triobus._errors import EventNotDecodable, EventNotEncodable, InvalidOption
from triobus._events import limits
from triobus._events.erased import Erased
from triobus._events.event import DomainEvent, event_classes
from triobus._text import shown

_TYPES_SHOWN = 20


def check_class(cls: type[DomainEvent]) -> None:
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
    if fault := limits.fault_of_name(cls.event_type):
        raise EventNotEncodable(f"{name}.event_type is {shown(cls.event_type)}, {fault}")
    version = cls.schema_version
    if type(version) is not int or not 1 <= version <= limits.GREATEST_VERSION:
        raise EventNotEncodable(
            f"{name}.schema_version is {shown(version)}: give a whole number of 1 or more, and at "
            f"most {limits.GREATEST_VERSION:,}"
        )


def is_mere_base(cls: type) -> bool:
    """Tell whether a class is a base of event classes, and has no events of its own."""
    if cls is DomainEvent or inspect.isabstract(cls):
        return True
    annotations = limits.annotations_of(cls)
    if annotations is None or {"__attrs_attrs__", "__dataclass_fields__"} & cls.__dict__.keys():
        return False
    return all("ClassVar" in str(hint) for hint in annotations.values())


@attrs.frozen(eq=False)
class EventTypes:
    """The classes of event types; those in `meant` have precedence over others that are loaded."""

    meant: Mapping[str, type[DomainEvent]] = attrs.field(factory=dict)

    @classmethod
    def of(cls, types: Iterable[type[DomainEvent]]) -> "EventTypes":
        """Raise `InvalidOption` for anything but event classes with different types."""
        meant: dict[str, type[DomainEvent]] = {}
        if isinstance(types, (str, type)) or not isinstance(types, Iterable):
            raise InvalidOption(f"types={shown(types)}: give a list of event classes")
        for given in types:
            if not isinstance(given, type) or given not in event_classes():
                raise InvalidOption(
                    f"types has {shown(given)}: give classes derived from DomainEvent and "
                    "decorated with @attrs.frozen"
                )
            same = meant.setdefault(given.event_type, given)
            if same is not given:
                raise InvalidOption(
                    f"types has {_full_name(same)} and {_full_name(given)}, which have the same "
                    f"event_type, {given.event_type!r}: give the one that is meant"
                )
        return cls(meant)

    def find(self, event_type: str) -> list[type[DomainEvent]]:
        """Return all classes that events of a type may have."""
        if event_type in self.meant:
            return [self.meant[event_type]]
        return [cls for cls in event_classes() if cls.event_type == event_type]

    def check_found(self, cls: type[DomainEvent]) -> None:
        """Raise `EventNotEncodable` if events of a class would be read as those of another."""
        if self.find(cls.event_type) == [cls]:
            return
        gc.collect()  # of a function that has ended, the classes may still be there
        found, type_ = self.find(cls.event_type), cls.event_type
        if found == [cls]:
            return
        name, others = _full_name(cls), [_full_name(other) for other in found if other is not cls]
        if type_ in self.meant:
            raise EventNotEncodable(
                f"{name} would come back as {others[0]}, which is given in types=[...] and has the "
                f"same event_type, {type_!r}"
            )
        if name in others:
            raise EventNotEncodable(
                f"{name} has been defined again since this event was made, and would come back as "
                "one of the new class: make the event with that"
            )
        reason = (
            f"{name} could not be read back, for {' and '.join(sorted(others))} has the same "
            f"event_type, {type_!r}: give one of them another event_type, or the store the one "
            "that is meant, in types=[...]"
        )
        if "__main__" in {other.__module__ for other in (cls, *found)}:
            reason += (
                "; if it is one file, run as a program and imported too, move the class to a "
                "module that both import"
            )
        raise EventNotEncodable(reason)


def only(
    event_type: str,
    found: list[type[DomainEvent]],
    loaded: Iterable[type[DomainEvent]],
    *,
    if_several: str,
    if_none: str = "",
) -> type[DomainEvent]:
    """Return the one class of an event type. Raises `EventNotDecodable` for none or several."""
    if not found:
        known = sorted({shown(cls.event_type) for cls in loaded if cls is not Erased})
        types = ", ".join(known[:_TYPES_SHOWN]) or "none"
        more = f" and {len(known) - _TYPES_SHOWN:,} more" if len(known) > _TYPES_SHOWN else ""
        raise EventNotDecodable(
            f"type: {shown(event_type)} is unknown; the known types are: {types}{more}{if_none}"
        )
    if len(found) > 1:
        names = " and ".join(sorted(map(_full_name, found)))
        raise EventNotDecodable(f"type: {shown(event_type)} is the type of {names}: {if_several}")
    return found[0]


def _full_name(cls: type[DomainEvent]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
