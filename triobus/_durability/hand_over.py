"""Handing over: events that have just been stored go to the groups and to those who listen."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from triobus._durability.alarm import Alarm
from triobus._durability.catch_up import CatchUp
from triobus._errors import EventNotDecodable, StoreError
from triobus._events import DomainEvent
from triobus._groups.outcome import PendingOutcome
from triobus.stores import EventStore
from triobus.stores._commits import Submission
from triobus.stores._reading import BATCH
from triobus.stores._values import Release, Row

logger = logging.getLogger("triobus")

_PAUSE = 1
"""Seconds after which a read that failed is made again."""


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
    _told: int = attrs.field(default=0, init=False)
    """The position of the last event that those who listen have been told."""
    _alarm: Alarm = attrs.field(factory=Alarm, init=False)
    """Rings when there are events in the log that other programs have stored."""

    def begin(self, last: int) -> None:
        """Begin behind the last event that there is."""
        self.last = self.reach = self._told = last

    def all(self, submissions: Sequence[Submission]) -> None:
        """Hand over what has just been stored, in the order of the log."""
        # What is new and side by side goes over together: half of the time with many publishers.
        events: list[DomainEvent] = []
        keys: list[str | None] = []
        first = 0
        for submission in submissions:
            batch, places = submission.batch, submission.positions
            if batch is None and not isinstance(submission.item, Release):
                continue
            if self.is_cutting:
                self._next(events, keys, first)
                events, keys = [], []
                self._is_cut = self._is_cut or is_new_from_outside(submission)
            if batch is None:
                self._next(events, keys, first)
                events, keys = [], []
                self._rows(submission.result.rows)
                continue
            if batch.completion is None and all(place.is_new for place in places):
                if not events:
                    first = places[0].position
                events += batch.events
                keys += batch.keys
                continue
            self._next(events, keys, first)
            events, keys = [], []
            for event, key, place in zip(batch.events, batch.keys, places, strict=True):
                # What the log had before has been handed over before.
                if place.is_new:
                    self._next([event], [key], place.position, batch.completion)
                elif batch.completion is not None:
                    self._watch_on(event, place.position, batch.completion)
        self._next(events, keys, first)

    def _rows(self, rows: Sequence[Row]) -> None:
        """Give the groups what came out of the schedule; they read what cannot be made here."""
        for row in rows:
            try:
                event = self._store._decode(row)
            except EventNotDecodable:
                self._reach_to(row.position)
            else:
                self._next([event], [row.aggregate_id], row.position)

    def on_news(self, last: int) -> None:
        """The log ends there at least: other programs have stored something."""
        if last > self.last:
            self._is_cut = self._is_cut or self.is_cutting
            self._reach_to(last)

    def _reach_to(self, last: int) -> None:
        """Let the groups, and those who listen, read what is in the log up to a position."""
        self.last = max(self.last, last)
        if not self._is_cut:
            self.reach = self.last
            for catch_up in self._catch_ups.values():
                catch_up.last = self.last
                if catch_up.is_active:
                    catch_up.offer([], [], self.last, None)
        self._alarm.ring()

    def _next(
        self,
        events: Sequence[DomainEvent],
        keys: Sequence[str | None],
        first: int,
        completion: PendingOutcome | None = None,
    ) -> None:
        """Give the groups what is in the log from a position on; they read what is before it."""
        if not events:
            return
        self.last = max(self.last, first + len(events) - 1)
        if not self._is_cut:
            self.reach = self.last
            if completion is not None:
                completion.expect(self._plans(type(events[0])))
            for catch_up in self._catch_ups.values():
                catch_up.last = self.last
                if catch_up.is_active:
                    catch_up.offer(events, keys, first, completion)
        # Only where others store something too is anything left out, and read by `run`.
        if self._told == first - 1 or not self._store._is_attended:
            self._told = first + len(events) - 1
            self._tell(events, first, not self._is_cut)
        else:
            self._alarm.ring()

    async def run(self) -> None:
        """Read for those who listen what other programs have stored, until it is cancelled."""
        while True:
            if self._told >= self.last:
                await self._alarm.sleep()
                continue
            try:
                self._tell_rows(await self._store._fetch(self._told, BATCH, self.last))
            except StoreError as error:
                logger.warning("what others have stored could not be read yet: %s", error)
                await trio.sleep(_PAUSE)

    @enable_ki_protection
    def _tell_rows(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if row.position == self._told + 1:
                self._told = row.position
                try:
                    event = self._store._decode(row)
                except EventNotDecodable as error:
                    logger.warning("nobody who listens is told of an event: %s", error)
                else:
                    self._tell([event], row.position, row.position <= self.reach)

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
