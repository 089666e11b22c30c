"""What every bus promises, watched from outside. Written without a look at how the bus does it.

1. Nothing accepted is lost: when a bus has drained, every event that was accepted, in this life or
   in one before on the same store, has been handled or given up by each subscription it was for.
2. Order: of an aggregate a group handles one event at a time, in the order of publication, and none
   goes past one that waits for a retry.
3. Progress: a group's offset never goes back, and nothing is recorded as finished that is not.
4. Statistics add up: they agree with the calls that were seen.

Besides, handlers promise that they leave an event as it is.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import chain
from typing import Any
from uuid import UUID

import attrs
from trio.lowlevel import enable_ki_protection

from triobus._bus import EventBus
from triobus._durability.unreadable import Unreadable
from triobus._errors import OutcomeUnknown
from triobus._events import DomainEvent
from triobus._events.causes import calling_delivery
from triobus._groups.delivery import InFlight
from triobus._groups.failures import as_failure
from triobus._groups.instruments import Range
from triobus._groups.subscriptions import Group, Subscription
from triobus.testing._attempts import AttemptInstrument, Key, key_of
from triobus.testing._snapshots import EventChanged


class PromiseBroken(AssertionError):
    """A bus did not keep a promise."""


@attrs.define(eq=False)
class _Log:
    """The facts about one store, or of a bus without one, over all lives."""

    open: dict[UUID, set[Key]] = attrs.field(factory=dict)
    """The subscriptions that an accepted event was for and that have not settled it."""
    events: dict[int, DomainEvent] = attrs.field(factory=dict)
    """By position."""
    offsets: dict[str, int] = attrs.field(factory=dict)
    resets: dict[str, int] = attrs.field(factory=dict)
    """The position to which a group was reset last."""
    settled: set[tuple[UUID, Key]] = attrs.field(factory=set)
    """What a node has settled before the publisher's knew that it was accepted."""


@attrs.define(eq=False)
class Promises:
    """Remembers over all lives of a program what its buses owe."""

    _on_breach: Callable[[], None]
    first: AssertionError | None = attrs.field(default=None, init=False)
    """The first that was broken."""
    _logs: dict[Any, _Log] = attrs.field(factory=dict, init=False)

    def of(self, bus: EventBus, plan_failure: Callable[[], Exception | None]) -> "Watch":
        """Return an instrument for a bus that starts."""
        key = bus if bus.store is None else getattr(bus.store, "path", bus.store)
        log = self._logs.setdefault(key, _Log())
        return Watch(bus, log, lambda message: self._end(PromiseBroken(message)), plan_failure)

    def changed(self, message: str) -> None:
        """Note that an event is no more what it was when it was published, and end the program."""
        self._end(EventChanged(message))

    def _end(self, error: AssertionError) -> None:
        if self.first is None:
            self.first = error
            self._on_breach()

    def check(self) -> None:
        """Raise the first `PromiseBroken` or `EventChanged`, if there is one."""
        if self.first is not None:
            raise self.first


@attrs.define(eq=False)
class _Lane:
    """The attempts for one aggregate in one group."""

    last: int = 0
    """The number of the event whose attempt began last."""
    running: int = 0
    waiting: int | None = None
    """The number of the event that waits for a retry."""
    waits_for: Subscription | None = None
    """Whose retry that is."""
    batch: set[int] = attrs.field(factory=set)
    """The numbers of events that a group with batches has begun with."""


