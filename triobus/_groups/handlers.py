"""Handlers: what may be one, and how it is called."""

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from triobus import _threads
from triobus._checks import is_async, is_generator, truth
from triobus._errors import HandlerTimeout, InvalidHandler
from triobus._events import DomainEvent
from triobus._events.causes import handling

Handler = Callable[..., Any]
"""A callable that takes one event, and if it is transactional the transaction too."""
Predicate = Callable[[Any], object]
"""A test of one event; what it returns counts as true or false."""
Invoke = Callable[[Any], Awaitable[object]]
Transact = Callable[[Callable[[Any], object], float | None], Awaitable[object]]
"""Calls a function with a transaction, inside a commit that settles the calling delivery, within a
timeout in seconds if there is one."""

NOT_MATCHED: Final = object()
"""What an invocation returns when `where` did not want the event."""
PASSED_OVER: Final = object()
"""What stands for the result when a handler was not called at all."""


def qualified_name(handler: Handler) -> str:
    """Return a handler's qualified name: of the function, or of the class of a callable object."""
    inner = _unwrapped(handler)
    return str(getattr(inner, "__qualname__", type(inner).__qualname__))


def invocation(
    handler: Handler,
    timeout: float | None,
    limiter: trio.CapacityLimiter,
    transact: Transact | None = None,
) -> Invoke:
    """Return an async function that calls `handler` with one event, or a batch of them.

    An `async def` handler without `timeout` is returned as it is, for speed. With `transact` it is
    called inside a commit, and with the transaction too. Raises `InvalidHandler` for what cannot be
    called so.
    """
    check_handler(handler, is_transactional=transact is not None)
    if transact is not None:
        return _in_transaction(handler, transact, timeout)
    invoke = handler if is_async(handler) else _in_thread(handler, limiter)
    return invoke if timeout is None else _within(invoke, timeout, qualified_name(handler))


def filtered(invoke: Invoke, where: Predicate | None, *, is_batch: bool) -> Invoke:
    """Return what calls it with those events that `where` wants; it returns `NOT_MATCHED` for none.

    With `is_batch` it is called for all deliveries that the worker handles at once.
    """
    if where is None:
        return invoke
    return (_matching_some if is_batch else _matching)(invoke, where)


def _unwrapped(handler: Handler) -> Any:
    while isinstance(handler, functools.partial):
        handler = handler.func
    return handler


def _makes_callables(inner: Any) -> bool:
    """Whether it is a class whose objects can be called."""
    if not isinstance(inner, type) or issubclass(inner, type):
        return False
    return any("__call__" in vars(cls) for cls in inner.__mro__)


def _is_circular() -> Callable[[Any], bool]:
    """Return what ends a search that has come to one function twice."""
    seen: set[int] = set()

    def stop(function: Any) -> bool:
        is_known = id(function) in seen
        seen.add(id(function))
        return is_known

    return stop


def check_handler(handler: Handler, *, is_transactional: bool) -> None:
    """Raise `InvalidHandler` for what cannot be called with an event, or not so."""
    if inspect.iscoroutine(handler):
        handler.close()
        raise InvalidHandler(
            f"a coroutine of {handler.__qualname__} was given: give the function itself, "
            "without calling it"
        )
    if not callable(handler):
        raise InvalidHandler(f"{handler!r} is not callable: give a function that takes one event")
    name, inner = qualified_name(handler), _unwrapped(handler)
    if is_generator(handler):
        raise InvalidHandler(
            f"{name} is a generator, so calling it would do nothing: take the 'yield' out"
        )
    if _makes_callables(inner):
        raise InvalidHandler(
            f"{name} is a class whose objects can be called, and was given itself: every event "
            f"would only make another object. Give one of them, such as {name}()"
        )
    if not is_async(handler) and is_async(innermost := inspect.unwrap(inner, stop=_is_circular())):
        raise InvalidHandler(
            f"{name} is a plain function around the async {qualified_name(innermost)}, whose "
            "coroutine would not be awaited: make the wrapper 'async def' and await what is inside"
        )
    if is_transactional and is_async(handler):
        raise InvalidHandler(
            f"{name} is async, and a transactional handler runs in the store's thread, inside a "
            "commit: make it a plain 'def' of the event and the transaction, which waits for "
            "nothing but the database"
        )
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        return  # some built-in functions do not tell; their first call will
    try:
        signature.bind(*([None] * (1 + is_transactional)))
    except TypeError as error:
        given, takes = "one event", "exactly one argument"
        if is_transactional:
            given, takes = "an event and a transaction", "exactly these two if it is transactional"
        raise InvalidHandler(
            f"{qualified_name(handler)}{signature} cannot be called with {given} ({error}): "
            f"a handler takes {takes}"
        ) from None


def _in_thread(handler: Handler, limiter: trio.CapacityLimiter) -> Invoke:
    def call(event: DomainEvent) -> object:
        result = handler(event)
        if inspect.isawaitable(result):
            what = "an awaitable"
            if inspect.iscoroutine(result):
                what = "a coroutine"
                result.close()
            raise InvalidHandler(
                f"{qualified_name(handler)} is a plain function and returned {what}, which "
                "is not awaited: make it 'async def'"
            )
        return result

    async def invoke(event: DomainEvent) -> object:
        return await _threads.run_in_thread(call, event, limiter=limiter)

    return invoke


def _in_transaction(handler: Handler, transact: Transact, timeout: float | None) -> Invoke:
    async def invoke(event: DomainEvent) -> object:
        return await transact(lambda transaction: handler(event, transaction), timeout)

    return invoke


def _within(inner: Invoke, timeout: float, name: str) -> Invoke:
    async def invoke(event: DomainEvent) -> object:
        with trio.move_on_after(timeout) as scope:
            return await inner(event)
        assert scope.cancelled_caught
        raise HandlerTimeout(
            f"{name} did not finish within its timeout of {timeout:g} s and was cancelled"
        )

    return invoke


def _matching(inner: Invoke, where: Predicate) -> Invoke:
    async def invoke(event: DomainEvent) -> object:
        return await inner(event) if truth("where", where(event)) else NOT_MATCHED

    return invoke


def _matching_some(inner: Invoke, where: Predicate) -> Invoke:
    async def invoke(_: object) -> object:
        own = handling.get()
        assert own is not None  # a worker calls it
        wanted = [each for each in own.deliveries if truth("where", where(each.event))]
        if not wanted:
            return NOT_MATCHED
        own.delivery, own.deliveries = wanted[0], wanted
        return await inner(tuple(each.event for each in wanted))

    return invoke
