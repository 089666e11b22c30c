"""The parts of a store that need the driver, which is an extra."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from triobus._errors import StoreClosed
from triobus._threads import run_in_thread
from triobus.stores._values import Snapshot
from triobus.stores.postgres._making import make_ready
from triobus.stores.postgres._news import Listening, Tell, expect
from triobus.stores.postgres._node import InUse, Node, own_name
from triobus.stores.postgres._reading import Reader
from triobus.stores.postgres._server import Link, Server
from triobus.stores.postgres._writing import Writer

_PATIENCE = 10
"""Seconds for which a commit is made again after the connection was lost."""
_PATIENCE_OF_READERS = 3


class Driven:
    """The connections of one store, and what is done on each."""

    def __init__(
        self, dsn: str, schema: str, lease: float, name: str | None, is_read_only: bool
    ) -> None:
        self._server = Server(dsn, schema, is_read_only)
        self._reading = Link(self._server, _PATIENCE_OF_READERS)
        self._writing = Link(self._server, _PATIENCE)
        self._node = Node(self._server, name or own_name(), lease)
        self.reader = Reader(self._server, self._reading)
        self.writer = Writer(self._server, self._writing, self._node)

    @property
    def shown(self) -> str:
        """The store, in words, without a password."""
        return self._server.faults.shown

    @property
    def warning(self) -> str | None:
        """A condition to look at, though everything works."""
        return self._server.warning

    @property
    def has_log(self) -> bool:
        """Whether this is the bus that has the log."""
        return self._node.number is not None and self._node.loss is None

    def check_open(self, is_open: bool) -> None:
        """Raise `StoreClosed` unless the store is open."""
        if not is_open:
            raise StoreClosed(
                f"{self.shown} is not open: use it inside 'async with store:', or in a bus that is "
                "running"
            )

    def open(self) -> str:
        """Connect, make the schema ready, and return the id of the log."""
        try:
            with self._server.faults.explained("be opened"):
                make_ready(self._server, self._reading.open())
            return self.reader.log_id()
        except BaseException:
            self._reading.close()
            raise

    def close(self, is_clean: bool) -> None:
        """Let go of the log, and close every connection."""
        try:
            self._node.leave(self._writing, is_clean=is_clean)
        finally:
            self._writing.close()
            self._reading.close()

    def claim(self) -> InUse | None:
        """Become the bus that has the log, or return the one that has it."""
        return self._writing.use("be claimed", self._node.claim)

    def snapshot(self) -> Snapshot:
        """Return what a bus has to know that begins."""
        found = self.reader.snapshot(self._node)
        self.writer.head, self.writer.scheduled = found.last, found.scheduled
        return found

    async def pause(self, seconds: float) -> None:
        """Wait, in real time, for the end of a lease on the server's clock."""
        over = threading.Event()
        try:
            await run_in_thread(over.wait, seconds, abandon_on_cancel=True)
        finally:
            over.set()

    def expect_news(self, log: str) -> None:
        """Let no autojump clock jump before those who listen have heard of the last commit."""
        expect(log, self.writer.head, self.writer.due)

    async def listen(self, log: str, tell: Tell) -> None:
        """Tell what is new in the log, until it is cancelled."""
        await Listening(self._server, log, tell).run()

    @contextmanager
    def losing(self, token: trio.lowlevel.TrioToken, lost: trio.Event) -> Iterator[None]:
        """Set an event when the log is lost to another node."""
        self._node.on_loss = lambda: token.run_sync_soon(lost.set)
        try:
            if self._node.loss is not None:
                lost.set()
            yield
        finally:
            self._node.on_loss = None

    def check_lost(self) -> None:
        """Raise `StoreInUse` if the log was lost to another node."""
        self._node.check()
