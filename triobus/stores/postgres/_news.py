"""Hearing of what is stored, by this program and by others: NOTIFY, and where the log ends.

A notification says where the log ends at least, so that one that is lost costs nothing: after every
connect the listener listens first, and asks then.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack

import attrs
import psycopg
import trio
from psycopg import sql

from triobus._errors import StoreError
from triobus._threads import clock_held, is_virtual, run_in_thread
from triobus.stores.postgres._server import Connection, Server

logger = logging.getLogger("triobus")

Tell = Callable[[int, float | None], None]
"""Called with where the log ends at least, and when something is due that was scheduled."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5
"""Seconds after which a connection that was lost is made again."""

_listening: trio.lowlevel.RunVar[tuple["Listening", ...]] = trio.lowlevel.RunVar(
    "triobus listening to PostgreSQL", ()
)
"""Those of this run of Trio, who will be notified of what is stored in it."""


def expect(log: str, head: int, due: float | None) -> None:
    """Let no autojump clock jump before those of this run that listen to a log have heard of it."""
    for each in _listening.get():
        if each.log == log:
            each.expect(head, due)


@attrs.define(eq=False)
class Listening:
    """Hears what is new in one log."""

    _server: Server
    log: str
    """Its id."""
    _tell: Tell
    _heard: int = attrs.field(default=0, init=False)
    """The log ends there at least, by what was heard."""
    _expected: int = attrs.field(default=0, init=False)
    _dues: Counter[float] = attrs.field(factory=Counter, init=False)
    """For virtual clocks: how many more notifications of a due time were heard than expected."""
    _held: ExitStack = attrs.field(factory=ExitStack, init=False)
    _is_holding: bool = attrs.field(default=False, init=False)
    _is_waiting: bool = attrs.field(default=False, init=False)
    """Whether there is no connection, and none is being made."""
    _pause: float = attrs.field(default=_FIRST_PAUSE, init=False)

    async def run(self) -> None:
        """Tell what is heard, until it is cancelled. A connection that is lost is made again."""
        _listening.set((*_listening.get(), self))
        try:
            while True:
                try:
                    await self._listen()  # again at once, when a connection is lost that was there
                except (psycopg.Error, StoreError) as error:
                    logger.info("listening to a log anew, in %s s: %s", self._pause, error)
                    await self._wait()
        finally:
            _listening.set(tuple(each for each in _listening.get() if each is not self))
            self._let_go()

    async def _wait(self) -> None:
        """Wait before the next connection. Virtual time passes: nothing can be heard meanwhile."""
        self._is_waiting = True
        self._let_go()
        try:
            await trio.sleep(self._pause)
        finally:
            self._is_waiting = False
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    async def _listen(self) -> None:
        """Listen on one connection, until it is lost."""
        came: list[str] = []
        connection, head, due = await run_in_thread(self._connected, came)
        self._pause = _FIRST_PAUSE
        try:
            self._dues.clear()
            self._hear(head, due)
            while True:
                if not came:
                    await trio.lowlevel.wait_readable(connection.fileno())
                came += _received(connection)
                payloads, came[:] = [*came], []
                for payload in payloads:
                    end, _, at = payload.partition(" ")
                    self._hear(int(end), float(at) if at else None)
        except psycopg.OperationalError as error:
            logger.info("the connection that listens to a log was lost: %s", error)
        finally:
            connection.close()

    def _connected(self, came: list[str]) -> tuple[Connection, int, float | None]:
        """Listen on a new connection, and then look where the log ends and what is due.

        What comes together with the answer is taken by the driver, which hands it over.
        """
        connection = self._server.connect()
        try:
            connection.add_notify_handler(lambda notification: came.append(notification.payload))
            channel = f"triobus_{hashlib.md5(self._server.schema.encode()).hexdigest()}"
            connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
            query = "SELECT {schema}.head_1(), (SELECT min(due_at) FROM {schema}.scheduled)"
            row = connection.execute(self._server.sql(query)).fetchone()
            assert row is not None
            return connection, row[0], row[1]
        except BaseException:
            connection.close()
            raise

    def _hear(self, head: int, due: float | None) -> None:
        self._heard = max(self._heard, head)
        self._count(due, 1)
        self._tell(head, due)
        if not self._is_late:
            self._let_go()

    def _count(self, due: float | None, heard: int) -> None:
        # It may be heard of before the commit that tells of it has returned.
        if due is not None and is_virtual(trio.lowlevel.current_clock()):
            self._dues[due] += heard

    @property
    def _is_late(self) -> bool:
        return self._heard < self._expected or any(count < 0 for count in self._dues.values())

    def expect(self, head: int, due: float | None) -> None:
        """Hold an autojump clock until that is heard."""
        self._expected = max(self._expected, head)
        if self._is_waiting:
            return
        self._count(due, -1)
        if self._is_late and not self._is_holding and is_virtual(trio.lowlevel.current_clock()):
            self._held.enter_context(clock_held())
            self._is_holding = True

    def _let_go(self) -> None:
        if self._is_holding:
            self._is_holding = False
            self._held.close()


def _received(connection: Connection) -> Iterable[str]:
    """Return the notifications that have come, without waiting. Raises `OperationalError`."""
    connection.pgconn.consume_input()
    found = []
    while (notification := connection.pgconn.notifies()) is not None:
        found.append(notification.extra.decode())
    return found
