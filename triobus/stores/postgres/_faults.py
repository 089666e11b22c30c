"""What PostgreSQL says when something fails, and what of it a user of the store gets to hear."""

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import psycopg

from triobus._errors import (
    NotAStore,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreInUse,
    StoreIOError,
    StoreNotFound,
    StoreReadOnly,
    StoreReplaced,
    StoreUnavailable,
)

LOST, LOOK_AGAIN, OWN_TABLE = "TB001", "TB002", "TB003"
"""What our functions say: another node has the log; some events are no plain ones; a program's
statement would write to our tables."""
_AGAIN = frozenset(["40001", "40P01"])
_RESTORE = "Restore the database from a backup"

_KINDS: dict[str, tuple[type[StoreError], str]] = {
    "25006": (
        StoreReadOnly,
        "the server is a standby, or the database is read-only: connect to the primary, for "
        "example with target_session_attrs=read-write in the DSN",
    ),
    "42501": (StoreReadOnly, "the role lacks a right: grant it, or connect as another role"),
    "53100": (StoreFull, "the disk of the server is full: make room; nothing was stored"),
    "58030": (StoreIOError, "the disk of the server refused it; nothing was stored"),
    "53300": (StoreUnavailable, "the server has no connection left: allow it more"),
    "53400": (StoreUnavailable, "a limit of the server was reached: raise it"),
    "XX001": (StoreCorrupt, _RESTORE),
    "XX002": (StoreCorrupt, _RESTORE),
    "3D000": (StoreNotFound, "create the database, or give the name of one that exists"),
    "3F000": (StoreReplaced, "the schema was dropped or renamed: open the store again"),
    "42P01": (StoreReplaced, "a table was dropped or renamed: open the store again"),
    "42883": (StoreReplaced, "a function was dropped or renamed: open the store again"),
    "22021": (NotAStore, "the database cannot hold every text: use one of encoding UTF8"),
    "22P05": (NotAStore, "the database cannot hold every text: use one of encoding UTF8"),
}
"""By SQLSTATE, the error of ours and what to do."""


@attrs.define(eq=False)
class Faults:
    """Explains what fails in one store."""

    shown: str
    """The store, in words, without a password."""

    @contextmanager
    def explained(self, verb: str) -> Iterator[None]:
        """Raise errors of ours for those of the driver."""
        try:
            yield
        except psycopg.Error as error:
            raise self.translated(error, verb) from error

    def translated(self, error: psycopg.Error, verb: str) -> StoreError:
        """Return the error of ours for one of the driver."""
        said = said_by(error)
        if error.sqlstate == LOST:
            return self.lost()
        if is_lost(error):
            return self.unavailable(error)
        kind, advice = _KINDS.get(error.sqlstate or "", (StoreError, "nothing was stored"))
        return kind(f"{self.shown} could not {verb}: {said} ({error.sqlstate}). {advice}")

    def unavailable(self, error: psycopg.Error) -> StoreError:
        """Return the error of a server that does not answer."""
        said = said_by(error)
        if "database" in said and "does not exist" in said:
            return StoreNotFound(f"{self.shown}: {said}. {_KINDS['3D000'][1]}")
        return StoreUnavailable(
            f"{self.shown} cannot be reached: {said}. See whether the server runs and the DSN is "
            "right; nothing was stored"
        )

    def lost(self) -> StoreInUse:
        """Return the error of a node that has lost the log to another one."""
        return StoreInUse(
            f"{self.shown} was taken over by another bus, for this one did not renew its lease in "
            "time: what it had not recorded is delivered again there, and nothing that it does is "
            "stored any more. Start it again to be the next one"
        )

    def corrupt(self, position: int, what: str) -> StoreCorrupt:
        """Return the error of an event that is not what was written."""
        error = StoreCorrupt(f"{self.shown} is damaged at position {position}: {what}. {_RESTORE}")
        error.position = position
        return error


def said_by(error: psycopg.Error) -> str:
    """Return the sentence of the server in one line."""
    first = error.diag.message_primary or str(error)
    return " ".join(first.split())


def is_lost(error: psycopg.Error) -> bool:
    """Whether an error means that the connection is gone, or was never there."""
    state = error.sqlstate
    if state is None:
        return isinstance(error, psycopg.OperationalError)
    return state.startswith(("08", "57P"))


def is_passing(error: psycopg.Error) -> bool:
    """Whether the same transaction succeeds if it is made again at once."""
    return error.sqlstate in _AGAIN
