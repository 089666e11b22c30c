"""The one place that goes to a thread, and holds an autojump clock while it does.

A `MockClock` jumps when every task is blocked, and does not see that one of them waits for a
thread (python-trio/trio issue 456). It does not jump while a task waits in
`wait_all_tasks_blocked`, so one system task a run does that for as long as any thread is at work. A
cushion of infinity is never over, so that the task sleeps until it is cancelled. On a real clock
none of this happens.
"""

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import attrs
import outcome
import trio
from trio.lowlevel import enable_ki_protection

from triobus._environment import environment

T = TypeVar("T")
Call = TypeVar("Call", bound=Callable[..., object])


@attrs.define(eq=False)
class _Guard:
    """How many hold the clock, and the scope of the task that does it for them."""

    holders: int = 0
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)


_guard: trio.lowlevel.RunVar[_Guard | None] = trio.lowlevel.RunVar("triobus clock guard", None)


def makes_durable(function: Call) -> Call:
    """Mark a function after which its arguments are on disk: a crash may come before it."""
    function.makes_durable = True  # type: ignore[attr-defined]  # a function takes attributes
    return function


async def run_in_thread(
    function: Callable[..., T],
    *args: Any,
    limiter: trio.CapacityLimiter | None = None,
    abandon_on_cancel: bool = False,
) -> T:
    """Run `function(*args)` in a worker thread and return its result; no virtual time passes.

    Cancellation waits for the thread to finish and then has no effect, unless `abandon_on_cancel`
    is true, which leaves the thread behind: only for reading what may never come.
    """
    if (call := environment.get().instead_of_thread) is not None:
        result: T = await call(function, *args)
        return result
    with clock_held():
        return await trio.to_thread.run_sync(
            function, *args, limiter=limiter, abandon_on_cancel=abandon_on_cancel
        )


@attrs.define(eq=False)
class Worker:
    """A thread that makes one call after the other, from `start` to `stop`.

    A call takes half of the time that it does with a thread of Trio's pool, which counts for calls
    that are made one after the other thousands of times a second.
    """

    name: str
    _calls: "queue.SimpleQueue[_Call | None]" = attrs.field(factory=queue.SimpleQueue, init=False)
    _thread: threading.Thread | None = attrs.field(default=None, init=False)

    def start(self) -> None:
        """Start the thread. It ends with the interpreter, if it is not stopped before."""
        if environment.get().instead_of_thread is None:
            self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread, which has nothing left to do."""
        if self._thread is not None:
            self._calls.put(None)
            self._thread.join()
            self._thread = None

    @enable_ki_protection
    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call `function(*args)` in the thread and return its result; no virtual time passes.

        Cancellation waits for the call to end, and then has no effect.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        return await self.finish(function, *args)

    @enable_ki_protection
    async def finish(self, function: Callable[..., T], *args: Any) -> T:
        """Do the same whatever is cancelled."""
        result: T
        if (call := environment.get().instead_of_thread) is not None:
            result = await call(function, *args)
            return result
        task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()
        with clock_held():
            self._calls.put(_Call(function, args, task, token))
            result = await trio.lowlevel.wait_task_rescheduled(_decline)
        return result

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call.make()


@attrs.define(eq=False)
class Pulse:
    """A thread that makes a call every so often, in real time, from `start` to `stop`.

    For what others see from outside, such as a lease: it goes on while Trio is busy, and holds no
    clock.
    """

    name: str
    seconds: float
    _beat: Callable[[], bool]
    """The call; it returns whether to go on."""
    _ended: threading.Event = attrs.field(factory=threading.Event, init=False)
    _thread: threading.Thread | None = attrs.field(default=None, init=False)

    def start(self) -> None:
        """Start the thread; the first call comes when the time is over for the first time."""
        self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the call that it makes, if it makes one. It blocks until then."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while not self._ended.wait(self.seconds) and self._beat():
            pass


@attrs.frozen(eq=False)
class _Call:
    """One call on its way to a worker and back."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    task: trio.lowlevel.Task
    token: trio.lowlevel.TrioToken

    def make(self) -> None:
        """Make the call, and wake the task that waits for it with what came of it."""
        result = outcome.capture(self.function, *self.args)
        with suppress(trio.RunFinishedError):  # the run that waits is over
            self.token.run_sync_soon(trio.lowlevel.reschedule, self.task, result)


def _decline(_: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED


@contextmanager
@enable_ki_protection
def clock_held() -> Iterator[None]:
    """Keep an autojump clock from jumping inside the block. It may be nested and shared."""
    if not is_virtual(trio.lowlevel.current_clock()):
        yield
        return
    guard = _guard.get()
    if guard is None:
        guard = _Guard()
        _guard.set(guard)
        trio.lowlevel.spawn_system_task(_hold, guard.scope)
    guard.holders += 1
    try:
        yield
    finally:
        guard.holders -= 1
        if guard.holders == 0:
            _guard.set(None)
            guard.scope.cancel()


def is_clock_held() -> bool:
    """Whether the autojump clock of this run is kept from jumping."""
    return _guard.get() is not None


def is_virtual(clock: trio.abc.Clock) -> bool:
    """Whether it is a `MockClock`. A program that made one has imported trio.testing."""
    testing = sys.modules.get("trio.testing")
    return testing is not None and isinstance(clock, testing.MockClock)


def wall_time() -> float:
    """Return the time that goes on when the program does not run; virtual if Trio's is."""
    clock = trio.lowlevel.current_clock()
    return clock.current_time() if is_virtual(clock) else time.time()


async def _hold(scope: trio.CancelScope) -> None:
    with scope:
        await sys.modules["trio.testing"].wait_all_tasks_blocked(float("inf"))
