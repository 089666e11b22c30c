"""The SQLite file of a store: blocking functions, called in its worker thread.

One connection reads, writes and checkpoints. It is a reader until `claim`, and reading needs none,
so that others may look at a store while a bus has it. What it reads is not believed: everything of
the log is compared with its checksum before it goes anywhere.
"""

import math
import os
import re
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import attrs
import msgspec

from triobus._errors import (
    NotAStore,
    OutcomeUnknown,
    StoreClosed,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreInUse,
    StoreIOError,
    StoreReadOnly,
    StoreReplaced,
)
from triobus._text import line
from triobus.stores._duplicates import LONGEST_NAME, Known, known_places, may_be_refused, refusal
from triobus.stores._values import (
    Append,
    Changes,
    GroupRecord,
    LetterKey,
    LetterRecord,
    NewRecord,
    Placement,
    ProgressChange,
    Record,
    Snapshot,
    StoredGroup,
    StoreStatistics,
    Transaction,
    conflict,
)
from triobus.stores.sqlite import _file, _rows, _schema, _soundness, _wal
from triobus.stores.sqlite._seals import AttemptsRow, Seals

MEMORY = ":memory:"

_BUSY_SECONDS = 1.0
"""How long SQLite waits for a lock that is not ours; a checkpoint of another process is shorter."""
_BYTES_A_BATCH = 4 * 2**20
"""After how many bytes of events a batch ends that is read."""
_FRAMES_BEFORE_CHECKPOINT = 2000
"""How many pages, about, go into the write-ahead log before a checkpoint takes them to the file."""
_LEAST_LOOKED_AT = 2**16
"""How many bytes of the last events are looked at after a crash, however short the `-wal` is."""
_GREATEST_LOG = 2**20
"""How many more at most, however long it is; that takes some hundredths of a second."""
_LOOKED_UP = 100
"""How many of the last events are looked for in the indexes."""
_PAGES_A_COMMIT = 4
_BYTES_A_PAGE = 3000
_INEXACT_NS = 50_000_000
_ENDLESS = 2**63 - 1
_NO_FILE = (-1, -1)
"""Device and inode of a log that was removed before it was looked at."""
_LEAST_BYTES_AN_EVENT = 50
"""Its id and the time alone have more."""
_ROOM_TO_SPARE = 2**20
_COMPRESSION = 16
"""By how much a file system may make a file smaller than it is."""
_STEPS_BETWEEN_LOOKS = 10_000
_STEPS_TO_SPARE = 2_000_000
_STEPS_A_BYTE = 4
"""How much of SQLite's work may be done for a byte of the file in one call; statistics take 0.2. A
file whose pages refer to each other in a circle would make work without end."""
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

_LAST_AND_MORE = (
    "SELECT min(position, :up_to), "
    "EXISTS (SELECT 1 FROM events WHERE events.position > :after AND events.position <= :up_to) "
    "FROM progress WHERE name = ''"
)
_INSERT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_COLUMNS = (
    "position, event_id, event_type, schema_version, aggregate_id, sequence, recorded_at, data, "
    "checksum, (SELECT checksum FROM events AS before WHERE before.position = events.position - 1)"
)
_OFFSETS = "SELECT name, position FROM progress WHERE name > '' ORDER BY name"
_LETTER_COLUMNS = (
    "id, position, group_name, subscription, aggregate_id, attempts, first_failed_at, "
    "last_failed_at, error_type, message, traceback"
)


