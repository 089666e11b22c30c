"""The one place that goes to a thread, and holds an autojump clock while it does.

A `MockClock` jumps when every task is blocked, and does not see that one of them waits for a
thread (python-trio/trio issue 456). It does not jump while a task waits in
`wait_all_tasks_blocked`, so one system task a run does that for as long as any thread is at work. A
cushion of infinity is never over, so that the task sleeps until it is cancelled. On a real clock
none of this happens.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import attrs
import trio

T = TypeVar("T")


@attrs.define(eq=False)
class _Guard:
    """How many hold the clock, and the scope of the task that does it for them."""

    holders: int = 0
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)


_guard: trio.lowlevel.RunVar[_Guard | None] = trio.lowlevel.RunVar("triobus clock guard", None)


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
    with clock_held():
        return await trio.to_thread.run_sync(
            function, *args, limiter=limiter, abandon_on_cancel=abandon_on_cancel
        )


@contextmanager
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


def is_virtual(clock: trio.abc.Clock) -> bool:
    """Whether it is a `MockClock`. Whoever made one has imported trio.testing; triobus does not."""
    testing = sys.modules.get("trio.testing")
    return testing is not None and isinstance(clock, testing.MockClock)


async def _hold(scope: trio.CancelScope) -> None:
    with scope:
        await sys.modules["trio.testing"].wait_all_tasks_blocked(float("inf"))
