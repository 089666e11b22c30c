"""Where a bus runs: its process, its thread and its run of Trio, and how other threads call it."""

import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import attrs
import trio

from triobus._errors import BusClosed, InvalidOption, WouldDeadlock
from triobus._process import process
from triobus.stores._transaction import in_transaction

T = TypeVar("T")


@attrs.frozen
class Home:
    """The place in which one life of a bus runs."""

    pid: int = attrs.field(factory=os.getpid, init=False)
    _forks: int = attrs.field(factory=lambda: process.forks, init=False)
    thread: int = attrs.field(factory=threading.get_ident, init=False)
    token: trio.lowlevel.TrioToken = attrs.field(
        factory=trio.lowlevel.current_trio_token, init=False
    )
    clock: trio.abc.Clock = attrs.field(factory=trio.lowlevel.current_clock, init=False)
    started_at: float = attrs.field(factory=trio.current_time, init=False)
    """When the life began, on that clock."""

    def check_same_thread(self, call: str, instead: str) -> None:
        """Raise `InvalidOption` in another thread, where another call has to be made instead."""
        if threading.get_ident() != self.thread:
            raise InvalidOption(
                f"{call} was called in another thread than the bus runs in: call {instead} there"
            )

    def check_same_process(self, call: str) -> None:
        """Raise `BusClosed` in a forked child of the process."""
        if self._forks != process.forks:
            raise BusClosed(
                f"{call}: the bus runs in process {self.pid}, and process {os.getpid()} is a "
                "forked child of it, in which it does not run"
            )

    def check_other_thread(self, call: str, *, has_ended: bool) -> None:
        """Raise `WouldDeadlock` in a thread of Trio's, which waiting for the bus would block."""
        if in_transaction.get():
            raise WouldDeadlock(
                f"{call} was called inside a transaction, whose commit it would wait for: publish "
                "with it, transaction.publish(event)"
            )
        is_bus_thread = threading.get_ident() == self.thread and not has_ended
        if is_bus_thread or trio.lowlevel.in_trio_run():
            whose = "the bus" if is_bus_thread else "another run of Trio"
            raise WouldDeadlock(
                f"{call} was called in the thread of {whose}, which it would block: use 'await "
                "bus.publish(event)' in the run of the bus, and in another one 'await "
                "trio.to_thread.run_sync(bus.publish_from_thread, event)'"
            )

    def call(self, function: Callable[[Any], Awaitable[T]], argument: Any) -> T:
        """Call an async function here from another thread, and block until it returns.

        In a thread of `trio.to_thread.run_sync` it is cancelled with that call. Raises
        `trio.RunFinishedError`.
        """
        try:
            is_own = trio.from_thread.run_sync(trio.lowlevel.current_trio_token) is self.token
        except RuntimeError:  # it is no thread of Trio's
            is_own = False
        return trio.from_thread.run(function, argument, trio_token=None if is_own else self.token)
