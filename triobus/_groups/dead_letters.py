"""Dead letters in memory: what was given up, kept until it is replayed or discarded."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, Protocol
from uuid import UUID

import attrs

from triobus._errors import EventNotDecodable
from triobus._events import DomainEvent
from triobus._text import described

KEPT = 1000
"""How many dead letters a bus without a store keeps beside those that hold back their aggregate or
are being replayed; the oldest make room for new ones."""


Lane = tuple[str, str, str | None]
"""What letters hold back each other in: the names of group and subscription, and an aggregate."""


@attrs.frozen(kw_only=True)
class DeadLetter:
    """An event that a handler failed for good, with the error of the last attempt."""

    id: int
    """What `replay` and `discard` take; later letters have higher ones."""
    event: DomainEvent | None
    """The event as it was delivered; None for one in a store that cannot be made from its JSON."""
    event_id: UUID
    """Its id."""
    event_type: str
    """Its type."""
    aggregate_id: str | None
    """What it is about."""
    position: int | None
    """Its place in the store's log; None without a store."""
    group: str
    """The name of the group."""
    subscription: str
    """The name of the subscription whose handler failed."""
    attempts: int
    """Attempts so far, replays included; 0 for an event that was held back."""
    first_failed_at: datetime
    """When it became a dead letter; UTC."""
    last_failed_at: datetime
    """When it last failed; UTC."""
    error_type: str
    """The name of the error's class."""
    message: str
    """What the error said, cut at 4,096 characters."""
    traceback: str
    """The traceback without local variables; the last 16 KiB of it."""


@attrs.frozen
class Undelivered:
    """A dead letter with what its handler is to get."""

    letter: DeadLetter
    event: Any
    """The event, or what stands for it."""
    error: EventNotDecodable | None = None
    """Why it cannot be made from its JSON, if it cannot."""


class Asked(Protocol):
    """A replay that is made by whichever buses have the letters."""

    async def run(self) -> int:
        """Wait for it, and return how many were handled. Raises `BusClosed` and `StoreError`."""

    def cut_off(self) -> None:
        """End the wait, for the bus has ended."""


class DeadLetterKeeper(Protocol):
    """The dead letters of a bus, wherever they are kept, and which aggregates they hold back."""

    replaying: set[int]
    """The ids of the letters that are on their way to their handlers again."""
    dropped: int
    """How many letters had to make room for newer ones."""
    held_back: set[int]
    """The ids of letters whose events were not tried, since the bus has started."""
    last_id: int
    """The id of the newest letter that ever was."""

    def __len__(self) -> int: ...

    def __contains__(self, letter_id: int) -> bool: ...

    def ids(self, group: str | None = None, aggregate_id: str | None = None) -> Iterable[int]:
        """Yield the ids of the letters of a group, an aggregate, both or all; the oldest first."""

    def in_order(self, ids: Iterable[int]) -> Sequence[int]:
        """Return ids in the order in which their events were published."""

    def lane_of(self, letter_id: int) -> Lane:
        """Return the lane of a letter."""

    def counts(self) -> Mapping[str, int]:
        """Return how many letters there are, by group; for any thread."""

    def lane(self, lane: Lane) -> Iterable[int]:
        """Return the ids of the letters of a lane; the oldest first."""

    def first_of(self, group: str, subscription: str, aggregate_id: str | None) -> int | None:
        """Return the id of the oldest letter of an aggregate for a subscription, or None."""

    def add(
        self,
        event: Any,
        position: int | None,
        group: str,
        subscription: str,
        attempts: int,
        error: Exception,
        now: datetime,
        aggregate_id: str | None,
        *,
        hold: bool,
    ) -> int:
        """Keep a new letter, and return its id; with `hold` it may hold back its aggregate."""

    def add_failure(self, letter_id: int, attempts: int, error: Exception, now: datetime) -> None:
        """Note that a replay failed again, unless the letter was removed meanwhile."""

    def newest(self, letter_id: int, event: Any) -> DeadLetter | None:
        """Return a letter of an event that has just failed; None if it was removed meanwhile."""

    def check_removable(self) -> None:
        """Raise `BusClosed` if what is removed would not last as long as the letters do."""

    def remove(self, letter_id: int) -> None:
        """Forget a letter, unless that was done before."""

    def end_replay(self, letter_id: int) -> None:
        """A letter is on its way no more, whatever became of it."""

    async def refresh(self) -> None:
        """Know all letters that there are, whichever bus has them. Raises `StoreError`."""

    def ask(self, ids: Sequence[int], /) -> Asked | None:
        """Return what lets the buses that have them replay some letters; None for this one."""

    async def load(self, ids: Sequence[int]) -> Sequence[Undelivered]:
        """Return those that are still there of the letters to be replayed."""

    async def listed(
        self, group: str | None, aggregate_id: str | None, limit: int
    ) -> Sequence[Undelivered]:
        """Return the oldest letters of a group, an aggregate, both or all."""

    async def flush(self) -> None:
        """Wait until what was done to the letters lasts."""


