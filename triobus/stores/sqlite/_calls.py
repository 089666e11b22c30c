"""What a commit does beside appending: calls, schedules, resets. One that fails fails alone."""

import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime

import attrs
import outcome

from triobus._errors import InvalidOption
from triobus.stores._duplicates import Known
from triobus.stores._transaction import Call, Returned
from triobus.stores._values import (
    Append,
    LogPosition,
    Reached,
    Release,
    Released,
    Reset,
    Row,
    Schedule,
    Waiting,
    beyond,
)
from triobus.stores.sqlite._arrangement import Arrangement
from triobus.stores.sqlite._connection import Database
from triobus.stores.sqlite._log import record_of, row_of_id
from triobus.stores.sqlite._schedule import ScheduleRows
from triobus.stores.sqlite._transaction import SqliteTransaction

INSERT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_DISK = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_NOMEM", "SQLITE_CORRUPT", "SQLITE_BUSY")
"""How a statement fails, of whomever, because of the disk or the memory."""


class RolledBack(Exception):  # inside a commit, which begins again
    """A statement of a call was interrupted, with which SQLite ends the whole transaction."""

    def __init__(self, call: Call, error: BaseException) -> None:
        super().__init__(call, error)
        self.call, self.error = call, error


@attrs.define(eq=False)
class Calls:
    """Does what else is to be done in one commit."""

    _db: Database
    scheduled: ScheduleRows

    def known(self, event_id: str) -> Known | None:
        """Return what the log has under an id."""
        row = row_of_id(self._db, event_id)
        if row is None:
            return None
        record = record_of(self._db.faults, row, row[9] or 0)
        place = LogPosition(record.position, record.sequence, record.recorded_at, False)
        return Known(place, record)

    def called(
        self, connection: sqlite3.Connection, written: Arrangement, call: Call
    ) -> Returned | outcome.Error:
        """Make a call in a savepoint; if it raises, nothing of it remains."""
        connection.execute("SAVEPOINT triobus")
        part, scheduled = None, self.scheduled.count
        transaction = SqliteTransaction(call, connection, self._db.access, self._db.faults)
        try:
            returned = Returned(transaction._run())
            if transaction._has_published:
                part = written.part()
                returned = transaction._store_events(returned.value, part.place, self.schedule)
                connection.executemany(INSERT, part.rows)
        except BaseException as error:  # the task that waits for the call gets it
            if getattr(error, "sqlite_errorname", "").startswith(_DISK):
                raise  # the commit of all fails: it is no fault of the function
            if transaction._lost is not None or not connection.in_transaction:
                raise RolledBack(call, error) from error
            connection.execute("ROLLBACK TO triobus")
            connection.execute("RELEASE triobus")
            self.scheduled.count = scheduled
            return outcome.Error(error)
        connection.execute("RELEASE triobus")
        if part is not None:
            written.adopt(part)
        return returned

    def schedule(self, item: Schedule) -> Waiting | Exception:
        """Keep an event until it is due, or say why not."""
        return self.scheduled.add(item, self.known(str(item.record.event_id)))

    def reset(
        self,
        connection: sqlite3.Connection,
        written: Arrangement,
        item: Reset,
        failed: Mapping[Call, BaseException],
    ) -> Reached | InvalidOption | outcome.Error:
        """Find out where a group is to go on, and make the call that goes with it."""
        last = written.position
        offset = last if item.to is None else item.to
        if isinstance(offset, datetime):
            moment = offset.astimezone(UTC).isoformat()
            query = "SELECT min(position) - 1 FROM events WHERE recorded_at >= ?"
            (found,) = connection.execute(query, (moment,)).fetchone()
            offset = last if found is None else int(found)
        if offset > last:
            return beyond(offset, last)
        if item.call is None:
            return Reached(offset)
        if item.call in failed:
            return outcome.Error(failed[item.call])
        called = self.called(connection, written, item.call)
        return Reached(offset, called) if isinstance(called, Returned) else called

    def released(
        self, connection: sqlite3.Connection, written: Arrangement, item: Release
    ) -> Released:
        """Put what is due into the log, unless it is there."""
        part, rows = written.part(), list[Row]()
        known_damage = set(self.scheduled.damaged)
        for record in self.scheduled.take_due(item.now, item.limit):
            known = self.known(str(record.event_id))
            places = [known.place] if known else part.place(Append([record], None, frozenset([0])))
            assert not isinstance(places, Exception)  # nothing is expected of it
            ((position, sequence, recorded_at, is_new),) = places
            if is_new:
                event_id, kind, version, key, data, _ = record
                rows.append(
                    Row(position, str(event_id), kind, version, key, sequence, recorded_at, data)
                )
        connection.executemany(INSERT, part.rows)
        written.adopt(part)
        damaged = [said for n, said in self.scheduled.damaged.items() if n not in known_damage]
        return Released(rows, self.scheduled.next_due(), damaged)