@attrs.define(eq=False)
class Watch(AttemptInstrument):
    """Watches one bus, and lets its handlers fail as planned."""

    _bus: EventBus
    _log: _Log
    _breach: Callable[[str], None]
    _plan_failure: Callable[[], Exception | None]
    _lanes: dict[tuple[str, str, int | None], _Lane] = attrs.field(factory=dict, init=False)
    """By group, aggregate and fence: a new owner begins with what was not recorded."""
    # Counted for each group:
    _failed: Counter[str] = attrs.field(factory=Counter, init=False)
    _letters: Counter[str] = attrs.field(factory=Counter, init=False)
    _running: Counter[str] = attrs.field(factory=Counter, init=False)
    _members: dict[Key, Subscription] = attrs.field(factory=dict, init=False)
    """The subscription that had a name last."""

    def attend(self, group: Group) -> None:
        """Watch a group. A subscription that joins others may miss what was published before."""
        is_late = any(key[0] == group.name for key in self._members)
        for subscription in group.subscriptions:
            key = key_of(subscription)
            is_new = self._members.get(key) is not subscription
            self._members[key] = subscription
            if is_new and is_late:
                for owed in self._log.open.values():
                    owed.discard(key)
        super().attend(group)

    async def _attempt(
        self,
        deliveries: Sequence[InFlight],
        events: Sequence[DomainEvent],
        call: Callable[[], Awaitable[object]],
    ) -> object:
        first, subscription = deliveries[0], deliveries[0].subscription
        lanes = self._began(deliveries, subscription.group)
        try:
            planned = self._plan_failure()
            if planned is not None:
                retry = subscription.retry
                if retry.delay_after(first.attempt, planned, events[0].event_id) is not None:
                    raise planned
            result = await call()
        except BaseException as error:
            # Where the segment is another node's meanwhile, it counts as nothing here.
            is_lost = first.part is not None and first.part.is_lost
            if as_failure(error) is not None and not is_lost:
                self._failed[subscription.group] += 1
            if isinstance(error, OutcomeUnknown):  # of a transactional handler: it may be settled
                self._settle(events, subscription)
            raise
        finally:
            for lane in lanes:
                lane.running -= 1
            self._running[subscription.group] -= 1
        self._settle(events, subscription)
        return result

    def _settle(self, events: Iterable[DomainEvent], subscription: Subscription) -> None:
        for event in events:
            self._settled(event.event_id, subscription)

    @enable_ki_protection  # an interrupted count would be wrong for ever
    def _began(self, deliveries: Sequence[InFlight], group: str) -> list[_Lane]:
        """Check that the group may begin with these events now; return their lanes."""
        self._running[group] += 1
        shell = self._bus._life.shells[group]
        busy = shell.statistics().busy_workers
        # A worker that was cancelled or interrupted is gone, and what it had is still in flight.
        if not self._running[group] <= busy <= shell.worker_limit:
            self._breach(
                f"group {group!r} runs {self._running[group]} handlers, and its statistics say "
                f"busy_workers={busy}, with {shell.worker_limit} workers"
            )
        lanes: dict[str | None, _Lane] = {}
        for delivery in deliveries:
            aggregate_id = delivery.event.aggregate_id
            if aggregate_id is None or delivery.letter_id is not None or not shell.lanes.is_ordered:
                continue
            where = f"aggregate {aggregate_id!r} in group {group!r}"
            lane = self._lanes.setdefault((group, aggregate_id, delivery.fence), _Lane())
            if lane.running and aggregate_id not in lanes:
                self._breach(f"two handlers work on {where} at the same time")
            self._check_turn(lane, delivery, where, is_batch=shell._batch is not None)
            if aggregate_id not in lanes:
                lanes[aggregate_id] = lane
                lane.running += 1
        return [*lanes.values()]

    def _check_turn(self, lane: _Lane, delivery: InFlight, where: str, *, is_batch: bool) -> None:
        number = _number(delivery)
        # A batch that fails for good is halved: an earlier event comes again alone.
        if number < lane.last and not (is_batch and number in lane.batch):
            self._breach(f"an earlier event came after a later one of {where}")
        is_waited_for = lane.waits_for is not None and lane.waits_for.is_active
        if lane.waiting not in (None, number) and is_waited_for:
            self._breach(f"an event went past one that waits for a retry, of {where}")
        lane.waiting = None
        if number > lane.last:
            lane.last = number
        if is_batch:
            lane.batch.add(number)

    def _settled(self, event_id: UUID, subscription: Subscription) -> None:
        key = key_of(subscription)
        if event_id in self._log.open:
            self._log.open[event_id].discard(key)
        elif self._is_shared:
            self._log.settled.add((event_id, key))

    @property
    def _is_shared(self) -> bool:
        return self._bus.store is not None and self._bus.store.is_shared

    def published(self, event: DomainEvent, position: int | None) -> None:
        owed = self._wanted_by(event)
        if position is not None:
            self._log.events[position] = event
            # In the commit of a reset events may be stored that it has passed over.
            owed = {key for key in owed if position > self._log.resets.get(key[0], 0)}
        settled = {(event.event_id, key) for key in owed} & self._log.settled
        self._log.settled -= settled
        self._log.open[event.event_id] = owed - {key for _, key in settled}

    def retry_planned(self, delivery: InFlight, due: float) -> None:  # noqa: ARG002  # the bus decides that
        key = delivery.subscription.group, delivery.event.aggregate_id or "", delivery.fence
        lane = self._lanes.get(key)
        if lane is not None and lane.waiting is None and delivery.letter_id is None:
            lane.waiting = _number(delivery)  # of a batch the first
            lane.waits_for = delivery.subscription

    def given_up(
        self,
        event: DomainEvent,
        subscription: Subscription,
        attempts: int,
        error: Exception,  # noqa: ARG002  # any will do
    ) -> None:
        group, delivery = subscription.group, calling_delivery()
        if delivery is None or delivery.letter_id is None:
            self._letters[group] += 1
        if isinstance(event, Unreadable) and attempts:  # no handler was called that is watched
            self._failed[group] += 1
        self._settled(event.event_id, subscription)

    def recorded(self, group: str, offset: int, ranges: Sequence[Range]) -> None:
        before = self._log.offsets.get(group, 0)
        if offset < before:
            self._breach(f"the offset of {group!r} went back from {before} to {offset}")
        self._log.offsets[group] = offset
        finished = [range(before + 1, offset + 1)]
        finished += [range(first, last + 1) for first, last in ranges if last is not None]
        for position in chain.from_iterable(finished):
            event = self._log.events.get(position)
            event_id = None if event is None else event.event_id
            open_ = self._open(event_id, group)
            if open_:
                self._breach(
                    f"position {position} is recorded as finished in group {group!r}, and is not "
                    f"by {open_[0]!r}"
                )
            if event_id in self._log.open:  # a subscription that has gone never gets it any more
                owed = self._log.open[event_id]
                owed.difference_update([key for key in owed if key[0] == group])

    def _open(self, event_id: UUID | None, group: str) -> list[str]:
        """Return the subscriptions that are there and that an event is owed to."""
        if event_id not in self._log.open or group not in self._groups:
            return []
        keys = self._log.open[event_id]
        get = self._groups[group]._get
        return sorted(name for owner, name in keys if owner == group and get(name) is not None)

    def reset(self, group: str, offset: int) -> None:
        """Owe a group everything from behind an offset again, and nothing of before."""
        self._log.offsets[group] = self._log.resets[group] = offset
        for position, event in self._log.events.items():
            owed = {key for key in self._log.open[event.event_id] if key[0] != group}
            if position > offset:
                owed |= {key for key in self._wanted_by(event) if key[0] == group}
            self._log.open[event.event_id] = owed
        self._lanes = {key: lane for key, lane in self._lanes.items() if key[0] != group}

    def drained(self) -> None:
        for event_id in self._log.open if not self._is_shared else ():  # others go on with them
            for group in self._groups:
                open_ = self._open(event_id, group)
                if open_:
                    self._breach(
                        f"the bus has drained, and an event that was accepted is lost: "
                        f"{group}/{open_[0]} never finished {event_id}"
                    )
        statistics = self._bus.statistics()
        for name, found in statistics.groups.items():
            counted = {
                **dict.fromkeys(("queued", "in_flight", "waiting_for_retry", "lag"), 0),
                "published": found.handled,
                "dead_lettered": self._letters[name],
                "failed_attempts": self._failed[name],
            }
            wrong = {key: getattr(found, key) for key in counted}
            if wrong != counted:
                self._breach(
                    f"the statistics of group {name!r} say {wrong} when the bus has drained; what "
                    f"was seen is {counted}"
                )


def _number(delivery: InFlight) -> int:
    """Return the place of a delivery's event among those of its group."""
    return delivery.number if delivery.position is None else delivery.position
