"""`DomainEvent`, the base of every event, and `Published`, what a publisher gets back.

There is no registry of event classes: a class is found by being a loaded subclass, and two classes
of one name in two modules never disturb each other.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, tzinfo
from operator import attrgetter
from os import urandom
from time import time_ns
from typing import Any, ClassVar, NoReturn, Protocol
from uuid import UUID

import attrs
import msgspec

from triobus._errors import InvalidEvent


class _FrozenDict(dict[str, str]):
    """A dict that refuses to change: events are facts, and their metadata is shared by all groups.

    A dict rather than a mapping proxy, because a proxy can be neither pickled nor encoded.
    """

    __slots__ = ()

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("an event's metadata cannot be changed; publish another event instead")

    __setitem__ = __delitem__ = __ior__ = _refuse
    update = pop = popitem = clear = setdefault = _refuse

    def __reduce__(self) -> tuple[type["_FrozenDict"], tuple[dict[str, str]]]:
        return _FrozenDict, (dict(self),)


_NO_METADATA = _FrozenDict()


def _frozen(metadata: Mapping[str, str]) -> Mapping[str, str]:
    if type(metadata) is _FrozenDict:
        return metadata
    try:
        frozen = _FrozenDict(metadata)
    except (TypeError, ValueError):
        raise InvalidEvent(f"metadata={metadata!r}: give a mapping of strings to strings") from None
    for key, value in frozen.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidEvent(f"metadata[{key!r}]={value!r}: keys and values must be strings")
    return frozen


def _utc(moment: datetime) -> datetime:
    if not isinstance(moment, datetime):
        raise InvalidEvent(f"occurred_at={moment!r}: give an aware datetime")
    if moment.tzinfo is UTC:
        return moment
    if moment.utcoffset() is None:
        raise InvalidEvent(
            f"occurred_at={moment!r} has no time zone: give an aware datetime, "
            "for example datetime.now(UTC)"
        )
    return moment.astimezone(UTC)


def _new_id() -> UUID:
    """Return a new UUID of version 7 (RFC 9562): the time in milliseconds, then random bits.

    Ids that begin with the time lie side by side in a store's index, which then grows at its end;
    random ones touch another page for nearly every event, and cost a third of the speed.
    """
    chance = int.from_bytes(urandom(10))
    return UUID(
        int=time_ns() // 1_000_000 << 80
        | 0x7 << 76
        | (chance >> 62 & 0xFFF) << 64
        | 0b10 << 62
        | chance & (1 << 62) - 1
    )


def _now() -> datetime:
    return clock.now(UTC)


class Clock(Protocol):
    """What tells the time of new events."""

    def now(self, zone: tzinfo, /) -> datetime:
        """Return the time in a zone."""


clock: Clock = datetime


@contextmanager
def predictable(chance: Callable[[int], bytes], moment: Clock) -> Iterator[None]:
    """Make ids and times of new events from these, in the whole process: a test repeats a run."""
    global urandom, time_ns, clock
    before = urandom, time_ns, clock
    urandom, clock = chance, moment
    time_ns = lambda: int(moment.now(UTC).timestamp() * 1e9)  # noqa: E731  # it replaces a function
    try:
        yield
    finally:
        urandom, time_ns, clock = before


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
    """The version of the fields; raise it when they change, and register an upcaster."""

    event_id: UUID = attrs.field(factory=_new_id, kw_only=True)
    """Identifies the event; publishing the same event to a store again is accepted once. By default
    it begins with the time (a UUID of version 7)."""

    occurred_at: datetime = attrs.field(factory=_now, converter=_utc, kw_only=True)
    """When it happened: aware, and in UTC whatever zone was given."""

    correlation_id: UUID | None = attrs.field(default=None, kw_only=True)
    """What this event and all that it caused have in common. An event that is published inside a
    handler gets the handled event's, or its `event_id` where that has none."""

    causation_id: UUID | None = attrs.field(default=None, kw_only=True)
    """The `event_id` of the event whose handler published this one."""

    metadata: Mapping[str, str] = attrs.field(
        default=_NO_METADATA, converter=_frozen, kw_only=True, hash=False
    )
    """Anything else worth keeping with it; it cannot be changed."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "event_type" not in cls.__dict__:
            cls.event_type = cls.__name__
        if not isinstance(cls.event_type, str) or not cls.event_type:
            raise InvalidEvent(
                f"{cls.__qualname__}.event_type is {cls.event_type!r}: give a string that is not "
                "empty, such as 'order.placed', or leave it out"
            )

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


def with_cause(event: DomainEvent, cause: DomainEvent) -> DomainEvent:
    """Return `event` as caused by `cause`, keeping the ids that were set by hand."""
    if event.event_id == cause.event_id:
        return event  # published again or forwarded to another bus: nothing causes itself
    correlation_id = event.correlation_id or cause.correlation_id or cause.event_id
    causation_id = event.causation_id or cause.event_id
    if correlation_id == event.correlation_id and causation_id == event.causation_id:
        return event
    return attrs.evolve(event, correlation_id=correlation_id, causation_id=causation_id)


def event_classes() -> Iterator[type[DomainEvent]]:
    """Yield every loaded event class once, `DomainEvent` itself aside.

    attrs makes a second class for `slots=True`, and the first one lives on until the garbage
    collector comes by; only the finished one has attributes of its own.
    """
    seen: set[type[DomainEvent]] = set()
    found = list(DomainEvent.__subclasses__())
    while found:
        cls = found.pop(0)
        if cls not in seen:
            seen.add(cls)
            found.extend(cls.__subclasses__())
            if "__attrs_attrs__" in cls.__dict__:
                yield cls
