"""`listen` and `wait_for`, as a bus has them: how they are typed, up to six classes."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, overload

import trio

from triobus import _checks
from triobus._bus.life import Life
from triobus._events import DomainEvent
from triobus._groups.handlers import Predicate
from triobus._groups.listeners import Inbox, Listener, Waiter
from triobus._groups.subscribing import E1, E2, E3, E4, E5, E6, event_types

_Listening = AbstractAsyncContextManager


class Listenable(Protocol):
    """What can be listened to."""

    @property
    def _life(self) -> Life:
        """The present life of the bus, or the last one."""


@asynccontextmanager
async def _listening(
    life: Life, types: tuple[type[DomainEvent], ...], buffer: float
) -> AsyncIterator[Listener[Any]]:
    found = event_types(types or DomainEvent)
    _checks.capacity("buffer", buffer, least=1)
    life.cycle.check("listen", "listen()")
    inbox = Inbox(found, buffer, life.routing.admit)
    listener = life.log.listen(inbox)
    try:
        await trio.lowlevel.checkpoint()
        yield listener
    finally:
        life.routing.unlisten(inbox)


async def _next_event(life: Life, types: object, where: Predicate | None) -> DomainEvent:
    life.cycle.check("listen", "wait_for()")
    _checks.predicate("where", where)
    waiter = Waiter(event_types(types), where)
    life.routing.add(waiter)
    try:
        return await waiter.wait()
    finally:
        life.routing.remove(waiter)


@overload
def listen(
    self: Listenable,
    type1: type[E1],
    /,
    *,
    buffer: float = 100,
) -> _Listening[Listener[E1]]: ...


@overload
def listen(
    self: Listenable,
    type1: type[E1],
    type2: type[E2],
    /,
    *,
    buffer: float = 100,
) -> _Listening[Listener[E1 | E2]]: ...


@overload
def listen(
    self: Listenable,
    type1: type[E1],
    type2: type[E2],
    type3: type[E3],
    /,
    *,
    buffer: float = 100,
) -> _Listening[Listener[E1 | E2 | E3]]: ...


@overload
def listen(
    self: Listenable,
    type1: type[E1],
    type2: type[E2],
    type3: type[E3],
    type4: type[E4],
    /,
    *,
    buffer: float = 100,
) -> _Listening[Listener[E1 | E2 | E3 | E4]]: ...


@overload
def listen(
    self: Listenable,
    type1: type[E1],
    type2: type[E2],
    type3: type[E3],
    type4: type[E4],
    type5: type[E5],
    /,
    *,
    buffer: float = 100,
) -> _Listening[Listener[E1 | E2 | E3 | E4 | E5]]: ...


@overload
def listen(
    self: Listenable,
    type1: type[E1],
    type2: type[E2],
    type3: type[E3],
    type4: type[E4],
    type5: type[E5],
    type6: type[E6],
    /,
    *,
    buffer: float = 100,
) -> _Listening[Listener[E1 | E2 | E3 | E4 | E5 | E6]]: ...


@overload
def listen(
    self: Listenable, *types: type[DomainEvent], buffer: float = 100
) -> _Listening[Listener[DomainEvent]]: ...


def listen(
    self: Listenable, *types: type[DomainEvent], buffer: float = 100
) -> _Listening[Listener[Any]]:
    """Listen to events without a handler: `async with bus.listen(OrderPlaced) as events:`.

    `async for event in events` then gives every event of the types (without types: every event)
    that is accepted from here on, in that order. It has no retries and no statistics. Up to
    `buffer` events are held for it; after that publishers wait, as they do for a group, and
    with a store it reads the rest from there. The iteration ends when the bus has stopped.
    Raises `BusClosed` once it has, until it is started again.
    """
    return _listening(self._life, types, buffer)


@overload
async def wait_for(
    self: Listenable,
    type_: type[E1],
    where: Callable[[E1], object] | None = None,
) -> E1: ...


@overload
async def wait_for(
    self: Listenable,
    type_: tuple[type[E1], type[E2]],
    where: Callable[[E1 | E2], object] | None = None,
) -> E1 | E2: ...


@overload
async def wait_for(
    self: Listenable,
    type_: tuple[type[E1], type[E2], type[E3]],
    where: Callable[[E1 | E2 | E3], object] | None = None,
) -> E1 | E2 | E3: ...


@overload
async def wait_for(
    self: Listenable,
    type_: tuple[type[E1], type[E2], type[E3], type[E4]],
    where: Callable[[E1 | E2 | E3 | E4], object] | None = None,
) -> E1 | E2 | E3 | E4: ...


@overload
async def wait_for(
    self: Listenable,
    type_: tuple[type[E1], type[E2], type[E3], type[E4], type[E5]],
    where: Callable[[E1 | E2 | E3 | E4 | E5], object] | None = None,
) -> E1 | E2 | E3 | E4 | E5: ...


@overload
async def wait_for(
    self: Listenable,
    type_: tuple[type[E1], type[E2], type[E3], type[E4], type[E5], type[E6]],
    where: Callable[[E1 | E2 | E3 | E4 | E5 | E6], object] | None = None,
) -> E1 | E2 | E3 | E4 | E5 | E6: ...


@overload
async def wait_for(
    self: Listenable,
    type_: tuple[type[DomainEvent], ...],
    where: None = None,
) -> DomainEvent: ...


async def wait_for(
    self: Listenable,
    type_: type[DomainEvent] | tuple[type[DomainEvent], ...],
    where: Predicate | None = None,
) -> Any:
    """Wait for the next event of a type, or of a tuple of types, that `where` is true for.

    Use it under `trio.fail_after`. It sees what is published after it was called: where what it
    waits for may come before, enter `listen()` first. Raises what `where` raises, and `BusClosed`
    if the bus stops before such an event.
    """
    return await _next_event(self._life, type_, where)
