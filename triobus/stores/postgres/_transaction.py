"""What a program may do to its own tables inside a commit, in PostgreSQL's words."""

import time
from collections.abc import Iterable
from typing import Any, NoReturn

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from triobus._errors import HandlerTimeout, InvalidOption, StatementRefused
from triobus._text import shown
from triobus.stores._transaction import Call, Transaction
from triobus.stores.postgres._faults import OWN_TABLE, is_lost, is_passing
from triobus.stores.postgres._server import Connection
from triobus.stores.postgres._statements import reason_against

_LONGEST = 500
"""How much of a statement an error shows."""
_TIMEOUT = "57014"
_READ_ONLY = "25006"
_OF_THE_SERVER = ("53", "58", "XX")
"""How a statement fails, of whomever, because of the server's disk, memory or files."""
_BEGIN = "SAVEPOINT triobus; SET LOCAL triobus.program = 'on'"
_CHECK = "SAVEPOINT triobus_check; SET CONSTRAINTS ALL IMMEDIATE; ROLLBACK TO triobus_check; "
"""Constraints that are deferred are looked at here: at the end they would fail for everybody."""
_OFF = "SET LOCAL triobus.program = 'off'; SET LOCAL statement_timeout = 0"
_RELEASE = f"{_CHECK}RELEASE triobus; {_OFF}"
_ROLLBACK = f"ROLLBACK TO triobus; RELEASE triobus; {_OFF}"


class ProgramCursor(psycopg.Cursor[Any]):
    """The cursor that a program gets, which makes no statement that it may not."""

    _transaction: "PostgresTransaction"

    def execute(self, query: Any, params: Any = None, **options: Any) -> "ProgramCursor":
        """Execute a statement, as the driver does."""
        return self._transaction._execute(self, query, params, options)

    def executemany(
        self, query: Any, params_seq: Iterable[Any], *, returning: bool = False
    ) -> None:
        """Execute a statement for each of the parameters, as the driver does."""
        self._transaction._executemany(self, query, params_seq, returning)

    def copy(self, statement: Any, *_: Any, **__: Any) -> NoReturn:
        """Refuse it: the connection is the store's."""
        raise StatementRefused(
            f"copy({shown(statement)}) was refused: use transaction.executemany()"
        )


