"""A bus as a node of the log: the lease that it renews, and the token by which it may record.

The lease is on the database's clock. A thread of its own renews it on a connection of its own,
whatever the program and the other connections are busy with.
"""

import logging
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import attrs

from triobus._errors import StoreError, StoreInUse
from triobus._threads import Pulse
from triobus.stores.postgres._server import Connection, Link, Server

logger = logging.getLogger("triobus")

_RENEWALS_A_LEASE = 3


@attrs.frozen
class InUse:
    """The node that has the log, as another one has found it."""

    node: int
    name: str
    remaining: float
    """Seconds until its lease is over, unless it renews it."""


@attrs.define(eq=False)
class Node:
    """What this bus is in the log."""

    _server: Server
    name: str
    lease: float
    """Seconds for which it lives without renewing its lease."""
    number: int | None = attrs.field(default=None, init=False)
    """None as long as it has not claimed the log."""
    token: int = attrs.field(default=0, init=False)
    was_unclean: bool = attrs.field(default=False, init=False)
    """Whether the node before has died."""
    on_loss: Callable[[], None] | None = attrs.field(default=None, init=False)
    """Called in the thread of the lease when it is found to be lost."""
    loss: StoreInUse | None = attrs.field(default=None, init=False)
    _link: Link = attrs.field(init=False)
    _pulse: Pulse | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._link = Link(self._server, 0)

    def check(self) -> None:
        """Raise `StoreInUse` if the log was lost to another node."""
        if self.loss is not None:
            raise self.loss

    def lost(self) -> StoreInUse:
        """Know that another node has the log, and return the error that says so."""
        if self.loss is None:
            self.loss = self._server.faults.lost()
            if self.on_loss is not None:
                self.on_loss()
        return self.loss

    def claim(self, connection: Connection) -> InUse | None:
        """Become the node that has the log, or return the one that has it."""
        query = self._server.sql("SELECT * FROM {schema}.claim_1(%s, %s)")
        row: Any = connection.execute(query, (self.name, timedelta(seconds=self.lease))).fetchone()
        is_mine, number, token, name, remaining, was_left = row
        if not is_mine:
            return InUse(number, name, remaining.total_seconds())
        self.number, self.token, self.was_unclean, self.loss = number, token, was_left, None
        seconds = self.lease / _RENEWALS_A_LEASE
        self._pulse = Pulse(f"triobus lease of {self.name}", seconds, self._renew)
        self._pulse.start()
        return None

    def _renew(self) -> bool:
        """Renew the lease; return whether to go on."""
        query = self._server.sql("SELECT {schema}.renew_1(%s, %s)")
        values = (self.number, timedelta(seconds=self.lease))
        try:
            row = self._link.use("be renewed", lambda c: c.execute(query, values).fetchone())
        except StoreError as error:
            logger.warning("a lease could not be renewed, and is tried again: %s", error)
            return True
        if row is not None and row[0] is not None:
            return True
        self.lost()
        return False

    def leave(self, link: Link, *, is_clean: bool) -> None:
        """Let go of the log, at once or as a killed process does whose lease is over."""
        number, self.number = self.number, None
        if self._pulse is not None:
            self._pulse.stop()
            self._pulse = None
        self._link.close()
        if number is None or self.loss is not None:
            self.loss = None
            return
        query = self._server.sql("SELECT {schema}.leave_1(%s, %s)")
        link.use("be left", lambda c: c.execute(query, (number, is_clean)))


def own_name() -> str:
    """Return what to call this process."""
    return f"{socket.gethostname()}:{os.getpid()}"
