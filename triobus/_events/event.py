"""`DomainEvent`, the base of every event, and `Published`, what a publisher gets back."""

import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from operator import attrgetter
from typing import Any, ClassVar, NoReturn
from uuid import UUID
from weakref import WeakKeyDictionary

import attrs
import msgspec

from triobus._errors import InvalidEvent
from triobus._events.identity import new_id, now, utc
from triobus._events.limits import annotations_of, fits_metadata
from triobus._text import line, shown


class FrozenDict(dict[str, str]):
    """A dict that refuses to change. A mapping proxy could be neither pickled nor encoded."""

    __slots__ = ()

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("an event's metadata cannot be changed; publish another event instead")

    __setitem__ = __delitem__ = __ior__ = _refuse
    update = pop = popitem = clear = setdefault = _refuse

    def __reduce__(self) -> tuple[type["FrozenDict"], tuple[dict[str, str]]]:
        return FrozenDict, (dict(self),)


NO_METADATA = FrozenDict()


def _frozen(metadata: Mapping[str, str]) -> Mapping[str, str]:
    if type(metadata) is FrozenDict:
        return metadata
    if metadata == {}:
        return NO_METADATA
    try:
        frozen = FrozenDict(metadata)
    except (TypeError, ValueError):
        raise InvalidEvent(f"metadata={metadata!r}: give a mapping of strings to strings") from None
    for key, value in frozen.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidEvent(f"metadata[{key!r}]={value!r}: keys and values must be strings")
    if {*map(type, frozen), *map(type, frozen.values())} == {str}:
        return frozen
    # Members of enums and the like become plain texts, as JSON has them.
    return FrozenDict({str.__str__(key): str.__str__(value) for key, value in frozen.items()})


_classes_made = 0
_NO_FIELDS = (
    ("event_type", "str", 'event_type = "order.placed"'),
    ("schema_version", "int", "schema_version = 2"),
)


def classes_made() -> int:
    """Return a number that changes whenever an event class is defined."""
    return _classes_made


def _refuse_as_fields(cls: type) -> None:
    """Raise `InvalidEvent` where what belongs to a class is written as a field of its objects."""
    annotations = annotations_of(cls) or {}
    for name, kind, example in _NO_FIELDS:
        if name in annotations and "ClassVar" not in str(annotations[name]):
            raise InvalidEvent(
                f"{cls.__qualname__}.{name} is annotated as {shown(annotations[name])}, which "
                "makes a field of each event of it, and it belongs to the class: write it without "
                f"annotation, {example}, or with ClassVar[{kind}]"
            )


@attrs.frozen
class DomainEvent:
    """An immutable fact that happened. Derive your events from it, as attrs classes:

        @attrs.frozen
        class OrderPlaced(DomainEvent):
            event_type: ClassVar[str] = "order.placed"
            order_id: str

            @property
            def aggregate_id(self) -> str:
                return self.order_id

    The fields of this class are keyword-only, so that your own may be positional. Raises
    `InvalidEvent` for a naive `occurred_at`, or metadata that maps anything but strings to strings.
    """

    __test__: ClassVar[bool] = False
    """Tells pytest that an event class is no test, whatever its name."""

    event_type: ClassVar[str] = "DomainEvent"
    """The stable name of the type, independent of the Python class; by default the class name."""

    schema_version: ClassVar[int] = 1
    """The version of the fields; raise it when they change, and add an `upcaster`."""

    event_id: UUID = attrs.field(factory=new_id, kw_only=True)
    """Identifies the event, which a store accepts once, however often it is published. By default
    it begins with the time (a UUID of version 7)."""

    occurred_at: datetime = attrs.field(factory=now, converter=utc, kw_only=True)
    """When it happened: aware, and in UTC whatever zone was given."""

    correlation_id: UUID | None = attrs.field(default=None, kw_only=True)
    """What this event and all that it caused have in common. An event that is published inside a
    handler gets the handled event's, or its `event_id` where that has none."""

    causation_id: UUID | None = attrs.field(default=None, kw_only=True)
    """The `event_id` of the event whose handler published this one."""

    metadata: Mapping[str, str] = attrs.field(
        default=NO_METADATA, converter=_frozen, kw_only=True, hash=False
    )
    """Anything else worth keeping with it; it cannot be changed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # attrs makes one for each class that it has decorated.
        try:
            self.__attrs_init__(*args, **kwargs)  # type: ignore[attr-defined]  # attrs makes it
        except TypeError as error:
            cls = type(self)
            if cls is DomainEvent or "__attrs_attrs__" in cls.__dict__:
                raise
            raise InvalidEvent(
                f"{cls.__qualname__} takes no fields of its own ({line(str(error))}): decorate the "
                "class with @attrs.frozen"
            ) from error

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        global _classes_made
        _classes_made += 1
        _refuse_as_fields(cls)
        if "event_type" not in cls.__dict__:
            cls.event_type = cls.__name__
        if not isinstance(cls.event_type, str) or not cls.event_type:
            raise InvalidEvent(
                f"{cls.__qualname__}.event_type is {cls.event_type!r}: give a string that is not "
                "empty, such as 'order.placed', or leave it out"
            )
        if type(cls.event_type) is not str:  # a member of an enum, which JSON and SQL do not know
            cls.event_type = str.__str__(cls.event_type)

    @property
    def aggregate_id(self) -> str | None:
        """The thing that the event is about, its ordering key; None means unordered."""
        return None


class Published(msgspec.Struct, frozen=True, gc=False):
    """What `publish` returns once an event is accepted."""

    # One is made for every event, and msgspec does that in a third of a named tuple's time.

    event_id: UUID
    """The event's own id."""

    position: int | None
    """Its place in the store's log, from 1; None without a store."""

    is_new: bool = True
    """False if the store had the event already, at this position, and it was not stored again."""


