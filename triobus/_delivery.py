"""The core of a group: which aggregate is ready, busy or waiting for a retry. Pure data.

It knows no Trio, no clock and no disk; the shell in `_group.py` tells it what happened and when.

1. Deliveries are numbered in the order of publication and looked at in that order: the oldest one
   that is ready goes first. So one worker alone handles them in the order of publication, and
   nothing can be starved by what is published after it.
2. A lane is the queue of one aggregate. It has at most one delivery that is busy or waiting for a
   retry; those that come up meanwhile line up behind it, and the others go past.
3. A delivery without a key has no lane and waits for nothing.
4. Inside a delivery the subscriptions of its plan are called one after the other. Each is finished
   for good before the next one begins, and a retry goes on with the one that failed.
5. A delivery that waits for a retry keeps its lane, and is ready again when its time has come; one
   that comes from a store with such a time behind it waits for the rest of it.
6. What lines up behind a delivery can be given up for the time being, if a store has it.

Only lanes in use exist, as the last delivery of a linked list in a dict: a queued event costs one
small object, and an aggregate with nothing busy or waiting costs nothing at all.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from itertools import count, repeat
from typing import Protocol

import attrs

from triobus._events import DomainEvent
from triobus._subscriptions import Subscription


class Watch(Protocol):
    """Somebody who wants to know what became of one delivery."""

    def handled(self, subscription: Subscription, result: object, /) -> None:
        """The subscription's handler has returned `result`."""

    def failed(self, subscription: Subscription, error: Exception, /) -> None:
        """The subscription's handler has failed for good."""

    def finished(self) -> None:
        """The delivery is finished."""


@attrs.define(eq=False)
class Carriage:
    """One delivery while the group carries it."""

    event: DomainEvent
    key: str | None
    plan: tuple[Subscription, ...]
    number: int
    watch: Watch | None = None
    letter_id: int | None = None
    """The dead letter that is being replayed, if it is one."""
    index: int = 0
    """Which subscription of the plan is next."""
    attempt: int = 0
    """How many attempts that subscription has had."""
    _follower: "Carriage | None" = None

    @property
    def subscription(self) -> Subscription:
        """The subscription whose turn it is."""
        return self.plan[self.index]

    @property
    def position(self) -> int | None:
        """Its place in a store's log."""
        return None


@attrs.define(eq=False)
class StoredCarriage(Carriage):
    """A delivery of an event that a store has. What it has more would cost every delivery speed."""

    position: int | None = None
    """Its place in the store's log."""
    due: float | None = None
    """When its first attempt here may be made, if that is not at once."""
    done: tuple[str, ...] = ()
    """The subscriptions that were done with the event before it was read back."""
    is_recorded: bool = False
    """Whether the store has been told of its attempts."""


@attrs.define(eq=False)
class Lanes:
    """All deliveries of one group, from being added until they are finished."""

    is_ordered: bool = True
    """Whether aggregates have lanes; without, every delivery is on its own."""
    added: int = 0
    finished: int = 0
    held: int = 0
    """How many deliveries no worker has: queued, or waiting for a retry."""
    _queue: deque[Carriage] = attrs.field(factory=deque)
    _resumed: list[tuple[int, Carriage]] = attrs.field(factory=list)
    _waiting: list[tuple[float, int, Carriage]] = attrs.field(factory=list)
    _tails: dict[str, Carriage] = attrs.field(factory=dict)

    @property
    def unsettled(self) -> int:
        """How many deliveries are queued, in flight or waiting for a retry."""
        return self.added - self.finished

    @property
    def in_flight(self) -> int:
        """How many deliveries workers have."""
        return self.added - self.finished - self.held

    @property
    def waiting(self) -> int:
        """How many deliveries wait for a retry."""
        return len(self._waiting)

    @property
    def ready(self) -> int:
        """How many deliveries might be taken now; some may turn out to be behind a busy one."""
        return len(self._queue) + len(self._resumed)

    def add(
        self,
        event: DomainEvent,
        key: str | None,
        plan: tuple[Subscription, ...],
        watch: Watch | None = None,
        letter_id: int | None = None,
        position: int | None = None,
    ) -> None:
        """Queue a delivery of `event` to the subscriptions of `plan`, in the lane of `key`.

        The plan is not empty. The position is for those with a store.
        """
        self.added += 1
        self.held += 1
        if not self.is_ordered and letter_id is None:
            key = None  # but replays go in their order, in any group
        self._queue.append(self._carriage(event, key, plan, watch, letter_id, position))

    def _carriage(
        self,
        event: DomainEvent,
        key: str | None,
        plan: tuple[Subscription, ...],
        watch: Watch | None,
        letter_id: int | None,
        position: int | None,  # noqa: ARG002  # for those with a store
    ) -> Carriage:
        return Carriage(event, key, plan, self.added, watch, letter_id)

    def add_many(
        self,
        events: Sequence[DomainEvent],
        keys: Iterable[str | None],
        plan: tuple[Subscription, ...],
        watch: Watch | None = None,
    ) -> None:
        """Queue a delivery for each of `events`, in the lanes of their `keys`."""
        if not self.is_ordered:
            keys = repeat(None)
        numbers = count(self.added + 1)
        self._queue.extend(map(Carriage, events, keys, repeat(plan), numbers, repeat(watch)))
        self.added += len(events)
        self.held += len(events)

    def take(self) -> Carriage | None:
        """Return the oldest delivery that is ready, now in flight, or None."""
        if self._resumed:
            self.held -= 1
            return heappop(self._resumed)[1]
        queue = self._queue
        tails = self._tails
        while queue:
            carriage = queue.popleft()
            key = carriage.key
            if key is not None:
                tail = tails.get(key)
                tails[key] = carriage
                if tail is not None:
                    tail._follower = carriage
                    continue
            self.held -= 1
            return carriage
        return None

    def put_back(self, carriage: Carriage) -> None:
        """Make a delivery ready again that was taken and not begun."""
        self.held += 1
        heappush(self._resumed, (carriage.number, carriage))

    def advance(self, carriage: Carriage) -> bool:
        """Go on after the current subscription is done; return whether the delivery is finished."""
        if carriage.index + 1 < len(carriage.plan):
            carriage.index += 1
            carriage.attempt = 0
            return False
        self.finished += 1
        key = carriage.key
        if key is not None:
            follower = carriage._follower
            if follower is None:
                del self._tails[key]
            else:
                carriage._follower = None
                heappush(self._resumed, (follower.number, follower))
        return True

    def fail(self, carriage: Carriage, error: Exception, now: float) -> float | None:
        """Return when the failed attempt is to be repeated, after which the delivery waits for it.

        None means never: the attempt was the last, and the delivery is still in flight.
        """
        retry = carriage.subscription.retry
        delay = retry.delay_after(carriage.attempt, error, carriage.event.event_id)
        if delay is None:
            return None
        due = now + delay
        self.held += 1
        heappush(self._waiting, (due, carriage.number, carriage))
        return due

    def next_due(self) -> float | None:
        """Return when the next retry is due, or None."""
        return self._waiting[0][0] if self._waiting else None

    def release(self, now: float) -> None:
        """Make every delivery whose retry is due ready again."""
        while self._waiting and self._waiting[0][0] <= now:
            _, number, carriage = heappop(self._waiting)
            heappush(self._resumed, (number, carriage))


