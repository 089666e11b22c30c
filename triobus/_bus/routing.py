"""Routing: where published events find their groups and listeners, and wait for room there.

An event is accepted everywhere at once, in plain synchronous code. A publisher that has to wait
does so at one full place at a time; the task that makes room there accepts on its behalf, so that
no publisher is overtaken, and one that is woken has nothing left to do.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from triobus._bus.states import LifeCycle
from triobus._errors import BusClosed, WouldDeadlock
from triobus._events import DomainEvent, key_of, with_cause
from triobus._events.batch import Batch, runs
from triobus._events.causes import calling_cause, calling_deliveries, calling_delivery, handling
from triobus._groups.delivery import InFlight, Lanes
from triobus._groups.instruments import Instruments
from triobus._groups.listeners import Inbox, Waiter
from triobus._groups.subscriptions import Subscription
from triobus._groups.workers import GroupShell

Place = GroupShell | Inbox
"""Where there may be no room."""
Offer = Callable[[DomainEvent, int | None], None]
"""Gives an inbox an event, which a store has at that position."""


@attrs.define(eq=False)
class Publisher:
    """A task that waits for room for its batch."""

    batch: Batch
    task: trio.lowlevel.Task
    handler: Subscription | None
    """Whose handler, of another bus, it is."""
    place: Place
    """Where it waits."""
    is_refused: bool = False
    """Whether the bus closed before there was room."""


@attrs.define(eq=False)
class _Route:
    """Where the events of one type go."""

    targets: list[tuple[Lanes, GroupShell, tuple[Subscription, ...]]]
    inboxes: list[Inbox]
    offers: list[Offer]
    waiters: list[Waiter]
    _instruments: Instruments
    adds: list[tuple[Callable[..., None], tuple[Subscription, ...]]] = attrs.field(init=False)
    """What is called with an event and its key, each with a plan: the lanes, and before them what
    tells the instruments that there are."""
    shells: list[GroupShell] = attrs.field(init=False)
    is_plain: bool = attrs.field(init=False)
    """Whether groups alone take events of the type, and some group does."""
    is_told: bool = attrs.field(init=False)
    """Whether others than groups get to know of the events."""
    is_unwanted: bool = attrs.field(init=False)
    """Whether neither a group nor a listener takes them."""

    def __attrs_post_init__(self) -> None:
        self.shells = [shell for _, shell, _ in self.targets]
        self.is_plain = not (self.inboxes or self.waiters) and bool(self.targets)
        self.is_told = bool(self._instruments.published) or not self.is_plain
        self.adds = [(lanes.add, plan) for lanes, _, plan in self.targets]
        if self._instruments.published:
            self.adds.insert(0, (partial(_tell_of, self._instruments), ()))
        self.is_unwanted = not (self.inboxes or self.targets)


@attrs.define(eq=False)
class Routing:
    """Accepts events for the groups, listeners and waiters of one life of a bus."""

    _cycle: LifeCycle
    instruments: Instruments
    shells: dict[str, GroupShell] = attrs.field(factory=dict, init=False)
    """The groups by name."""
    published: int = attrs.field(default=0, init=False)
    """Events accepted so far."""
    inboxes: dict[Inbox, Offer] = attrs.field(factory=dict, init=False)
    """The inboxes of the listeners, and how each is given an event."""
    waiters: dict[Waiter, None] = attrs.field(factory=dict, init=False)
    unhandled: Counter[str] = attrs.field(factory=Counter, init=False)
    """Events that neither a subscription nor a listener wanted, by their types."""
    _routes: dict[type, _Route] = attrs.field(factory=dict, init=False)

    @enable_ki_protection
    def accept(self, event: DomainEvent) -> Sequence[GroupShell] | None:
        """Accept one event if nothing is special about it: a short cut around batches, for speed.

        Return the groups whose workers may have to be woken, or None if it was not accepted.
        """
        route = self._routes.get(type(event))
        if route is None or not route.is_plain or self._cycle.state != "running":
            return None
        if handling.get() is not None and calling_delivery() is not None:
            return None
        targets = route.targets
        for lanes, shell, _ in targets:
            if shell.waiting or lanes.held >= shell.buffer:
                return None
        key = key_of(event)
        self.published += 1
        for add, plan in route.adds:
            add(event, key, plan)
        return route.shells

    def enter(self, batch: Batch) -> bool:
        """Let a publisher in and give the batch its cause; raises `BusClosed`.

        Return whether it comes from a handler of this bus, directly or by way of other buses.
        """
        cause = calling_cause()
        batch.is_inside = any(map(self.is_own, calling_deliveries()))
        call = "publish inside a handler" if batch.is_inside else "publish"
        self._cycle.check(call, "publish()")
        if cause is not None:
            batch.events = [with_cause(event, cause) for event in batch.events]
        return batch.is_inside

    def is_own(self, delivery: InFlight) -> bool:
        """Whether it is a delivery of this bus."""
        subscription = delivery.subscription
        shell = self.shells.get(subscription.group)
        return shell is not None and shell.group is subscription._owner

    def _needs(self, batch: Batch) -> Counter[Any]:
        """Return how many of the batch's events go to each group and listener."""
        needs: Counter[Any] = Counter()
        for cls, count in batch.counts.items():
            route = self._route(cls)
            for place in (*route.shells, *route.inboxes):
                needs[place] += count
        return needs

    def first_full(self, batch: Batch, own: Place | None = None) -> Place | None:
        """Return the first place that has no room for the batch.

        Publishers that wait go before, except at the batch's own place, where it is the first.
        """
        place: Place
        for place, count in self._needs(batch).items():
            is_behind = bool(place.waiting) and place is not own
            if is_behind or not place.has_room(count):
                return place
        return None

    async def wait_for_room(self, place: Place, batch: Batch) -> None:
        """Wait at a full place until the batch is accepted; cancelled, none of it is.

        Raises `BusClosed` if the bus stops accepting meanwhile.
        """
        handler = next((delivery.subscription for delivery in calling_deliveries()), None)
        publisher = Publisher(batch, trio.lowlevel.current_task(), handler, place)
        self._queue(publisher)

        def abort(_: Any) -> trio.lowlevel.Abort:
            place = publisher.place
            del place.waiting[publisher]
            self.admit(place)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        if publisher.is_refused:
            raise self._cycle.closed("publish()")

    def check_not_waiting_for_itself(self, place: Place) -> None:
        """Raise `WouldDeadlock` if only the task that asks could make room at a place."""
        if isinstance(place, Inbox) and place.taker is trio.lowlevel.current_task():
            raise WouldDeadlock(
                f"publish() would wait for room in the listener that this very task reads: it "
                f"holds {place.held} events, and its buffer is {place.buffer:g}. Publish in "
                "another task, or in a handler, or give the listener buffer=math.inf"
            )

    def _queue(self, publisher: Publisher) -> None:
        """Have a publisher wait at its place, behind those that wait there."""
        place = publisher.place
        place.waiting[publisher] = None
        if len(place.waiting) == 1:
            self._await_room(place)

    def _await_room(self, place: Place) -> None:
        """Say when the first batch that waits at a place fits there."""
        place.admits_at = -1
        if place.waiting:
            first = next(iter(place.waiting))
            place.admits_at = place.held_for(self._needs(first.batch)[place])

    @enable_ki_protection
    def admit(self, place: Place) -> None:
        """Accept what waits at a place, in its order, as far as there is room now."""
        while place.waiting:
            publisher = next(iter(place.waiting))
            full = self.first_full(publisher.batch, place)
            if full is place:
                break
            del place.waiting[publisher]
            if full is None:
                self.commit(publisher.batch)
                trio.lowlevel.reschedule(publisher.task)
            else:
                publisher.place = full
                self._queue(publisher)
        self._await_room(place)

    @enable_ki_protection
    def commit(self, batch: Batch) -> None:
        """Accept a batch: from here on it is delivered, whatever happens to the publisher."""
        batch.is_accepted = True
        touched: dict[GroupShell, None] = {}
        for events, keys in self._runs(batch):
            route = self._route(type(events[0]))
            for lanes, shell, plan in route.targets:
                lanes.add_many(events, keys, plan, batch.completion)
                touched[shell] = None
            if route.is_unwanted:
                self.unhandled[events[0].event_type] += len(events)
            if route.is_told:
                self._tell(route, events)
        self.published += len(batch.events)
        if batch.completion is not None:
            batch.completion.expect(
                [plan for _, _, plan in self._route(type(batch.events[0])).targets]
            )
        for shell in touched:
            shell.wake()

    def _runs(self, batch: Batch) -> Iterable[tuple[Sequence[DomainEvent], Sequence[str | None]]]:
        if len(batch.counts) == 1:  # as is nearly always the case, and known
            return [(batch.events, batch.keys)]
        return runs(batch.events, batch.keys)

    def tell(self, events: Sequence[DomainEvent], first: int, is_for_groups: bool) -> None:
        """Give listeners and waiters what is stored from position `first`.

        The groups have it, or with `is_for_groups` false get it in the next life of the bus.
        """
        for position, event in enumerate(events, first):
            route = self._route(type(event))
            if is_for_groups:
                self._count(route, event, position)
            self._offer(route, event, position)

    def count(self, events: Sequence[DomainEvent], first: int) -> None:
        """Know that this bus has published what is stored from position `first`."""
        for position, event in enumerate(events, first):
            self._count(self._route(type(event)), event, position)

    def _count(self, route: _Route, event: DomainEvent, position: int) -> None:
        self.published += 1
        if route.is_unwanted:
            self.unhandled[event.event_type] += 1
        if self.instruments.published:
            self.instruments.call("published", event, position)

    def offer(self, event: DomainEvent, position: int) -> None:
        """Give listeners and waiters an event of the log, whichever bus has published it."""
        self._offer(self._route(type(event)), event, position)

    def has_listeners(self) -> bool:
        """Whether there are listeners or waiters."""
        return bool(self.inboxes or self.waiters)

    def _tell(self, route: _Route, events: Sequence[DomainEvent]) -> None:
        for event in events:
            self.instruments.call("published", event, None)
            self._offer(route, event, None)

    def _offer(self, route: _Route, event: DomainEvent, position: int | None) -> None:
        for offer in route.offers:
            offer(event, position)
        for waiter in route.waiters:
            if waiter in self.waiters and waiter.offer(event):
                self.remove(waiter)

    def _route(self, cls: type[DomainEvent]) -> _Route:
        route = self._routes.get(cls)
        if route is None:
            plans = [(shell, shell.group._plan_for(cls)) for shell in self.shells.values()]
            inboxes = [inbox for inbox in self.inboxes if issubclass(cls, inbox.types)]
            route = self._routes[cls] = _Route(
                [(shell.lanes, shell, plan) for shell, plan in plans if plan],
                inboxes,
                [self.inboxes[inbox] for inbox in inboxes],
                [waiter for waiter in self.waiters if issubclass(cls, waiter.types)],
                self.instruments,
            )
        return route

    @property
    def places(self) -> list[Place]:
        """Where there may be no room."""
        return [*self.shells.values(), *self.inboxes]

    def refuse_all(self) -> None:
        """Send the publishers away that wait for room."""
        for place in self.places:
            while place.waiting:
                publisher, _ = place.waiting.popitem(last=False)
                publisher.is_refused = True
                trio.lowlevel.reschedule(publisher.task)

    def forget_routes(self) -> None:
        """Find all routes anew, for a subscription or listener has come or gone."""
        self._routes.clear()

    def close(self) -> None:
        """End what waits for further events."""
        self.refuse_all()
        for inbox in self.inboxes:
            inbox.close()
        for waiter in self.waiters:
            waiter.fail(BusClosed("the bus stopped before an event came that wait_for() wanted"))

    def listen(self, inbox: Inbox, offer: Offer) -> None:
        """Give an inbox the events that are accepted from now on."""
        self.inboxes[inbox] = offer
        self._routes.clear()

    def unlisten(self, inbox: Inbox) -> None:
        """Give it no more, unless that was done before; no publisher waits for it any longer."""
        self.inboxes.pop(inbox, None)
        inbox.close()
        self._routes.clear()
        self.admit(inbox)

    def add(self, waiter: Waiter) -> None:
        """Give a waiter the events that are accepted from now on."""
        self.waiters[waiter] = None
        self._routes.clear()

    def remove(self, waiter: Waiter) -> None:
        """Give it no more, unless that was done before."""
        self.waiters.pop(waiter, None)
        self._routes.clear()


