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
6. With a store, what lines up behind a delivery can be given up for the time being, and of what
   waits for a retry only its place and its time are kept; both are read back when their turn comes,
   and have their old place in the order then.

Only lanes in use exist, and have a line only when something has lined up: a queued event costs one
tuple, and an aggregate with nothing busy or waiting costs nothing at all.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heappop, heappush
from itertools import count, repeat
from math import inf
from typing import Any, NamedTuple, Protocol

import attrs

from triobus._events import DomainEvent
from triobus._subscriptions import Subscription

_NO_POSITIONS = repeat(None)


class Watch(Protocol):
    """Somebody who wants to know what became of one delivery."""

    def handled(self, subscription: Subscription, result: object, /) -> None:
        """The subscription's handler has returned `result`."""

    def failed(self, subscription: Subscription, error: Exception, /) -> None:
        """The subscription's handler has failed for good."""

    def finished(self) -> None:
        """The delivery is finished."""


Queued = tuple[
    int, DomainEvent, str | None, tuple[Subscription, ...], Watch | None, int | None, int | None
]
"""A queued delivery: the first seven fields of its carriage, for a third of what that costs."""


@attrs.define(eq=False)
class Carriage:
    """One delivery while the group carries it."""

    number: int
    event: DomainEvent
    key: str | None
    plan: tuple[Subscription, ...]
    watch: Watch | None = None
    letter_id: int | None = None
    """The dead letter that is being replayed, if it is one."""
    position: int | None = None
    """Its place in a store's log."""
    index: int = 0
    """Which subscription of the plan is next."""
    attempt: int = 0
    """How many attempts that subscription has had."""
    done: tuple[str, ...] = ()
    """The subscriptions that were done with the event before it was read back."""
    is_recorded: bool = False
    """Whether the store has been told of its attempts."""

    @property
    def subscription(self) -> Subscription:
        """The subscription whose turn it is."""
        return self.plan[self.index]


