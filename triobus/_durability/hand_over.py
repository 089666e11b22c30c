"""Handing over: events that have just been stored go to the groups and to those who listen."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import attrs

from triobus._durability.catch_up import CatchUp
from triobus._errors import EventNotDecodable
from triobus._events import DomainEvent
from triobus._groups.outcome import PendingOutcome
from triobus.stores import EventStore
from triobus.stores._commits import Submission
from triobus.stores._values import Release, Row


@attrs.define(eq=False)
class HandOver:
    """Where the log of a store ends for one bus, and how what comes there gets to its groups."""

    _store: EventStore
    _tell: Callable[[Sequence[DomainEvent], int, bool], None]
    """Called with new events for those who listen, and whether the groups get them in this life."""
    _catch_ups: Mapping[str, CatchUp]
    last: int = attrs.field(default=0, init=False)
    """The position of the last event."""
    reach: int = attrs.field(default=0, init=False)
    """The position of the last event that the groups get in this life of the bus."""
    is_cutting: bool = attrs.field(default=False, init=False)
    """Whether what outsiders store is the next life's."""
    _is_cut: bool = attrs.field(default=False, init=False)
    """Whether they have stored something since, so that all behind it is the next life's too."""

    def begin(self, last: int) -> None:
        """Begin behind the last event that there is."""
        self.last = self.reach = last

    def all(self, submissions: Sequence[Submission]) -> None:
        """Hand over what has just been stored, in the order of the log."""
        # What is new and side by side goes over together: half of the time with many publishers.
        events: list[DomainEvent] = []
        keys: list[str | None] = []
        for submission in submissions:
            batch = submission.batch
            if batch is None and not isinstance(submission.item, Release):
                continue
            if self.is_cutting:
                self._next(events, keys)
                events, keys = [], []
                self._is_cut = self._is_cut or is_new_from_outside(submission)
            if batch is None:
                self._next(events, keys)
                events, keys = [], []
                self._rows(submission.result.rows)
                continue
            if batch.completion is None and all(place.is_new for place in submission.positions):
                events += batch.events
                keys += batch.keys
                continue
            self._next(events, keys)
            events, keys = [], []
            for event, key, place in zip(
                batch.events, batch.keys, submission.positions, strict=True
            ):
                # What the log had before has been handed over before.
                if place.is_new:
                    self._next([event], [key], batch.completion)
                elif batch.completion is not None:
                    self._watch_on(event, place.position, batch.completion)
        self._next(events, keys)

    def _rows(self, rows: Sequence[Row]) -> None:
        """Give the groups what came out of the schedule; they read what cannot be made here."""
        for row in rows:
            try:
                event = self._store._decode(row)
            except EventNotDecodable:
                self._pass_on()
            else:
                self._next([event], [row.aggregate_id])

    def _pass_on(self) -> None:
        """Let the groups read the next event of the log themselves."""
        self.last += 1
        if not self._is_cut:
            self.reach = self.last
            for catch_up in self._catch_ups.values():
                catch_up.last = self.last
                if catch_up.is_active:
                    catch_up.offer([], [], self.last, None)

    def _next(
        self,
        events: Sequence[DomainEvent],
        keys: Sequence[str | None],
        completion: PendingOutcome | None = None,
    ) -> None:
        """Give the groups what comes next in the log."""
        if not events:
            return
        first = self.last + 1
        self.last += len(events)
        if not self._is_cut:
            self.reach = self.last
            if completion is not None:
                completion.expect(self._plans(type(events[0])))
            for catch_up in self._catch_ups.values():
                catch_up.last = self.last
                if catch_up.is_active:
                    catch_up.offer(events, keys, first, completion)
        self._tell(events, first, not self._is_cut)

    def _watch_on(self, event: DomainEvent, position: int, completion: PendingOutcome) -> None:
        """Let a publisher wait for the groups that have still to deal with an event of the log."""
        open_ = [
            catch_up for catch_up in self._catch_ups.values() if catch_up.is_open(event, position)
        ]
        completion.expect([catch_up.group._plan_for(type(event)) for catch_up in open_])
        for catch_up in open_:
            catch_up.acknowledgements.ask(position, completion)

    def _plans(self, cls: type[DomainEvent]) -> list[Any]:
        plans = (
            catch_up.group._plan_for(cls)
            for catch_up in self._catch_ups.values()
            if catch_up.is_active
        )
        return [plan for plan in plans if plan]


def is_new_from_outside(submission: Submission) -> bool:
    """Whether something is in the log now that no handler has published."""
    if submission.batch is None:
        return bool(submission.result.rows)
    is_new = any(place.is_new for place in submission.positions)
    return is_new and not submission.batch.is_inside


def events_of(
    store: EventStore, submissions: Sequence[Submission], *, is_stored: bool
) -> Sequence[DomainEvent]:
    """Return the events that are in the log now; or that were to be, when nothing is stored."""
    events: list[DomainEvent] = []
    for each in submissions:
        if each.batch is not None and not is_stored:
            events += each.batch.events
        elif each.batch is not None:
            pairs = zip(each.batch.events, each.positions, strict=True)
            events += [event for event, place in pairs if place.is_new]
        elif is_stored and isinstance(each.item, Release):
            events += _made_of(store, each.result.rows)
    return events


def _made_of(store: EventStore, rows: Sequence[Row]) -> list[DomainEvent]:
    """Return the events of rows, without those that cannot be made."""
    found = []
    for row in rows:
        with suppress(EventNotDecodable):
            found.append(store._decode(row))
    return found
