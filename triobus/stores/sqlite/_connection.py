"""The open file of one store: blocking functions, called in the store's worker thread.

One connection reads, writes and checkpoints. It is a reader until the store is claimed, and reading
needs no claim, so that other programs may look at a store while a bus has it.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from urllib.parse import quote

import attrs

from triobus._errors import NotAStore, StoreClosed, StoreError, StoreIOError, StoreReadOnly
from triobus._process import process
from triobus.stores._duplicates import LONGEST_NAME
from triobus.stores.sqlite import _faults, _path, _schema
from triobus.stores.sqlite._faults import STEPS_BETWEEN_LOOKS, Faults
from triobus.stores.sqlite._lock import Claim
from triobus.stores.sqlite._transaction import Access

MEMORY = ":memory:"
FRAMES_BEFORE_CHECKPOINT = 2000
"""How many pages, about, go into the write-ahead log before a checkpoint takes them to the file."""


@attrs.define(eq=False)
class Database:
    """The open file of one store."""

    path: str
    """As the user gave it."""
    synchronous: str
    max_event_bytes: int
    is_read_only: bool
    warning: str | None = None
    """A condition to look at, though everything works."""
    faults: Faults = attrs.field(init=False)
    access: Access = attrs.field(factory=Access, init=False)
    connection: sqlite3.Connection | None = None
    at: _path.StoreFile | None = None
    was_at: _path.StoreFile | None = None
    """The file that was closed last."""
    claim: Claim | None = None
    _pid: int = 0
    _forks: int = 0
    is_writer: bool = False
    was_unclean: bool = False
    broken: StoreError | None = None
    wal: tuple[int, int] | None = None
    """Device and inode of the write-ahead log while the file is open for writing."""
    frames: float = 0
    """How many pages, about, are in that log."""
    position: int = 0
    """The position of the log's last event, as far as it is known."""
    checksum: int = 0
    """The checksum of that event."""

    def __attrs_post_init__(self) -> None:
        self.faults = Faults(
            "the store in memory" if self.path == MEMORY else f"store {self.path!r}"
        )

    @property
    def state(self) -> str:
        """What the file is open for, in words; with the length of the log where that is known."""
        if self.connection is None:
            return "not open"
        if self.broken is not None:
            return f"of no use until it is opened again ({type(self.broken).__name__})"
        if self.is_writer:
            return f"open for writing, {self.position:,} event" + "s" * (self.position != 1)
        return "read-only" if self.is_read_only else "open for reading"

    def open(self, *, creates: bool = True) -> None:
        """Open the file for reading; make it if there is none, unless that is not wanted."""
        self._pid, self._forks = os.getpid(), process.forks
        self.broken = self.warning = self.wal = None
        try:
            if self.path == MEMORY:
                self._connect(MEMORY, uri=False)
            elif self.is_read_only or not creates:
                self.at = _path.existing(self.path)
                self._connect_to_file()
            else:
                self.at = _path.open_or_create(self.path)
                self._connect_to_file()
            with self.faults.explained("be opened"):
                self._prepare()
        except BaseException:
            self.let_go()
            raise

    def close(self) -> None:
        """Leave a file that is whole and alone, with no other beside it."""
        connection = self.connection
        try:
            is_clean = self.is_writer and self.at is not None and self.broken is None
            if connection is not None and is_clean and self._forks == process.forks:
                self.checkpoint("PASSIVE")
                connection.close()
                self._empty_log()
        finally:
            self.let_go()

    def _empty_log(self) -> None:
        """Empty the `-wal` if another program still reads the store, which keeps it there.

        Where none does SQLite has removed it. It is not cut before that: a `-wal` that was cut by
        half when the process died would be believed.
        """
        assert self.at is not None
        with suppress(sqlite3.Error, OSError):
            if os.stat(self.at.path + "-wal").st_size:
                with closing(self._connect_again("rw")) as another:
                    another.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def abandon(self) -> None:
        """Close the file and leave it, and what is beside it, as they are on disk now.

        The last connection takes the `-wal` into the file and removes it, unless it is read-only.
        """
        if self.at is None or not self.is_writer:
            self.let_go()
            return
        with closing(self._connect_again("ro")) as last:
            last.execute("SELECT count(*) FROM sqlite_master").fetchall()
            claim, self.claim = self.claim, None
            if claim is not None:
                claim.abandon()
            self.let_go()

    def _connect_to_file(self) -> None:
        assert self.at is not None
        self.faults.path = self.at.path
        self.was_unclean = _path.wal_identity(self.at.path) is not None
        name = quote(os.fsencode(self.at.path))
        is_writable = os.access(self.at.path, os.W_OK) and os.access(
            os.path.dirname(self.at.path), os.W_OK
        )
        # A reader of mode=ro leaves -wal and -shm behind; one that could write does not.
        self._connect(f"file:{name}?mode={'rw' if is_writable else 'ro'}", uri=True)

    def _connect(self, target: str, *, uri: bool) -> None:
        with self.faults.explained("be opened"):
            connection = sqlite3.connect(
                target,
                uri=uri,
                timeout=_faults.BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,  # whichever thread is free, but one at a time
            )
            self.connection = connection
            connection.text_factory = bytes
            row = self.max_event_bytes + 2 * LONGEST_NAME + 2**20
            limit = max(16 * 2**20, 2 * self.max_event_bytes, row)
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limit)
            connection.set_authorizer(self.access.authorize)
            connection.set_progress_handler(self.faults.is_endless, STEPS_BETWEEN_LOOKS)
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
        connection = self.ready()
        with self.one_moment():  # for another process may be making the store
            version = _schema.version_of(connection, self.faults.shown)
        if version < len(_schema.MIGRATIONS) and not self.is_read_only:
            # Making a store is writing, and two may want to at once.
            claim = None if self.at is None else Claim.take(self.at)
            try:
                self._make(connection)
            finally:
                if claim is not None:
                    claim.release()
        elif version == 0:
            raise NotAStore(f"{self.faults.shown} is empty: there is nothing to read in it")
        elif version < len(_schema.MIGRATIONS):
            raise StoreReadOnly(
                f"{self.faults.shown} has version {version} of the schema, and this triobus reads "
                f"version {len(_schema.MIGRATIONS)}: open it once without read_only=True, which "
                "brings it up to date"
            )
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        if mode != (b"memory" if self.at is None else b"wal") and mode not in ("wal", "memory"):
            raise NotAStore(
                f"{self.faults.shown} has journal mode {mode!r} and not WAL: another program "
                "has changed it; restore the file from a backup"
            )
        (level,) = connection.execute("PRAGMA synchronous").fetchone()
        if level != {"full": 2, "normal": 1}[self.synchronous]:
            raise StoreIOError(
                f"{self.faults.shown}: SQLite did not take synchronous={self.synchronous}"
            )
        connection.execute("PRAGMA query_only = ON")

    def _make(self, connection: sqlite3.Connection) -> None:
        if self.at is not None:
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute("BEGIN IMMEDIATE")
        try:
            _schema.migrate(connection, _schema.version_of(connection, self.faults.shown))
            connection.execute("COMMIT")
        except BaseException:
            self.roll_back()
            raise
        self.checkpoint("TRUNCATE")

    def let_go(self) -> None:
        """Close the file, whatever is beside it."""
        connection, self.connection = self.connection, None
        try:
            if connection is not None and self._forks == process.forks:
                with self._log_kept():
                    connection.close()
        finally:
            self.release()
            self.was_at = self.at or self.was_at
            self.at = self.faults.path = None

    @contextmanager
    def _log_kept(self) -> Iterator[None]:
        """Leave the `-wal` of a killed writer to the next one: it may be damaged, or all there is.

        The last connection takes it into the file and removes it, unless it is read-only.
        """
        with ExitStack() as stack:
            if self.at is not None and self.was_unclean and not self.is_writer:
                with suppress(sqlite3.Error, OSError):
                    if os.stat(self.at.path + "-wal").st_size:
                        last = stack.enter_context(closing(self._connect_again("ro")))
                        last.execute("PRAGMA schema_version").fetchall()
            yield

    def _connect_again(self, mode: str) -> sqlite3.Connection:
        assert self.at is not None
        name = quote(os.fsencode(self.at.path))
        return sqlite3.connect(f"file:{name}?mode={mode}", uri=True)

    def release(self) -> None:
        """Be no writer any more."""
        self.is_writer = False
        claim, self.claim = self.claim, None
        if claim is not None:
            claim.release()

    def check_open(self) -> None:
        """Raise `StoreClosed`, or `StoreForked` in a child of the process that has opened it."""
        if self.connection is None:
            raise StoreClosed(
                f"{self.faults.shown} is not open: use it inside 'async with store:', or in a "
                "bus that is running"
            )
        self.check_process()

    def check_process(self) -> None:
        """Raise `StoreForked` in a child of the process that has opened it."""
        if self.connection is not None and self._forks != process.forks:
            raise _path.forked(self._pid, self.path)

    def ready(self) -> sqlite3.Connection:
        """Return the connection. Raises `StoreClosed` and the like where it is of no use."""
        if self.connection is None or self._forks != process.forks:
            self.check_open()
        if self.broken is not None:
            raise self.broken
        assert self.connection is not None
        return self.connection

    def roll_back(self) -> None:
        """End a transaction that has not been committed."""
        if self.connection is not None and self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    @contextmanager
    def one_moment(self) -> Iterator[None]:
        """See the store at one moment, whatever is written meanwhile."""
        self.ready().execute("BEGIN")
        try:
            yield
        finally:
            self.roll_back()

    def checkpoint(self, mode: str) -> None:
        """Take what is in the write-ahead log to the file. What fails costs only room on disk."""
        connection = self.ready()
        try:
            _, total, moved = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except sqlite3.Error as error:
            self.frames = FRAMES_BEFORE_CHECKPOINT / 2
            self.warning = (
                f"{self.faults.shown}: a checkpoint failed ({error}); it will be tried again."
            )
            return
        self.frames = 0
        self.warning = None
        if moved < total:
            self.frames = FRAMES_BEFORE_CHECKPOINT / 2
            self.warning = (
                f"{self.faults.shown}: a reader holds up the checkpoint at {moved} of {total} "
                "pages, and the file '-wal' grows; end that reader."
            )
