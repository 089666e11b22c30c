"""How a store gets its connections, and what each of them is like."""

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

import attrs
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from triobus._errors import (
    InvalidOption,
    NotAStore,
    OutcomeUnknown,
    StatementRefused,
    StoreError,
)
from triobus._text import line
from triobus.stores.postgres._faults import Faults, is_lost, is_passing, said_by

T = TypeVar("T")

CONNECT_SECONDS = 10
"""How long a server is given to accept a connection, unless the DSN says so."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0
_MOST_AGAIN = 100
"""How often a transaction is made again at once that met another one."""

_QUOTED = re.compile(r'("[=\]:/]")|".*"', re.DOTALL)

_SESSION = (
    "SELECT set_config('timezone', 'UTC', false), set_config('statement_timeout', '0', false), "
    "set_config('lock_timeout', '0', false), "
    "set_config('default_transaction_isolation', 'read committed', false), "
    "set_config('idle_in_transaction_session_timeout', '60s', false), "
    "set_config('default_transaction_read_only', %s, false), "
    "set_config('synchronous_commit', CASE current_setting('synchronous_commit') "
    "WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, false), "
    "pg_backend_pid()"
)
"""What the defaults of a role or a database may not change. A commit is never cancelled by a
timeout, and an accepted event is on disk."""


class Connection(psycopg.Connection[Any]):
    """A connection of a store, which a program may come by, but not commit."""

    def commit(self) -> NoReturn:
        """Refuse it: the transaction is the store's."""
        raise _refused("commit")

    def rollback(self) -> NoReturn:
        """Refuse it: the transaction is the store's."""
        raise _refused("rollback")


def _refused(what: str) -> StatementRefused:
    return StatementRefused(
        f"{what}() of the store's own connection was refused: return to have what was done "
        "committed, or raise to have it rolled back"
    )


@attrs.define(eq=False)
class Server:
    """Where a store is: a schema in a database of a server."""

    dsn: str = attrs.field(repr=False)
    schema: str
    is_read_only: bool
    faults: Faults = attrs.field(init=False)
    warning: str | None = None
    """A condition to look at, though everything works."""
    _conninfo: str = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        given = _parts(self.dsn)
        defaults = {"connect_timeout": str(CONNECT_SECONDS), "application_name": "triobus"}
        missing = {key: value for key, value in defaults.items() if key not in given}
        self._conninfo = make_conninfo(self.dsn, **missing, client_encoding="utf8")
        host, name = given.get("host") or given.get("hostaddr"), given.get("dbname")
        where = f" of database {name!r}" if name else ""
        where += f" at {host}" if host else ""
        self.faults = Faults(f"store {self.schema!r}{where}")

    def sql(self, statement: str) -> sql.Composed:
        """Return a statement with the name of the schema in the place of {schema}."""
        return sql.SQL(statement).format(schema=sql.Identifier(self.schema))

    def connect(self) -> Connection:
        """Return a new connection. Raises `psycopg.Error` and `NotAStore`."""
        connection = Connection.connect(self._conninfo, autocommit=True)
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: Connection) -> None:
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise NotAStore(
                f"{self.faults.shown}: the database has encoding {encoding}, which cannot hold "
                "every text: use one of encoding UTF8"
            )
        read_only = "on" if self.is_read_only else "off"
        row = connection.execute(_SESSION, (read_only,)).fetchone()
        assert row is not None
        if row[-1] != connection.info.backend_pid:
            self.warning = (
                f"{self.faults.shown}: a connection pool (pgbouncer) stands before the server. In "
                "transaction mode it loses notifications and the state of sessions: connect to "
                "the server itself, or to a pool in session mode."
            )


def _parts(dsn: str) -> dict[str, Any]:
    """Return what a DSN says. Raises `InvalidOption`, which shows nothing of a password."""
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        # What it quotes is a piece of the DSN, or all of it, a single character aside.
        found = _QUOTED.sub(lambda quoted: quoted[1] or "(not shown)", str(error).strip())
        raise InvalidOption(
            f"dsn: {line(found)}; give for example 'postgresql://user@host/database'"
        ) from None
    places = [*str(given.get("host", "")).split(","), str(given.get("dbname", ""))]
    if "://" in dsn and any("@" in place[1:] for place in places):
        # It is a piece of the password, and would be shown; a socket's name may begin with an @.
        raise InvalidOption(
            "dsn: it has an @ or a / too many: in a user name or password write @ as %40, / as "
            "%2F and % as %25"
        )
    return given


@attrs.define(eq=False)
class Link:
    """A connection that is made again when it was lost."""

    server: Server
    patience: float
    """For how many seconds the same transaction is made again after the connection was lost."""
    connection: Connection | None = attrs.field(default=None, init=False)
    is_uncertain: bool = attrs.field(default=False, init=False)
    """Whether a commit was sent of which no answer has come."""
    _pid: int = attrs.field(default=0, init=False)

    def open(self) -> Connection:
        """Connect, unless it is connected. Raises `psycopg.Error` and `NotAStore`."""
        if self.connection is None:
            self._pid = os.getpid()
            self.connection = self.server.connect()
        return self.connection

    def close(self) -> None:
        """Close the connection. A forked child has no right to say so to the server."""
        connection, self.connection = self.connection, None
        if connection is not None and self._pid == os.getpid():
            connection.close()

    def use(self, verb: str, function: Callable[[Connection], T]) -> T:
        """Call a function that makes one transaction, again and again if it has to be.

        So its transaction has to be one that may be made twice, or has to find out what became of
        the first. Raises `StoreError`; `OutcomeUnknown` if it may have been stored.
        """
        self.is_uncertain = False
        deadline, pause, passing = 0.0, _FIRST_PAUSE, 0
        while True:
            try:
                return function(self.open())
            except psycopg.Error as error:
                if self._is_connected(error):
                    self.roll_back()
                    passing += is_passing(error)
                    if not is_passing(error) or passing > _MOST_AGAIN:
                        raise self.server.faults.translated(error, verb) from error
                    continue
                self.close()
                deadline = deadline or time.monotonic() + self.patience
                if time.monotonic() + pause > deadline:
                    raise self._given_up(error) from error
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            except BaseException:
                self.roll_back()
                raise

    def _is_connected(self, error: psycopg.Error) -> bool:
        return self.connection is not None and not self.connection.closed and not is_lost(error)

    def _given_up(self, error: psycopg.Error) -> StoreError:
        if not self.is_uncertain:
            return self.server.faults.unavailable(error)
        return OutcomeUnknown(
            f"{self.server.faults.shown}: the connection was lost while a commit was under way, "
            f"and could not be made again within {self.patience:g} s ({said_by(error)}): publish "
            "the same events again, those that are stored are not stored twice"
        )

    def roll_back(self) -> None:
        """End a transaction that has not been committed."""
        connection = self.connection
        if connection is None or connection.closed:
            self.connection = None
        elif connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            with suppress(psycopg.Error):  # it is lost then, which is found at the next use
                connection.execute("ROLLBACK")
