"""Handlers: what may be one, and how it is called."""

import functools
import inspect
import types
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Final

import trio
from trio.lowlevel import disable_ki_protection, enable_ki_protection

from triobus import _threads
from triobus._errors import HandlerTimeout, InvalidHandler
from triobus._events import DomainEvent

Handler = Callable[[Any], Any]
"""A callable that takes one event."""
Predicate = Callable[[Any], object]
"""A test of one event; what it returns counts as true or false."""
Invoke = Callable[[Any], Awaitable[object]]

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
    where: Predicate | None,
    timeout: float | None,
    limiter: trio.CapacityLimiter,
) -> Invoke:
    """Return an async function that calls `handler` with one event as its subscription asks.

    An `async def` handler without `where` and `timeout` is returned as it is, for speed. Raises
    `InvalidHandler` for what cannot be called with one event.
    """
    _check(handler)
    invoke: Invoke = handler if _is_async(handler) else _in_thread(handler, limiter)
    if timeout is not None:
        invoke = _within(invoke, timeout, qualified_name(handler))
    if where is not None:
        invoke = _matching(invoke, where)
    return invoke


def _unwrapped(handler: Handler) -> Any:
    while isinstance(handler, functools.partial):
        handler = handler.func
    return handler


def _is_async(handler: Handler) -> bool:
    inner = _unwrapped(handler)
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(
        getattr(inner, "__call__", None)  # noqa: B004  # the method is wanted, not whether it is there
    )


def _check(handler: Handler) -> None:
    if inspect.iscoroutine(handler):
        handler.close()
        raise InvalidHandler(
            f"a coroutine of {handler.__qualname__} was given: give the function itself, "
            "without calling it"
        )
    if not callable(handler):
        raise InvalidHandler(f"{handler!r} is not callable: give a function that takes one event")
    inner = _unwrapped(handler)
    for function in (inner, getattr(inner, "__call__", None)):  # noqa: B004  # as above
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise InvalidHandler(
                f"{qualified_name(handler)} is a generator, so calling it would do nothing: "
                "take the 'yield' out"
            )
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        return  # some built-in functions do not tell; their first call will
    try:
        signature.bind(None)
    except TypeError as error:
        raise InvalidHandler(
            f"{qualified_name(handler)}{signature} cannot be called with one event ({error}): "
            "a handler takes exactly one argument"
        ) from None


def _in_thread(handler: Handler, limiter: trio.CapacityLimiter) -> Invoke:
    def call(event: DomainEvent) -> object:
        result = handler(event)
        if inspect.iscoroutine(result):
            result.close()
            raise InvalidHandler(
                f"{qualified_name(handler)} is a plain function and returned a coroutine, which "
                "nobody awaits: make it 'async def'"
            )
        return result

    async def invoke(event: DomainEvent) -> object:
        return await _threads.run_in_thread(call, event, limiter=limiter)

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
        return await inner(event) if where(event) else NOT_MATCHED

    return invoke


@enable_ki_protection
@types.coroutine
def once_it_waits(
    call: Callable[[], None], handling: Awaitable[object]
) -> Generator[Any, Any, object]:
    """Await a handler, and make a call when it waits for the first time, if it does."""
    waiting = _interruptible(handling).__await__()
    try:
        message = next(waiting)
        call()
        while True:
            try:
                outcome = yield message
            except BaseException as error:  # noqa: BLE001  # it is the handler's
                message = waiting.throw(error)
            else:
                message = waiting.send(outcome)
    except StopIteration as done:
        return done.value


@disable_ki_protection
async def _interruptible(handling: Awaitable[object]) -> object:
    return await handling
