"""The lanes of a group whose events a store has: what waits is read back in its turn. Pure data.

Deliveries are numbered by positions, so that each has its place in the order when it comes back.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from heapq import heapify, heappop, heappush
from itertools import repeat
from math import inf
from typing import NamedTuple

import attrs

from triobus._events import DomainEvent
from triobus._groups.bundling import BundlingLanes
from triobus._groups.delivery import (
    NO_POSITIONS,
    Bundle,
    Completion,
    InFlight,
    Queued,
    Waiting,
)
from triobus._groups.subscriptions import Subscription

KEPT_AWAKE = 256
"""How many deliveries that wait for a retry stay in memory when a store has them."""
_ERRORS_KEPT = 256
"""How many different texts of errors are kept for what has no event in memory."""
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
    error: str | None
    """What the last attempt has failed with, if that is kept."""


def place_of(queued: Queued) -> int:
    """Return the position of a queued event, or of the one that a queued replay is behind."""
    return queued[0] // _BETWEEN


@attrs.define(eq=False)
class StoredLanes(BundlingLanes):
    """The lanes of a group whose events a store has.

    Deliveries are numbered by their events' positions, so that what is read back has the place in
    the order that it had. What waits for a retry takes no room.
    """

    due: dict[int, Asleep] = attrs.field(factory=dict)
    """What slept until its time has come, and has to be read back; by position."""
    completions: dict[int, Completion] = attrs.field(factory=dict)
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
    _restored: dict[int, tuple[int, float, tuple[str, ...]]] = attrs.field(factory=dict)
    """What is known of queued deliveries from before they were read back, by their numbers."""
    _dues: list[float] = attrs.field(factory=list)
    """When those of them may begin."""
    _now: float = 0.0
    _errors: dict[str, str] = attrs.field(factory=dict)
    """The texts that sleeping deliveries share."""

    @property
    def added(self) -> int:
        """How many deliveries were added, each once however often it is read back."""
        return self._numbered - self._lifted + self.outside

    @property
    def waiting(self) -> int:
        """How many deliveries wait for a retry."""
        return sum(entry[2].size for entry in self._waiting) + len(self._asleep) + self._waited

    def forget(self) -> None:
        """Keep the counters and nothing else: the bus has ended, and the store has the rest."""
        self._waited = self.waiting
        self._lanes, self.due, self.completions, self._restored = {}, {}, {}, {}
        self._queue, self._beyond = deque(), deque()
        self._resumed, self._waiting, self._asleep, self._dues = [], [], [], []

    def reset(self) -> list[tuple[int, int | None, Completion]]:
        """Forget every delivery; return position, dead letter and completion of those with one.

        None is in flight.
        """
        found = [
            (entry[6], entry[5], entry[4])
            for entries in (self._queue, self._beyond, *filter(None, self._lanes.values()))
            for entry in entries
        ]
        in_flight = [part for entry in self._waiting for part in entry[2].deliveries]
        for resumed in self._resumed:
            if len(resumed) == 2:
                in_flight += resumed[1].deliveries
            else:
                found.append((resumed[6], resumed[5], resumed[4]))
        found += [(each.position, each.letter_id, each.completion) for each in in_flight]
        found += [(position, None, each) for position, each in self.completions.items()]
        self.forget()
        self._numbered, self._lifted = self.finished, 0
        self.held = self.outside = self._waited = 0
        self._barrier = inf
        return [(at or 0, letter_id, each) for at, letter_id, each in found if each is not None]

    # Being added

    def add(
        self,
        event: DomainEvent,
        key: str | None,
        plan: tuple[Subscription, ...],
        completion: Completion | None = None,
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
        queued = (number, event, key, plan, completion, letter_id, position)
        (self._beyond if self.is_barred else self._queue).append(queued)

    def add_many(
        self,
        events: Sequence[DomainEvent],
        keys: Iterable[str | None],
        plan: tuple[Subscription, ...],
        completion: Completion | None = None,
        positions: Iterable[int | None] = NO_POSITIONS,
    ) -> None:
        """Queue a delivery for each of the next events in the log."""
        if not self.is_ordered:
            keys = repeat(None)
        places = zip(events, keys, positions, strict=False)  # of which some have no end
        target = self._beyond if self.is_barred else self._queue
        target.extend(
            (position * _BETWEEN, event, key, plan, completion, None, position)  # type: ignore[operator]  # it has one
            for event, key, position in places
        )
        self._numbered += len(events)
        self.held += len(events)

    def add_outside(self) -> None:
        """Know of a delivery that has to be read back when its turn comes."""
        self.outside += 1

    def restore_delay(
        self, position: int, attempt: int, due: float | None, done: tuple[str, ...]
    ) -> None:
        """Let the queued delivery of an event go on after `attempt`, at `due`."""
        self._restored[position] = attempt, -inf if due is None else due, done
        if due is not None:
            heappush(self._dues, due)

    # Being read back

    def take_in(
        self,
        event: DomainEvent,
        key: str,
        plan: tuple[Subscription, ...],
        completion: Completion | None,
        position: int,
    ) -> None:
        """Put a delivery into its lane that was outside; those of one lane come in their order."""
        self.outside -= 1
        self._numbered += 1
        self.held += 1
        queued = (position * _BETWEEN, event, key, plan, completion, None, position)
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
        """Know that a delivery which was outside is finished: no subscription wants it any more."""
        self.outside -= 1
        self._lifted -= 1
        self.finished += 1

    def wake(
        self, asleep: Asleep, event: DomainEvent, plan: tuple[Subscription, ...] | None = None
    ) -> InFlight:
        """Go on with a delivery whose time has come, with another plan for what is damaged."""
        delivery = InFlight(
            number=asleep.position * _BETWEEN,
            event=event,
            key=asleep.key,
            plan=asleep.plan if plan is None else plan,
            completion=self.completions.pop(asleep.position, None),
            position=asleep.position,
            index=asleep.turn,
            attempt=asleep.attempt,
            done=asleep.done,
            is_recorded=True,
            error=asleep.error,
        )
        del self.due[asleep.position]
        self._bring_back(delivery)
        return delivery

    # The order

    def take(self, recycled: InFlight | None = None) -> InFlight | None:  # noqa: ARG002  # see below
        """Return the oldest delivery that is ready, now in flight, or None.

        It never comes in `recycled`: what a commit costs is a hundred times what that would save.
        """
        while (delivery := super().take()) is not None:
            known = None
            if delivery.letter_id is None and delivery.position is not None:
                known = self._restored.pop(delivery.position, None)
            if known is None:
                return delivery
            delivery.attempt, due, delivery.done = known
            delivery.is_recorded = True
            if due <= self._now or not delivery.subscription.is_active:
                return delivery
            self._put_aside(delivery, due)
        return None

    def bar(self, position: int | None) -> None:
        """Let nothing overtake an event that has to be read back; None when there is none."""
        if not self.is_total:
            return
        self._queue.extend(self._beyond)
        self._beyond.clear()
        self._barrier = inf if position is None else position * _BETWEEN
        self._keep_back()

    def put_back(self, untried: Sequence[InFlight], held_up: Mapping[str | None, InFlight]) -> None:
        """Let deliveries of a bundle that were not begun be ready again, in their old places."""
        super().put_back(untried, held_up)
        if self.is_barred:
            self._keep_back()

    def _keep_back(self) -> None:
        """Take out of the queue what is not to overtake an event that has to be read back."""
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
            *self._dues[:1],
            *(due for due, _, _ in self._waiting[:1]),
            *(asleep.due for asleep in self._asleep[:1]),
        ]
        return min(dues, default=None)

    def release(self, now: float) -> None:
        """Make every delivery whose retry is due ready again, or know that it is to be read."""
        self._now = now
        while self._dues and self._dues[0] <= now:
            heappop(self._dues)
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

    def _put_aside(self, delivery: InFlight | Bundle, due: float) -> None:
        if isinstance(delivery, Bundle):  # it stays together, and takes room
            super()._put_aside(delivery, due)
            return
        self.outside += 1
        self._lifted += 1
        if delivery.letter_id is not None or len(self._waiting) < KEPT_AWAKE:
            heappush(self._waiting, (due, delivery.number, delivery))
            return
        assert delivery.position is not None
        if delivery.completion is not None:
            self.completions[delivery.position] = delivery.completion
        asleep = Asleep(
            due,
            delivery.position,
            delivery.key,
            delivery.attempt,
            delivery.plan,
            delivery.index,
            delivery.done,
            self._kept(delivery.error),
        )
        heappush(self._asleep, asleep)

    def _kept(self, error: str | None) -> str | None:
        """Return the text of an error as others have it too, or None if there are too many."""
        if error is None or (error not in self._errors and len(self._errors) >= _ERRORS_KEPT):
            return None
        return self._errors.setdefault(error, error)

    # Being looked at

    def look(self) -> Iterator[Waiting]:
        """Yield what waits for a retry, in no order."""
        yield from super().look()
        for asleep in self._asleep:
            yield Waiting(
                asleep.due,
                asleep.position * _BETWEEN,
                asleep.key,
                asleep.position,
                asleep.plan[asleep.turn],
                asleep.attempt,
                asleep.error,
                None,
            )

    def hurry(self, numbers: Set[int]) -> int:
        """Make deliveries ready that wait for a retry, by their numbers; return how many.

        Some of them have to be read back for that.
        """
        found = self.sleeping(numbers)
        for asleep in found:
            self._asleep.remove(asleep)
            self.due[asleep.position] = asleep
        heapify(self._asleep)
        return len(found) + super().hurry(numbers)

    def sleeping(self, numbers: Set[int]) -> list[Asleep]:
        """Return those of the numbers whose events have to be read."""
        return [asleep for asleep in self._asleep if asleep.position * _BETWEEN in numbers]

    def rouse(self, asleep: Asleep, event: DomainEvent) -> InFlight | None:
        """Return a delivery that sleeps, now in flight; None if it does not sleep any more."""
        if asleep not in self._asleep:
            return None
        self._asleep.remove(asleep)
        heapify(self._asleep)
        self.due[asleep.position] = asleep
        delivery = self.wake(asleep, event)
        self._resumed.remove((delivery.number, delivery))
        heapify(self._resumed)
        self.held -= 1
        return delivery

    def _bring_back(self, delivery: InFlight | Bundle) -> None:
        if not isinstance(delivery, Bundle):
            self.outside -= 1
            self._lifted -= 1
            self.held += 1
        super()._bring_back(delivery)

    def _goes_along(self, queued: Queued, first: InFlight) -> bool:
        return super()._goes_along(queued, first) and queued[6] not in self._restored

    # Room

    def evict_lines(self) -> list[tuple[str, deque[Queued]]]:
        """Give up what lines up behind busy and waiting deliveries, and return the lines.

        Nothing is ready. Lines with an event of whose attempts a store has been told are left
        alone.
        """
        evicted: list[tuple[str, deque[Queued]]] = []
        for key, line in self._lanes.items():
            if line and not (self._restored and any(q[6] in self._restored for q in line)):
                self._lanes[key] = None
                evicted.append((key, line))
        count = sum(len(line) for _, line in evicted)
        self._lifted += count
        self.outside += count
        self.held -= count
        return evicted

    def has_lane(self, key: str | None) -> bool:
        """Whether a delivery of an aggregate has been taken and is not finished."""
        return key in self._lanes
