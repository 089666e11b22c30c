"""Listening to a bus with a store: nobody waits, and what there is no room for is read back."""

from collections import deque
from typing import Any

import attrs
import trio

from triobus._errors import EventNotDecodable, StoreClosed
from triobus._events import DomainEvent
from triobus._groups.listeners import Listener
from triobus.stores import EventStore
from triobus.stores._store import BATCH, type_names
from triobus.stores._values import Record


@attrs.define(eq=False, repr=False)
class StoredListener(Listener[Any]):
    """The events that were published since `listen` was entered. Iterate over it.

    Raises `EventNotDecodable` at an event that had to be read back and cannot be, and goes on
    behind it; raises `StoreError`.
    """

    _store: EventStore
    _read_to: int = attrs.field(default=0, init=False)
    """Everything up to it has been added."""
    _last: int = attrs.field(default=0, init=False)
    """The position of the last event that was offered; later than `_read_to` if it is behind."""
    _back: deque[DomainEvent] = attrs.field(factory=deque, init=False)
    """Events that have been read back, older than all that comes from now on."""
    _reading: trio.Lock = attrs.field(factory=trio.Lock, init=False)

    def offer(self, event: DomainEvent, position: int | None = None) -> None:
        """Add an event if there is room, else note that it can be read at its position."""
        assert position is not None
        is_behind = self._last > self._read_to
        self._last = position
        if not is_behind and self.held < self.buffer:
            self._read_to = position
            super().offer(event)
        elif not is_behind:
            self._read_to = position - 1

    async def __anext__(self) -> Any:
        """Return the next event. Cancelled, it has taken none."""
        async with self._reading:
            while not (self._back or self.held) and self._last > self._read_to:
                await self._read_back()
            return self._back.popleft() if self._back else await super().__anext__()

    async def _read_back(self) -> None:
        """Read some of what there was no room for. The bus may have closed its store by now."""
        up_to = self._last
        try:
            records = await self._fetch(up_to)
        except StoreClosed:
            async with self._store.reopened():
                records = await self._fetch(up_to)
        for record in records:
            try:
                event = self._store.decode(record)
            except EventNotDecodable:
                if self._back:
                    return  # it is told when its turn comes
                self._read_to = record.position
                raise
            self._read_to = record.position
            self._back.append(event)
        if not records:
            self._read_to = up_to

    async def _fetch(self, up_to: int) -> list[Record]:
        return await self._store.fetch(self._read_to, BATCH, up_to, types=type_names(self.types))
