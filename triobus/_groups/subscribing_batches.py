"""`subscribe`, as a group with batches has it: its handlers take a tuple of events at once."""

from typing import Any, TypeVar, Unpack, overload

from triobus._events import DomainEvent
from triobus._groups.handlers import Handler
from triobus._groups.subscribing import (
    _H,
    _T,
    E1,
    E2,
    E3,
    Subscriber,
    _Decorator,
    _Options,
    _Transactional,
    _TransactionalDecorator,
    subscribe,
)

_S = TypeVar("_S")
_Many = tuple[
    type[DomainEvent],
    type[DomainEvent],
    type[DomainEvent],
    type[DomainEvent],
    *tuple[type[DomainEvent], ...],
]
"""Four classes or more."""


@overload
def subscribe_batch(
    self: Subscriber[_S],
    types: type[E1],
    handler: _H[tuple[E1, ...]],
    *,
    where: _H[E1] | None = None,
    **options: Unpack[_Options],
) -> _S: ...


@overload
def subscribe_batch(
    self: Subscriber[_S],
    types: type[E1],
    handler: None = None,
    *,
    where: _H[E1] | None = None,
    **options: Unpack[_Options],
) -> _Decorator[tuple[E1, ...]]: ...


@overload
def subscribe_batch(
    self: Subscriber[_S],
    types: tuple[type[E1], type[E2]],
    handler: _H[tuple[E1 | E2, ...]],
    *,
    where: _H[E1 | E2] | None = None,
    **options: Unpack[_Options],
) -> _S: ...


@overload
def subscribe_batch(
    self: Subscriber[_S],
    types: tuple[type[E1], type[E2]],
    handler: None = None,
    *,
    where: _H[E1 | E2] | None = None,
    **options: Unpack[_Options],
) -> _Decorator[tuple[E1 | E2, ...]]: ...


@overload
def subscribe_batch(
    self: Subscriber[_S],
    types: tuple[type[E1], type[E2], type[E3]],
    handler: _H[tuple[E1 | E2 | E3, ...]],
    *,
    where: _H[E1 | E2 | E3] | None = None,
    **options: Unpack[_Options],
) -> _S: ...


@overload
def subscribe_batch(
    self: Subscriber[_S],
    types: tuple[type[E1], type[E2], type[E3]],
    handler: None = None,
    *,
    where: _H[E1 | E2 | E3] | None = None,
    **options: Unpack[_Options],
) -> _Decorator[tuple[E1 | E2 | E3, ...]]: ...


@overload
def subscribe_batch(
    self: Subscriber[_S],
    types: _Many,
    handler: _H[tuple[Any, ...]],
    *,
    where: _H[Any] | None = None,
    **options: Unpack[_Options],
) -> _S: ...


@overload
def subscribe_batch(
    self: Subscriber[_S],
    types: _Many,
    handler: None = None,
    *,
    where: _H[Any] | None = None,
    **options: Unpack[_Options],
) -> _Decorator[tuple[Any, ...]]: ...


@overload
def subscribe_batch(
    self: Subscriber[_S],
    types: type[E1],
    handler: _T[tuple[E1, ...]],
    *,
    where: _H[E1] | None = None,
    **options: Unpack[_Transactional],
) -> _S: ...


@overload
def subscribe_batch(
    self: Subscriber[_S],
    types: type[E1],
    handler: None = None,
    *,
    where: _H[E1] | None = None,
    **options: Unpack[_Transactional],
) -> _TransactionalDecorator[tuple[E1, ...]]: ...


@overload
def subscribe_batch(
    self: Subscriber[_S],
    types: tuple[type[E1], type[E2]],
    handler: _T[tuple[E1 | E2, ...]],
    *,
    where: _H[E1 | E2] | None = None,
    **options: Unpack[_Transactional],
) -> _S: ...


@overload
def subscribe_batch(
    self: Subscriber[_S],
    types: tuple[type[E1], type[E2]],
    handler: None = None,
    *,
    where: _H[E1 | E2] | None = None,
    **options: Unpack[_Transactional],
) -> _TransactionalDecorator[tuple[E1 | E2, ...]]: ...


@overload
def subscribe_batch(
    self: Subscriber[_S],
    types: tuple[type[E1], type[E2], type[E3]],
    handler: _T[tuple[E1 | E2 | E3, ...]],
    *,
    where: _H[E1 | E2 | E3] | None = None,
    **options: Unpack[_Transactional],
) -> _S: ...


@overload
def subscribe_batch(
    self: Subscriber[_S],
    types: tuple[type[E1], type[E2], type[E3]],
    handler: None = None,
    *,
    where: _H[E1 | E2 | E3] | None = None,
    **options: Unpack[_Transactional],
) -> _TransactionalDecorator[tuple[E1 | E2 | E3, ...]]: ...


@overload
def subscribe_batch(
    self: Subscriber[_S],
    types: _Many,
    handler: _T[tuple[Any, ...]],
    *,
    where: _H[Any] | None = None,
    **options: Unpack[_Transactional],
) -> _S: ...


@overload
def subscribe_batch(
    self: Subscriber[_S],
    types: _Many,
    handler: None = None,
    *,
    where: _H[Any] | None = None,
    **options: Unpack[_Transactional],
) -> _TransactionalDecorator[tuple[Any, ...]]: ...


def subscribe_batch(
    self: Subscriber[Any],
    types: type[DomainEvent] | tuple[type[DomainEvent], ...],
    handler: Handler | None = None,
    **options: Any,
) -> Any:
    """Call `handler` with tuples of events of `types` that are published from now on.

    A tuple has up to as many events as the group has for `batch`, in their order. Otherwise it is
    like `Group.subscribe`, of which `where` is asked for each event.
    """
    return subscribe(self, types, handler, **options)
