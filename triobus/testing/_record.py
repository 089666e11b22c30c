"""`record`: what a bus did, and when, as values, as assertions and as a timeline to read."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar
from uuid import UUID

import attrs
import trio

from triobus._bus import EventBus
from triobus._environment import environment
from triobus._errors import InvalidOption
from triobus._events import DomainEvent
from triobus._events.causes import Delivery
from triobus._groups.delivery import InFlight
from triobus._groups.handlers import NOT_MATCHED
from triobus._groups.subscribing import event_types
from triobus._groups.subscriptions import Subscription
from triobus._text import said, shown
from triobus._threads import is_virtual
from triobus.testing._attempts import AttemptInstrument, Key, key_of
from triobus.testing._snapshots import EventChanged, Snapshots

_BASE_FIELDS = frozenset(field.name for field in attrs.fields(DomainEvent))


@attrs.frozen(kw_only=True)
class RecordedEvent:
    """An event that was accepted. Times are seconds on Trio's clock, here and below."""

    event: DomainEvent
    time: float
    position: int | None
    """Its place in the store's log; None without a store."""


@attrs.define(kw_only=True)
class RecordedAttempt:
    """One call of one handler for one event."""

    event: DomainEvent
    group: str
    subscription: str
    attempt: int
    """Which attempt it was, from 1."""
    time: float
    """When it began."""
    ended: float | None = None
    """When it ended; None while it runs."""
    result: Any = None
    """What the handler returned."""
    error: BaseException | None = None
    """What it raised; `Cancelled` is no failure."""

    @property
    def has_failed(self) -> bool:
        """Whether the handler raised, and was not merely cancelled."""
        return isinstance(self.error, Exception)

    @property
    def has_succeeded(self) -> bool:
        """Whether the handler returned."""
        return self.ended is not None and self.error is None


@attrs.frozen(kw_only=True)
class RecordedRetry:
    """A further attempt that was planned after a failure."""

    event: DomainEvent
    group: str
    subscription: str
    attempt: int
    """Which attempt had failed, from 1."""
    time: float
    """When it had failed."""
    due: float


@attrs.frozen(kw_only=True)
class RecordedDeadLetter:
    """An event that a handler had failed for good."""

    event: DomainEvent
    group: str
    subscription: str
    attempts: int
    """How many attempts it had had; 0 if it was held back."""
    error: Exception
    time: float


@attrs.frozen(kw_only=True)
class RecordedDelivery:
    """One event that was carried through the handlers of one group, so far as it came."""

    event: DomainEvent
    group: str
    attempts: tuple[RecordedAttempt, ...]
    """All of them, in the order in which they began."""


@attrs.frozen
class _Note:
    """A line of the timeline that is about no event."""

    time: float
    text: str


_Recorded = RecordedEvent | RecordedAttempt | RecordedRetry | RecordedDeadLetter
_AnEntry = TypeVar("_AnEntry", RecordedEvent, RecordedAttempt, RecordedRetry, RecordedDeadLetter)


def record(bus: EventBus) -> "Recording":
    """Record what a bus does from here on: published events, attempts, retries, dead letters.

    Call it before the bus starts to see everything. Called again for the same bus it returns the
    same recording. It keeps all events in memory: it is for tests.
    """
    for instrument in bus._lives.instruments.present:
        if isinstance(instrument, Witness) and not instrument.recording.is_shared:
            return instrument.recording
    recording = Recording()
    bus.add_instrument(recording.witness)
    return recording