def _tell_of(instruments: Instruments, event: DomainEvent, _key: object, _plan: object) -> None:
    instruments.call("published", event, None)


def describe_full(place: Place) -> str:
    """Say that a place is full, and what to do about it."""
    return f"{_full(place)}: wait with publish(), or give it a larger buffer or faster handlers"


def describe_waiting(place: Place) -> str:
    """Say who waits for room at a place, and for whom."""
    count, first = len(place.waiting), next(iter(place.waiting))
    who = f"task {first.task.name!r}"
    if first.handler is not None:
        who = f"the handler {first.handler.name!r} in group {first.handler.group!r} of another bus"
    publishers = f"{who} waits" if count == 1 else f"{who} and {count - 1} more publishers wait"
    reader = ""
    if isinstance(place, Inbox) and place.taker is not None:
        reader = f", and is read by task {place.taker.name!r}"
    return (
        f"{publishers} for room: {_full(place)}{reader}. Give it a larger buffer or faster handlers"
    )


def _full(place: Place) -> str:
    if isinstance(place, Inbox):
        what, held, waiting = "a listener", place.held, 0
    else:
        what, held, waiting = f"group {place.group.name!r}", place.lanes.held, place.lanes.waiting
    events = f"{held} event" if held == 1 else f"{held} events"
    retries = f", {waiting} of which wait for a retry," if waiting else ""
    return f"{what} holds {events}{retries} and its buffer is {place.buffer:g}"
