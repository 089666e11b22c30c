"""A commit of more than plain events: calls, schedules, resets, events that are known already.

First come the functions of the program, each in a savepoint. Then the log is locked, for as short a
time as can be, and everything of ours is looked up and written. A call whose events turn out to be
refused is left out, and all of it is done again without it.
"""

import math
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import attrs
import outcome
import psycopg

from triobus._errors import InvalidOption
from triobus.stores._duplicates import Known
from triobus.stores._transaction import NOT_CALLED, Call, NotCalled, Returned
from triobus.stores._values import (
    Append,
    Commit,
    LogPosition,
    NewRow,
    Reached,
    Release,
    Released,
    RemoveGroup,
    Reset,
    Row,
    Schedule,
    Settled,
    Unschedule,
    beyond,
    with_settled,
)
from triobus.stores.postgres import _arrays
from triobus.stores.postgres._arrangement import Arrangement, ids_of
from triobus.stores.postgres._changes import Recorded, arguments_of
from triobus.stores.postgres._faults import LOST
from triobus.stores.postgres._node import Node
from triobus.stores.postgres._rows import NewRows
from triobus.stores.postgres._server import Connection, Link, Server
from triobus.stores.postgres._transaction import PostgresTransaction, WholeFailed

_APPEND = (
    "SELECT recorded FROM {schema}.append_1(%s::uuid[], %s::text[], %s::bigint[], %s::integer[], "
    "%s::integer[], %s::text[], %s::bigint[], %s::smallint[], %s::text[], %s::bigint[], "
    "%s::uuid[])"
)
_STATUS_PAUSE = 0.05


class _LeftOut(Exception):  # inside a commit, which is done again
    """A call is to be left out, for what it has published cannot be stored."""

    def __init__(self, call: Call, error: Exception) -> None:
        super().__init__(call, error)
        self.call, self.error = call, error