@attrs.define(eq=False)
class Database:
    """The open file of one store."""

    path: str
    """As the user gave it."""
    synchronous: str
    max_event_bytes: int
    is_read_only: bool
    warning: str | None = None
    """What somebody should look at, though everything works."""
    _connection: sqlite3.Connection | None = None
    _at: _file.StoreFile | None = None
    _was_at: _file.StoreFile | None = None
    """The file that was closed last."""
    _claim: _file.Claim | None = None
    _pid: int = 0
    is_writer: bool = False
    _was_unclean: bool = False
    _broken: StoreError | None = None
    _wal: tuple[int, int] | None = None
    _settled_at: int | None = None
    """When the directory was changed last, if that was long before it was looked at."""
    _frames: float = 0
    _position: int = 0
    _checksum: int = 0
    _sequences: dict[str, int] = attrs.field(factory=dict)
    _seals: Seals = attrs.field(factory=Seals)
    _work: int = 0
    _is_bounded: bool = True
    """Whether the call only reads, so that the file bounds its work."""

    @property
    def state(self) -> str:
        """What the file is open for, in words; with the length of the log where that is known."""
        if self._connection is None:
            return "not open"
        if self._broken is not None:
            return f"of no use until it is opened again ({type(self._broken).__name__})"
        if self.is_writer:
            return f"open for writing, {self._position:,} event" + "s" * (self._position != 1)
        return "read-only" if self.is_read_only else "open for reading"

    # Opening and closing

    def reopen(self) -> None:
        """Open the file again to read on in what it had when it was closed, and nothing else.

        Raises `StoreNotFound` or `StoreReplaced` where that is no more.
        """
        if self.path == MEMORY:
            raise StoreClosed(
                "the store in memory has been closed, and what was in it is gone: keep it open "
                "around the bus with 'async with store:' while somebody still reads from it"
            )
        before, position, checksum = self._was_at, self._position, self._checksum
        self.open(creates=False)
        try:
            if before is not None and self._at != before:
                raise self._replaced()
            if self._head(self._ready()) < (position, 0):
                raise self._replaced()
            if position:
                with self._explained("be read"):
                    row = (
                        self._ready()
                        .execute("SELECT checksum FROM events WHERE position = ?", (position,))
                        .fetchone()
                    )
                if row != (checksum,):
                    raise self._replaced()
        except BaseException:
            self._let_go()
            raise

    def _replaced(self) -> StoreReplaced:
        return StoreReplaced(
            f"{self._shown} was replaced after it had been closed, and what was to be read on in "
            "it is gone: keep it open around the bus with 'async with store:' while somebody still "
            "reads from it"
        )

    def open(self, *, creates: bool = True) -> None:
        """Open the file for reading; make it if there is none, unless that is not wanted."""
        self._pid = os.getpid()
        self._broken = self.warning = self._wal = self._settled_at = None
        try:
            if self.path == MEMORY:
                self._connect(MEMORY, uri=False)
            elif self.is_read_only or not creates:
                self._at = _file.existing(self.path)
                self._connect_to_file()
            else:
                self._at = _file.open_or_create(self.path)
                self._connect_to_file()
            with self._explained("be opened"):
                self._prepare()
        except BaseException:
            self._let_go()
            raise

    def close(self) -> None:
        """Leave a file that is whole and alone, with no other beside it."""
        connection = self._connection
        try:
            is_clean = self.is_writer and self._at is not None and self._broken is None
            if connection is not None and is_clean and os.getpid() == self._pid:
                self._checkpoint("PASSIVE")
                connection.close()
                self._empty_log()
        finally:
            self._let_go()

    def _empty_log(self) -> None:
        """Empty the `-wal` if somebody still looks at the store: only such a one is removed then.

        Where nobody does it is gone: cut first, and by half when the process dies, it would be
        believed.
        """
        assert self._at is not None
        with suppress(sqlite3.Error, OSError):
            if os.stat(self._at.path + "-wal").st_size:
                with closing(self._connect_again("rw")) as another:
                    another.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def abandon(self) -> None:
        """Close the file and leave it, and what is beside it, as they are on disk now.

        The last connection takes the `-wal` into the file and removes it, unless it is read-only.
        """
        if self._at is None or not self.is_writer:
            self._let_go()
            return
        with closing(self._connect_again("ro")) as last:
            last.execute("SELECT count(*) FROM sqlite_master").fetchall()
            claim, self._claim = self._claim, None
            if claim is not None:
                claim.abandon()
            self._let_go()

    def claim(self) -> Snapshot:
        """Become the only writer, unless it is one, and return what is there.

        Raises `StoreInUse`, `StoreReadOnly` or `StoreCorrupt`.
        """
        connection = self._ready()
        if not self.is_writer:
            self._become_writer()
        groups, letters = tuple(self.groups()), tuple(self.letter_keys())
        with self._explained("be read"):
            (given,) = connection.execute("SELECT fences FROM progress WHERE name = ''").fetchone()
            last_letter = _rows.whole(given, least=0)
        return Snapshot(self._position, groups, letters, self._was_unclean, last_letter)

    def _become_writer(self) -> None:
        connection = self._ready()
        if self.is_read_only:
            raise StoreReadOnly(
                f"{self._shown} was opened with read_only=True: open it without to write"
            )
        if self._at is not None:
            self._claim = _file.Claim.take(self._at)
            self._was_unclean = self._was_unclean or self._claim.was_left
        try:
            with self._explained("be claimed"):
                self._begin_to_write(connection)
        except BaseException:
            self._release()
            raise

    def _connect_to_file(self) -> None:
        assert self._at is not None
        self._was_unclean = _file.wal_identity(self._at.path) is not None
        name = quote(os.fsencode(self._at.path))
        is_writable = os.access(self._at.path, os.W_OK) and os.access(
            os.path.dirname(self._at.path), os.W_OK
        )
        # A reader of mode=ro leaves -wal and -shm behind; one that could write does not.
        self._connect(f"file:{name}?mode={'rw' if is_writable else 'ro'}", uri=True)

    def _connect(self, target: str, *, uri: bool) -> None:
        with self._explained("be opened"):
            connection = sqlite3.connect(
                target,
                uri=uri,
                timeout=_BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,  # whichever thread is free, but one at a time
            )
            self._connection = connection
            connection.text_factory = bytes
            row = self.max_event_bytes + 2 * LONGEST_NAME + 2**20
            limit = max(16 * 2**20, 2 * self.max_event_bytes, row)
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limit)
            connection.set_progress_handler(self._is_endless, _STEPS_BETWEEN_LOOKS)
            for pragma in (
                "trusted_schema = OFF",
                "cell_size_check = ON",
                "mmap_size = 0",
                "wal_autocheckpoint = 0",
                f"synchronous = {self.synchronous}",
            ):
                connection.execute(f"PRAGMA {pragma}").fetchall()

    def _prepare(self) -> None:
        """See that it is a store, or make it one, and be a reader."""
        connection = self._ready()
        version = _schema.version_of(connection, self._shown)
        if version < len(_schema.MIGRATIONS) and not self.is_read_only:
            # Making a store is writing, and two may want to at once.
            claim = None if self._at is None else _file.Claim.take(self._at)
            try:
                self._make(connection)
            finally:
                if claim is not None:
                    claim.release()
        elif version == 0:
            raise NotAStore(f"{self._shown} is empty: there is nothing to read in it")
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        if mode != (b"memory" if self._at is None else b"wal") and mode not in ("wal", "memory"):
            raise NotAStore(
                f"{self._shown} has journal mode {mode!r} and not WAL: somebody has changed it; "
                "restore the file from a backup"
            )
        (level,) = connection.execute("PRAGMA synchronous").fetchone()
        if level != {"full": 2, "normal": 1}[self.synchronous]:
            raise StoreIOError(f"{self._shown}: SQLite did not take synchronous={self.synchronous}")
        connection.execute("PRAGMA query_only = ON")

    def _make(self, connection: sqlite3.Connection) -> None:
        if self._at is not None:
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute("BEGIN IMMEDIATE")
        try:
            _schema.migrate(connection, _schema.version_of(connection, self._shown))
            connection.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        self._checkpoint("TRUNCATE")

    def _begin_to_write(self, connection: sqlite3.Connection) -> None:
        self._position, self._checksum = self._head(connection)
        if self._was_unclean:
            self._check_end(connection)
        if self._at is not None:
            # SQLite has opened it to read.
            self._wal = _file.wal_identity(self._at.path) or _NO_FILE
        self._sequences.clear()
        self._seals, wrong = Seals.read(connection)
        if wrong:
            said = "; ".join(_soundness.wrong_progress(connection))
            raise StoreCorrupt(f"{self._shown} is damaged: {said}. {_RESTORE}")
        connection.execute("PRAGMA query_only = OFF")
        self.is_writer = True
        self._frames = _FRAMES_BEFORE_CHECKPOINT if self._was_unclean else 0

    def _head(self, connection: sqlite3.Connection) -> tuple[int, int]:
        """Return position and checksum of the last event, after a look whether it is there."""
        with self._one_moment(connection):
            (position, checksum) = connection.execute(
                "SELECT position, checksum FROM progress WHERE name = ''"
            ).fetchone() or (-1, 0)
            last = connection.execute(
                "SELECT position, checksum FROM events ORDER BY position DESC LIMIT 1"
            ).fetchone() or (0, 0)
        if position != -1:
            self._check_possible(_rows.whole(position, least=0))
            _rows.whole(checksum, least=0)
        if (position, checksum) != last:
            raise self._corrupt(
                min(max(position, 0), last[0]) + 1,
                f"the log should end at position {position} and ends at {last[0]}"
                if position != last[0]
                else "its last event has another checksum than the log says",
            )
        return position, checksum

    def _check_end(self, connection: sqlite3.Connection) -> None:
        """Raise `StoreCorrupt` unless the log is whole where a killed writer was at work.

        SQLite leaves out what was torn in the `-wal`, by its checksums. It cannot know whether a
        `-wal` belongs to the file, or whether one is missing that a checkpoint was being made of.
        So as much of the log as there can have been in it, within bounds, is compared with its
        checksums, and of the last events what the indexes say. What is wrong elsewhere is found
        where it is read, and by `triobus verify`.
        """
        left = _LEAST_LOOKED_AT + self._log_size()
        looked_up, due = _LOOKED_UP, self._position
        query = f"SELECT {_COLUMNS} FROM events ORDER BY position DESC"
        with closing(connection.execute(query)) as cursor:
            for row in cursor:
                if row[0] != due:
                    raise self._corrupt(due, "the event is missing")
                record = self._record(row, row[9] or 0)
                if looked_up:
                    looked_up -= 1
                    self._check_indexes(connection, record)
                due -= 1
                left -= len(row[7])
                if left < 0:
                    return
        if due > 0:
            raise self._corrupt(due, "the event is missing")

    def _check_indexes(self, connection: sqlite3.Connection, record: Record) -> None:
        """Raise `StoreCorrupt` unless the indexes lead to an event and to the one before it."""
        found = self._row(connection, record.event_id)
        if found is None or found[0] != record.position:
            raise self._corrupt(record.position, "the index of ids does not have it")
        if record.aggregate_id is None:
            return
        places = connection.execute(
            "SELECT position, sequence FROM events INDEXED BY events_by_aggregate "
            "WHERE aggregate_id = ? AND position <= ? ORDER BY position DESC LIMIT 2",
            (record.aggregate_id, record.position),
        ).fetchall()
        sequence = record.sequence or 0
        due = [sequence, sequence - 1][: min(sequence, 2)]
        if places[:1] != [(record.position, sequence)] or [n for _, n in places] != due:
            raise self._corrupt(
                record.position, "the index of aggregates does not lead from it to the one before"
            )

    def _log_size(self) -> int:
        """Return how long the `-wal` is, in bytes, or how long one is looked at that is gone."""
        if self._at is None:
            return 0
        try:
            return min(os.stat(self._at.path + "-wal").st_size, _GREATEST_LOG)
        except FileNotFoundError:
            return _GREATEST_LOG

    def _last(self, connection: sqlite3.Connection) -> int:
        """Return where the log says that it ends."""
        row = connection.execute("SELECT position FROM progress WHERE name = ''").fetchone()
        if row is None:
            raise self._corrupt(1, "nothing says where the log ends")
        return self._check_possible(_rows.whole(row[0], least=0))

    def _check_possible(self, last: int) -> int:
        """Raise `StoreCorrupt` if the file is too short for as many events."""
        if last * _LEAST_BYTES_AN_EVENT > self._room():
            raise self._corrupt(
                1, f"it says that it has {last:,} events, and the file is too short for them"
            )
        return last

    def _room(self) -> float:
        """Return about how many bytes there are, however long an empty file claims to be."""
        if self._at is None:
            return float("inf")
        room: float = _ROOM_TO_SPARE
        for path in (self._at.path, self._at.path + "-wal"):
            try:
                status = os.stat(path)
            except FileNotFoundError:
                continue
            on_disk = getattr(status, "st_blocks", math.inf) * 512 * _COMPRESSION
            room += min(status.st_size, on_disk)
        return room

    def _is_endless(self) -> bool:
        """Whether a call does more work than there can be in the file; SQLite asks now and then."""
        self._work += _STEPS_BETWEEN_LOOKS
        return self._is_overworked

    @property
    def _is_overworked(self) -> bool:
        return self._is_bounded and self._work > _STEPS_TO_SPARE + _STEPS_A_BYTE * self._room()

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        try:
            if connection is not None and os.getpid() == self._pid:
                with self._log_kept():
                    connection.close()
        finally:
            self._release()
            self._was_at = self._at or self._was_at
            self._at = None

    @contextmanager
    def _log_kept(self) -> Iterator[None]:
        """Leave the `-wal` of a killed writer to the next one: it may be damaged, or all there is.

        The last connection takes it into the file and removes it, unless it is read-only.
        """
        with ExitStack() as stack:
            if self._at is not None and self._was_unclean and not self.is_writer:
                with suppress(sqlite3.Error, OSError):
                    if os.stat(self._at.path + "-wal").st_size:
                        last = stack.enter_context(closing(self._connect_again("ro")))
                        last.execute("PRAGMA schema_version").fetchall()
            yield

    def _connect_again(self, mode: str) -> sqlite3.Connection:
        assert self._at is not None
        name = quote(os.fsencode(self._at.path))
        return sqlite3.connect(f"file:{name}?mode={mode}", uri=True)

    def _release(self) -> None:
        self.is_writer = False
        claim, self._claim = self._claim, None
        if claim is not None:
            claim.release()

    def check_open(self) -> None:
        """Raise `StoreClosed`, or `StoreForked` in a child of the process that has opened it."""
        if self._connection is None:
            raise StoreClosed(
                f"{self._shown} is not open: use it inside 'async with store:', or in a bus that "
                "is running"
            )
        self.check_process()

    def check_process(self) -> None:
        """Raise `StoreForked` in a child of the process that has opened it."""
        if self._connection is not None:
            _file.check_same_process(self._pid, self.path)

    def _ready(self) -> sqlite3.Connection:
        self.check_open()
        assert self._connection is not None
        if self._broken is not None:
            raise self._broken
        return self._connection

    # Writing

    def commit(self, transaction: Transaction) -> list[list[Placement] | Exception]:
        """Store a transaction, and return what became of each of its appends."""
        connection = self._ready()
        if not self.is_writer:
            self._become_writer()
        with self._explained("be written"):
            connection.execute("BEGIN IMMEDIATE")
            try:
                written = self._write(connection, transaction)
            except BaseException:
                self._roll_back()
                raise
            self._finish_commit(connection)
        self._seals.commit()
        self._position, self._checksum = written.position, written.checksum
        if len(self._sequences) > _SEQUENCES_KEPT:
            self._sequences.clear()
        self._sequences.update(written.sequences)
        self._check_unchanged()
        self._frames += _PAGES_A_COMMIT + len(written.rows) + written.bytes / _BYTES_A_PAGE
        if self._frames >= _FRAMES_BEFORE_CHECKPOINT and self._at is not None:
            self._checkpoint("PASSIVE")
        return written.results

    def _write(self, connection: sqlite3.Connection, transaction: Transaction) -> "_Written":
        now = datetime.now(UTC)
        try:
            written = self._arranged(connection, transaction.appends, now)
            connection.executemany(_INSERT, written.rows)
        except _REFUSALS:
            # Some of them are there already, or cannot be in a row. That is rare, so it is looked
            # for only now.
            connection.execute("ROLLBACK")
            connection.execute("BEGIN IMMEDIATE")
            written = self._arranged(connection, transaction.appends, now, looks=True)
            connection.executemany(_INSERT, written.rows)
        if written.rows:
            connection.execute(
                "UPDATE progress SET position = ?, checksum = ? WHERE name = ''",
                (written.position, written.checksum),
            )
        self._seals.begin()
        _write_changes(connection, transaction.changes, self._seals)
        return written

    def _arranged(
        self,
        connection: sqlite3.Connection,
        appends: Sequence[Append],
        now: datetime,
        *,
        looks: bool = False,
    ) -> "_Written":
        """Give each event its place, without writing anything.

        It only `looks` for events that the log has or cannot have when there seem to be some.
        """
        written = _Written(self._position, self._checksum)
        rows, sequences = written.rows, written.sequences
        recorded = now.isoformat()
        position, checksum = self._position, self._checksum
        new, crc = tuple.__new__, zlib.crc32
        seen: dict[str, Known] = {}
        find = self._finder(connection, seen)
        for append in appends:
            records, expected, _ = append
            known: list[Placement | None] = [None] * len(records)
            if looks:
                looked_up = refusal(append) or known_places(append, find)
                if isinstance(looked_up, Exception):
                    written.results.append(looked_up)
                    continue
                known = looked_up
            if expected is not None and records and not all(known):
                aggregate_id = records[0].aggregate_id
                assert aggregate_id is not None
                found = self._sequence(connection, sequences, aggregate_id)
                if found != expected:
                    if not looks and self._any_known(connection, records, rows):
                        return self._arranged(connection, appends, now, looks=True)
                    written.results.append(conflict(aggregate_id, expected, found))
                    continue
            places: list[Placement] = []
            for record, place in zip(records, known, strict=True):
                event_id, event_type, version, aggregate_id, data = record
                text_id = str(event_id)
                if place is None and text_id in seen:  # it is twice in this append
                    place = seen[text_id].place
                if place is not None:
                    places.append(place)
                    continue
                if not looks and may_be_refused(record):
                    raise ValueError("it is looked at, for it may be no row")
                position += 1
                sequence = None
                if aggregate_id is not None:
                    sequence = self._sequence(connection, sequences, aggregate_id) + 1
                    sequences[aggregate_id] = sequence
                head = (
                    f"{position}\0{text_id}\0{event_type}\0{version}\0{aggregate_id or ''}\0"
                    f"{'' if sequence is None else sequence}\0{recorded}\0"
                )
                checksum = crc(data, crc(head.encode(), checksum))
                rows.append(
                    (
                        position,
                        text_id,
                        event_type,
                        version,
                        aggregate_id,
                        sequence,
                        recorded,
                        data.decode(),
                        checksum,
                    )
                )
                written.bytes += len(data) + 200
                places.append(new(Placement, (position, sequence, now, True)))
                if looks:
                    seen[text_id] = Known(Placement(position, sequence, now, False), record)
            written.results.append(places)
        written.position, written.checksum = position, checksum
        return written

    def _sequence(
        self, connection: sqlite3.Connection, fresh: dict[str, int], aggregate_id: str
    ) -> int:
        """Return the last sequence of an aggregate, 0 if there is none."""
        found = fresh.get(aggregate_id)
        if found is None:
            found = self._sequences.get(aggregate_id)
        if found is None:
            row = connection.execute(
                "SELECT sequence FROM events WHERE aggregate_id = ? ORDER BY position DESC LIMIT 1",
                (aggregate_id,),
            ).fetchone()
            found = fresh[aggregate_id] = 0 if row is None else _rows.whole(row[0])
        return found

    def _finder(
        self, connection: sqlite3.Connection, seen: Mapping[str, Known]
    ) -> Callable[[str], Known | None]:
        """Return a function that says what `seen` or the log has under an id."""

        def find(event_id: str) -> Known | None:
            if event_id in seen:
                return seen[event_id]
            row = self._row(connection, event_id)
            if row is None:
                return None
            record = self._record(row, row[9] or 0)
            place = Placement(record.position, record.sequence, record.recorded_at, False)
            return Known(place, record)

        return find

    def _any_known(
        self, connection: sqlite3.Connection, records: Sequence[NewRecord], rows: Sequence[Any]
    ) -> bool:
        """Whether some of the records are in the log, or among the rows that come before them."""
        ids = {str(record.event_id) for record in records}
        return any(row[1] in ids for row in rows) or any(self._row(connection, i) for i in ids)

    def _finish_commit(self, connection: sqlite3.Connection) -> None:
        """Commit; if that fails, make certain that it has."""
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            if error.sqlite_errorname.startswith(_CERTAIN):
                raise
            # Such a commit can be in the file after a crash, unless a later one has taken its place
            # there: one that says nothing does.
            try:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("UPDATE progress SET fences = fences + 1 WHERE name = ''")
                connection.execute("COMMIT")
            except sqlite3.Error as fence_error:
                self._broken = OutcomeUnknown(
                    f"{self._shown}: a commit failed ({error}), and so did the one that would have "
                    f"made that certain ({fence_error}). Open the store again, then publish the "
                    "same events again: those that are stored are not stored twice"
                )
                raise self._broken from error
            raise

    def _roll_back(self) -> None:
        if self._connection is not None and self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _check_unchanged(self) -> None:
        if self._at is None:
            return
        # The files are looked at only after something in their directory has come or gone: Linux
        # makes a commit a third slower after somebody has looked at the log that it writes to.
        changed_at = None
        with suppress(OSError):  # it was renamed, removed or closed to us: that is found below
            changed_at = os.stat(os.path.dirname(self._at.path)).st_mtime_ns
        if changed_at is not None and changed_at == self._settled_at:
            return
        looked_at = time.time_ns()
        try:
            _file.check_unchanged(self._at, self._wal)
        except StoreError as error:
            self._broken = error
            raise
        # The time of a directory is not exact: another change could have the same.
        is_exact = changed_at is not None and looked_at - changed_at > _INEXACT_NS
        self._settled_at = changed_at if is_exact else None

    def _checkpoint(self, mode: str) -> None:
        """Take what is in the write-ahead log to the file. What fails costs only room on disk."""
        connection = self._ready()
        try:
            _, total, moved = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except sqlite3.Error as error:
            self._frames = _FRAMES_BEFORE_CHECKPOINT / 2
            self.warning = f"{self._shown}: a checkpoint failed ({error}); it will be tried again."
            return
        self._frames = 0
        self.warning = None
        if moved < total:
            self._frames = _FRAMES_BEFORE_CHECKPOINT / 2
            self.warning = (
                f"{self._shown}: a reader holds up the checkpoint at {moved} of {total} pages, and "
                "the file '-wal' grows; end that reader."
            )

    # Reading

    def fetch(
        self,
        after: int,
        limit: int,
        up_to: int | None = None,
        aggregate_id: str | None = None,
        types: Sequence[str] | None = None,
    ) -> list[Record]:
        """Return the first events behind a position; by bytes, fewer of them."""
        if after >= _ENDLESS or not _rows.is_text(aggregate_id, *types or ()):
            return []  # SQLite knows no such number or text, so that nothing can have it
        terms, values = ["position > ?"], [after]  # type: tuple[list[str], list[Any]]
        if up_to is not None:
            terms.append("position <= ?")
            values.append(up_to)
        if aggregate_id is not None:
            terms.append("aggregate_id = ?")
            values.append(aggregate_id)
        if types is not None:
            terms.append(f"event_type IN ({', '.join('?' * len(types))})")
            values.extend(types)
        is_whole = aggregate_id is None and types is None
        query = (
            f"SELECT {_COLUMNS} FROM events WHERE {' AND '.join(terms)} ORDER BY position LIMIT ?"
        )
        connection = self._ready()
        records: list[Record] = []
        size = 0
        with self._explained("be read"):
            cursor = connection.execute(query, (*values, limit))
            try:
                for row in cursor:
                    if is_whole and row[0] != after + 1:
                        raise self._corrupt(after + 1, "the event is missing")
                    record = self._record(row, row[9] or 0)
                    if row[0] <= after:
                        raise self._corrupt(row[0], f"it comes behind position {after}")
                    if aggregate_id is not None and types is None and records:
                        self._check_next(record, records[-1])
                    after = row[0]
                    records.append(record)
                    size += len(row[7]) + len(row[2]) + len(row[4] or b"")
                    if size >= _BYTES_A_BATCH:
                        break
            finally:
                cursor.close()
            if is_whole and not records:
                # In one statement, for a writer may have added what has not been seen.
                bounds = {"after": after, "up_to": _ENDLESS if up_to is None else up_to}
                end, has_more = connection.execute(_LAST_AND_MORE, bounds).fetchone()
                if after < end and not has_more:
                    raise self._corrupt(after + 1, "the event is missing")
        return records

    def find(self, event_id: str) -> Record | None:
        """Return the event of an id."""
        with self._explained("be read"):
            row = self._row(self._ready(), event_id)
            return None if row is None else self._record(row, row[9] or 0)

    def last_position(self) -> int:
        """Return the position of the last event."""
        with self._explained("be read"):
            return self._head(self._ready())[0]

    def groups(self) -> list[GroupRecord]:
        """Return the progress of all groups."""
        connection = self._ready()
        with self._explained("be read"), self._one_moment(connection):
            last = self._last(connection)
            finished: dict[bytes, list[Any]] = {}
            for name, *row in self._rows_of(connection, "SELECT * FROM finished", 2):
                finished.setdefault(name, []).append(row)
            attempts: dict[bytes, list[Any]] = {}
            for name, *row in self._rows_of(connection, "SELECT * FROM attempts", 2):
                attempts.setdefault(name, []).append(row)
            return [
                _rows.group(name, offset, finished.get(name, ()), attempts.get(name, ()), last)
                for name, offset in self._rows_of(connection, _OFFSETS, 1)
            ]

    def letter_keys(self) -> list[LetterKey]:
        """Return what identifies each dead letter."""
        query = (
            "SELECT id, position, group_name, subscription, aggregate_id "
            "FROM dead_letters ORDER BY id"
        )
        with self._explained("be read"):
            return [_rows.letter_key(row) for row in self._rows_of(self._ready(), query, 1)]

    def _rows_of(self, connection: sqlite3.Connection, query: str, key: int) -> list[Any]:
        """Return what a query finds, in the order of the first columns."""
        with closing(connection.execute(query)) as cursor:
            return list(_rows.ascending(cursor, key, self._room()))

    def letters(self, ids: Sequence[int]) -> list[tuple[LetterRecord, Record]]:
        """Return dead letters with their events; without those that are no more."""
        connection = self._ready()
        found = []
        with self._explained("be read"):
            for id_ in ids:
                row = connection.execute(
                    f"SELECT {_LETTER_COLUMNS} FROM dead_letters WHERE id = ?", (id_,)
                ).fetchone()
                if row is None:
                    continue
                event = connection.execute(
                    f"SELECT {_COLUMNS} FROM events WHERE position = ?", (row[1],)
                ).fetchone()
                if event is None:
                    raise self._corrupt(row[1], f"dead letter {id_} is about it, and it is missing")
                found.append((_rows.letter(row), self._record(event, event[9] or 0)))
        return found

    def statistics(self) -> StoreStatistics:
        """Return what the store holds."""
        connection = self._ready()
        with self._explained("be read"), self._one_moment(connection):

            def one(query: str, *values: object) -> Any:
                return connection.execute(query, values).fetchone()[0]

            last = self._last(connection)
            edges = [
                _rows.moment(one("SELECT recorded_at FROM events WHERE position = ?", position))
                for position in (1, last)
                if last
            ]
            finished = self._counts(
                connection, "sum(last_position - first_position + 1)", "finished", "group_name"
            )
            letters = self._counts(connection, "count(*)", "dead_letters", "group_name")
            groups = {
                _rows.text(name): StoredGroup(
                    offset=_rows.whole(offset, least=0, most=last),
                    lag=_rows.whole(last - offset - finished.get(name, 0), least=0),
                    dead_letters=letters.get(name, 0),
                )
                for name, offset in self._rows_of(connection, _OFFSETS, 1)
            }
            return StoreStatistics(
                events=last,
                aggregates=one(
                    "SELECT count(DISTINCT aggregate_id) FROM events WHERE aggregate_id IS NOT NULL"
                ),
                types={
                    _rows.text(name): count
                    for name, count in self._counts(
                        connection, "count(*)", "events", "event_type"
                    ).items()
                },
                first_recorded_at=edges[0] if edges else None,
                last_recorded_at=edges[-1] if edges else None,
                size_bytes=self._size(connection),
                groups=groups,
            )

    def _counts(
        self, connection: sqlite3.Connection, count: str, table: str, column: str
    ) -> dict[bytes, int]:
        query = f"SELECT {column}, {count} FROM {table} GROUP BY 1 ORDER BY 1"
        return {name: _rows.whole(found) for name, found in self._rows_of(connection, query, 1)}

    def check(self, after: int, limit: int) -> tuple[int, list[int]]:
        """Compare a piece of the log with its checksums.

        Returns the position up to which it has been looked at (`after` at the end) and those of the
        events that are damaged or missing.
        """
        connection = self._ready()
        damaged: list[int] = []
        with self._explained("be read"), self._one_moment(connection):
            (newest,) = connection.execute("SELECT max(position) FROM events").fetchone()
            # So many may be missing at the end; a number beyond that is wrong itself.
            last = min(self._last(connection), (newest or 0) + limit)
            cursor = connection.execute(
                f"SELECT {_COLUMNS} FROM events WHERE position > ? AND position <= ? "
                "ORDER BY position",
                (after, after + limit),
            )
            due = after + 1
            try:
                for row in _rows.ascending(cursor, 1, self._room()):
                    damaged.extend(range(due, row[0]))
                    due = row[0] + 1
                    try:
                        if not _is_uuid(self._record(row, row[9] or 0).event_id):
                            damaged.append(row[0])
                    except StoreCorrupt:
                        damaged.append(row[0])
                    if row[0] > last:
                        damaged.append(row[0])
            finally:
                cursor.close()
            end = min(after + limit, last)
            damaged.extend(range(due, end + 1))
        return max(end, after), sorted(set(damaged))

    def problems(self) -> list[str]:
        """Return what is wrong beside the log, in sentences."""
        connection = self._ready()
        with self._explained("be read"), self._one_moment(connection):
            found = _soundness.problems(connection)
        if self._at is not None and (passed := _wal.commits_passed_over(self._at.path + "-wal")):
            found.append(
                f"at least {passed:,} commits are in its '-wal' behind a damaged place: they "
                "cannot be read"
            )
        return found

    def check_sequences(self, limit: int) -> list[int]:
        """Return the positions of events whose sequences do not count their aggregates' events."""
        query = (
            "SELECT position FROM (SELECT position, sequence, row_number() OVER "
            "(PARTITION BY aggregate_id ORDER BY position) AS due FROM events "
            "WHERE aggregate_id IS NOT NULL) WHERE sequence <> due ORDER BY position LIMIT ?"
        )
        with self._explained("be read"):
            return [row[0] for row in self._ready().execute(query, (limit,)).fetchall()]

    def _check_next(self, record: Record, before: Record) -> None:
        """Raise `StoreCorrupt` unless an event of an aggregate comes right after another."""
        if record.sequence != (before.sequence or 0) + 1:
            raise self._corrupt(
                record.position, f"sequence {record.sequence} comes after {before.sequence}"
            )

    def _row(self, connection: sqlite3.Connection, event_id: str) -> Any:
        row = connection.execute(
            f"SELECT {_COLUMNS} FROM events WHERE event_id = ?", (event_id,)
        ).fetchone()
        # A damaged page can lead from the index of ids to another event.
        if row is not None and row[1] != event_id.encode():
            raise self._corrupt(row[0], "it has another id than the index says")
        return row

    def _record(self, row: Sequence[Any], before: int) -> Record:
        """Return a row of the log, after comparing it with its checksum."""
        (
            position,
            event_id,
            event_type,
            version,
            aggregate,
            sequence,
            recorded,
            data,
            checksum,
            _,
        ) = row
        try:
            head = b"%d\0%b\0%b\0%d\0%b\0%b\0%b\0" % (
                position,
                event_id,
                event_type,
                version,
                aggregate or b"",
                b"" if sequence is None else b"%d" % sequence,
                recorded,
            )
            if zlib.crc32(data, zlib.crc32(head, before)) != checksum or (
                (aggregate is None) != (sequence is None)
            ):
                raise self._corrupt(position, "the event or the one before it was changed")
            recorded_at = datetime.fromisoformat(recorded.decode())
            if (
                recorded_at.tzinfo is None
                or type(version) is not int
                or (sequence is not None and not 0 < sequence < _rows.GREATEST)
            ):
                raise ValueError("a time without its zone, or a number that cannot be")
            return tuple.__new__(
                Record,
                (
                    position,
                    event_id.decode(),
                    event_type.decode(),
                    version,
                    None if aggregate is None else aggregate.decode(),
                    sequence,
                    recorded_at,
                    data,
                ),
            )
        except StoreError:
            raise  # some are a ValueError, too
        except _soundness.UNREADABLE as error:
            raise self._corrupt(position, f"the row cannot be read: {line(str(error))}") from None

    def _size(self, connection: sqlite3.Connection) -> int:
        if self._at is None:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            return int(pages * connection.execute("PRAGMA page_size").fetchone()[0])
        paths = (self._at.path, self._at.path + "-wal")
        return sum(os.stat(path).st_size for path in paths if os.path.exists(path))

    @contextmanager
    def _one_moment(self, connection: sqlite3.Connection) -> Iterator[None]:
        """See the store at one moment, whoever writes meanwhile."""
        connection.execute("BEGIN")
        try:
            yield
        finally:
            self._roll_back()

    # Errors

    @property
    def _shown(self) -> str:
        return "the store in memory" if self.path == MEMORY else f"store {self.path!r}"

    def _corrupt(self, position: int, what: str) -> StoreCorrupt:
        error = StoreCorrupt(
            f"{self._shown} is damaged at position {position}: {what}. 'triobus verify' says what "
            f"is whole. {_RESTORE}"
        )
        error.position = position
        return error

    @contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        """Raise what SQLite says, and what cannot be read, as an error of ours."""
        self._work, self._is_bounded = 0, action != "be written"
        try:
            yield
        except sqlite3.Error as error:
            raise self._explanation(error, action) from error
        except StoreError:
            raise  # some are a ValueError or an OSError, too
        except OSError as error:
            raise StoreIOError(
                f"{self._shown} could not {action}: {line(str(error))}. Look at the disk, then try "
                "it again"
            ) from error
        except _soundness.UNREADABLE as error:
            raise StoreCorrupt(
                f"{self._shown} is damaged: it has a row that cannot be read ({line(str(error))}). "
                f"{_RESTORE}"
            ) from error

    def _explanation(self, error: sqlite3.Error, action: str) -> StoreError:
        name = getattr(error, "sqlite_errorname", "")
        # What SQLite says quotes the file, such as the name of a table.
        failed = f"{self._shown} could not {action}: {line(str(error))}"
        if name == "SQLITE_FULL":
            return StoreFull(f"{failed}. Make room on the disk, and try it again")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return StoreInUse(
                f"{failed}. Another program than triobus has locked it for more than "
                f"{_BUSY_SECONDS:g} s: end that program"
            )
        if name.startswith("SQLITE_READONLY"):
            return StoreReadOnly(f"{failed}. Make file and directory writable")
        if name.startswith("SQLITE_NOTADB"):
            return NotAStore(
                f"{failed}. Give the path of a store, or one where there is no file yet"
            )
        if name == "SQLITE_INTERRUPT" and not self._is_overworked:
            return StoreIOError(f"{failed}. Try it again")
        if name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_PROTOCOL")):
            return StoreIOError(f"{failed} ({name}). Look at the disk and its limits")
        if name.startswith("SQLITE_CORRUPT"):
            failed = f"{self._shown} is damaged and could not {action}: {line(str(error))}"
        if name == "SQLITE_INTERRUPT":
            failed = f"{self._shown} is damaged: it is longer to read than its file is long"
        return StoreCorrupt(f"{failed}. {_RESTORE}")