@attrs.define(eq=False)
class DeadLetterIndex:
    """What all dead letters have in common, wherever they are kept: the order in their lanes."""

    replaying: set[int] = attrs.field(factory=set, init=False)
    dropped: int = attrs.field(default=0, init=False)
    held_back: set[int] = attrs.field(factory=set, init=False)
    last_id: int = attrs.field(default=0, init=False)
    _by_lane: dict[Lane, dict[int, None]] = attrs.field(factory=dict, init=False)

    def counts(self) -> Mapping[str, int]:
        """Return how many letters there are, by group; for any thread."""
        counts: Counter[str] = Counter()
        for (group, _, _), entered in [*self._by_lane.items()]:
            counts[group] += len(entered)
        return counts

    def lane(self, lane: Lane) -> Sequence[int]:
        """Return the ids of the letters of a lane; the oldest first."""
        return [*self._by_lane.get(lane, ())]

    def first_of(self, group: str, subscription: str, aggregate_id: str | None) -> int | None:
        """Return the id of the oldest letter of an aggregate for a subscription, or None."""
        lane = self._by_lane.get((group, subscription, aggregate_id))
        return next(iter(lane)) if lane else None

    def end_replay(self, letter_id: int) -> None:
        """A letter is on its way no more, whatever became of it."""
        self.replaying.discard(letter_id)

    async def refresh(self) -> None:
        """All are known: nobody else has any."""

    def ask(self, _: Sequence[int], /) -> Asked | None:
        """Nobody else has to replay any."""
        return None

    def _enter(self, letter_id: int, lane: Lane) -> None:
        self.last_id = max(self.last_id, letter_id)
        self._by_lane.setdefault(lane, {})[letter_id] = None

    def _leave(self, letter_id: int, lane: Lane) -> None:
        self.held_back.discard(letter_id)
        entered = self._by_lane[lane]
        del entered[letter_id]
        if not entered:
            del self._by_lane[lane]