@attrs.define(eq=False)
class WholeCommit:
    """One commit, until it is stored."""

    _server: Server
    _node: Node
    _commit: Commit
    _new_behind: int | None
    head: int = attrs.field(default=0, init=False)
    """Where the log ends after it."""
    scheduled: int | None = attrs.field(default=None, init=False)
    """How many events are scheduled after it, if it had to do with that."""
    _failed: dict[Call, BaseException] = attrs.field(factory=dict, init=False)
    """The calls that are left out, and why."""
    _sent: tuple[str, list[Any]] | None = attrs.field(default=None, init=False)
    """The transaction whose end was asked for, and what comes of it if it is stored."""
    due: float | None = attrs.field(default=None, init=False)
    """When the first of them is due, if other programs were told."""
    _keeps: bool = attrs.field(default=False, init=False)
    """Whether an event was scheduled, of which other programs have to know."""
    _connection: Connection = attrs.field(init=False)
    _arranged: Arrangement = attrs.field(init=False)

    def carried_out(self, connection: Connection, link: Link) -> list[Any]:
        """Store it, and return what came of each append and all the rest."""
        self._connection = connection
        if self._sent is not None:
            xid, results = self._sent
            if self._is_stored(xid):
                return results
            self._sent, link.is_uncertain = None, False
        while True:
            try:
                connection.execute("BEGIN")
                results = self._done()
                xid = self._one("SELECT pg_current_xact_id_if_assigned()::text")
                if xid is not None:
                    self._sent, link.is_uncertain = (xid, results), True
                connection.execute("COMMIT")
            except _LeftOut as left_out:
                link.roll_back()
                self._failed[left_out.call] = left_out.error
            except WholeFailed as failed:
                raise failed.error from None
            except psycopg.Error as error:
                if error.sqlstate == LOST:
                    raise self._node.lost() from None
                if not connection.closed:
                    self._sent, link.is_uncertain = None, False
                raise
            else:
                link.is_uncertain = False
                return results

    def _is_stored(self, xid: str) -> bool:
        """Whether a transaction was committed of whose end no answer has come."""
        while True:
            status = self._one("SELECT pg_xact_status(%s::text::xid8)", xid)
            if status != "in progress":
                return bool(status == "committed")
            time.sleep(_STATUS_PAUSE)  # the server has not noticed yet that nobody waits for it

    # The calls come first

    def _done(self) -> list[Any]:
        """Write everything, all but the end of the transaction."""
        self._keeps, self.due = False, None
        called = self._all_called()
        self._lock()
        arranged = self._arranged
        results: list[Any] = [arranged.place(append) for append in self._commit.appends]
        settled: list[Settled] = []
        resets: list[tuple[str, int]] = []
        for item in self._commit.others:
            result: Any
            if isinstance(item, Call):
                result = self._published(item, called[item])
                settled += item.settled if isinstance(result, Returned) else ()
            elif isinstance(item, Schedule):
                result = arranged.schedule(item, self._keep)
            elif isinstance(item, Unschedule):
                result = self._unschedule([item.event_id], item.now)
            elif isinstance(item, Reset):
                result = self._reset(item, called)
                resets += [(item.group, result.offset)] if isinstance(result, Reached) else []
            elif isinstance(item, RemoveGroup):
                result = self._remove_group(item.group)
            else:
                result = self._release(item)
            results.append(result)
        self._write(results, settled, resets)
        return results

    def _calls(self) -> Iterator[Call]:
        for item in self._commit.others:
            call = item.call if isinstance(item, Reset) else item
            if isinstance(call, Call):
                yield call

    def _all_called(self) -> dict[Call, Any]:
        """Make the calls, but for those of a chain of which one before them has failed."""
        called: dict[Call, Any] = {}
        ended: set[object] = set()
        for call in self._calls():
            called[call] = NOT_CALLED if call.chain in ended else self._called(call)
            if call.chain is not None and isinstance(called[call], outcome.Error):
                ended.add(call.chain)
        return called

    def _called(self, call: Call) -> Any:
        """Make a call, and return it with what it returned, or an `outcome.Error`."""
        if call in self._failed:
            return outcome.Error(self._failed[call])
        transaction = PostgresTransaction(call, self._connection)
        try:
            return transaction, transaction._run()
        except WholeFailed:
            raise
        except BaseException as error:  # noqa: BLE001  # the task that waits for the call gets it
            return outcome.Error(error)

    def _published(self, call: Call, called: Any) -> Returned | outcome.Error | NotCalled:
        """Put what a call has published into the log, or have it left out."""
        if isinstance(called, (outcome.Error, NotCalled)):
            return called
        transaction, value = called
        if not transaction._has_published:
            return Returned(value)
        try:
            returned: Returned = transaction._store_events(
                value, self._arranged.place, lambda item: self._arranged.schedule(item, self._keep)
            )
        except psycopg.Error:
            raise
        except Exception as error:  # why the events are refused
            raise _LeftOut(call, error) from error
        return returned

    # What is looked up behind the lock

    def _one(self, query: str, *values: Any) -> Any:
        row = self._connection.execute(self._server.sql(query), values).fetchone()
        assert row is not None
        return row[0]

    def _lock(self) -> None:
        self._one("SELECT {schema}.lock_1()")
        self._arranged = Arrangement(
            self._one("SELECT {schema}.head_1()"), self._find, self._last_sequence, self._new_behind
        )
        ids = [id_ for append in self._commit.appends for id_ in ids_of(append.records)]
        ids += [str(item.record.event_id) for item in self._commit.others if _is_schedule(item)]
        self._arranged.look_up(ids)

    def _find(self, event_ids: Iterable[str]) -> tuple[dict[str, Known], dict[str, NewRow]]:
        query = self._server.sql("SELECT * FROM {schema}.known_1(%s::uuid[])")
        known: dict[str, Known] = {}
        scheduled: dict[str, NewRow] = {}
        for row in self._connection.execute(query, (_arrays.texts(list(event_ids)),)):
            id_, position, type_, version, aggregate_id, sequence, recorded_at, data = row
            if position is None:
                found = NewRow(id_, type_, version, aggregate_id, data.encode())
                scheduled[str(id_)] = found
                continue
            place = LogPosition(position, sequence, recorded_at, False)
            content = Row(
                position,
                str(id_),
                type_,
                version,
                aggregate_id,
                sequence,
                recorded_at,
                data.encode(),
            )
            known[str(id_)] = Known(place, content)
        return known, scheduled

    def _last_sequence(self, aggregate_id: str) -> int:
        found = self._one("SELECT {schema}.lasts_1(%s::text[])", _arrays.texts([aggregate_id]))
        return int(found[0])

    # What is written

    def _keep(self, item: Schedule) -> None:
        self._keeps = True
        id_, type_, version, aggregate_id, data, correlation_id = item.record
        self._one(
            "SELECT {schema}.schedule_1(%s::double precision, %s::uuid, %s::text, %s::bigint, "
            "%s::text, %s::text, %s::uuid)",
            *(float(item.due_at), str(id_), type_, version, aggregate_id, data.decode()),
            correlation_id,
        )

    def _unschedule(self, event_ids: list[str], now: float) -> bool:
        query = "SELECT {schema}.unschedule_1(%s::uuid[], %s::double precision)"
        return bool(self._one(query, _arrays.texts(event_ids), now))

    def _reset(self, item: Reset, called: dict[Call, Any]) -> Any:
        """Find out where a group is to go on, and what came of the call that goes with it."""
        if item.call is not None and isinstance(called[item.call], outcome.Error):
            return called[item.call]
        last = self._arranged.base + len(self._arranged.records)
        offset = last if item.to is None else item.to
        if isinstance(offset, datetime):
            query = "SELECT min(position) - 1 FROM {schema}.events WHERE recorded_at >= %s"
            found = self._one(query, offset)
            offset = last if found is None else int(found)
        if offset > last:
            return self._beyond(item, beyond(offset, last))
        if item.call is None:
            return Reached(offset)
        published = self._published(item.call, called[item.call])
        return Reached(offset, published) if isinstance(published, Returned) else published

    def _beyond(self, item: Reset, error: InvalidOption) -> InvalidOption:
        if item.call is not None:
            raise _LeftOut(item.call, error)
        return error

    def _release(self, item: Release) -> Released:
        """Put what is due into the log, unless it is there."""
        query = self._server.sql("SELECT * FROM {schema}.take_due_1(%s, %s::bigint)")
        due = self._connection.execute(query, (item.now, item.limit)).fetchall()
        rows: list[Row] = []
        for id_, type_, version, aggregate_id, data, correlation_id in due:
            other = None if correlation_id is None else str(correlation_id)
            record = NewRow(id_, type_, version, aggregate_id, data.encode(), other)
            if self._arranged.position_of(str(id_)) is not None:
                continue
            places = self._arranged.place(Append([record], None, frozenset([0])))
            assert not isinstance(places, Exception)  # nothing is expected of it
            position, sequence, recorded_at, _ = places[0]
            rows.append(
                Row(
                    position,
                    str(id_),
                    type_,
                    version,
                    aggregate_id,
                    sequence,
                    recorded_at,
                    record.data,
                )
            )
        return Released(rows, None)

    def _write(
        self, results: list[Any], settled: list[Settled], resets: list[tuple[str, int]]
    ) -> None:
        arranged, node = self._arranged, self._node
        self.head = arranged.base + len(arranged.records)
        if arranged.unscheduled:
            self._unschedule(arranged.unscheduled, -math.inf)
        recorded_at = None
        if arranged.records:
            rows = NewRows()
            rows.add(Append(arranged.records))
            recorded_at = self._one(_APPEND, *rows.arguments())
            arranged.stored(recorded_at)
        self._tell_schedule(results, recorded_at)
        if node.number is None:
            return
        changes = with_settled(self._commit.changes, settled, self._offset_of)
        self._one(f"SELECT {{schema}}.record_1({Recorded})", *arguments_of(node, changes))
        for group, reached in resets:  # last: what has changed of the group is of the past
            query = "SELECT {schema}.reset_1(%s, %s::bigint, %s::text, %s::bigint)"
            self._one(query, node.number, node.token, group, reached)

    def _remove_group(self, group: str) -> bool:
        """Forget a group; return whether it was there."""
        for table in ("finished", "attempts", "dead_letters"):
            query = f"DELETE FROM {{schema}}.{table} WHERE group_name = %s"
            self._connection.execute(self._server.sql(query), (group,))
        query = "DELETE FROM {schema}.segments WHERE group_name = %s AND group_name > ''"
        was_there = self._connection.execute(self._server.sql(query), (group,)).rowcount > 0
        query = "DELETE FROM {schema}.groups WHERE name = %s"
        self._connection.execute(self._server.sql(query), (group,))
        return was_there

    def _offset_of(self, group: str) -> int:
        query = self._server.sql(
            "SELECT position FROM {schema}.segments WHERE group_name = %s AND segment = 0"
        )
        row = self._connection.execute(query, (group,)).fetchone()
        return 0 if row is None else int(row[0])

    def _tell_schedule(self, results: list[Any], recorded_at: datetime | None) -> None:
        """Count what is scheduled now, and say when the next of it is due."""
        if not any(map(_is_of_schedule, self._commit.others)) and not self._arranged.unscheduled:
            return
        query = self._server.sql("SELECT count(*), min(due_at) FROM {schema}.scheduled")
        row = self._connection.execute(query).fetchone()
        assert row is not None
        self.scheduled = row[0]
        if self._keeps:
            self.due = row[1]
            self._one("SELECT {schema}.notify_1(%s)", f"{self.head} {row[1]!r}")
        for index, result in enumerate(results):
            if isinstance(result, Released):
                rows = [
                    each if recorded_at is None else each._replace(recorded_at=recorded_at)
                    for each in result.rows
                ]
                results[index] = Released(rows, row[1])


def _is_schedule(item: object) -> bool:
    return isinstance(item, Schedule)


def _is_of_schedule(item: object) -> bool:
    if isinstance(item, Call):
        return True
    return isinstance(item, (Schedule, Unschedule, Release))