@attrs.define(eq=False)
class Lanes:
    """All deliveries of one group, from being added until they are finished."""

    is_ordered: bool = True
    """Whether aggregates have lanes; without, every delivery is on its own."""
    finished: int = 0
    held: int = 0
    """How many deliveries take room: queued, or waiting for a retry."""
    outside: int = 0
    """How many are known and take none, because a store has them."""
    _is_frozen: bool = False
    _barrier: float = inf
    """The number that nothing may be taken from, because what is older has to be read back."""
    _numbered: int = 0
    """How many deliveries were put into the queue or a line."""
    _queue: deque[Queued] = attrs.field(factory=deque)
    _resumed: list[Queued | tuple[int, Carriage]] = attrs.field(factory=list)
    _waiting: list[tuple[float, int, Carriage]] = attrs.field(factory=list)
    _lanes: dict[str, deque[Queued] | None] = attrs.field(factory=dict)
    """What has lined up, for each aggregate with a delivery that is busy, waiting or resumed."""

    @property
    def added(self) -> int:
        """How many deliveries were added."""
        return self._numbered

    @property
    def unsettled(self) -> int:
        """How many deliveries are queued, in flight or waiting for a retry."""
        return self.added - self.finished

    @property
    def in_flight(self) -> int:
        """How many deliveries workers have."""
        return self.unsettled - self.held - self.outside

    @property
    def queued(self) -> int:
        """How many deliveries have still to be begun, or gone on with."""
        return self.held + self.outside - self.waiting

    @property
    def waiting(self) -> int:
        """How many deliveries wait for a retry."""
        return len(self._waiting)

    @property
    def ready(self) -> int:
        """How many deliveries might be taken now; some may turn out to be behind a busy one."""
        return 0 if self._is_frozen else len(self._queue) + len(self._resumed)

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
        self._numbered = number = self._numbered + 1
        self.held += 1
        if not self.is_ordered and letter_id is None:
            key = None  # but replays go in their order, in any group
        self._queue.append((number, event, key, plan, watch, letter_id, position))

    def add_many(
        self,
        events: Sequence[DomainEvent],
        keys: Iterable[str | None],
        plan: tuple[Subscription, ...],
        watch: Watch | None = None,
        positions: Iterable[int | None] = _NO_POSITIONS,
    ) -> None:
        """Queue a delivery for each of `events`, in the lanes of their `keys`."""
        if not self.is_ordered:
            keys = repeat(None)
        numbers = count(self._numbered + 1)
        self._queue.extend(
            zip(numbers, events, keys, repeat(plan), repeat(watch), repeat(None), positions)
        )
        self._numbered += len(events)
        self.held += len(events)

    def take(self, spare: Carriage | None = None) -> Carriage | None:
        """Return the oldest delivery that is ready, now in flight, or None.

        It may come in `spare`, a carriage whose delivery is finished.
        """
        queued: Any
        if self._is_frozen:
            return None
        queue, resumed, lanes = self._queue, self._resumed, self._lanes
        while True:
            # What is read back from a store may be younger than what is queued.
            if resumed and not (queue and queue[0][0] < resumed[0][0]):
                if resumed[0][0] >= self._barrier:
                    return None
                queued = heappop(resumed)
                if len(queued) == 2:
                    self.held -= 1
                    return queued[1]  # type: ignore[no-any-return]  # it is the carriage of a retry
                break
            if not queue:
                return None
            queued = queue.popleft()
            key = queued[2]
            if key is None:
                break
            if key not in lanes:
                lanes[key] = None
                break
            line = lanes[key]
            if line is None:
                lanes[key] = deque((queued,))
            else:
                line.append(queued)
        self.held -= 1
        if spare is None:
            return Carriage(*queued)
        (
            spare.number,
            spare.event,
            spare.key,
            spare.plan,
            spare.watch,
            spare.letter_id,
            spare.position,
        ) = queued
        spare.index = spare.attempt = 0
        return spare

    def advance(self, carriage: Carriage) -> bool:
        """Go on after the current subscription is done; return whether the delivery is finished."""
        if carriage.index + 1 < len(carriage.plan):
            carriage.index += 1
            carriage.attempt = 0
            return False
        self.finished += 1
        key = carriage.key
        if key is not None:
            line = self._lanes[key]
            if line:
                heappush(self._resumed, line.popleft())
            else:
                del self._lanes[key]
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
        self._put_aside(carriage, due)
        return due

    def freeze(self) -> None:
        """Let nothing become ready any more; it stays held, and counts as such."""
        self._is_frozen = True

    def next_due(self) -> float | None:
        """Return when the next retry is due, or None."""
        return self._waiting[0][0] if self._waiting else None

    def release(self, now: float) -> None:
        """Make every delivery whose retry is due ready again."""
        while self._waiting and self._waiting[0][0] <= now:
            self._bring_back(heappop(self._waiting)[2])

    def let_go(self, is_meant: Callable[[Subscription, int | None], bool]) -> None:
        """Make every delivery ready again that waits for a retry and is meant.

        That is asked for the subscription whose turn it is, and for the dead letter if it is one.
        """
        waiting, self._waiting = self._waiting, []
        for entry in waiting:
            carriage = entry[2]
            if is_meant(carriage.subscription, carriage.letter_id):
                self._bring_back(carriage)
            else:
                self._waiting.append(entry)
        heapify(self._waiting)

    def _put_aside(self, carriage: Carriage, due: float) -> None:
        self.held += 1
        heappush(self._waiting, (due, carriage.number, carriage))

    def _bring_back(self, carriage: Carriage) -> None:
        heappush(self._resumed, (carriage.number, carriage))


KEPT_AWAKE = 256
"""How many deliveries that wait for a retry stay in memory when a store has them."""
_BETWEEN = 2**32
"""Numbers between two positions, for the replays that were begun between these."""


class Asleep(NamedTuple):
    """A delivery that waits for a retry, and whose event a store has."""

    due: float
    position: int
    key: str | None
    attempt: int
    """How many attempts the subscription whose turn it is has had."""
    plan: tuple[Subscription, ...]
    turn: int
    """Which subscription of the plan is next."""
    done: tuple[str, ...]


def place_of(queued: Queued) -> int:
    """Return the position of a queued event, or of the one that a queued replay is behind."""
    return queued[0] // _BETWEEN


