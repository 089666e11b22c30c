"""Aggregates whose next events are on disk only, although the group has read past them. Pure data.

When the room is full of events that line up behind busy or waiting ones, their lines are evicted.
They are read back, a few at a time, when the lane has become free. Replays that were in such a line
are kept here, with the position up to which events go before them.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from math import inf

import attrs

from triobus._durability.lanes import StoredLanes, place_of
from triobus._events import DomainEvent
from triobus._groups.delivery import Completion, Replayed
from triobus._groups.subscriptions import Subscription


@attrs.define(eq=False)
class Evicted:
    """The evicted aggregates of one group."""

    _lanes: StoredLanes
    _from: dict[str, int] = attrs.field(factory=dict, init=False)
    """For each of them, the position from which its events are to be read back."""
    free: dict[str, None] = attrs.field(factory=dict, init=False)
    """Those of them whose lane has become free."""
    _replays: dict[str, deque[tuple[int, Replayed]]] = attrs.field(factory=dict, init=False)

    def __contains__(self, key: str | None) -> bool:
        return key in self._from

    def add(
        self,
        events: Sequence[DomainEvent],
        keys: Sequence[str | None],
        plan: tuple[Subscription, ...],
        completion: Completion | None,
        first: int,
    ) -> None:
        """Queue new events, except for those that have others before them on disk."""
        if not (self._from and self._lanes.is_ordered):
            self._lanes.add_many(events, keys, plan, completion, count(first))
            return
        for event, key, position in zip(events, keys, count(first), strict=False):
            if key not in self._from:
                self._lanes.add(event, key, plan, completion, position=position)
                continue
            self._lanes.add_outside()
            if completion is not None:
                self._lanes.completions[position] = completion

    def evict(self) -> None:
        """Give up everything that lines up."""
        for key, line in self._lanes.evict_lines():
            replays: list[tuple[int, Replayed]] = []
            for queued in line:
                _, event, _, plan, completion, letter_id, position = queued
                after = place_of(queued)
                if letter_id is not None:
                    assert completion is not None
                    replays.append((after, (event, key, plan, completion, letter_id, position)))
                elif completion is not None:
                    self._lanes.completions[after] = completion
            # A replay may stand before events that have been read back since.
            events = [place_of(queued) for queued in line if queued[5] is None]
            first = min(events, default=place_of(line[0]) + 1)
            self._from[key] = min(self._from.get(key, first), first)
            if replays:
                self._replays.setdefault(key, deque()).extendleft(reversed(replays))

    def on_settled(self, key: str | None) -> bool:
        """A delivery of an aggregate is finished; return whether its next events are wanted."""
        if key is None or key not in self._from or self._lanes.has_lane(key):
            return False
        self.free[key] = None
        self._bar()
        return True

    def next(self, read_to: int) -> tuple[str, int, int]:
        """Return an aggregate whose lane is free, and which positions are to be read for it.

        These are the ones behind the first number, up to the second.
        """
        key = next(iter(self.free))
        replays = self._replays.get(key)
        return key, self._from[key] - 1, replays[0][0] if replays else read_to

    def read_back(self, key: str, last: int | None, up_to: int, read_to: int, added: int) -> None:
        """Events of an aggregate were read up to position `last`, and `added` of them queued.

        `last` is None when there are no more of them up to `up_to`.
        """
        if last is not None:
            self._from[key] = last + 1
        elif self._lanes.is_ordered and up_to < read_to:
            self._from[key] = up_to + 1  # for something may have come meanwhile
        else:
            del self._from[key]
        added += self._add_replays(key, read_to)
        if added or key not in self._from:
            # Otherwise no delivery is there whose end would bring it on.
            del self.free[key]
        self._bar()

    def replay(self, given: Replayed, read_to: int) -> bool:
        """Keep a replay whose aggregate has events before it on disk; return whether that is so."""
        key = given[1]
        if key is None or key not in self._from:
            return False
        self._lanes.add_outside()
        self._replays.setdefault(key, deque()).append((read_to, given))
        return True

    def replays(self) -> Iterator[tuple[int, int | None, Completion]]:
        """Yield position, dead letter and completion of every replay that is kept here."""
        for kept in self._replays.values():
            for _, (_, _, _, completion, letter_id, position) in kept:
                yield position or 0, letter_id, completion

    def drop(self, is_dropped: Callable[[str], bool]) -> list[Completion]:
        """Forget some aggregates; return the completions of their replays."""
        for key in [key for key in self._from if is_dropped(key)]:
            del self._from[key]
            self.free.pop(key, None)
        dropped = [key for key in self._replays if is_dropped(key)]
        replays = [given for key in dropped for _, given in self._replays.pop(key)]
        self._lanes.outside -= len(replays)
        self._bar()
        return [given[3] for given in replays]

    def _add_replays(self, key: str, read_to: int) -> int:
        """Queue the replays that have nothing before them on disk; return how many."""
        replays, added = self._replays.get(key), 0
        while replays and self._from.get(key, inf) > replays[0][0]:
            _, given = replays.popleft()
            self._lanes.outside -= 1
            self._lanes.add(*given, after=read_to)
            added += 1
        if not replays:
            self._replays.pop(key, None)
        return added

    def _bar(self) -> None:
        self._lanes.bar(min((self._from[key] for key in self.free), default=None))
