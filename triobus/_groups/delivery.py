"""The core of a group: which aggregate is ready, busy or waiting for a retry. Pure data.

It knows no Trio, no clock and no disk; the shell in `workers.py` tells it what happened and when.

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
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from heapq import heapify, heappop, heappush
from itertools import count, repeat
from math import inf
from typing import Any, ClassVar, Protocol

import attrs

from triobus._events import DomainEvent
from triobus._groups.subscriptions import Subscription
from triobus._text import brief

NO_POSITIONS = repeat(None)


class Completion(Protocol):
    """Is told what becomes of one delivery."""

    def handled(self, subscription: Subscription, result: object, /) -> None:
        """The subscription's handler has returned `result`."""

    def failed(self, subscription: Subscription, error: Exception, /) -> None:
        """The subscription's handler has failed for good."""

    def finished(self) -> None:
        """The delivery is finished."""


Queued = tuple[
    # Its number, event, key and plan; the completion, the letter's id, and the position.
    *tuple[int, DomainEvent, str | None, tuple[Subscription, ...]],
    *tuple[Completion | None, int | None, int | None],
]
"""A queued delivery: the first seven fields of `InFlight`, for a third of what that costs."""


Replayed = tuple[DomainEvent, str | None, tuple[Subscription, ...], Completion, int, int | None]
"""What `Lanes.add` takes for a replay."""


@attrs.define(eq=False)
class InFlight:
    """One delivery that a worker has, or that waits for a retry."""

    number: int
    event: DomainEvent
    key: str | None
    plan: tuple[Subscription, ...]
    completion: Completion | None = None
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
    is_settled: bool = False
    """Whether the store has been told, with the effects of a handler, that it is finished."""

    error: str | None = None
    """What its last attempt has failed with, in one line."""
    is_followed: bool = False
    """Whether the next one of its aggregate is in the same bundle."""
    part: Any = None
    """The segment of a shared group that it is in, as this node has it; None without nodes."""

    @property
    def fence(self) -> int | None:
        """The token by which this node has its segment."""
        return None if self.part is None else self.part.fence.token

    @property
    def subscription(self) -> Subscription:
        """The subscription whose turn it is."""
        return self.plan[self.index]

    @property
    def queued(self) -> Queued:
        """What it was before it was taken."""
        return (
            self.number,
            self.event,
            self.key,
            self.plan,
            self.completion,
            self.letter_id,
            self.position,
        )

    size: ClassVar[int] = 1
    """How many deliveries it counts for."""

    @property
    def parts(self) -> "list[InFlight]":
        """What it consists of."""
        return [self]

    deliveries = parts


@attrs.define(eq=False)
class Bundle:
    """Deliveries of one plan that are handled in one call, in their order."""

    deliveries: list[InFlight]
    attempt: int = 0
    """How many attempts the subscription has had whose turn it is."""
    letter_id: None = attrs.field(default=None, init=False)
    position: None = attrs.field(default=None, init=False)

    @property
    def parts(self) -> list[InFlight]:
        """The deliveries whose turn it is; others are past that subscription."""
        indexes = {each.index for each in self.deliveries}
        if len(indexes) == 1:  # as nearly always
            return self.deliveries
        index = min(indexes)
        return [each for each in self.deliveries if each.index == index]

    def drop_finished(self) -> None:
        """Leave the deliveries out that are finished."""
        self.deliveries = [each for each in self.deliveries if each.index < len(each.plan)]

    @property
    def index(self) -> int:
        """Which subscription of the plan is next."""
        return self.parts[0].index

    @property
    def number(self) -> int:
        """The place in the order, which is that of the first delivery."""
        return self.deliveries[0].number

    @property
    def event(self) -> DomainEvent:
        """The first event."""
        return self.deliveries[0].event

    @property
    def subscription(self) -> Subscription:
        """The subscription whose turn it is."""
        return self.parts[0].subscription

    @property
    def size(self) -> int:
        """How many deliveries it counts for."""
        return len(self.deliveries)