def published(events: Iterable[DomainEvent], positions: Iterable[int | None]) -> list[Published]:
    """Return what `publish_many` does."""
    return list(map(Published, map(attrgetter("event_id"), events), positions))


def key_of(event: DomainEvent) -> str | None:
    """Return an event's ordering key, for which it is asked here and nowhere else.

    Raises what its property raises, and `InvalidEvent` if that is no key, or it is no whole event.
    """
    try:
        event.event_id  # noqa: B018  # an object that has this was made as an event
    except AttributeError:
        raise InvalidEvent(_why_not_whole(type(event))) from None
    key = event.aggregate_id
    if key is None or type(key) is str:
        return key
    if isinstance(key, str):  # such as a member of an enum, which SQL would take for its name
        return str.__str__(key)
    raise InvalidEvent(
        f"{type(event).__qualname__}.aggregate_id is {key!r}: return a string, or None for an "
        "event that needs no order"
    )


def _why_not_whole(cls: type) -> str:
    if "__dataclass_fields__" in cls.__dict__:
        return (
            f"{cls.__qualname__} is a dataclass, and its events lack the fields of DomainEvent: "
            "decorate it with @attrs.frozen instead"
        )
    return (
        f"an event of {cls.__qualname__} lacks the fields of DomainEvent: decorate the class with "
        "@attrs.frozen, and let an __init__ of its own call self.__attrs_init__(...)"
    )


def with_cause(event: DomainEvent, cause: DomainEvent) -> DomainEvent:
    """Return `event` as caused by `cause`, keeping the ids that were set by hand.

    It is a copy that differs in nothing else, and for which no code of its class has run.
    """
    if event.event_id == cause.event_id:
        return event  # published again or forwarded to another bus: nothing causes itself
    correlation_id = event.correlation_id or cause.correlation_id or cause.event_id
    causation_id = event.causation_id or cause.event_id
    if correlation_id == event.correlation_id and causation_id == event.causation_id:
        return event
    caused = _copy(event)
    object.__setattr__(caused, "correlation_id", correlation_id)
    object.__setattr__(caused, "causation_id", causation_id)
    return caused


def with_metadata(event: DomainEvent, further: Mapping[str, str]) -> DomainEvent:
    """Return `event` with more metadata, as far as that fits; the keys that it has stay.

    It is a copy that differs in nothing else. An event that cannot be copied is returned itself.
    """
    metadata = dict(event.metadata)
    for key, value in _frozen(further).items():
        if key not in metadata and fits_metadata(metadata, key, value):
            metadata[key] = value
    if len(metadata) == len(event.metadata):
        return event
    try:
        extended = _copy(event)
    except InvalidEvent:
        return event
    object.__setattr__(extended, "metadata", FrozenDict(metadata))
    return extended


_HASH = "_attrs_cached_hash"
_slots_of: WeakKeyDictionary[type, tuple[types.MemberDescriptorType, ...]] = WeakKeyDictionary()


def _slots(cls: type) -> tuple[types.MemberDescriptorType, ...]:
    """Return the slots of a class, whatever their names became in it."""
    if cls not in _slots_of:
        members = [item for base in cls.__mro__ for item in vars(base).items()]
        _slots_of[cls] = tuple(
            member
            for name, member in members
            # attrs keeps the hash in one, and the ids that are going to be set are part of it.
            if type(member) is types.MemberDescriptorType and name != _HASH
        )
    return _slots_of[cls]


def _copy(event: DomainEvent) -> DomainEvent:
    cls = type(event)
    try:
        copied: DomainEvent = object.__new__(cls)
    except TypeError:  # it is an exception too, or a dict: Python has to make it as one
        raise InvalidEvent(
            f"{cls.__qualname__} derives from a type of Python's too, so that its events cannot be "
            "copied to be given their cause: let it be an event and nothing else"
        ) from None
    for slot in _slots(cls):
        try:
            slot.__set__(copied, slot.__get__(event))
        except AttributeError:  # it has no value yet, as a cached property before its first use
            continue
    if cls.__dictoffset__:
        kept = object.__getattribute__(event, "__dict__")
        object.__getattribute__(copied, "__dict__").update(kept)
    if _HASH in getattr(getattr(cls.__hash__, "__code__", None), "co_names", ()):
        object.__setattr__(copied, _HASH, None)
    return copied


def event_classes() -> Iterator[type[DomainEvent]]:
    """Yield every loaded event class once, in the order of their making, `DomainEvent` aside.

    attrs makes a second class for `slots=True`; only that one has `__attrs_attrs__`. Of classes
    with one qualified name in one module the newest counts: the module was loaded again, or the
    cell of a notebook.
    """
    newest: dict[tuple[str, str], type[DomainEvent]] = {}
    seen: set[type[DomainEvent]] = set()
    waiting = deque(DomainEvent.__subclasses__())
    while waiting:
        cls = waiting.popleft()
        if cls not in seen:
            seen.add(cls)
            waiting.extend(cls.__subclasses__())
            if "__attrs_attrs__" in cls.__dict__:
                newest[cls.__module__, cls.__qualname__] = cls
    yield from newest.values()
