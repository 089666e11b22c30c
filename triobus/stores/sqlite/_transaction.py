"""What a program may do to its own tables inside a commit, in SQLite's words.

SQLite asks an authorizer while it prepares a statement. It is set once, for setting it throws away
every statement that has been prepared, and it allows everything unless the program's own function
is running. Statements are kept by their text; those of a program have a mark in it, so that none of
ours, which was allowed, is ever taken for one of them.
"""

import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import attrs

from triobus._errors import HandlerTimeout, InvalidOption, StatementRefused
from triobus._text import shown
from triobus.stores._transaction import Call, Transaction
from triobus.stores.sqlite import _schema
from triobus.stores.sqlite._faults import Faults

_INFORMATIVE = frozenset(
    [
        "table_info",
        "table_xinfo",
        "table_list",
        "index_list",
        "index_info",
        "index_xinfo",
        "foreign_key_list",
        "foreign_key_check",
        "database_list",
        "function_list",
        "module_list",
        "pragma_list",
        "collation_list",
        "compile_options",
        "integrity_check",
        "quick_check",
    ]
)
"""Pragmas that only tell something, whatever they are given."""
_READABLE = frozenset(
    [
        "user_version",
        "schema_version",
        "application_id",
        "page_size",
        "page_count",
        "freelist_count",
        "encoding",
        "journal_mode",
        "synchronous",
        "foreign_keys",
        "cache_size",
        "data_version",
        "wal_autocheckpoint",
    ]
)
"""Pragmas that only tell something when they are given nothing."""
_LONGEST = 500
"""How much of a statement an error shows."""
_WRITES = {sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE}
_NAMING = {
    sqlite3.SQLITE_CREATE_TABLE,
    sqlite3.SQLITE_CREATE_TEMP_TABLE,
    sqlite3.SQLITE_CREATE_VIEW,
    sqlite3.SQLITE_CREATE_TEMP_VIEW,
    sqlite3.SQLITE_CREATE_VTABLE,
    sqlite3.SQLITE_DROP_TABLE,
    sqlite3.SQLITE_DROP_VTABLE,
}
"""What is about the table, or what may stand before one, of its first name."""
_ABOUT_TABLES = {
    sqlite3.SQLITE_CREATE_INDEX,
    sqlite3.SQLITE_CREATE_TEMP_INDEX,
    sqlite3.SQLITE_CREATE_TRIGGER,
    sqlite3.SQLITE_CREATE_TEMP_TRIGGER,
    sqlite3.SQLITE_DROP_INDEX,
    sqlite3.SQLITE_DROP_TRIGGER,
    sqlite3.SQLITE_ALTER_TABLE,
}
"""What is about the table of its second name."""
_RETURN = "return to have it committed, or raise to have it rolled back"


@attrs.define(eq=False)
class Access:
    """Says what a statement may do, while a program's own function runs and otherwise."""

    is_restricted: bool = False
    reason: str = ""
    """Why the last statement was refused."""
    has_renamed: bool = False
    """Whether a table may have got another name."""

    def authorize(
        self, action: int, first: str | None, second: str | None, _: str | None, __: str | None
    ) -> int:
        """Answer SQLite, which names what a statement is about to do."""
        if not self.is_restricted:
            return sqlite3.SQLITE_OK
        reason = _refusal(action, (first or "").lower(), (second or "").lower(), second)
        if reason is None:
            self.has_renamed |= action == sqlite3.SQLITE_ALTER_TABLE
            return sqlite3.SQLITE_OK
        self.reason = reason
        return sqlite3.SQLITE_DENY


def _refusal(action: int, first: str, second: str, argument: str | None) -> str | None:
    """Return why a program's statement is not to do something; None if it may."""
    table = second if action in _ABOUT_TABLES else first
    if action in _WRITES | _NAMING | _ABOUT_TABLES and table in _schema.TABLES:
        return (
            f"the table {table!r} is triobus's own and may be read only: keep your data in tables "
            "of your own, and publish events with transaction.publish(event)"
        )
    if action == sqlite3.SQLITE_TRANSACTION:
        return f"the store commits what was done, with the rest of its commit: {_RETURN}"
    if action == sqlite3.SQLITE_SAVEPOINT and second.startswith("triobus"):
        return "savepoints of that name are triobus's own: give it another name"
    if action in (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH):
        return (
            "a commit over two databases is not one: copy what you need before, or keep it in "
            "tables of this database"
        )
    is_told = first in _INFORMATIVE or (first in _READABLE and argument is None)
    if action == sqlite3.SQLITE_PRAGMA and not is_told:
        return "a pragma that changes something would change it for the store too: leave it out"
    return None


