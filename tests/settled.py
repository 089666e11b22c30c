"""Waiting until a program has come to rest, also one with a store."""

import trio.testing

from triobus._threads import is_clock_held


async def settled() -> None:
    """Return when every task is blocked, and no thread is at work for one of them.

    Trio's `wait_all_tasks_blocked` does not see threads, and a store commits in one. The clock has
    to be virtual: triobus holds it for its threads.
    """
    await trio.testing.wait_all_tasks_blocked()
    while is_clock_held():
        await trio.testing.wait_all_tasks_blocked(0.0005)