_is_uuid = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}").fullmatch
_RESTORE = "Restore the file from a backup"


@attrs.define(eq=False)
class _Written:
    """What a transaction has made of the log."""

    position: int
    checksum: int
    rows: list[tuple[Any, ...]] = attrs.field(factory=list)
    sequences: dict[str, int] = attrs.field(factory=dict)
    results: list[list[Placement] | Exception] = attrs.field(factory=list)
    bytes: int = 0


def _write_changes(connection: sqlite3.Connection, changes: Changes, seals: Seals) -> None:
    for name, group in changes.groups.items():
        gone = [(name, position) for position, row in group.attempts.items() if row is None]
        rows: list[AttemptsRow] = [
            (name, *row[:-1], msgspec.json.encode(row.done).decode())
            for row in group.attempts.values()
            if row is not None
        ]
        seal = seals.written(connection, name, group.progress, gone, rows)
        _write_progress(connection, name, group.progress, seal)
        if gone:
            connection.executemany(
                "DELETE FROM attempts WHERE group_name = ? AND position = ?", gone
            )
        if rows:
            connection.executemany("INSERT OR REPLACE INTO attempts VALUES (?,?,?,?,?,?,?)", rows)
    if changes.letters:
        connection.execute(
            "UPDATE progress SET fences = max(fences, ?) WHERE name = ''", (max(changes.letters),)
        )
    for id_, letter in changes.letters.items():
        if letter is None:
            connection.execute("DELETE FROM dead_letters WHERE id = ?", (id_,))
        else:
            connection.execute(
                "INSERT OR REPLACE INTO dead_letters VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                (
                    letter.id,
                    letter.position,
                    letter.group,
                    letter.subscription,
                    letter.aggregate_id,
                    letter.attempts,
                    letter.first_failed_at.isoformat(),
                    letter.last_failed_at.isoformat(),
                    letter.error_type,
                    letter.message,
                    letter.traceback,
                ),
            )


def _write_progress(
    connection: sqlite3.Connection, name: str, change: ProgressChange, seal: int
) -> None:
    connection.execute(
        "INSERT INTO progress (name, position, checksum) VALUES (?, ?, ?) "
        "ON CONFLICT (name) DO UPDATE SET position = excluded.position, "
        "checksum = excluded.checksum",
        (name, change.offset, seal),
    )
    gone = [(name, first) for first, last in change.ranges if last is None]
    if gone:
        connection.executemany(
            "DELETE FROM finished WHERE group_name = ? AND first_position = ?", gone
        )
    rows = [(name, first, last) for first, last in change.ranges if last is not None]
    if rows:
        connection.executemany("INSERT OR REPLACE INTO finished VALUES (?, ?, ?)", rows)
