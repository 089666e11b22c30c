"""Listeners of one node hear what all nodes publish, in the order of the log."""

from collections.abc import Callable, Sequence

import attrs

from triobus._durability.alarm import Alarm
from triobus._errors import EventNotDecodable
from triobus._events import DomainEvent
from triobus.stores import EventStore
from triobus.stores._reading import BATCH


@attrs.define(eq=False)
class Telling:
    """Gives the log to those who listen to one bus."""

    _store: EventStore
    _offer: Callable[[DomainEvent, int], None]
    """Gives listeners an event with its position."""
    _has_listeners: Callable[[], bool]
    last: int = attrs.field(default=0, init=False)
    """Where the log ends."""
    _told_to: int = attrs.field(default=0, init=False)
    """Everything up to it was told."""
    _alarm: Alarm = attrs.field(factory=Alarm, init=False)

    def begin(self, last: int) -> None:
        """Begin behind the last event that there is."""
        self.last = self._told_to = last

    def new(self, events: Sequence[DomainEvent], first: int) -> None:
        """Tell of events that are at hand, unless others have to be told of before."""
        last = first + len(events) - 1
        if self._told_to == first - 1:
            self.last = self._told_to = last
            for position, event in enumerate(events, first):
                self._offer(event, position)
        else:
            self.learn(last)

    def learn(self, last: int) -> None:
        """Tell of what is in the log up to there, which has to be read."""
        self.last = max(self.last, last)
        if not self._has_listeners():
            self._told_to = self.last
        elif self._told_to < self.last:
            self._alarm.ring()

    async def run(self) -> None:
        """Read what has to be told, for ever. Raises `StoreError`."""
        while True:
            while self._told_to < self.last:
                for row in await self._store._fetch(self._told_to, BATCH, self.last):
                    if row.position <= self._told_to:
                        continue
                    self._told_to = row.position
                    try:
                        event = self._store._decode(row)
                    except EventNotDecodable:
                        continue  # a listener is told of events only
                    self._offer(event, row.position)
            await self._alarm.sleep()
