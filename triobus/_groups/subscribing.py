"""`subscribe`, as a group and a bus have it: what is asked for, and how it is typed.

A checker knows from `types` what the handler and `where` are given, up to six classes in a tuple.
Overloads say so one number of classes at a time, for mypy takes the classes of a tuple for one
common base. A decorator with `where` needs the classes themselves: to mypy a tuple of any length
fits two of these then, and it would know nothing.
"""

from collections.abc import Callable
from typing import Any, Literal, Protocol, Required, TypedDict, TypeVar, Unpack, overload

import attrs

from triobus import _checks
from triobus._errors import InvalidEvent, InvalidOption
from triobus._events import DomainEvent
from triobus._groups.handlers import Handler, Predicate
from triobus._groups.retry import Retry

E1 = TypeVar("E1", bound=DomainEvent)
E2 = TypeVar("E2", bound=DomainEvent)
E3 = TypeVar("E3", bound=DomainEvent)
E4 = TypeVar("E4", bound=DomainEvent)
E5 = TypeVar("E5", bound=DomainEvent)
E6 = TypeVar("E6", bound=DomainEvent)
_E = TypeVar("_E")
_R = TypeVar("_R")
_S = TypeVar("_S")
_S_co = TypeVar("_S_co", covariant=True)
_Many = tuple[
    type[DomainEvent],
    type[DomainEvent],
    type[DomainEvent],
    type[DomainEvent],
    type[DomainEvent],
    type[DomainEvent],
    type[DomainEvent],
    *tuple[type[DomainEvent], ...],
]
"""Seven classes or more."""
_FiveOrMore = tuple[
    type[DomainEvent],
    type[DomainEvent],
    type[DomainEvent],
    type[DomainEvent],
    type[DomainEvent],
    *tuple[type[DomainEvent], ...],
]
_H = Callable[[_E], object]
"""A handler, or a predicate, of an event."""
_T = Callable[[_E, Any], object]
"""A transactional handler of an event; what it is given beside is a `Transaction`."""


class _Decorator(Protocol[_E]):
    """Subscribes a handler and returns it."""

    def __call__(self, handler: Callable[[_E], _R], /) -> Callable[[_E], _R]:
        """Do so."""


class _TransactionalDecorator(Protocol[_E]):
    """Subscribes a transactional handler and returns it."""

    def __call__(self, handler: Callable[[_E, Any], _R], /) -> Callable[[_E, Any], _R]:
        """Do so."""


class _Options(TypedDict, total=False):
    """The keywords of `subscribe` that have nothing to do with the event's type."""

    name: str | None
    priority: int
    retry: Retry
    timeout: float | None
    hold: bool


class _Transactional(_Options, total=False):
    """These, with the one that makes a handler transactional."""

    transactional: Required[Literal[True]]


def event_types(types: object) -> tuple[type[DomainEvent], ...]:
    """Return `types` as a tuple of event classes, else raise `InvalidEvent`."""
    found = types if isinstance(types, tuple) else (types,)
    if not found:
        raise InvalidEvent("an empty tuple of event types was given: name at least one class")
    for event_type in found:
        if not (isinstance(event_type, type) and issubclass(event_type, DomainEvent)):
            raise InvalidEvent(
                f"{event_type!r} is no event type: give a class derived from DomainEvent, or a "
                "tuple of such classes"
            )
    return found


@attrs.frozen(kw_only=True)
class Wanted:
    """What a call of `subscribe` asks for, checked."""

    types: tuple[type[DomainEvent], ...]
    name: str | None
    priority: int
    retry: Retry
    timeout: float | None
    where: Predicate | None
    hold: bool
    transactional: bool = False

    def __attrs_post_init__(self) -> None:
        if self.name is not None:
            _checks.name("name", self.name)
        if type(self.priority) is not int:
            raise InvalidOption(
                f"priority={self.priority!r}: give a whole number; higher runs first"
            )
        if not isinstance(self.retry, Retry):
            raise InvalidOption(f"retry={self.retry!r}: give a Retry, such as Retry(attempts=1)")
        if self.timeout is not None:
            _checks.number("timeout", self.timeout, least=0)
        if type(self.hold) is not bool:
            raise InvalidOption(f"hold={self.hold!r}: give True or False")
        _checks.boolean("transactional", self.transactional)
        _checks.predicate("where", self.where)


class Subscriber(Protocol[_S_co]):
    """Who takes handlers."""

    def _subscribe(self, handler: Handler, wanted: Wanted, /) -> _S_co:
        """Take a handler, and return its subscription."""


@overload
def subscribe(
    self: Subscriber[_S],
    types: type[E1],
    handler: _H[E1],
    *,
    where: _H[E1] | None = None,
    **options: Unpack[_Options],
) -> _S: ...


