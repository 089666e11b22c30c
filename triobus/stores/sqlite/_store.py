"""`SqliteEventStore`: a log of events in one SQLite file.

Everything in it can be read with the `sqlite3` shell, and nothing else should be done with it: what
was changed is found by its checksum. Schema, version 2:

    events        the log: position (1, 2, 3 ... without gaps), event_id, event_type,
                  schema_version, aggregate_id and the sequence in it (both NULL for an event
                  without an aggregate), recorded_at (ISO 8601, UTC), data (the event in JSON),
                  checksum (crc32 of the columns before it, joined by NUL, begun with the checksum
                  of the event before: it finds accidents, not attackers), correlation_id (as in
                  data)
    progress      how far each group of a bus is: up to position everything is settled; under the
                  empty name position and checksum of the last event, and the number of commits that
                  were made only so that a failed one before cannot come back
    finished      ranges of positions above it that a group has finished
    attempts      events of which a group has failed an attempt and not yet the last: whose turn it
                  is, after how many attempts, when the next one is due (seconds since 1970), after
                  which delay, and which subscriptions are done (JSON)
    dead_letters  what handlers have failed for good, with the error
    scheduled     events that are not due yet, by the number of their publication: when they are
                  (seconds since 1970), and what they will have in the log

Beside the log each row has the crc32 of its other columns as its checksum (NULL: not known).

    sqlite3 orders.db "SELECT position, data ->> 'order_id' FROM events ORDER BY position"

The file is created for its owner alone. While it is open for writing, `-wal`, `-shm` and `-lock`
are beside it; after the `async with` they are gone.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal, TypeVar, get_args
from uuid import UUID

import attrs
import trio

from triobus import _checks
from triobus._events import Converter, DomainEvent
from triobus._threads import Worker
from triobus.stores._overview import Holder, LetterGroup, Overview
from triobus.stores._store import EventStore
from triobus.stores._transaction import Call
from triobus.stores._values import (
    EVERYTHING,
    Commit,
    DeadLetterKey,
    DeadLetterRow,
    Erasure,
    GroupRow,
    Imported,
    LogPosition,
    Row,
    Selection,
    Snapshot,
    StoreStatistics,
)
from triobus.stores.sqlite import _log
from triobus.stores.sqlite._backup import back_up
from triobus.stores.sqlite._connection import MEMORY, Database
from triobus.stores.sqlite._erasing import Eraser
from triobus.stores.sqlite._import import Importer
from triobus.stores.sqlite._lock import holder
from triobus.stores.sqlite._overview import letter_groups, overview
from triobus.stores.sqlite._path import check_path
from triobus.stores.sqlite._reading import Reader, size_of
from triobus.stores.sqlite._verify import Verifier
from triobus.stores.sqlite._writing import Writer

T = TypeVar("T")
Synchronous = Literal["full", "normal"]

_SCANNED_AT_ONCE = 10_000
"""How many events are looked at in one go for some that are of wanted types."""


@attrs.frozen
class Importing:
    """Takes events over from elsewhere."""

    last: int
    """The position of the last event that the log had before."""
    add: Callable[[Sequence[Imported]], Awaitable[list[LogPosition]]]
    """Appends events, but for those that the log has, and returns where each of them is."""


class SqliteEventStore(EventStore):
    """A log of events in an SQLite file, which outlives crashes; `":memory:"` for one in memory.

    - `synchronous`: with "full" everything that was accepted is on disk; with "normal" it outlives
      a killed process, and the last moments before a power cut may be lost.
    - `max_event_bytes`: the largest event, in JSON, that is accepted.
    - `types`: event classes that settle which one is meant where two have the same event type.
    - `converters`: how values of types that JSON does not know are kept, such as
      `Converter(IPv4Address, to=str, of=IPv4Address)`.
    - `read_only`: open a store that exists only to look at it.

    All work is done in a worker thread, one call at a time. There is one writer at a time, a bus
    or a task that calls `append`, and any number of readers. Raises `InvalidOption` and
    `InvalidStorePath`; the file itself is looked at when the store is opened.
    """

    def __init__(
        self,
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        *,
        synchronous: Synchronous = "full",
        max_event_bytes: int = 1_048_576,
        types: Iterable[type[DomainEvent]] = (),
        read_only: bool = False,
        converters: Iterable[Converter] = (),
    ) -> None:
        _checks.choice("synchronous", synchronous, get_args(Synchronous))
        super().__init__(types=types, max_event_bytes=max_event_bytes, converters=converters)
        self.path = MEMORY if path == MEMORY else check_path(path)
        """The absolute path of the file."""
        self._database = Database(self.path, synchronous, max_event_bytes, read_only)
        self._reader = Reader(self._database)
        self._writer = Writer(self._database, self._reader)
        self._verifier = Verifier(self._database)
        self._eraser = Eraser(self._database, self._writer, self._codec)
        self._worker = Worker(f"triobus store {self.path!r}")

    def __repr__(self) -> str:
        return f"<SqliteEventStore {self.path!r}, {self._database.state}>"

    @property
    def _warning(self) -> str | None:
        """A condition to look at, though the store works; None if there is none."""
        return self._database.warning

    def _size(self) -> int | None:
        """How many bytes its files take; None in memory."""
        return None if self.path == MEMORY else size_of(self.path)

    def _check_process(self) -> None:
        """Raise `StoreForked` in a forked child of the process that has opened it."""
        self._database.check_process()

    async def _open(self) -> None:
        """Open the file, or make it."""
        await self._start(self._database.open)

    async def _reopen(self) -> None:
        """Open the file that was closed, to read on in it. Raises `StoreError` if it is gone."""
        await self._start(_log.reopen, self._database)

    async def _start(self, function: Callable[..., None], *args: Any) -> None:
        """Start the thread with what opens the file; if that raises, there is no thread."""
        self._worker.start()
        try:
            await self._worker.run(function, *args)
        except BaseException:
            self._worker.stop()
            raise

    async def _close(self) -> None:
        """Close the file and take away what is beside it."""
        self._database.check_open()
        try:
            await self._worker.run(self._database.close)
        finally:
            self._worker.stop()

    async def _abandon(self) -> None:
        """Close the file as a killed process would; what is beside it stays there."""
        try:
            await self._worker.run(self._database.abandon)
        finally:
            self._worker.stop()

    @property
    def _scheduled_count(self) -> int:
        """How many events are scheduled."""
        return self._writer.scheduled.count

    @property
    def _is_writer(self) -> bool:
        """Whether it has been claimed since it was opened."""
        return self._database.is_writer

    async def _claim(self) -> Snapshot:
        """Become the only writer. Raises `StoreInUse` with the pid of another one."""
        return await self._run(self._writer.claim)

    async def _commit(self, commit: Commit) -> list[Any]:
        """Store what is pending in one transaction of SQLite's."""
        self._database.check_open()
        return await self._worker.finish(self._writer.commit, commit)

    async def _ask(self, call: Call) -> Any:
        """Make a call that only reads."""
        return await self._run(self._reader.ask, call)

    async def _fetch(
        self,
        after: int,
        limit: int,
        up_to: int | None = None,
        selected: Selection = EVERYTHING,
        *,
        backwards: bool = False,
    ) -> list[Row]:
        """Return the first events behind a position, or the last ones."""
        fetch = self._reader.fetch
        if selected.types is None or selected.aggregate_id is not None or selected.correlation_id:
            return await self._run(fetch, after, limit, up_to, selected, backwards)
        # There is no index by type, and commits shall not wait until all of a log is looked at.
        last = await self._last_position()
        first, last = after, last if up_to is None else min(up_to, last)
        while True:
            start = max(last - _SCANNED_AT_ONCE, first) if backwards else first
            end = last if backwards else min(first + _SCANNED_AT_ONCE, last)
            found = await self._run(fetch, start, limit, end, selected, backwards)
            first, last = (first, start) if backwards else (end, last)
            if found or first >= last:
                return found

    async def _position_of(self, aggregate_id: str, sequence: int) -> int | None:
        """Return where an aggregate has its event of that sequence."""
        return await self._run(self._reader.position_of, aggregate_id, sequence)

    async def _find(self, event_id: UUID) -> Row | None:
        """Return an event by its id."""
        return await self._run(self._reader.find, str(event_id))

    async def _last_position(self) -> int:
        """Return the position of the last event."""
        return await self._run(self._reader.last_position)

    async def _groups(self) -> list[GroupRow]:
        """Return the progress of all groups."""
        return await self._run(self._reader.groups)

    async def _letter_keys(self) -> list[DeadLetterKey]:
        """Return what identifies each dead letter."""
        return await self._run(self._reader.letter_keys)

    async def _letters(self, ids: Sequence[int]) -> list[tuple[DeadLetterRow, Row]]:
        """Return dead letters with their events."""
        return await self._run(self._reader.letters, ids)

    async def statistics(self) -> StoreStatistics:
        """Return what the store holds. It looks at every event."""
        return await self._run(self._reader.statistics)

    async def _overview(self, *, exact: bool = False) -> Overview:
        """Return what a person wants to know first; in bounded time unless it is to be exact."""
        return await self._run(overview, self._reader, exact)

    async def _letter_groups(self) -> list[LetterGroup]:
        """Return the dead letters by subscription and type of error; the most numerous first."""
        return await self._run(letter_groups, self._reader)

    async def _holder(self) -> Holder | None:
        """Return which process writes to the store; None if none does."""
        return await self._run(self._look_for_holder)

    def _look_for_holder(self) -> Holder | None:
        file = self._database.at
        return None if file is None else holder(file)

    @asynccontextmanager
    async def _importing(self) -> AsyncIterator[Importing]:
        """Take events over inside the block, all or none. Nothing else uses the store meanwhile."""
        importer = Importer(self._database, self._writer)
        importing = Importing(await self._run(importer.begin), partial(self._run, importer.add))
        try:
            yield importing
            await self._run(importer.finish)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._run(importer.abandon)
            raise

    async def _erasure(self, aggregate_id: str) -> Erasure:
        """Return how much there is of an aggregate to be erased."""
        return await self._run(self._eraser.look, aggregate_id)

    async def _erase(self, aggregate_id: str) -> Erasure:
        """Erase an aggregate, and return how much there was. Nothing else uses the store then."""
        return await self._run(self._eraser.erase, aggregate_id)

    async def _back_up(self, path: str, progress: Callable[[int, int], None]) -> None:
        """Copy the store, as it is at one moment, into a file that is empty.

        `progress` is called in the store's thread with how many pages are left, and of how many.
        """
        await self._run(back_up, self._database, path, progress)

    async def check(self, after: int = 0, limit: int = 1000) -> tuple[int, list[int]]:
        """Compare up to `limit` events behind a position with their checksums.

        Returns the position that it came to (`after` itself at the end), and the positions of the
        events that are damaged or missing. Raises `StoreError` where nothing can be read at all.
        """
        return await self._run(self._verifier.check, after, limit)

    async def problems(self) -> list[str]:
        """Look at everything beside the log: pages, indexes, progress, dead letters, the `-wal`.

        Returns what is wrong, in sentences. Raises `StoreError` where nothing can be read at all.
        """
        return await self._run(self._verifier.problems)

    async def check_sequences(self, limit: int = 1000) -> list[int]:
        """Return the first positions of events whose sequences are not 1, 2, 3 ... as they come.

        Checksums do not show that in a forged log. It looks at every event.
        """
        return await self._run(self._verifier.check_sequences, limit)

    async def _run(self, function: Callable[..., T], *args: Any) -> T:
        self._database.check_open()
        return await self._worker.run(function, *args)
