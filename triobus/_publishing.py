"""Values of publishing: a batch on its way in, and what became of an event."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any
from uuid import UUID

import attrs
import trio

from triobus._errors import BusClosed, InvalidEvent
from triobus._events import DomainEvent, key_of
from triobus._subscriptions import Subscription


@attrs.frozen(kw_only=True)
class Outcome:
    """What every handler made of one event, by the name of its subscription.

    Those are told of that were subscribed when it was accepted, and not who has come since. Where
    two groups have a subscription of the same name, the later group's is "group/name".
    """

    event_id: UUID
    """The event's own id."""
    position: int | None
    """Its place in the store's log; None without a store."""
    results: Mapping[str, Any]
    """What the handlers returned that succeeded."""
    errors: Mapping[str, Exception]
    """The last errors of the handlers that failed for good."""


@attrs.define(eq=False)
class Batch:
    """Events that are accepted together or not at all, in their order."""

    events: list[DomainEvent]
    keys: list[str | None] = attrs.field(init=False)
    counts: Mapping[type[DomainEvent], int] = attrs.field(init=False)
    """How many there are of each type."""
    watch: "OutcomeWatch | None" = None
    task: trio.lowlevel.Task | None = None
    """The publisher that waits for room, if it does."""
    handler: Subscription | None = None
    """Whose handler, of another bus, that publisher is."""
    place: Any = None
    """Where it waits: a group's shell or a listener."""
    is_refused: bool = False
    """Whether the bus closed before there was room."""
    is_inside: bool = False
    """Whether a handler of the bus publishes it, for whom the bus would wait."""

    def __attrs_post_init__(self) -> None:
        if len(self.events) == 1:  # a third of the time of what follows
            event = self.events[0]
            if isinstance(event, DomainEvent):
                self.keys = [key_of(event)]
                self.counts = {type(event): 1}
                return
        classes = set(map(type, self.events))
        if len(classes) == 1:  # half the time of counting
            self.counts = dict.fromkeys(classes, len(self.events))
        else:
            self.counts = Counter(map(type, self.events))
        for cls in self.counts:
            if not issubclass(cls, DomainEvent):
                raise InvalidEvent(
                    f"an object of type {cls.__qualname__!r} is no event: publish instances of "
                    "classes derived from DomainEvent"
                )
        self.keys = [key_of(event) for event in self.events]


def runs(
    events: Sequence[DomainEvent], keys: Sequence[str | None]
) -> Iterator[tuple[Sequence[DomainEvent], Sequence[str | None]]]:
    """Yield events with their keys, in order, cut where the type changes."""
    if len(set(map(type, events))) <= 1:
        if events:
            yield events, keys
        return
    first = 0
    for _, run in groupby(map(type, events)):
        last = first + sum(1 for _ in run)
        yield events[first:last], keys[first:last]
        first = last


@attrs.define(eq=False)
class OutcomeWatch:
    """Collects the outcome of one event over all its deliveries."""

    _event: DomainEvent
    _pending: int = 0
    _names: dict[Subscription, str] = attrs.field(factory=dict)
    """What the outcome calls those that were there when the event was accepted."""
    _results: dict[str, Any] = attrs.field(factory=dict)
    _errors: dict[str, Exception] = attrs.field(factory=dict)
    _done: trio.Event = attrs.field(factory=trio.Event)
    _is_cut_off: bool = False

    def expect(self, plans: Sequence[Sequence[Subscription]]) -> None:
        """Wait for a delivery of each plan."""
        self._pending = len(plans)
        for subscription in (subscription for plan in plans for subscription in plan):
            name = subscription.name
            is_taken = name in self._names.values()
            self._names[subscription] = f"{subscription.group}/{name}" if is_taken else name

    def handled(self, subscription: Subscription, result: object) -> None:
        """Note a result."""
        # An event that is read back goes to those who are there then.
        if (name := self._names.get(subscription)) is not None:
            self._results[name] = result

    def failed(self, subscription: Subscription, error: Exception) -> None:
        """Note an error."""
        if (name := self._names.get(subscription)) is not None:
            self._errors[name] = error

    def finished(self) -> None:
        """Count a finished delivery."""
        self._pending -= 1
        if not self._pending:
            self._done.set()

    def cut_off(self) -> None:
        """End the wait, for the bus has ended."""
        self._is_cut_off = True
        self._done.set()

    async def wait(self, position: int | None = None) -> Outcome:
        """Wait for all deliveries and return the outcome of the event at `position`."""
        if self._pending:
            await self._done.wait()
            if self._is_cut_off:
                raise BusClosed(
                    f"event {self._event.event_id} was accepted, and the bus stopped before all of "
                    "its handlers had finished"
                )
        return Outcome(
            event_id=self._event.event_id,
            position=position,
            results=self._results,
            errors=self._errors,
        )