@attrs.define(eq=False)
class StoredLanes(Lanes):
    """The lanes of a group whose events a store has."""

    _announced: list[float] = attrs.field(factory=list)
    """When deliveries may begin that came with a time."""
    _now: float = 0.0

    def _carriage(
        self,
        event: DomainEvent,
        key: str | None,
        plan: tuple[Subscription, ...],
        watch: Watch | None,
        letter_id: int | None,
        position: int | None,
    ) -> StoredCarriage:
        return StoredCarriage(event, key, plan, self.added, watch, letter_id, position=position)

    def add_stored(
        self,
        events: Sequence[DomainEvent],
        keys: Iterable[str | None],
        plan: tuple[Subscription, ...],
        watch: Watch | None,
        first: int,
    ) -> None:
        """Queue a delivery for each of `events`, which the store has from position `first`."""
        if not self.is_ordered:
            keys = repeat(None)
        numbers = count(self.added + 1)
        defaults = repeat(None), repeat(0), repeat(0), repeat(None)
        self._queue.extend(
            map(
                StoredCarriage,
                events,
                keys,
                repeat(plan),
                numbers,
                repeat(watch),
                *defaults,
                count(first),
            )
        )
        self.added += len(events)
        self.held += len(events)

    def postpone(self, attempt: int, due: float | None, done: tuple[str, ...]) -> None:
        """Let the delivery that was added last go on after `attempt`, at `due`."""
        carriage = self._queue[-1]
        assert isinstance(carriage, StoredCarriage)
        carriage.attempt = attempt
        carriage.done = done
        carriage.is_recorded = True
        if due is not None:
            carriage.due = due
            heappush(self._announced, due)

    def take(self) -> Carriage | None:
        """Return the oldest delivery that is ready, now in flight, or None."""
        while (carriage := super().take()) is not None:
            assert isinstance(carriage, StoredCarriage)
            due, carriage.due = carriage.due, None
            if due is None or due <= self._now:
                break
            self.held += 1
            heappush(self._waiting, (due, carriage.number, carriage))
        return carriage

    def next_due(self) -> float | None:
        """Return when the next retry is due, or None."""
        dues = [*self._announced[:1], *(due for due, _, _ in self._waiting[:1])]
        return min(dues, default=None)

    def release(self, now: float) -> None:
        """Make every delivery whose retry is due ready again."""
        self._now = now
        while self._announced and self._announced[0] <= now:
            heappop(self._announced)
        super().release(now)

    def spill(self, in_flight: Iterable[Carriage]) -> list[StoredCarriage]:
        """Give up what lines up behind busy and waiting deliveries, and return it.

        Nothing is ready, so that every delivery of such an aggregate is in its lane. Lanes with
        something in them that a store does not have, a replay or an attempt, are left alone.
        """
        spilled: list[StoredCarriage] = []
        for head in (*in_flight, *(carriage for _, _, carriage in self._waiting)):
            line = []
            follower = head._follower
            while isinstance(follower, StoredCarriage):
                line.append(follower)
                follower = follower._follower
            if line and all(c.letter_id is None and not c.is_recorded for c in line):
                assert head.key is not None
                head._follower = None
                self._tails[head.key] = head
                spilled.extend(line)
        self.added -= len(spilled)
        self.held -= len(spilled)
        return spilled

    def has_lane(self, key: str | None) -> bool:
        """Whether a delivery of an aggregate has been taken and is not finished."""
        return key in self._tails