@attrs.define(eq=False, repr=False)
class Recording:
    """What a bus did, in order. Made by `record`; times are seconds on Trio's clock."""

    _on_change: Callable[[str], None] | None = None
    """Called for an event that was changed, where a world watches several buses."""
    _entries: list[_Recorded | _Note] = attrs.field(factory=list, init=False)
    _numbers: dict[UUID, int] = attrs.field(factory=dict, init=False)
    _wanted: dict[UUID, set[Key]] = attrs.field(factory=dict, init=False)
    """The subscriptions that each published event was for."""
    _changes: list[str] = attrs.field(factory=list, init=False)
    """What was changed in events, and when."""
    _snapshots: Snapshots = attrs.field(init=False)
    witness: "Witness" = attrs.field(init=False)
    """What a bus tells."""
    _origin: float | None = attrs.field(default=None, init=False)
    """The time that the timeline has as 0.000."""

    def __attrs_post_init__(self) -> None:
        self._snapshots = Snapshots(self._on_change or self._changes.append)
        self.witness = Witness(self)

    @property
    def is_shared(self) -> bool:
        """Whether it is about several buses."""
        return self._on_change is not None

    # What was recorded

    def _all(self, kind: type[_AnEntry]) -> list[_AnEntry]:
        return [entry for entry in self._entries if isinstance(entry, kind)]

    @property
    def published(self) -> list[RecordedEvent]:
        """The events that were accepted, in that order."""
        return self._all(RecordedEvent)

    @property
    def attempts(self) -> list[RecordedAttempt]:
        """The calls of handlers, in the order in which they began."""
        return self._all(RecordedAttempt)

    @property
    def retries(self) -> list[RecordedRetry]:
        """The further attempts that were planned."""
        return self._all(RecordedRetry)

    @property
    def dead_letters(self) -> list[RecordedDeadLetter]:
        """The events that handlers failed for good; those that a replay failed are there again."""
        return self._all(RecordedDeadLetter)

    @property
    def deliveries(self) -> list[RecordedDelivery]:
        """The attempts of each event in each group together, in the order in which they began."""
        found: dict[tuple[UUID, str], list[RecordedAttempt]] = {}
        for attempt in self.attempts:
            found.setdefault((attempt.event.event_id, attempt.group), []).append(attempt)
        return [
            RecordedDelivery(event=attempts[0].event, group=group, attempts=tuple(attempts))
            for (_, group), attempts in found.items()
        ]

    # Assertions

    def assert_published(self, type_: type[DomainEvent], /, **fields: Any) -> DomainEvent:
        """Assert that an event of the type with these fields was published; return the first."""
        found = _matching(self.published, type_, fields)
        if not found:
            self._fail(f"no {_wish(type_, fields)} was published")
        return found[0].event

    def assert_not_published(self, type_: type[DomainEvent], /, **fields: Any) -> None:
        """Assert that no event of the type with these fields was published."""
        found = _matching(self.published, type_, fields)
        if found:
            times = "once" if len(found) == 1 else f"{len(found)} times"
            self._fail(f"a {_wish(type_, fields)} was published, {times}")

    def assert_handled_in_order(self, aggregate_id: str, group: str | None = None) -> None:
        """Assert that all events of an aggregate were handled, in the order of publication.

        That is asserted of every handler that they were for, or of those of one group. An event
        that has become a dead letter was not handled.
        """
        events = [entry.event for entry in self.published]
        ids = [event.event_id for event in events if event.aggregate_id == aggregate_id]
        handled: dict[Key, dict[UUID, None]] = {}
        for attempt in self.attempts:
            if attempt.has_succeeded:
                of_handler = handled.setdefault((attempt.group, attempt.subscription), {})
                of_handler.setdefault(attempt.event.event_id)
        keys = sorted({key for event_id in ids for key in self._wanted[event_id]})
        keys = [key for key in keys if group in (None, key[0])]
        if not keys:
            where = "" if group is None else f" in group {group!r}"
            self._fail(f"no event of aggregate {aggregate_id!r} was for any handler{where}")
        for key in keys:
            wanted = [event_id for event_id in ids if key in self._wanted[event_id]]
            found = [event_id for event_id in handled.get(key, {}) if event_id in set(wanted)]
            if found != wanted:
                self._fail(
                    f"{'/'.join(key)} was to handle the events of {aggregate_id!r} in the order "
                    f"{self._listed(wanted)}, and handled {self._listed(found)}"
                )

    def assert_dead_lettered(
        self, type_: type[DomainEvent], /, **fields: Any
    ) -> RecordedDeadLetter:
        """Assert that an event of the type with these fields became a dead letter; return it."""
        found = _matching(self.dead_letters, type_, fields)
        if not found:
            self._fail(f"no {_wish(type_, fields)} became a dead letter")
        return found[0]

    def assert_nothing_failed(self) -> None:
        """Assert that no attempt failed, and that there is no dead letter."""
        failed = sum(attempt.has_failed for attempt in self.attempts)
        letters = len(self.dead_letters)
        if failed or letters:
            self._fail(f"{failed} attempts failed, and {letters} events became dead letters")

    def assert_events_unchanged(self) -> None:
        """Raise `EventChanged` if a list, a dict or the like inside an event was changed.

        Events are compared with what they were when they were published, before and after each
        attempt. The fixture `recorded` does so when the test has ended.
        """
        if self._changes:
            raise EventChanged(self._with_timeline(self._changes[0]))

    def _fail(self, message: str) -> NoReturn:
        raise AssertionError(self._with_timeline(message))

    def _with_timeline(self, message: str) -> str:
        """Return a message with what happened, unless an exploration will show that anyway."""
        if environment.get().instrument_of is not None:
            return message
        return f"{message}\n\nWhat happened:\n{self.timeline()}"

    def _listed(self, ids: Iterable[UUID]) -> str:
        return ", ".join(f"#{self._numbers[event_id]}" for event_id in ids) or "none of them"

    # The timeline

    def timeline(self) -> str:
        """Return what happened as text: one line for each thing, indented by what caused it.

        Events are numbered in the order in which they were seen. Times are seconds on a virtual
        clock, and on a real one, whose origin means nothing, since the first thing that happened.
        The same run gives the same text.
        """
        origin = self._origin or 0.0
        depths: dict[UUID, int] = {}
        lines = []
        for entry in self._entries:
            if isinstance(entry, _Note):
                lines.append(f"{entry.time - origin:10.3f}  {entry.text}")
                continue
            event_id = entry.event.event_id
            if event_id not in depths:
                # An event that cannot be read has no cause.
                cause = getattr(entry.event, "causation_id", None)
                depths[event_id] = 0 if cause is None else depths.get(cause, -2) + 2
            indent = "  " * (depths[event_id] + (not isinstance(entry, RecordedEvent)))
            lines.append(f"{entry.time - origin:10.3f}  {indent}{self._line(entry, origin)}")
        return "\n".join(lines).encode("ascii", "backslashreplace").decode() or "nothing"

    def _line(self, entry: _Recorded, origin: float) -> str:
        number = f"#{self._numbers[entry.event.event_id]}"
        if isinstance(entry, RecordedEvent):
            place = "" if entry.position is None else f" at position {entry.position}"
            return f"{number} {_shown(entry.event)} published{place}"
        handler = f"{number} {entry.group}/{entry.subscription}"
        if isinstance(entry, RecordedRetry):
            return f"{handler} again at {entry.due - origin:.3f}"
        if isinstance(entry, RecordedDeadLetter):
            return f"{handler} dead letter after attempt {entry.attempts}: {said(entry.error)}"
        attempt = f"{handler} attempt {entry.attempt}"
        if entry.ended is None:
            return f"{attempt} running"
        after = f" after {entry.ended - entry.time:.3f} s" if entry.ended > entry.time else ""
        if entry.error is None:
            return f"{attempt} handled{after}"
        if isinstance(entry.error, Exception):
            return f"{attempt} failed{after}: {said(entry.error)}"
        return f"{attempt} cancelled{after}"

    def note(self, text: str) -> None:
        """Put a line of your own into the timeline."""
        self._add(_Note(trio.current_time(), text))

    def _add(self, entry: _Recorded | _Note) -> None:
        if self._origin is None:
            self._origin = 0.0 if is_virtual(trio.lowlevel.current_clock()) else entry.time
        if not isinstance(entry, _Note):
            self._numbers.setdefault(entry.event.event_id, len(self._numbers) + 1)
        self._entries.append(entry)


