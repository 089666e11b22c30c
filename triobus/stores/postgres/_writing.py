"""Writing: one call of a function for a plain commit, and a transaction of several for the others.

Blocking functions, called in the store's thread for writing.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import attrs
import psycopg

from triobus._threads import makes_durable
from triobus.stores._values import Append, Changes, Commit, LogPosition
from triobus.stores.postgres._changes import Recorded, arguments_of
from triobus.stores.postgres._faults import LOOK_AGAIN, LOST
from triobus.stores.postgres._node import Node
from triobus.stores.postgres._rows import NewRows
from triobus.stores.postgres._server import Connection, Link, Server
from triobus.stores.postgres._whole import WholeCommit

_EVENTS = (
    "%s::uuid[], %s::text[], %s::bigint[], %s::integer[], %s::integer[], %s::text[], "
    "%s::bigint[], %s::smallint[], %s::text[], %s::bigint[], %s::uuid[]"
)
_APPEND = f"SELECT base, recorded, lasts FROM {{schema}}.append_1({_EVENTS})"
_COMMIT = f"SELECT base, recorded, lasts FROM {{schema}}.commit_1({Recorded}, {_EVENTS})"
_RECORD = f"SELECT {{schema}}.record_1({Recorded})"
_DUPLICATE = "23505"


@attrs.define(eq=False)
class Writer:
    """Writes to one schema."""

    _server: Server
    _link: Link
    _node: Node
    scheduled: int = attrs.field(default=0, init=False)
    """How many events are scheduled, after the last commit that had to do with it."""
    head: int = attrs.field(default=0, init=False)
    """The position of the last event, as far as it is known here."""
    due: float | None = attrs.field(default=None, init=False)
    """What the last commit has told of when something is due, if it has."""
    _append: Any = attrs.field(init=False)
    _commit: Any = attrs.field(init=False)
    _record: Any = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._append, self._commit, self._record = map(
            self._server.sql, (_APPEND, _COMMIT, _RECORD)
        )

    @makes_durable
    def commit(self, commit: Commit) -> list[Any]:
        """Store what is pending, and return what became of each append and all the rest."""
        self._node.check()
        is_plain = not commit.others
        rows = NewRows()
        for append in commit.appends if is_plain else ():
            rows.add(append)
        before, self.due = self.head, None
        if is_plain and rows.is_plain and not rows.have_one_id_twice:
            stored = self._link.use("be written", lambda c: self._plainly(c, commit, rows))
            if stored is not None:
                return _places(commit.appends, *stored, rows)
        # An earlier try whose answer was lost may have stored all of it.
        new_behind = before if self._link.is_uncertain else None
        whole = WholeCommit(self._server, self._node, commit, new_behind)
        results = self._link.use("be written", lambda c: whole.carried_out(c, self._link))
        self.head, self.due = max(self.head, whole.head), whole.due
        if whole.scheduled is not None:
            self.scheduled = whole.scheduled
        return results

    def _plainly(
        self, connection: Connection, commit: Commit, rows: NewRows
    ) -> tuple[int, datetime, Sequence[int] | None] | None:
        """Store in one call; None if something is to be looked at, and then nothing is stored."""
        was_uncertain = self._link.is_uncertain
        self._link.is_uncertain = True
        try:
            found = self._called(connection, commit.changes, rows)
        except UnicodeEncodeError:  # a text that is none
            self._link.is_uncertain = was_uncertain
            return None
        except psycopg.Error as error:
            if error.sqlstate == LOST:
                raise self._node.lost() from None
            if connection.closed or error.sqlstate is None:
                raise
            self._link.is_uncertain = was_uncertain
            if error.sqlstate in (LOOK_AGAIN, _DUPLICATE):
                return None
            raise
        self._link.is_uncertain = False
        return found

    def _called(
        self, connection: Connection, changes: Changes, rows: NewRows
    ) -> tuple[int, datetime, Sequence[int] | None]:
        node = self._node
        has_changes = bool(changes.groups or changes.letters)
        if not rows.ids:
            connection.execute(self._record, arguments_of(node, changes), prepare=True)
            return self.head, datetime.max, None
        events = rows.arguments()
        if node.number is None:
            assert not has_changes  # only a bus has some
            row = connection.execute(self._append, events, prepare=True).fetchone()
        else:
            arguments = (*arguments_of(node, changes), *events)
            row = connection.execute(self._commit, arguments, prepare=True).fetchone()
        assert row is not None
        base, recorded_at, lasts = row
        self.head = max(self.head, base + len(rows.ids))
        return base, recorded_at, lasts


def _places(
    appends: Sequence[Append],
    base: int,
    recorded_at: datetime,
    lasts: Sequence[int] | None,
    rows: NewRows,
) -> list[Any]:
    """Return for every append where its events are, which are all new."""
    new, sequences = tuple.__new__, iter(rows.sequences(lasts))
    results: list[list[LogPosition]] = []
    for append in appends:
        places = []
        for _ in append.records:
            base += 1
            places.append(new(LogPosition, (base, next(sequences), recorded_at, True)))
        results.append(places)
    return results
