"""Handlers for tests: one that fails, one that is slow. Both remember how they were called."""

from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import trio

from triobus import _checks
from triobus._errors import InvalidOption
from triobus._events import DomainEvent
from triobus._events.causes import calling_delivery
from triobus._groups.handlers import Handler, Invoke


@attrs.frozen(kw_only=True)
class Call:
    """One call of a handler."""

    event: DomainEvent
    """What it was called with."""
    attempt: int | None
    """Which attempt of its delivery it was, from 1; None if no bus has called it."""
    started: float
    """When it began, in seconds on Trio's clock."""
    ended: float
    """When it ended."""
    result: Any = None
    """What it returned, if it did."""
    error: BaseException | None = None
    """What it raised, if it did; `Cancelled` included."""


@attrs.define(eq=False)
class _Calls:
    """Calls a handler, and remembers that."""

    calls: list[Call] = attrs.field(factory=list, init=False)
    """The calls that have ended, in that order."""

    @property
    def events(self) -> list[DomainEvent]:
        """The events of the calls that succeeded, in that order."""
        return [call.event for call in self.calls if call.error is None]

    async def _recorded(self, handler: Invoke, event: DomainEvent) -> Any:
        delivery = calling_delivery()
        attempt, started = delivery and delivery.attempt, trio.current_time()
        end: dict[str, Any] = {}
        try:
            end["result"] = await handler(event)
            return end["result"]
        except BaseException as error:
            end["error"] = error
            raise
        finally:
            now = trio.current_time()
            self.calls.append(Call(event=event, attempt=attempt, started=started, ended=now, **end))


async def _handled(then: Handler | None, event: DomainEvent) -> Any:
    result = None if then is None else then(event)
    return await result if isinstance(result, Awaitable) else result


@attrs.define(eq=False)
class FlakyHandler(_Calls):
    """A handler whose first calls fail: `FlakyHandler(failures=2)`.

    - `failures`: how many calls fail, whatever their events; `math.inf` for all.
    - `error`: what they raise: an exception, or a function without arguments (a class, say) that
      makes one for every call. By default a `ConnectionError`.
    - `then`: the handler that the later calls go to, `async def` or plain; what it returns is the
      result. Without one they return None.

    Two in one group need names: `bus.subscribe(OrderPlaced, handler, name="mail")`.
    """

    failures: float = 1
    error: Exception | Callable[[], Exception] | None = None
    then: Handler | None = None
    _failed: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        _checks.capacity("failures", self.failures, least=0)
        if not (self.error is None or isinstance(self.error, Exception) or callable(self.error)):
            raise InvalidOption(f"error={self.error!r}: give an exception, or a class of one")
        if not (self.then is None or callable(self.then)):
            raise InvalidOption(f"then={self.then!r}: give a handler")

    async def __call__(self, event: DomainEvent) -> Any:
        """Handle an event, or fail."""
        return await self._recorded(self._fail_or_handle, event)

    async def _fail_or_handle(self, event: DomainEvent) -> Any:
        await trio.lowlevel.checkpoint()
        if self._failed >= self.failures:
            return await _handled(self.then, event)
        self._failed += 1
        if self.error is None:
            raise ConnectionError(f"planned failure {self._failed} of {self.failures:g}")
        if isinstance(self.error, Exception):
            raise self.error.with_traceback(None)
        raise self.error()


@attrs.define(eq=False)
class SlowHandler(_Calls):
    """A handler that takes its time: `SlowHandler(seconds=5)`, on Trio's clock.

    `then` is the handler that is called when the time is over, as for `FlakyHandler`.
    """

    seconds: float
    then: Handler | None = None
    running: int = attrs.field(default=0, init=False)
    """How many calls are running now."""
    most_running: int = attrs.field(default=0, init=False)
    """How many calls have been running at the same time, at most."""

    def __attrs_post_init__(self) -> None:
        _checks.number("seconds", self.seconds, least=0)

    async def __call__(self, event: DomainEvent) -> Any:
        """Handle an event, slowly."""
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self._recorded(self._wait_and_handle, event)
        finally:
            self.running -= 1

    async def _wait_and_handle(self, event: DomainEvent) -> Any:
        await trio.sleep(self.seconds)
        return await _handled(self.then, event)