@attrs.define(eq=False)
class Witness(AttemptInstrument):
    """Writes down in a recording what a bus tells."""

    recording: Recording

    async def _attempt(
        self,
        deliveries: Sequence[InFlight],
        events: Sequence[DomainEvent],
        call: Callable[[], Awaitable[object]],
    ) -> object:
        recording = self.recording
        subscription, number = deliveries[0].subscription, deliveries[0].attempt
        name = "/".join(key_of(subscription))
        attempts = [
            RecordedAttempt(**_about(event, *key_of(subscription)), attempt=number)
            for event in events
        ]
        for attempt in attempts:
            recording._add(attempt)
            recording._snapshots.compare(attempt.event, f"before attempt {number} of {name}")
        result, error = None, None
        try:
            result = await call()
        except BaseException as raised:
            error = raised
            raise
        finally:
            for attempt in attempts:
                attempt.result, attempt.error = result, error
                attempt.ended = trio.current_time()
                recording._snapshots.compare(attempt.event, f"while {name} had it")
        if result is NOT_MATCHED:
            for attempt in attempts:
                recording._entries.remove(attempt)
                recording._wanted.get(attempt.event.event_id, set()).discard(key_of(subscription))
        return result

    def published(self, event: DomainEvent, position: int | None) -> None:
        recording = self.recording
        recording._wanted[event.event_id] = self._wanted_by(event)
        recording._snapshots.take(event)
        recording._add(RecordedEvent(event=event, time=trio.current_time(), position=position))

    def retry_scheduled(self, delivery: Delivery, due: float) -> None:
        about = _about(delivery.event, delivery.group, delivery.subscription)
        self.recording._add(RecordedRetry(**about, attempt=delivery.attempt, due=due))

    def given_up(
        self, event: DomainEvent, subscription: Subscription, attempts: int, error: Exception
    ) -> None:
        about = _about(event, *key_of(subscription))
        self.recording._add(RecordedDeadLetter(**about, attempts=attempts, error=error))


def _about(event: DomainEvent, group: str, name: str) -> dict[str, Any]:
    return {"event": event, "group": group, "subscription": name, "time": trio.current_time()}


def _matching(
    entries: list[_AnEntry], type_: type[DomainEvent], fields: Mapping[str, Any]
) -> list[_AnEntry]:
    """Return the entries about events of a type with these fields. Raises `InvalidOption`."""
    (type_,) = event_types(type_)
    known = [field.name for field in attrs.fields(type_)]
    for name in fields:
        if name not in known and not hasattr(type_, name):
            raise InvalidOption(
                f"{type_.__qualname__} has no field {name!r}: it has {', '.join(known)}"
            )
    return [
        entry
        for entry in entries
        if isinstance(entry.event, type_)
        and all(getattr(entry.event, name) == value for name, value in fields.items())
    ]


def _wish(type_: type[DomainEvent], fields: Mapping[str, Any]) -> str:
    given = ", ".join(f"{name}={shown(value)}" for name, value in fields.items())
    return f"{type_.__qualname__}({given})" if given else type_.__qualname__


def _shown(event: DomainEvent) -> str:
    """Return an event with the fields of its own, for the others are different in every run."""
    fields = [field.name for field in attrs.fields(type(event)) if field.name not in _BASE_FIELDS]
    return _wish(type(event), {name: getattr(event, name) for name in fields})
