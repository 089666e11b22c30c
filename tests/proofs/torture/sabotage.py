"""Bugs that are planted in the program under test: a harness that cannot see them is not one.

They are planted in the child that is to be killed, and never in triobus itself.
"""

import sqlite3
from collections.abc import Callable

import triobus
from triobus.stores.sqlite._database import Database

CHILD_BUGS = ("ack-before-commit", "no-fence", "overtake")

_planted: str | None = None


def plant(bug: str | None) -> None:
    """Plant a bug in this process."""
    global _planted
    _planted = bug
    if bug == "ack-before-commit":
        _replace("_finish_commit", _finish_later)
        _replace("commit", _after_the_last_one(Database.commit))
        _replace("close", _after_the_last_one(Database.close))
    elif bug == "no-fence":
        _replace("_finish_commit", _commit_without_fence)


def meddle(bus: triobus.EventBus) -> None:
    """Plant what is planted in a bus, before it is started."""
    if _planted == "overtake":
        # An event that is retried lets the later ones of its aggregate go past.
        for shell in bus._life.shells.values():
            shell.lanes.is_ordered = False


def _replace(method: str, bug: Callable[..., object]) -> None:
    setattr(Database, method, bug)


def _finish_later(self: Database, connection: sqlite3.Connection) -> None:
    """Leave the transaction open, which the next commit finishes: the caller is told it is done."""


def _after_the_last_one(method: Callable[..., object]) -> Callable[..., object]:
    def wrapped(self: Database, *arguments: object) -> object:
        connection = self._connection
        if connection is not None and connection.in_transaction:
            connection.execute("COMMIT")
        return method(self, *arguments)

    return wrapped


def _commit_without_fence(self: Database, connection: sqlite3.Connection) -> None:
    """Commit, and if that fails, believe that it has failed for ever."""
    try:
        connection.execute("COMMIT")
    except sqlite3.Error:
        self._roll_back()
        raise