class PostgresTransaction(Transaction):
    """A transaction of a PostgreSQL store.

    A statement that fails ends what the function can do: let its error leave the function, or
    make a savepoint of your own before, and go back to it.
    """

    def __init__(self, call: Call, connection: Connection, *, is_read_only: bool = False) -> None:
        super().__init__(call, is_read_only=is_read_only)
        self._connection = connection
        self._deadline = None if call.timeout is None else time.monotonic() + call.timeout
        self._failed: psycopg.Error | None = None
        """The error of the last statement that failed."""
        self._cursors: list[ProgramCursor] = []

    def execute(self, statement: Any, parameters: Any = (), /) -> ProgramCursor:
        """Execute a statement, and return psycopg's cursor; parameters are `%s` or `%(name)s`."""
        return self._cursor().execute(statement, parameters)

    def executemany(self, statement: Any, parameters: Iterable[Any], /) -> ProgramCursor:
        """Execute a statement for each of the parameters, and return the cursor."""
        cursor = self._cursor()
        cursor.executemany(statement, parameters)
        return cursor

    def _cursor(self) -> ProgramCursor:
        cursor = ProgramCursor(self._connection)
        cursor._transaction = self
        self._cursors.append(cursor)
        return cursor

    def _execute(
        self, cursor: ProgramCursor, query: Any, params: Any, options: dict[str, Any]
    ) -> ProgramCursor:
        text = self._allowed(query)
        if not params:  # what is prepared is one statement, and no others after a semicolon
            options = options | {"prepare": True}
        try:
            psycopg.Cursor.execute(cursor, query, params or None, **options)
        except psycopg.Error as error:
            raise self._explained(text, error) from error
        return cursor

    def _executemany(
        self, cursor: ProgramCursor, query: Any, params_seq: Iterable[Any], returning: bool
    ) -> None:
        text = self._allowed(query)
        try:
            psycopg.Cursor.executemany(cursor, query, params_seq, returning=returning)
        except psycopg.Error as error:
            raise self._explained(text, error) from error

    def _allowed(self, statement: Any) -> str:
        """Return the text of a statement that may be made now. Raises `StatementRefused`."""
        self._check_open("execute()")
        if isinstance(statement, sql.Composable):
            statement = statement.as_string(self._connection)
        if not isinstance(statement, str):
            raise InvalidOption(f"execute({shown(statement)}): give an SQL statement as a str")
        told = shown(statement, _LONGEST)
        reason = reason_against(statement)
        if reason is not None:
            raise StatementRefused(f"{told} was refused: {reason}")
        if self._is_late():
            raise self._timeout(f"{told} was not begun")
        if self._is_aborted() and not statement.lstrip().upper().startswith("ROLLBACK"):
            raise StatementRefused(
                f"{told} was refused: an error has ended the transaction ({self._failed}); let "
                "that error leave the function, or roll back to a savepoint of your own"
            )
        if self._deadline is not None and not self._is_aborted():
            left = max(int((self._deadline - time.monotonic()) * 1000), 1)
            self._connection.execute(f"SET LOCAL statement_timeout = {left}")
        return statement

    def _explained(self, statement: str, error: psycopg.Error) -> Exception:
        """Return an error of ours where the server says a word, else its own with the statement."""
        self._failed = error
        told = shown(statement, _LONGEST)
        if error.sqlstate == OWN_TABLE:
            return StatementRefused(
                f"{told} was refused: {error.diag.message_primary} and may be read only: keep your "
                "data in tables of your own, and publish events with transaction.publish(event)"
            )
        if error.sqlstate == _READ_ONLY and self._is_read_only:
            return StatementRefused(
                f"{told} was refused: the transaction has read_only=True, and writes nothing; "
                "leave that out to write"
            )
        if error.sqlstate == _TIMEOUT and self._deadline is not None:
            return self._timeout(f"{told} was interrupted")
        error.add_note(f"in the statement {told}")
        return error

    def _is_aborted(self) -> bool:
        return self._connection.info.transaction_status == TransactionStatus.INERROR

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _timeout(self, what: str) -> HandlerTimeout:
        return HandlerTimeout(
            f"{what}, for the handler did not finish within its timeout of {self._call.timeout:g} s"
        )

    def _check_whole(self) -> None:
        """Raise if the function took too long or met an error, and went on all the same."""
        if self._is_late():
            raise self._timeout("what it did was rolled back")
        if self._is_aborted():
            assert self._failed is not None
            raise self._failed

    def _end(self) -> None:
        """Close what the function has left open."""
        super()._end()
        for cursor in self._cursors:
            cursor.close()

    def _run(self) -> Any:
        """Call the function in a savepoint; if it raises, nothing of it remains.

        Raises what the function raises; `psycopg.Error` if the whole transaction is to be ended.
        """
        self._connection.execute(_BEGIN)
        try:
            value = self._call.run(self)
            self._connection.execute(_RELEASE)
        except BaseException as error:
            self._check_all_is_well(error)
            self._connection.execute(_ROLLBACK)
            raise
        return value

    def _ask(self) -> Any:
        """Call a function that only reads, in a transaction that the caller ends."""
        try:
            return self._call.run(self)
        except BaseException as error:
            if self._connection.closed:
                self._check_all_is_well(error)
            raise

    def _check_all_is_well(self, error: BaseException) -> None:
        """Raise the error of a statement that was no fault of the function."""
        failed = self._failed or error
        if not isinstance(failed, psycopg.Error):
            return
        state = failed.sqlstate or ""
        if (
            self._connection.closed
            or is_lost(failed)
            or is_passing(failed)
            or state.startswith(_OF_THE_SERVER)
        ):
            raise WholeFailed(failed) from failed


class WholeFailed(Exception):  # inside a commit, which fails or begins again
    """A statement of a call has failed for a reason that concerns the whole transaction."""

    def __init__(self, error: psycopg.Error) -> None:
        super().__init__(error)
        self.error = error