@overload
def subscribe(
    self: Subscriber[_S],
    types: tuple[type[E1], type[E2]],
    handler: _H[E1 | E2],
    *,
    where: _H[E1 | E2] | None = None,
    **options: Unpack[_Options],
) -> _S: ...


@overload
def subscribe(
    self: Subscriber[_S],
    types: tuple[type[E1], type[E2], type[E3]],
    handler: _H[E1 | E2 | E3],
    *,
    where: _H[E1 | E2 | E3] | None = None,
    **options: Unpack[_Options],
) -> _S: ...


@overload
def subscribe(
    self: Subscriber[_S],
    types: tuple[type[E1], type[E2], type[E3], type[E4]],
    handler: _H[E1 | E2 | E3 | E4],
    *,
    where: _H[E1 | E2 | E3 | E4] | None = None,
    **options: Unpack[_Options],
) -> _S: ...


@overload
def subscribe(
    self: Subscriber[_S],
    types: tuple[type[E1], type[E2], type[E3], type[E4], type[E5]],
    handler: _H[E1 | E2 | E3 | E4 | E5],
    *,
    where: _H[E1 | E2 | E3 | E4 | E5] | None = None,
    **options: Unpack[_Options],
) -> _S: ...


@overload
def subscribe(
    self: Subscriber[_S],
    types: tuple[type[E1], type[E2], type[E3], type[E4], type[E5], type[E6]],
    handler: _H[E1 | E2 | E3 | E4 | E5 | E6],
    *,
    where: _H[E1 | E2 | E3 | E4 | E5 | E6] | None = None,
    **options: Unpack[_Options],
) -> _S: ...


@overload
def subscribe(
    self: Subscriber[_S],
    types: _Many,
    handler: _H[Any],
    *,
    where: _H[Any] | None = None,
    **options: Unpack[_Options],
) -> _S: ...


@overload
def subscribe(
    self: Subscriber[_S],
    types: tuple[type[E1], ...],
    handler: _H[E1],
    *,
    where: _H[E1] | None = None,
    **options: Unpack[_Options],
) -> _S: ...


@overload
def subscribe(
    self: Subscriber[_S],
    types: type[E1],
    handler: None = None,
    *,
    where: _H[E1] | None = None,
    **options: Unpack[_Options],
) -> _Decorator[E1]: ...


@overload
def subscribe(
    self: Subscriber[_S],
    types: tuple[type[E1], type[E2]],
    handler: None = None,
    *,
    where: _H[E1 | E2] | None = None,
    **options: Unpack[_Options],
) -> _Decorator[E1 | E2]: ...


@overload
def subscribe(
    self: Subscriber[_S],
    types: tuple[type[E1], type[E2], type[E3]],
    handler: None = None,
    *,
    where: _H[E1 | E2 | E3] | None = None,
    **options: Unpack[_Options],
) -> _Decorator[E1 | E2 | E3]: ...


@overload
def subscribe(
    self: Subscriber[_S],
    types: tuple[type[E1], type[E2], type[E3], type[E4]],
    handler: None = None,
    *,
    where: _H[E1 | E2 | E3 | E4] | None = None,
    **options: Unpack[_Options],
) -> _Decorator[E1 | E2 | E3 | E4]: ...


@overload
def subscribe(
    self: Subscriber[_S],
    types: tuple[type[E1], type[E2], type[E3], type[E4], type[E5]],
    handler: None = None,
    *,
    where: _H[E1 | E2 | E3 | E4 | E5] | None = None,
    **options: Unpack[_Options],
) -> _Decorator[E1 | E2 | E3 | E4 | E5]: ...


@overload
def subscribe(
    self: Subscriber[_S],
    types: tuple[type[E1], type[E2], type[E3], type[E4], type[E5], type[E6]],
    handler: None = None,
    *,
    where: _H[E1 | E2 | E3 | E4 | E5 | E6] | None = None,
    **options: Unpack[_Options],
) -> _Decorator[E1 | E2 | E3 | E4 | E5 | E6]: ...


@overload
def subscribe(
    self: Subscriber[_S],
    types: _Many,
    handler: None = None,
    *,
    where: _H[Any] | None = None,
    **options: Unpack[_Options],
) -> _Decorator[Any]: ...


@overload
def subscribe(
    self: Subscriber[_S],
    types: tuple[type[E1], ...],
    handler: None = None,
    *,
    where: None = None,
    **options: Unpack[_Options],
) -> _Decorator[E1]: ...


@overload
def subscribe(
    self: Subscriber[_S],
    types: type[E1],
    handler: _T[E1],
    *,
    where: _H[E1] | None = None,
    **options: Unpack[_Transactional],
) -> _S: ...


@overload
def subscribe(
    self: Subscriber[_S],
    types: type[E1],
    handler: None = None,
    *,
    where: _H[E1] | None = None,
    **options: Unpack[_Transactional],
) -> _TransactionalDecorator[E1]: ...