@attrs.define(eq=False)
class StoredLanes(Lanes):
    """The lanes of a group whose events a store has.

    Deliveries are numbered by their events' positions, so that what is read back has the place in
    the order that it had. What waits for a retry takes no room.
    """

    is_total: bool = False
    """Whether nothing may overtake what has still to be read back, retries aside."""
    due: dict[int, Asleep] = attrs.field(factory=dict)
    """What slept until its time has come, and has to be read back; by position."""
    watches: dict[int, Watch] = attrs.field(factory=dict)
    """Who wants to know what becomes of events that have to be read back; by position."""
    _waited: int = 0
    """How many deliveries waited for a retry when the bus ended."""
    _lifted: int = 0
    """How many deliveries have been put outside more often than they have come back."""
    _replays: int = 0
    """How many replays were added."""
    _beyond: deque[Queued] = attrs.field(factory=deque)
    """What is in the queue from there on."""
    _asleep: list[Asleep] = attrs.field(factory=list)
    _postponed: dict[int, tuple[int, float, tuple[str, ...]]] = attrs.field(factory=dict)
    """What is known of queued deliveries from before they were read back, by their numbers."""
    _announced: list[float] = attrs.field(factory=list)
    """When those of them may begin."""
    _now: float = 0.0

    @property
    def added(self) -> int:
        """How many deliveries were added, each once however often it is read back."""
        return self._numbered - self._lifted + self.outside

    @property
    def waiting(self) -> int:
        """How many deliveries wait for a retry."""
        return len(self._waiting) + len(self._asleep) + self._waited

    def forget(self) -> None:
        """Keep the counters and nothing else: the bus has ended, and the store has the rest."""
        self._waited = self.waiting
        self._lanes, self.due, self.watches, self._postponed = {}, {}, {}, {}
        self._queue, self._beyond = deque(), deque()
        self._resumed, self._waiting, self._asleep, self._announced = [], [], [], []

    # Being added

    def add(
        self,
        event: DomainEvent,
        key: str | None,
        plan: tuple[Subscription, ...],
        watch: Watch | None = None,
        letter_id: int | None = None,
        position: int | None = None,
        *,
        after: int = 0,
    ) -> None:
        """Queue a delivery of what comes next in the log, or a replay behind `after` in it."""
        assert position is not None
        number = position * _BETWEEN
        if letter_id is not None:
            self._replays += 1
            number = after * _BETWEEN + self._replays
        elif not self.is_ordered:
            key = None
        self._numbered += 1
        self.held += 1
        queued = (number, event, key, plan, watch, letter_id, position)
        (self._beyond if self.is_barred else self._queue).append(queued)

    def add_many(
        self,
        events: Sequence[DomainEvent],
        keys: Iterable[str | None],
        plan: tuple[Subscription, ...],
        watch: Watch | None = None,
        positions: Iterable[int | None] = _NO_POSITIONS,
    ) -> None:
        """Queue a delivery for each of the next events in the log."""
        if not self.is_ordered:
            keys = repeat(None)
        places = zip(events, keys, positions, strict=False)  # of which some have no end
        target = self._beyond if self.is_barred else self._queue
        target.extend(
            (position * _BETWEEN, event, key, plan, watch, None, position)  # type: ignore[operator]  # it has one
            for event, key, position in places
        )
        self._numbered += len(events)
        self.held += len(events)

    def add_outside(self) -> None:
        """Know of a delivery that has to be read back when its turn comes."""
        self.outside += 1

    def postpone(
        self, position: int, attempt: int, due: float | None, done: tuple[str, ...]
    ) -> None:
        """Let the queued delivery of an event go on after `attempt`, at `due`."""
        self._postponed[position] = attempt, -inf if due is None else due, done
        if due is not None:
            heappush(self._announced, due)

    # Being read back

    def take_in(
        self,
        event: DomainEvent,
        key: str,
        plan: tuple[Subscription, ...],
        watch: Watch | None,
        position: int,
    ) -> None:
        """Put a delivery into its lane that was outside; those of one lane come in their order."""
        self.outside -= 1
        self._numbered += 1
        self.held += 1
        queued = (position * _BETWEEN, event, key, plan, watch, None, position)
        if key not in self._lanes:
            self._lanes[key] = None
            heappush(self._resumed, queued)
            return
        line = self._lanes[key]
        if line is None:
            self._lanes[key] = deque((queued,))
        else:
            line.append(queued)

    def drop(self) -> None:
        """Know that a delivery which was outside is finished: nobody wants it any more."""
        self.outside -= 1
        self._lifted -= 1
        self.finished += 1

    def wake(
        self, asleep: Asleep, event: DomainEvent, plan: tuple[Subscription, ...] | None = None
    ) -> None:
        """Go on with a delivery whose time has come, with another plan for what is damaged."""
        carriage = Carriage(
            number=asleep.position * _BETWEEN,
            event=event,
            key=asleep.key,
            plan=asleep.plan if plan is None else plan,
            watch=self.watches.pop(asleep.position, None),
            position=asleep.position,
            index=asleep.turn,
            attempt=asleep.attempt,
            done=asleep.done,
            is_recorded=True,
        )
        del self.due[asleep.position]
        self._bring_back(carriage)

    # The order

    def take(self, spare: Carriage | None = None) -> Carriage | None:  # noqa: ARG002  # see below
        """Return the oldest delivery that is ready, now in flight, or None.

        It never comes in `spare`: what a commit costs is a hundred times what that would save.
        """
        while (carriage := super().take()) is not None:
            known = None
            if carriage.letter_id is None and carriage.position is not None:
                known = self._postponed.pop(carriage.position, None)
            if known is None:
                return carriage
            carriage.attempt, due, carriage.done = known
            carriage.is_recorded = True
            if due <= self._now or not carriage.subscription.is_active:
                return carriage
            self._put_aside(carriage, due)
        return None

    def bar(self, position: int | None) -> None:
        """Let nothing overtake an event that has to be read back; None when there is none."""
        if not self.is_total:
            return
        self._queue.extend(self._beyond)
        self._beyond.clear()
        self._barrier = inf if position is None else position * _BETWEEN
        while self._queue and self._queue[-1][0] >= self._barrier:
            self._beyond.appendleft(self._queue.pop())

    @property
    def is_barred(self) -> bool:
        """Whether something waits for what has to be read back."""
        return self._barrier < inf

    # Retries

    def next_due(self) -> float | None:
        """Return when the next retry is due, or None."""
        dues = [
            *self._announced[:1],
            *(due for due, _, _ in self._waiting[:1]),
            *(asleep.due for asleep in self._asleep[:1]),
        ]
        return min(dues, default=None)

    def release(self, now: float) -> None:
        """Make every delivery whose retry is due ready again, or know that it is to be read."""
        self._now = now
        while self._announced and self._announced[0] <= now:
            heappop(self._announced)
        super().release(now)
        while self._asleep and self._asleep[0].due <= now:
            asleep = heappop(self._asleep)
            self.due[asleep.position] = asleep

    def let_go(self, is_meant: Callable[[Subscription, int | None], bool]) -> None:
        """Make every delivery ready again that waits for a retry and is meant."""
        super().let_go(is_meant)
        kept = []
        for asleep in self._asleep:
            if is_meant(asleep.plan[asleep.turn], None):
                self.due[asleep.position] = asleep
            else:
                kept.append(asleep)
        heapify(kept)
        self._asleep = kept

    def _put_aside(self, carriage: Carriage, due: float) -> None:
        self.outside += 1
        self._lifted += 1
        if carriage.letter_id is not None or len(self._waiting) < KEPT_AWAKE:
            heappush(self._waiting, (due, carriage.number, carriage))
            return
        assert carriage.position is not None
        if carriage.watch is not None:
            self.watches[carriage.position] = carriage.watch
        asleep = Asleep(
            due,
            carriage.position,
            carriage.key,
            carriage.attempt,
            carriage.plan,
            carriage.index,
            carriage.done,
        )
        heappush(self._asleep, asleep)

    def _bring_back(self, carriage: Carriage) -> None:
        self.outside -= 1
        self._lifted -= 1
        self.held += 1
        super()._bring_back(carriage)

    # Room

    def spill(self) -> list[tuple[str, deque[Queued]]]:
        """Give up what lines up behind busy and waiting deliveries, and return the lines.

        Nothing is ready. Lines with an event of whose attempts a store has been told are left
        alone.
        """
        spilled: list[tuple[str, deque[Queued]]] = []
        for key, line in self._lanes.items():
            if line and not (self._postponed and any(q[6] in self._postponed for q in line)):
                self._lanes[key] = None
                spilled.append((key, line))
        count = sum(len(line) for _, line in spilled)
        self._lifted += count
        self.outside += count
        self.held -= count
        return spilled

    def has_lane(self, key: str | None) -> bool:
        """Whether a delivery of an aggregate has been taken and is not finished."""
        return key in self._lanes
