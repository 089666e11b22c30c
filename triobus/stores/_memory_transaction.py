"""A transaction of a store in memory."""

from typing import Any, NoReturn

import trio

from triobus._errors import StatementRefused
from triobus._text import shown
from triobus._threads import run_in_thread
from triobus.stores._transaction import Call, Transaction


class MemoryTransaction(Transaction):
    """A transaction of a store in memory, which has no tables: it can publish."""

    def execute(self, statement: str, _: Any = (), /) -> NoReturn:
        """Refuse it: there is no SQL."""
        self._check_open("execute()")
        raise StatementRefused(
            f"{shown(statement)} was refused: a MemoryEventStore has no tables; give the bus a "
            "SqliteEventStore(':memory:') to test what a handler writes"
        )

    executemany = execute


async def run(call: Call, transaction: MemoryTransaction) -> Any:
    """Make a call in a thread, whatever is cancelled."""
    with trio.CancelScope(shield=True):
        return await run_in_thread(call.run, transaction, limiter=trio.CapacityLimiter(1))