@attrs.define(eq=False)
class MemoryDeadLetters(DeadLetterIndex):
    """The dead letters of a bus without a store; `DeadLetterKeeper` says what it does."""

    _letters: dict[int, DeadLetter] = attrs.field(factory=dict, init=False)
    _droppable: dict[int, None] = attrs.field(factory=dict, init=False)
    """Those that hold back nothing."""
    _holding: set[Lane] = attrs.field(factory=set, init=False)
    """The lanes whose first letter holds back what is behind it."""

    def __len__(self) -> int:
        return len(self._letters)

    def __contains__(self, letter_id: int) -> bool:
        return letter_id in self._letters

    def ids(self, group: str | None = None, aggregate_id: str | None = None) -> Iterable[int]:
        """Yield the ids of the letters of a group, an aggregate, both or all; the oldest first."""
        for letter in self._letters.values():
            if group in (None, letter.group) and aggregate_id in (None, letter.aggregate_id):
                yield letter.id

    def in_order(self, ids: Iterable[int]) -> Sequence[int]:
        """Return ids in the order in which their events became dead letters."""
        return sorted(ids)

    def lane_of(self, letter_id: int) -> Lane:
        """Return the lane of a letter."""
        return _lane(self._letters[letter_id])

    async def load(self, ids: Sequence[int]) -> Sequence[Undelivered]:
        """Return the letters that are still there of some."""
        letters = [self._letters[letter_id] for letter_id in ids if letter_id in self._letters]
        return [Undelivered(letter, letter.event) for letter in letters]

    async def listed(
        self, group: str | None, aggregate_id: str | None, limit: int
    ) -> Sequence[Undelivered]:
        """Return the oldest letters of a group, an aggregate, both or all."""
        return await self.load([*islice(self.ids(group, aggregate_id), limit)])

    async def flush(self) -> None:
        """Nothing: it lasts as long as the bus."""

    def add(
        self,
        event: Any,
        position: int | None,
        group: str,
        subscription: str,
        attempts: int,
        error: Exception,
        now: datetime,
        aggregate_id: str | None,
        *,
        hold: bool,
    ) -> int:
        """Keep a new letter, dropping the oldest when there are too many; return its id.

        None is dropped that holds back its aggregate, or is being replayed.
        """
        self._make_room()
        letter = DeadLetter(
            id=self.last_id + 1,
            event=event,
            event_id=event.event_id,
            event_type=event.event_type,
            aggregate_id=aggregate_id,
            position=position,
            group=group,
            subscription=subscription,
            attempts=attempts,
            first_failed_at=now,
            last_failed_at=now,
            **described(error),
        )
        lane = _lane(letter)
        self._letters[letter.id] = letter
        self._enter(letter.id, lane)
        if not attempts:
            self.held_back.add(letter.id)
        if hold and aggregate_id is not None:
            self._holding.add(lane)
            self._droppable.pop(self.first_of(*lane), None)  # type: ignore[arg-type]  # it has one
        if lane not in self._holding or self.first_of(*lane) != letter.id:
            self._droppable[letter.id] = None
        return letter.id

    def _make_room(self) -> None:
        excess = len(self._droppable) - len(self.replaying) - KEPT + 1
        if excess > 0:  # more than 1 when some could not be dropped, for they were being replayed
            some = (i for i in self._droppable if i not in self.replaying)
            for oldest in [*islice(some, excess)]:
                self.remove(oldest)
                self.dropped += 1

    def add_failure(self, letter_id: int, attempts: int, error: Exception, now: datetime) -> None:
        """Note that a replay failed again, unless the letter was removed meanwhile."""
        letter = self._letters.get(letter_id)
        if letter is not None:
            self.held_back.discard(letter_id)
            self._letters[letter_id] = attrs.evolve(
                letter,
                attempts=letter.attempts + attempts,
                last_failed_at=now,
                **described(error),
            )

    def newest(self, letter_id: int, event: Any) -> DeadLetter | None:  # noqa: ARG002  # it has it
        """Return a letter that has just failed; None if it was removed meanwhile."""
        return self._letters.get(letter_id)

    def check_removable(self) -> None:
        """Any can be removed at any time."""

    def remove(self, letter_id: int) -> None:
        """Forget a letter, unless that was done before."""
        letter = self._letters.pop(letter_id, None)
        if letter is not None:
            lane = _lane(letter)
            self._leave(letter_id, lane)
            self._droppable.pop(letter_id, None)
            first = self.first_of(*lane)
            if first is None:
                self._holding.discard(lane)
            elif lane in self._holding:
                self._droppable.pop(first, None)


def _lane(letter: DeadLetter) -> Lane:
    return letter.group, letter.subscription, letter.aggregate_id