@attrs.frozen
class Waiting:
    """A delivery that waits for a retry, as one looks at it."""

    due: float
    number: int
    key: str | None
    position: int | None
    subscription: Subscription
    attempt: int
    error: str | None
    event: DomainEvent | None
    """None for one that a store has."""


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
    is_frozen: bool = False
    """Whether nothing becomes ready."""
    _barrier: float = inf
    """The number that nothing may be taken from, because what is older has to be read back."""
    _numbered: int = 0
    """How many deliveries were put into the queue or a line."""
    _queue: deque[Queued] = attrs.field(factory=deque)
    _resumed: list[Queued | tuple[int, InFlight | Bundle]] = attrs.field(factory=list)
    _waiting: list[tuple[float, int, InFlight | Bundle]] = attrs.field(factory=list)
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
        return sum(entry[2].size for entry in self._waiting)

    @property
    def ready(self) -> int:
        """How many deliveries might be taken now; some may turn out to be behind a busy one."""
        return 0 if self.is_frozen else len(self._queue) + len(self._resumed)

    def add(
        self,
        event: DomainEvent,
        key: str | None,
        plan: tuple[Subscription, ...],
        completion: Completion | None = None,
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
        self._queue.append((number, event, key, plan, completion, letter_id, position))

    def add_many(
        self,
        events: Sequence[DomainEvent],
        keys: Iterable[str | None],
        plan: tuple[Subscription, ...],
        completion: Completion | None = None,
        positions: Iterable[int | None] = NO_POSITIONS,
    ) -> None:
        """Queue a delivery for each of `events`, in the lanes of their `keys`."""
        if not self.is_ordered:
            keys = repeat(None)
        numbers = count(self._numbered + 1)
        self._queue.extend(
            zip(numbers, events, keys, repeat(plan), repeat(completion), repeat(None), positions)
        )
        self._numbered += len(events)
        self.held += len(events)

    def take(self, recycled: InFlight | None = None) -> InFlight | None:
        """Return the oldest delivery that is ready, now in flight, or None.

        It may come in `recycled`, which has been finished. In a group with batches it may be a
        `Bundle` whose retry is due.
        """
        queued: Any
        if self.is_frozen:
            return None
        queue, resumed, lanes = self._queue, self._resumed, self._lanes
        while True:
            # What is read back from a store may be younger than what is queued.
            if resumed and not (queue and queue[0][0] < resumed[0][0]):
                if resumed[0][0] >= self._barrier:
                    return None
                queued = heappop(resumed)
                if len(queued) == 2:
                    self.held -= queued[1].size
                    return queued[1]  # type: ignore[no-any-return]  # it is the delivery of a retry
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
        if recycled is None:
            return InFlight(*queued)
        (
            recycled.number,
            recycled.event,
            recycled.key,
            recycled.plan,
            recycled.completion,
            recycled.letter_id,
            recycled.position,
        ) = queued
        recycled.index = recycled.attempt = 0
        return recycled

    def advance(self, delivery: InFlight) -> bool:
        """Go on after the current subscription is done; return whether the delivery is finished."""
        if delivery.index + 1 < len(delivery.plan):
            delivery.index += 1
            delivery.attempt = 0
            return False
        self.finished += 1
        key = delivery.key
        if key is not None and not delivery.is_followed:
            line = self._lanes[key]
            if line:
                heappush(self._resumed, line.popleft())
            else:
                del self._lanes[key]
        return True

    def fail(self, delivery: InFlight | Bundle, error: Exception, now: float) -> float | None:
        """Return when the failed attempt is to be repeated, after which the delivery waits for it.

        None means never: the attempt was the last, and the delivery is still in flight.
        """
        retry = delivery.subscription.retry
        delay = retry.delay_after(delivery.attempt, error, delivery.event.event_id)
        if delay is None:
            return None
        due = now + delay
        told = brief(error)
        for part in delivery.parts:
            part.error = told
        self._put_aside(delivery, due)
        return due

    def look(self) -> Iterator[Waiting]:
        """Yield what waits for a retry, in no order."""
        for due, _, delivery in self._waiting:
            for each in delivery.parts:
                yield Waiting(
                    due,
                    each.number,
                    each.key,
                    each.position,
                    each.subscription,
                    delivery.attempt,
                    each.error,
                    each.event,
                )

    def hurry(self, numbers: Set[int]) -> int:
        """Make deliveries ready that wait for a retry, by their numbers; return how many."""
        found = self._drawn(numbers)
        for delivery in found:
            self._bring_back(delivery)
        return sum(len(delivery.parts) for delivery in found)

    def withdraw(self, numbers: Set[int]) -> "list[InFlight | Bundle]":
        """Return deliveries that wait for a retry, now in flight, by their numbers."""
        found = self._drawn(numbers)
        for delivery in found:
            self._bring_back(delivery)
            self._resumed.remove((delivery.number, delivery))
            self.held -= delivery.size
        heapify(self._resumed)
        return found

    def resume(self, delivery: "InFlight | Bundle") -> None:
        """Make a delivery ready that is in flight."""
        self.held += delivery.size
        heappush(self._resumed, (delivery.number, delivery))

    def _drawn(self, numbers: Set[int]) -> "list[InFlight | Bundle]":
        """Take deliveries out of those that wait for a retry."""
        found: list[Any] = []
        kept: list[Any] = []
        for entry in self._waiting:
            is_meant = any(each.number in numbers for each in entry[2].parts)
            (found if is_meant else kept).append(entry)
        heapify(kept)
        self._waiting = kept
        return [entry[2] for entry in found]

    def freeze(self) -> None:
        """Let nothing become ready any more; it stays held, and counts as such."""
        self.is_frozen = True

    def thaw(self) -> None:
        """Let things become ready again."""
        self.is_frozen = False

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
            delivery = entry[2]
            if is_meant(delivery.subscription, delivery.letter_id):
                self._bring_back(delivery)
            else:
                self._waiting.append(entry)
        heapify(self._waiting)

    def _put_aside(self, delivery: InFlight | Bundle, due: float) -> None:
        self.held += delivery.size
        heappush(self._waiting, (due, delivery.number, delivery))

    def _bring_back(self, delivery: InFlight | Bundle) -> None:
        heappush(self._resumed, (delivery.number, delivery))
