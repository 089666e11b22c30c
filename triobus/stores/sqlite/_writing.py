"""Writing a store: one writer claims it, and makes one commit after the other."""

import os
import sqlite3
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import attrs
import msgspec
import outcome

from triobus._errors import OutcomeUnknown, StoreError, StoreReadOnly
from triobus._threads import makes_durable
from triobus.stores._duplicates import Known
from triobus.stores._transaction import NOT_CALLED, Call, NotCalled, Returned
from triobus.stores._values import (
    Attempts,
    Changes,
    Commit,
    DeadLetterRow,
    LogPosition,
    ProgressChange,
    Reached,
    RemoveGroup,
    Reset,
    Schedule,
    Settled,
    Snapshot,
    Unschedule,
    with_settled,
)
from triobus.stores.sqlite import _connection, _path, _rows
from triobus.stores.sqlite._arrangement import Arrangement
from triobus.stores.sqlite._calls import INSERT, Calls, RolledBack
from triobus.stores.sqlite._checksums import with_checksum
from triobus.stores.sqlite._connection import Database
from triobus.stores.sqlite._lock import Claim
from triobus.stores.sqlite._log import check_end, head
from triobus.stores.sqlite._reading import Reader
from triobus.stores.sqlite._schedule import ScheduleRows

_PAGES_A_COMMIT = 4
_BYTES_A_PAGE = 3000
_INEXACT_NS = 50_000_000
_NO_FILE = (-1, -1)
"""Device and inode of a log that was removed before it was looked at."""
_SEQUENCES_KEPT = 10_000
_CERTAIN = ("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_BUSY", "SQLITE_CONSTRAINT")
"""How a commit fails of which nothing can be in the file."""
_REFUSALS = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
    ValueError,
)
"""How rows are refused that are there already, or that cannot be."""


