"""Handing over on one of several nodes: what others store lies between what this one does."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs

from triobus._durability.hand_over import is_new_from_outside
from triobus._durability.sharing.catch_up import SharedCatchUp
from triobus._durability.sharing.telling import Telling
from triobus._errors import EventNotDecodable
from triobus._events import DomainEvent
from triobus._groups.outcome import PendingOutcome
from triobus.stores import EventStore
from triobus.stores._commits import Submission
from triobus.stores._values import LogPosition, Release


@attrs.define(eq=False)
class SharedHandOver:
    """Where the log of a shared store ends for one node, and how what comes gets to its groups.

    What this node has stored right behind the end that it knows goes to its groups as it is. What
    comes otherwise, they read.
    """

    _store: EventStore
    _count: Callable[[Sequence[DomainEvent], int], None]
    """Called with the events that this bus has published, and their first position."""
    telling: Telling
    _catch_ups: Mapping[str, SharedCatchUp]
    last: int = attrs.field(default=0, init=False)
    """The position of the last event that is known."""
    reach: int = attrs.field(default=0, init=False)
    """The position of the last event that the groups get in this life of the bus."""
    is_cutting: bool = attrs.field(default=False, init=False)
    """Whether what others store is for other nodes, or the next life."""
    _is_cut: bool = attrs.field(default=False, init=False)
    """Whether they have stored something since, so that all behind it is too."""

    def begin(self, last: int) -> None:
        """Begin behind the last event that there is."""
        self.last = self.reach = last
        self.telling.begin(last)

    def learn(self, last: int) -> None:
        """Know that the log ends there at least."""
        if last <= self.last:
            return
        self.last = last
        self._is_cut = self._is_cut or self.is_cutting
        if not self._is_cut:
            self._extend([], [], last)
        self.telling.learn(last)

    def all(self, submissions: Sequence[Submission]) -> None:
        """Hand over what this node has just stored, in the order of the log."""
        for submission in submissions:
            batch = submission.batch
            if self.is_cutting and (batch is not None or isinstance(submission.item, Release)):
                self._is_cut = self._is_cut or is_new_from_outside(submission)
            if batch is not None:
                places = zip(batch.events, batch.keys, submission.positions, strict=True)
                self._runs(places, batch.completion)
            elif isinstance(submission.item, Release):
                self._rows(submission)

    def _rows(self, submission: Submission) -> None:
        for row in submission.result.rows:
            try:
                event = self._store._decode(row)
            except EventNotDecodable:
                self.learn(row.position)  # the groups read it themselves
            else:
                self._next([event], [row.aggregate_id], row.position, None)

    def _runs(
        self,
        places: Iterable[tuple[DomainEvent, str | None, LogPosition]],
        completion: PendingOutcome | None,
    ) -> None:
        events: list[DomainEvent] = []
        keys: list[str | None] = []
        first = 0
        for event, key, place in places:
            if not place.is_new:
                if completion is not None:
                    self._watch(event, key, place.position, completion)
                continue
            if events and place.position != first + len(events):
                self._next(events, keys, first, None)
                events, keys = [], []
            first = first if events else place.position
            events.append(event)
            keys.append(key)
        if events:
            self._next(events, keys, first, completion)

    def _next(
        self,
        events: Sequence[DomainEvent],
        keys: Sequence[str | None],
        first: int,
        completion: PendingOutcome | None,
    ) -> None:
        """Give the groups and the listeners what comes next, unless there is more before it."""
        last = first + len(events) - 1
        if first != self.last + 1:
            self.learn(last)
            if completion is not None:
                self._watch(events[0], keys[0], first, completion)
        else:
            self.last = last
            if self._is_cut:
                completion = None
            else:
                self._extend(events, keys, last, completion)
        if not self._is_cut:
            self._count(events, first)
        self.telling.new(events, first)

    def _extend(
        self,
        events: Sequence[DomainEvent],
        keys: Sequence[str | None],
        last: int,
        completion: PendingOutcome | None = None,
    ) -> None:
        """Let the groups have the log up to there."""
        self.reach = last
        wanting = [] if completion is None else self._wanting(events[0], keys[0])
        if completion is not None:
            completion.expect([each.plans.of_class(type(events[0])) for each in wanting])
        for catch_up in self._catch_ups.values():
            catch_up.last = last
            if catch_up.is_active:
                asked = completion if catch_up in wanting else None
                catch_up.offer(events, keys, last - len(events) + 1, asked)

    def _watch(
        self, event: DomainEvent, key: str | None, position: int, completion: PendingOutcome
    ) -> None:
        """Let a publisher wait for the groups that have still to deal with an event of the log."""
        wanting = [] if self._is_cut else self._wanting(event, key)
        completion.expect([each.plans.of_class(type(event)) for each in wanting])
        for catch_up in wanting:
            catch_up.watch(event, key, position, completion)

    def _wanting(self, event: DomainEvent, key: str | None) -> list[SharedCatchUp]:
        """Return the groups of which this node has the part that an event is in."""
        catch_ups = self._catch_ups.values()
        return [each for each in catch_ups if each.is_active and each.wants(event, key)]
