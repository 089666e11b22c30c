"""Listening to a bus with a store: no publisher waits, and events without room are read back."""

from collections import deque

import attrs
import trio

from triobus._errors import EventNotDecodable, StoreClosed
from triobus._events import DomainEvent
from triobus._groups.listeners import Inbox
from triobus.stores import EventStore
from triobus.stores._reading import BATCH, type_names
from triobus.stores._values import Row, Selection


@attrs.define(eq=False)
class StoredInbox:
    """The events that wait for a listener: some in memory, and the rest in the store."""

    inbox: Inbox
    _store: EventStore
    _read_to: int = attrs.field(default=0, init=False)
    """Everything up to it has been added."""
    _last: int = attrs.field(default=0, init=False)
    """The position of the last event that was offered; later than `_read_to` if it is behind."""
    _back: deque[DomainEvent] = attrs.field(factory=deque, init=False)
    """Events that have been read back, older than all that comes from now on."""
    _reading: trio.Lock = attrs.field(factory=trio.Lock, init=False)

    def offer(self, event: DomainEvent, position: int | None) -> None:
        """Add an event if there is room, else note that it can be read at its position."""
        assert position is not None
        is_behind = self._last > self._read_to
        self._last = position
        if not is_behind and self.inbox.held < self.inbox.buffer:
            self._read_to = position
            self.inbox.offer(event, position)
        elif not is_behind:
            self._read_to = position - 1

    async def receive(self) -> DomainEvent:
        """Return the next event; raises `EndOfChannel`. Cancelled, it has taken none."""
        async with self._reading:
            while not (self._back or self.inbox.held) and self._last > self._read_to:
                await self._read_back()
            return self._back.popleft() if self._back else await self.inbox.receive()

    async def _read_back(self) -> None:
        """Read some of what there was no room for. The bus may have closed its store by now."""
        up_to = self._last
        try:
            records = await self._fetch(up_to)
        except StoreClosed:
            async with self._store._reopened():
                records = await self._fetch(up_to)
        for record in records:
            try:
                event = self._store._decode(record)
            except EventNotDecodable:
                if self._back:
                    return  # it is told when its turn comes
                self._read_to = record.position
                raise
            self._read_to = record.position
            self._back.append(event)
        if not records:
            self._read_to = up_to

    async def _fetch(self, up_to: int) -> list[Row]:
        return await self._store._fetch(
            self._read_to, BATCH, up_to, Selection(types=type_names(self.inbox.types))
        )