@attrs.define(eq=False)
class Writer:
    """Writes to one open file."""

    _db: Database
    _reader: Reader
    scheduled: ScheduleRows = attrs.field(init=False)
    _calls: Calls = attrs.field(init=False)
    _sequences: dict[str, int] = attrs.field(factory=dict, init=False)
    """The last sequences of aggregates that were appended to lately."""
    _settled_at: int | None = attrs.field(default=None, init=False)
    """When the directory was changed last, if that was long before it was looked at."""

    def __attrs_post_init__(self) -> None:
        self.scheduled = ScheduleRows(self._db)
        self._calls = Calls(self._db, self.scheduled)

    def claim(self) -> Snapshot:
        """Become the only writer, unless it is one, and return what is there.

        Raises `StoreInUse`, `StoreReadOnly` or `StoreCorrupt`.
        """
        connection = self._db.ready()
        if not self._db.is_writer:
            self._become_writer()
        groups, letters = tuple(self._reader.groups()), tuple(self._reader.letter_keys())
        with self._db.faults.explained("be read"):
            (given,) = connection.execute("SELECT fences FROM progress WHERE name = ''").fetchone()
            last_letter = _rows.whole(given, least=0)
            self.scheduled.look()
            next_due = self.scheduled.next_due()
        return Snapshot(
            self._db.position,
            groups,
            letters,
            self._db.was_unclean,
            last_letter,
            self.scheduled.count,
            next_due,
        )

    def _become_writer(self) -> None:
        connection = self._db.ready()
        if self._db.is_read_only:
            raise StoreReadOnly(
                f"{self._db.faults.shown} was opened with read_only=True: open it without to write"
            )
        if self._db.at is not None:
            self._db.claim = Claim.take(self._db.at)
            self._db.was_unclean = self._db.was_unclean or self._db.claim.was_left
        try:
            with self._db.faults.explained("be claimed"):
                self._begin_to_write(connection)
        except BaseException:
            self._db.release()
            raise

    def _begin_to_write(self, connection: sqlite3.Connection) -> None:
        self._db.position, self._db.checksum = head(self._db)
        if self._db.was_unclean:
            check_end(self._db)
        if self._db.at is not None:
            # SQLite has opened it to read.
            self._db.wal = _path.wal_identity(self._db.at.path) or _NO_FILE
        self._sequences.clear()
        self._settled_at = None
        connection.execute("PRAGMA query_only = OFF")
        self._db.is_writer = True
        self._db.frames = _connection.FRAMES_BEFORE_CHECKPOINT if self._db.was_unclean else 0

    def known(self, event_id: str) -> Known | None:
        """Return what the log has under an id."""
        return self._calls.known(event_id)

    def forget_sequences(self) -> None:
        """Look the last sequences of aggregates up again."""
        self._sequences.clear()

    @makes_durable
    def commit(self, commit: Commit) -> list[list[LogPosition] | Exception]:
        """Store what is pending, and return what became of each append and all the rest."""
        connection = self._db.ready()
        if not self._db.is_writer:
            self._become_writer()
        with self._db.faults.explained("be written"):
            scheduled = self.scheduled.count
            try:
                written = self._written(connection, commit)
                self._finish_commit(connection)
            except BaseException:
                self.scheduled.count = scheduled
                raise
        self._db.position, self._db.checksum = written.position, written.checksum
        if len(self._sequences) > _SEQUENCES_KEPT:
            self._sequences.clear()
        self._sequences.update(written.sequences)
        self._check_unchanged()
        self._db.frames += _PAGES_A_COMMIT + len(written.rows) + written.bytes / _BYTES_A_PAGE
        if self._db.frames >= _connection.FRAMES_BEFORE_CHECKPOINT and self._db.at is not None:
            self._db.checkpoint("PASSIVE")
        return written.results

    def _written(self, connection: sqlite3.Connection, commit: Commit) -> Arrangement:
        """Write everything, all but the end of the transaction."""
        failed: dict[Call, BaseException] = {}
        scheduled = self.scheduled.count
        while True:
            self.scheduled.count = scheduled
            connection.execute("BEGIN IMMEDIATE")
            try:
                return self._write(connection, commit, failed)
            except RolledBack as ended:
                failed[ended.call] = ended.error
            except BaseException:
                self._db.roll_back()
                raise

    def _write(
        self,
        connection: sqlite3.Connection,
        commit: Commit,
        failed: Mapping[Call, BaseException],
    ) -> Arrangement:
        now = datetime.now(UTC)
        try:
            written = self._arranged(connection, commit, now, looks=False)
            connection.executemany(INSERT, written.rows)
        except _REFUSALS:
            # Some of them are there already, or cannot be in a row. That is rare, so it is looked
            # for only now.
            connection.execute("ROLLBACK")
            connection.execute("BEGIN IMMEDIATE")
            written = self._arranged(connection, commit, now, looks=True)
            connection.executemany(INSERT, written.rows)
        settled: list[Settled] = []
        ended: set[object] = set()
        resets: list[tuple[str, Reached]] = []
        for item in commit.others:
            result: Any
            if isinstance(item, Call):
                result = self._called(connection, written, item, failed, ended)
                settled += item.settled if isinstance(result, Returned) else ()
            elif isinstance(item, Schedule):
                result = self._calls.schedule(item)
            elif isinstance(item, Unschedule):
                result = self.scheduled.remove(item.event_id, item.now)
            elif isinstance(item, RemoveGroup):
                result = _remove_group(connection, item.group)
            elif isinstance(item, Reset):
                result = self._calls.reset(connection, written, item, failed)
                resets += [(item.group, result)] if isinstance(result, Reached) else []
            else:
                result = self._calls.released(connection, written, item)
            written.results.append(result)
        for event_id in written.unscheduled:
            self.scheduled.remove(event_id)
        if written.rows:
            connection.execute(
                "UPDATE progress SET position = ?, checksum = ? WHERE name = ''",
                (written.position, written.checksum),
            )
        self._write_changes(connection, with_settled(commit.changes, settled, self._offset_of))
        for group, reached in resets:  # last: what has changed of the group is of the past
            _write_reset(connection, group, reached.offset)
        return written

    def _called(
        self,
        connection: sqlite3.Connection,
        written: Arrangement,
        call: Call,
        failed: Mapping[Call, BaseException],
        ended: set[object],
    ) -> Returned | outcome.Error | NotCalled:
        """Make a call, unless it or one before it in its chain has failed."""
        if call.chain in ended:
            return NOT_CALLED
        result: Returned | outcome.Error
        if call in failed:
            result = outcome.Error(failed[call])
        else:
            result = self._calls.called(connection, written, call)
        if call.chain is not None and isinstance(result, outcome.Error):
            ended.add(call.chain)
        return result

    def _offset_of(self, group: str) -> int:
        query = "SELECT position FROM progress WHERE name = ?"
        row = self._db.ready().execute(query, (group,)).fetchone()
        return 0 if row is None else _rows.whole(row[0], least=0)

    def _arranged(
        self,
        connection: sqlite3.Connection,
        commit: Commit,
        now: datetime,
        *,
        looks: bool,
    ) -> Arrangement:
        """Give each event its place, without writing anything."""

        def last_sequence(aggregate_id: str) -> int:
            found = self._sequences.get(aggregate_id)
            if found is None:
                row = connection.execute(
                    "SELECT sequence FROM events WHERE aggregate_id = ? "
                    "ORDER BY position DESC LIMIT 1",
                    (aggregate_id,),
                ).fetchone()
                found = 0 if row is None else _rows.whole(row[0])
            return found

        arranged = Arrangement(
            self._db.position,
            self._db.checksum,
            now,
            looks,
            last_sequence,
            self._calls.known,
            self.scheduled.find if self.scheduled.count else None,
        )
        for append in commit.appends:
            if not arranged.add(append):
                return self._arranged(connection, commit, now, looks=True)
        return arranged

    def _finish_commit(self, connection: sqlite3.Connection) -> None:
        """Commit; if that fails, make certain that it has."""
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._db.roll_back()
            if error.sqlite_errorname.startswith(_CERTAIN):
                raise
            # Such a commit can be in the file after a crash, unless a later one has taken its place
            # there: one that says nothing does.
            try:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("UPDATE progress SET fences = fences + 1 WHERE name = ''")
                connection.execute("COMMIT")
            except sqlite3.Error as fence_error:
                self._db.broken = OutcomeUnknown(
                    f"{self._db.faults.shown}: a commit failed ({error}), and so did the one that "
                    f"would have made that certain ({fence_error}). Open the store again, then "
                    "publish the same events again: those that are stored are not stored twice"
                )
                raise self._db.broken from error
            raise

    def _check_unchanged(self) -> None:
        if self._db.at is None:
            return
        # The files are looked at only after something in their directory has come or gone: Linux
        # makes a commit a third slower after a process has looked at the log that it writes to.
        changed_at = None
        with suppress(OSError):  # it was renamed, removed or closed to us: that is found below
            changed_at = os.stat(os.path.dirname(self._db.at.path)).st_mtime_ns
        if changed_at is not None and changed_at == self._settled_at:
            return
        looked_at = time.time_ns()
        try:
            _path.check_unchanged(self._db.at, self._db.wal)
        except StoreError as error:
            self._db.broken = error
            raise
        # The time of a directory is not exact: another change could have the same.
        is_exact = changed_at is not None and looked_at - changed_at > _INEXACT_NS
        self._settled_at = changed_at if is_exact else None

    def _write_changes(self, connection: sqlite3.Connection, changes: Changes) -> None:
        for name, group in changes.groups.items():
            _write_progress(connection, name, group.progress)
            _write_attempts(connection, name, group.attempts)
        if changes.letters:
            connection.execute(
                "UPDATE progress SET fences = max(fences, ?) WHERE name = ''",
                (max(changes.letters),),
            )
        for id_, letter in changes.letters.items():
            _write_letter(connection, id_, letter)


