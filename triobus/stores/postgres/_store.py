"""`PostgresEventStore`: a log of events in a schema of a PostgreSQL database.

Everything in it can be read with SQL, and nothing else should be done with it. Schema, version 1:

    events        the log: position (1, 2, 3 ... without gaps, in the order of commits), event_id,
                  event_type, schema_version, aggregate_id and the sequence in it (both NULL for an
                  event without an aggregate), slot (which groups that are shared go by),
                  recorded_at (by the server's clock), data (the event in JSON), checksum (it finds
                  accidents, not attackers), correlation_id (as in data)
    log           the id of the log, the version of the schema, and the floor below which events
                  have been taken out
    nodes         the buses that use the log, and until when their leases are
    groups        the groups of the buses
    segments      who has which part of a group, by which token, and up to which position everything
                  of it is settled; under the empty name, who has the log
    finished      ranges of positions above that which are finished
    attempts      events of which a group has failed an attempt and not yet the last
    dead_letters  what handlers have failed for good, with the error
    scheduled     events that are not due yet

    SELECT position, data::json ->> 'order_id' FROM triobus.events ORDER BY position

Several programs may append and read at any time; one bus at a time has the log.
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Any, TypeVar
from uuid import UUID

import trio

from triobus import _checks
from triobus._errors import InvalidOption, StoreForked, StoreInUse, StoreReadOnly
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
    GroupRow,
    Row,
    Selection,
    Snapshot,
    StoreStatistics,
)

T = TypeVar("T")

_LONGEST_LOOK = 1.0
"""Seconds after which a lease that seems not to be renewed is looked at again."""


class PostgresEventStore(EventStore):
    """A log of events in a PostgreSQL database, which several programs append to and read.

    - `dsn`: where the database is, as libpq takes it: `"postgresql://user@host/database"`.
    - `schema`: the schema of the database that has the log, made if there is none.
    - `lease`: a bus that has the log is replaced when it has given no sign of life for so many
      seconds.
    - `name`: what to call this program to others; by default its host and process.
    - `max_event_bytes`: the largest event, in JSON, that is accepted.
    - `types`: event classes that settle which one is meant where two have the same event type.
    - `converters`: how values of types that JSON does not know are kept.
    - `read_only`: open a store that exists only to look at it.

    It needs the extra `postgres`. All work is done in worker threads. One bus at a time has the
    log; another one raises `StoreInUse`, or waits until the lease of one that died is over.
    `append`, `transact` and reading need no bus, and a bus gets what other programs append.
    An aggregate id may have 2,000 bytes. Raises `InvalidOption`, and `ImportError` without psycopg;
    the server is looked for when the store is opened.
    """

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = "triobus",
        lease: float = 5.0,
        name: str | None = None,
        max_event_bytes: int = 1_048_576,
        types: Iterable[type[DomainEvent]] = (),
        read_only: bool = False,
        converters: Iterable[Converter] = (),
    ) -> None:
        _check_options(dsn, schema, lease, name)
        _checks.boolean("read_only", read_only)
        super().__init__(types=types, max_event_bytes=max_event_bytes, converters=converters)
        try:
            from triobus.stores.postgres import _driven
        except ModuleNotFoundError as error:
            if error.name != "psycopg":
                raise
            raise ImportError(
                "PostgresEventStore needs the driver psycopg: install it with "
                "pip install 'triobus[postgres]'"
            ) from error
        self._driven = _driven.Driven(dsn, schema, lease, name, read_only)
        self._is_read_only = read_only
        self._shown = self._driven.shown
        self._pid: int | None = None
        """The process that has opened it; None while it is not open."""
        self._for_reading = Worker(f"triobus {self._shown}, reading")
        self._for_writing = Worker(f"triobus {self._shown}, writing")
        self._log = ""
        self._commit_ended: trio.Event | None = None
        """Set when the commit under way is over."""

    def __repr__(self) -> str:
        return f"<PostgresEventStore, {self._shown}, {self._state}>"

    @property
    def _state(self) -> str:
        if self._pid is None:
            return "not open"
        if self._is_read_only:
            return "read-only"
        head = self._driven.writer.head
        if not head and not self._driven.has_log:
            return "open for reading"
        return f"open for writing, {head:,} event" + "s" * (head != 1)

    @property
    def _warning(self) -> str | None:
        """A condition to look at, though the store works; None if there is none."""
        return self._driven.warning

    def _check_process(self) -> None:
        """Raise `StoreForked` in a forked child of the process that has opened it."""
        if self._pid is not None and self._pid != os.getpid():
            raise StoreForked(
                f"{self._shown} was opened by process {self._pid}, and this is a forked child of "
                "it: open a store of its own in the child"
            )

    def _check_open(self) -> None:
        self._check_process()
        self._driven.check_open(self._pid is not None)

    async def _open(self) -> None:
        """Connect, and make the schema if it is not there."""
        self._for_reading.start()
        self._for_writing.start()
        try:
            self._log = await self._for_reading.run(self._driven.open)
        except BaseException:
            self._stop()
            raise
        self._pid = os.getpid()

    async def _close(self) -> None:
        """Let go of the log, and close the connections."""
        await self._leave(is_clean=True)

    async def _abandon(self) -> None:
        """Close the connections as a killed process would, whose lease is over at once."""
        await self._leave(is_clean=False)

    async def _leave(self, *, is_clean: bool) -> None:
        self._check_open()
        self._pid = None
        try:
            await self._for_writing.finish(self._driven.close, is_clean)
        finally:
            self._stop()

    def _stop(self) -> None:
        self._for_reading.stop()
        self._for_writing.stop()

    @property
    def _scheduled_count(self) -> int:
        """How many events are scheduled, as far as it is known here."""
        return self._driven.writer.scheduled

    @property
    def _is_writer(self) -> bool:
        """Whether it may append: nobody has to claim the log for that."""
        return not self._is_read_only

    async def _claim(self) -> Snapshot:
        """Be the one bus that has the log, as soon as no other has it.

        It waits for the end of a lease that is not renewed.
        """
        if self._is_read_only:
            raise StoreReadOnly(
                f"{self._shown} was opened with read_only=True: open it without to write"
            )
        if not self._driven.has_log:
            await self._wait_for_log()
        return await self._read(self._driven.snapshot)

    async def _wait_for_log(self) -> None:
        before, left = None, inf
        while (found := await self._write(self._driven.claim)) is not None:
            if before is not None and found.node == before and found.remaining > left:
                raise StoreInUse(
                    f"{self._shown} is used by another bus, {found.name!r} (node {found.node}), "
                    "whose lease is renewed: end it first, or give this one another schema"
                )
            before, left = found.node, found.remaining
            await self._driven.pause(min(max(left, 0) + 0.01, _LONGEST_LOOK))

    async def _commit(self, commit: Commit) -> list[Any]:
        """Store what is pending, and return what became of each append and all the rest."""
        self._check_open()
        ended = self._commit_ended = trio.Event()
        try:
            results = await self._for_writing.finish(self._driven.writer.commit, commit)
        finally:
            self._commit_ended = None
            ended.set()
        self._driven.expect_news(self._log)
        return results

    @property
    def _is_attended(self) -> bool:
        """Whether others may store something while a bus uses it."""
        return True

    async def _attend(self, tell: Callable[[int, float | None], None]) -> None:
        """Tell the bus what is stored, by others too. Raises `StoreInUse` if it loses the log."""
        token, lost = trio.lowlevel.current_trio_token(), trio.Event()
        heard: list[tuple[int, float | None]] = []
        has_heard = trio.Event()

        def hear(head: int, due: float | None) -> None:
            heard.append((head, due))
            has_heard.set()

        async def pass_on() -> None:
            nonlocal has_heard
            while True:
                await has_heard.wait()
                has_heard = trio.Event()
                # What this bus is storing it hears of from the commit, in order.
                while self._commit_ended is not None:
                    await self._commit_ended.wait()
                for head, due in heard:
                    tell(head, due)
                heard.clear()

        with self._driven.losing(token, lost):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._driven.listen, self._log, hear)
                nursery.start_soon(pass_on)
                await lost.wait()
                nursery.cancel_scope.cancel()
        self._driven.check_lost()

    async def _ask(self, call: Call) -> Any:
        """Make a call that only reads."""
        return await self._read(self._driven.reader.ask, call)

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
        fetch = self._driven.reader.fetch
        return await self._read(fetch, after, limit, up_to, selected, backwards)

    async def _position_of(self, aggregate_id: str, sequence: int) -> int | None:
        """Return where an aggregate has its event of that sequence."""
        return await self._read(self._driven.reader.position_of, aggregate_id, sequence)

    async def _find(self, event_id: UUID) -> Row | None:
        """Return an event by its id."""
        return await self._read(self._driven.reader.find, str(event_id))

    async def _last_position(self) -> int:
        """Return the position of the last event."""
        return await self._read(self._driven.reader.last_position)

    async def _groups(self) -> list[GroupRow]:
        """Return the progress of all groups."""
        return await self._read(self._driven.reader.groups)

    async def _letter_keys(self) -> list[DeadLetterKey]:
        """Return what identifies each dead letter."""
        return await self._read(self._driven.reader.letter_keys)

    async def _letters(self, ids: Sequence[int]) -> list[tuple[DeadLetterRow, Row]]:
        """Return dead letters with their events."""
        return await self._read(self._driven.reader.letters, ids)

    async def _overview(
        self,
        *,
        exact: bool = False,  # noqa: ARG002  # it is exact anyway
    ) -> Overview:
        """Return what a person wants to know first. It looks at every event."""
        return await self._read(self._driven.reader.overview)

    async def _letter_groups(self) -> list[LetterGroup]:
        """Return the dead letters by subscription and type of error; the most numerous first."""
        return await self._read(self._driven.reader.letter_groups)

    async def _holder(self) -> Holder | None:
        """Return which bus has the log."""
        name = await self._read(self._driven.reader.holder)
        return None if name is None else Holder(None, name)

    async def _listen(self, hear: Callable[[int, float | None], None]) -> None:
        """Tell where the log ends whenever it has grown, until it is cancelled."""
        self._check_open()
        await self._driven.listen(self._log, hear)

    async def statistics(self) -> StoreStatistics:
        """Return what the store holds. It looks at every event."""
        return await self._read(self._driven.reader.statistics)

    async def _read(self, function: Callable[..., T], *args: Any) -> T:
        self._check_open()
        return await self._for_reading.run(function, *args)

    async def _write(self, function: Callable[..., T], *args: Any) -> T:
        self._check_open()
        return await self._for_writing.run(function, *args)


def _check_options(dsn: object, schema: object, lease: float, name: object) -> None:
    if not isinstance(dsn, str) or "\0" in dsn:
        raise InvalidOption(f"dsn={dsn!r}: give a str such as 'postgresql://user@host/database'")
    if not isinstance(schema, str) or not re.fullmatch(r"[^\0]+", schema):
        raise InvalidOption(f"schema={schema!r}: give the name of a schema, such as 'triobus'")
    if len(schema.encode("utf-8", "replace")) > _LONGEST_NAME or schema.startswith("pg_"):
        raise InvalidOption(
            f"schema={schema!r}: give a name of at most {_LONGEST_NAME} bytes that does not begin "
            "with 'pg_'"
        )
    _checks.number("lease", lease, least=0.1)
    if name is not None and (not isinstance(name, str) or not name or "\0" in name):
        raise InvalidOption(f"name={name!r}: give a str that names this program, or None")


_LONGEST_NAME = 63
"""How many bytes of a name PostgreSQL keeps."""
