"""Listening without a handler: `listen` for all events of some types, `wait_for` for one."""

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar, cast

import attrs
import trio

from triobus._checks import truth
from triobus._events import DomainEvent
from triobus._groups.handlers import Predicate

E_co = TypeVar("E_co", bound=DomainEvent, covariant=True)


@attrs.define(eq=False)
class Inbox:
    """The events that wait for a listener, and the publishers that wait for room among them."""

    types: tuple[type[DomainEvent], ...]
    buffer: float
    _on_room: Callable[["Inbox"], None]
    waiting: OrderedDict[Any, None] = attrs.field(factory=OrderedDict, init=False)
    """The publishers that wait for room here, as the bus keeps them."""
    admits_at: float = attrs.field(default=-1, init=False)
    """How few events may be held for the first of them to fit; -1 when none waits."""
    held: int = attrs.field(default=0, init=False)
    """How many events are there to be taken."""
    taker: trio.lowlevel.Task | None = attrs.field(default=None, init=False)
    """The one task that has taken events so far; None before any, and when there are several."""
    _is_shared: bool = attrs.field(default=False, init=False)
    is_closed: bool = attrs.field(default=False, init=False)
    _send: trio.MemorySendChannel[DomainEvent] = attrs.field(init=False)
    _receive: trio.MemoryReceiveChannel[DomainEvent] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        # Without a limit of its own: handlers may publish beyond `buffer`.
        self._send, self._receive = trio.open_memory_channel[DomainEvent](math.inf)

    async def receive(self) -> DomainEvent:
        """Return the next event; raises `EndOfChannel`. Cancelled, it has taken none."""
        self._note_taker(trio.lowlevel.current_task())
        event = await self._receive.receive()
        self.held -= 1
        if self.held <= self.admits_at:
            self._on_room(self)
        return event

    def _note_taker(self, task: trio.lowlevel.Task) -> None:
        if self.taker is not task and not self._is_shared:
            self._is_shared = self.taker is not None
            self.taker = None if self._is_shared else task

    def has_room(self, count: int) -> bool:
        """Whether `count` more events fit; more than fit at all do when it is empty."""
        return self.held <= self.held_for(count)

    def held_for(self, count: int) -> float:
        """Return how few events must be held for `count` more to fit."""
        return self.buffer - min(count, self.buffer)

    def offer(self, event: DomainEvent, _position: int | None) -> None:
        """Add an event, room or not, unless it is closed."""
        if not self.is_closed:
            self.held += 1
            self._send.send_nowait(event)

    def close(self) -> None:
        """End the iteration after what is there, and hold up no publisher any more."""
        self.buffer = math.inf
        self.is_closed = True
        self._send.close()


@attrs.define(eq=False, repr=False)
class Listener(Generic[E_co]):
    """The events that were published since `listen` was entered. Iterate over it.

    It ends when the bus has stopped and all that was published before is taken. Several tasks may
    share one; each event goes to one of them. With a store, an event that had to be read back and
    cannot be made from its JSON raises `EventNotDecodable`, and iterating goes on behind it; a
    store that cannot be read raises `StoreError`.
    """

    _inbox: Inbox
    _receive: Callable[[], Awaitable[DomainEvent]]

    def __repr__(self) -> str:
        inbox = self._inbox
        types = ", ".join(cls.__qualname__ for cls in inbox.types)
        ended = ", ended" if inbox.is_closed else ""
        return f"<Listener to {types}, {inbox.held} events to be taken{ended}>"

    def __aiter__(self) -> "Listener[E_co]":
        return self

    async def __anext__(self) -> E_co:
        """Return the next event. Cancelled, it has taken none."""
        try:
            event = await self._receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
        return cast("E_co", event)  # it is offered no others


@attrs.define(eq=False)
class Waiter:
    """One call of `wait_for`, until the first event that it wants."""

    types: tuple[type[DomainEvent], ...]
    where: Predicate | None
    found: DomainEvent | None = None
    error: BaseException | None = None
    _done: trio.Event = attrs.field(factory=trio.Event, init=False)

    def offer(self, event: DomainEvent) -> bool:
        """Take the event if it is wanted; return whether the wait is over."""
        try:
            if self.where is not None and not truth("where", self.where(event)):
                return False
            self.found = event
        except BaseException as error:  # noqa: BLE001  # the waiter raises it, not the publisher
            self.error = error
        self._done.set()
        return True

    def fail(self, error: Exception) -> None:
        """End the wait with an error."""
        self.error = error
        self._done.set()

    async def wait(self) -> DomainEvent:
        """Return the event, or raise what `where` or the bus's end gave in its place."""
        await self._done.wait()
        if self.error is not None:
            raise self.error
        assert self.found is not None
        return self.found