def _write_reset(connection: sqlite3.Connection, group: str, offset: int) -> None:
    _forget_work(connection, group)
    _write_progress(connection, group, ProgressChange(offset))


def _remove_group(connection: sqlite3.Connection, group: str) -> bool:
    """Forget a group; return whether it was there."""
    _forget_work(connection, group)
    query = "DELETE FROM progress WHERE name = ? AND name > ''"
    return connection.execute(query, (group,)).rowcount > 0


def _forget_work(connection: sqlite3.Connection, group: str) -> None:
    for table in ("finished", "attempts", "dead_letters"):
        connection.execute(f"DELETE FROM {table} WHERE group_name = ?", (group,))


def _write_letter(connection: sqlite3.Connection, id_: int, letter: DeadLetterRow | None) -> None:
    if letter is None:
        connection.execute("DELETE FROM dead_letters WHERE id = ?", (id_,))
        return
    row = attrs.asdict(letter) | {
        "first_failed_at": letter.first_failed_at.isoformat(),
        "last_failed_at": letter.last_failed_at.isoformat(),
    }
    connection.execute(
        "INSERT OR REPLACE INTO dead_letters VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        with_checksum("dead_letters", tuple(row.values())),
    )


def _write_attempts(
    connection: sqlite3.Connection, name: str, attempts: Mapping[int, Attempts | None]
) -> None:
    gone = [(name, position) for position, row in attempts.items() if row is None]
    if gone:
        connection.executemany("DELETE FROM attempts WHERE group_name = ? AND position = ?", gone)
    rows = [
        (name, at, row.subscription, row.attempts, float(row.due_at), float(row.delay), done)
        for at, row in attempts.items()
        if row is not None
        for done in (msgspec.json.encode(row.done).decode(),)
    ]
    if rows:
        connection.executemany(
            "INSERT OR REPLACE INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [with_checksum("attempts", row) for row in rows],
        )


def _write_progress(connection: sqlite3.Connection, name: str, change: ProgressChange) -> None:
    connection.execute(
        "INSERT INTO progress (name, position, checksum) VALUES (?, ?, ?) "
        "ON CONFLICT (name) DO UPDATE SET position = excluded.position, "
        "checksum = excluded.checksum",
        with_checksum("progress", (name, change.offset)),
    )
    gone = [(name, first) for first, last in change.ranges if last is None]
    if gone:
        connection.executemany(
            "DELETE FROM finished WHERE group_name = ? AND first_position = ?", gone
        )
    rows = [(name, first, last) for first, last in change.ranges if last is not None]
    if rows:
        connection.executemany(
            "INSERT OR REPLACE INTO finished VALUES (?, ?, ?, ?)",
            [with_checksum("finished", row) for row in rows],
        )