@overload
def subscribe(
    self: Subscriber[_S],
    types: tuple[type[E1], type[E2]],
    handler: _T[E1 | E2],
    *,
    where: _H[E1 | E2] | None = None,
    **options: Unpack[_Transactional],
) -> _S: ...


@overload
def subscribe(
    self: Subscriber[_S],
    types: tuple[type[E1], type[E2]],
    handler: None = None,
    *,
    where: _H[E1 | E2] | None = None,
    **options: Unpack[_Transactional],
) -> _TransactionalDecorator[E1 | E2]: ...


@overload
def subscribe(
    self: Subscriber[_S],
    types: tuple[type[E1], type[E2], type[E3]],
    handler: _T[E1 | E2 | E3],
    *,
    where: _H[E1 | E2 | E3] | None = None,
    **options: Unpack[_Transactional],
) -> _S: ...


@overload
def subscribe(
    self: Subscriber[_S],
    types: tuple[type[E1], type[E2], type[E3]],
    handler: None = None,
    *,
    where: _H[E1 | E2 | E3] | None = None,
    **options: Unpack[_Transactional],
) -> _TransactionalDecorator[E1 | E2 | E3]: ...


@overload
def subscribe(
    self: Subscriber[_S],
    types: tuple[type[E1], type[E2], type[E3], type[E4]],
    handler: _T[E1 | E2 | E3 | E4],
    *,
    where: _H[E1 | E2 | E3 | E4] | None = None,
    **options: Unpack[_Transactional],
) -> _S: ...


@overload
def subscribe(
    self: Subscriber[_S],
    types: tuple[type[E1], type[E2], type[E3], type[E4]],
    handler: None = None,
    *,
    where: _H[E1 | E2 | E3 | E4] | None = None,
    **options: Unpack[_Transactional],
) -> _TransactionalDecorator[E1 | E2 | E3 | E4]: ...


@overload
def subscribe(
    self: Subscriber[_S],
    types: _FiveOrMore,
    handler: _T[Any],
    *,
    where: _H[Any] | None = None,
    **options: Unpack[_Transactional],
) -> _S: ...


@overload
def subscribe(
    self: Subscriber[_S],
    types: _FiveOrMore,
    handler: None = None,
    *,
    where: _H[Any] | None = None,
    **options: Unpack[_Transactional],
) -> _TransactionalDecorator[Any]: ...


def subscribe(
    self: Subscriber[_S],
    types: type[DomainEvent] | tuple[type[DomainEvent], ...],
    handler: Handler | None = None,
    *,
    name: str | None = None,
    priority: int = 0,
    retry: Retry = Retry(),  # noqa: B008  # frozen, so that one may serve all
    timeout: float | None = None,
    where: Predicate | None = None,
    hold: bool = False,
    transactional: bool = False,
) -> Any:
    """Call `handler` with every event of `types` that is published from now on.

    Without a handler it is a decorator, which returns the function unchanged. `types` is an
    event class or a tuple of them; each stands for its subclasses too, and `DomainEvent` for
    everything. An `async def` handler runs in a task of the bus, a plain `def` in a worker thread.

    - `name`: unique in the group; by default the handler's qualified name.
    - `priority`: inside a delivery higher ones run first, equal ones as they were subscribed.
    - `retry`: how often and when a failed call is made again.
    - `timeout`: seconds after which an attempt is cancelled and counts as failed. A thread
      cannot be interrupted: a plain `def` notices it when it calls
      `trio.from_thread.check_cancelled()`.
    - `where`: a plain predicate on the event; an error in it is a failure of the handler.
    - `hold`: after a dead letter keep back the later events of its aggregate, as dead letters
      too, until it is replayed or discarded.
    - `transactional`: call the handler, a plain `def` of the event and a `Transaction`, inside the
      commit that records that the event is settled: what it writes to the program's own tables
      and publishes is stored with that, exactly once, or not at all. It runs in the store's
      thread and holds up the store meanwhile; for that a worker takes as many ready events into
      one commit as are handled in about 10 ms, at most 256. Its `timeout` interrupts an SQL
      statement.

    Raises `InvalidEvent`, `InvalidHandler`, `InvalidOption` or `DuplicateName`, and while a bus
    with a store runs `EventNotEncodable` for a class that cannot be kept; before, its start does.
    Then nothing is subscribed.
    """
    wanted = Wanted(
        types=event_types(types),
        name=name,
        priority=priority,
        retry=retry,
        timeout=timeout,
        where=where,
        hold=hold,
        transactional=transactional,
    )
    if handler is not None:
        return self._subscribe(handler, wanted)

    def decorate(handler: Handler) -> Handler:
        self._subscribe(handler, wanted)
        return handler

    return decorate
