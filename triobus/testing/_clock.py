"""`hold_clock`: an autojump clock stands still while a thread or I/O is at work."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from triobus._threads import clock_held


@asynccontextmanager
async def hold_clock() -> AsyncIterator[None]:
    """Keep an autojump clock from jumping inside the block; enter it by `async with`.

    Such a clock jumps when every task is blocked, and does not see that one of them waits for a
    thread, a socket or a process (python-trio/trio issue 456). Inside the block it stands still,
    however many tasks hold it; `triobus` holds it for its own threads. On a real clock the block
    does nothing. It begins with a checkpoint; cancelled there, it is not entered.
    """
    await trio.lowlevel.checkpoint()
    with clock_held():
        yield