class ProgramCursor(sqlite3.Cursor):
    """The cursor that a program gets, whose statements have a mark that none of ours has."""

    def execute(self, statement: str, parameters: Any = (), /) -> "ProgramCursor":
        """Execute a statement, as the driver does."""
        super().execute(statement + "\n", parameters)
        return self

    def executemany(self, statement: str, parameters: Iterable[Any], /) -> "ProgramCursor":
        """Execute a statement for each of the parameters, as the driver does."""
        super().executemany(statement + "\n", parameters)
        return self

    def executescript(self, script: str, /) -> NoReturn:
        """Refuse it: the driver would commit before."""
        raise StatementRefused(
            f"executescript({shown(script)}) was refused, for it commits what came before: execute "
            "each statement with transaction.execute()"
        )

    @property
    def connection(self) -> NoReturn:
        """Nothing: the connection is the store's."""
        raise StatementRefused(
            "cursor.connection was asked for, which is the store's own: use transaction.execute(), "
            f"and {_RETURN}"
        )


class SqliteTransaction(Transaction):
    """A transaction of an SQLite store."""

    def __init__(
        self,
        call: Call,
        connection: sqlite3.Connection,
        access: Access,
        faults: Faults,
        *,
        is_read_only: bool = False,
    ) -> None:
        super().__init__(call, is_read_only=is_read_only)
        self._connection = connection
        self._access = access
        self._faults = faults
        self._cursors: list[sqlite3.Cursor] = []
        self._lost: sqlite3.Error | None = None
        """The error with which SQLite has ended the transaction, if it has."""

    def execute(self, statement: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """Execute a statement, and return its cursor."""
        return self._execute(ProgramCursor.execute, statement, parameters)

    def executemany(self, statement: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        """Execute a statement for each of the parameters, and return the cursor."""
        return self._execute(ProgramCursor.executemany, statement, parameters)

    def _execute(self, execute: Any, statement: str, parameters: Any) -> sqlite3.Cursor:
        self._check_open("execute()")
        if not isinstance(statement, str):
            raise InvalidOption(f"execute({shown(statement)}): give an SQL statement as a str")
        if self._is_late():
            raise self._timeout(f"{shown(statement, _LONGEST)} was not begun")
        if self._lost is not None:
            raise StatementRefused(
                f"{shown(statement, _LONGEST)} was refused: an error has rolled the transaction "
                f"back ({self._lost}); let that error leave the function"
            )
        cursor = self._connection.cursor(ProgramCursor)
        try:
            execute(cursor, statement, parameters)
        except sqlite3.Error as error:
            if not self._connection.in_transaction:
                self._lost = error
            raise self._explained(statement, error) from error
        if cursor.description is not None:
            self._cursors.append(cursor)
        return cursor

    def _explained(self, statement: str, error: sqlite3.Error) -> Exception:
        """Return an error of ours where SQLite says a word, else its own with the statement."""
        name = getattr(error, "sqlite_errorname", "")
        told = shown(statement, _LONGEST)
        if name == "SQLITE_AUTH":
            return StatementRefused(f"{told} was refused: {self._access.reason}")
        if name == "SQLITE_READONLY" and self._is_read_only:
            return StatementRefused(
                f"{told} was refused: the transaction has read_only=True, and writes nothing; "
                "leave that out to write"
            )
        if name == "SQLITE_INTERRUPT":
            return self._timeout(f"{told} was interrupted")
        error.add_note(f"in the statement {told}")
        return error

    def _is_late(self) -> bool:
        deadline = self._faults.deadline
        return deadline is not None and time.monotonic() > deadline

    def _timeout(self, what: str) -> HandlerTimeout:
        return HandlerTimeout(
            f"{what}, for the handler did not finish within its timeout of {self._call.timeout:g} s"
        )

    def _check_whole(self) -> None:
        """Raise if the function took too long or lost its transaction, and went on all the same."""
        if self._is_late():
            raise self._timeout("what it did was rolled back")
        if self._lost is not None:
            raise self._lost
        if self._access.has_renamed:
            names = ", ".join(map(repr, sorted(_schema.TABLES)))
            query = f"SELECT name FROM sqlite_temp_schema WHERE lower(name) IN ({names})"
            if self._connection.execute(query).fetchone() is not None:
                raise StatementRefused(
                    "a temporary table was given the name of one that is triobus's own, and would "
                    "stand before it: choose another name"
                )

    def _end(self) -> None:
        """Close what the function has left open: a cursor would hold up checkpoints."""
        super()._end()
        for cursor in self._cursors:
            cursor.close()

    def _run(self) -> Any:
        """Call the function, and return what it returns."""
        try:
            with self._as_program():
                return self._call.run(self)
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorname", "") == "SQLITE_INTERRUPT":
                raise self._timeout("a statement was interrupted") from error
            raise

    @contextmanager
    def _as_program(self) -> Iterator[None]:
        """Let the program work on the connection as it is used to, and no further."""
        connection, timeout = self._connection, self._call.timeout
        self._access.is_restricted, self._access.has_renamed = True, False
        connection.text_factory = str
        if timeout is not None:
            self._faults.deadline = time.monotonic() + timeout
        try:
            yield
        finally:
            self._faults.deadline = None
            connection.text_factory = bytes
            self._access.is_restricted = False
