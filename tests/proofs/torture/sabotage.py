"""Bugs that are planted in the program under test: a harness that cannot see them is not one.

They are planted in the child that is to be killed, and never in triobus itself.
"""

import sqlite3
from collections.abc import Callable
from typing import Any

import triobus
from triobus.stores.sqlite._connection import Database
from triobus.stores.sqlite._writing import Writer

CHILD_BUGS = ("ack-before-commit", "no-fence", "overtake")

_planted: str | None = None


def plant(bug: str | None) -> None:
    """Plant a bug in this process."""
    global _planted
    _planted = bug
    if bug == "ack-before-commit":
        _replace(Writer, "_finish_commit", _finish_later)
        _replace(Writer, "commit", _after_the_last_one(Writer.commit, lambda writer: writer._db))
        _replace(Database, "close", _after_the_last_one(Database.close, lambda database: database))
    elif bug == "no-fence":
        _replace(Writer, "_finish_commit", _commit_without_fence)


def meddle(bus: triobus.EventBus) -> None:
    """Plant what is planted in a bus, before it is started."""
    if _planted == "overtake":
        # An event that is retried lets the later ones of its aggregate go past.
        for shell in bus._life.shells.values():
            shell.lanes.is_ordered = False


def _replace(owner: type, method: str, bug: Callable[..., object]) -> None:
    assert hasattr(owner, method), f"{owner.__qualname__} has no {method} any more"
    setattr(owner, method, bug)


def _finish_later(self: Writer, connection: sqlite3.Connection) -> None:
    """Leave the transaction open, which the next commit finishes: the caller is told it is done."""


def _after_the_last_one(
    method: Callable[..., object], database_of: Callable[[Any], Database]
) -> Callable[..., object]:
    def wrapped(self: object, *arguments: object) -> object:
        connection = database_of(self).connection
        if connection is not None and connection.in_transaction:
            connection.execute("COMMIT")
        return method(self, *arguments)

    return wrapped


def _commit_without_fence(self: Writer, connection: sqlite3.Connection) -> None:
    """Commit, and if that fails, believe that it has failed for ever."""
    try:
        connection.execute("COMMIT")
    except sqlite3.Error:
        self._db.roll_back()
        raise
