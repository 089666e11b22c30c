"""`EventStore`: what a bus needs of a store, and what every store gives its users.

A new kind of store derives from `EventStore` and writes its abstract methods; none of them is about
SQL, files or one process. What users call is made of them here.

- Commits come one at a time; other calls may come meanwhile.
- A call that is cancelled has had its effect or has had none, and then it says so by raising.
- Positions are 1, 2, 3 ... without gaps, given in the order of a transaction's appends. A store
  whose own numbers have gaps counts its events besides.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar, TypeVarTuple, cast
from uuid import UUID

import trio
from trio.lowlevel import (
    cancel_shielded_checkpoint,
    checkpoint_if_cancelled,
    enable_ki_protection,
)

from triobus import _checks
from triobus._errors import EventNotDecodable, InvalidOption
from triobus._events import (
    Converter,
    DomainEvent,
    EventCodec,
    check_aggregate_id,
    with_cause,
)
from triobus._events.batch import Batch
from triobus._events.causes import calling_cause, calling_delivery
from triobus.stores._commits import CommitQueue, Submission
from triobus.stores._duplicates import Differs, check_same
from triobus.stores._overview import (
    Holder,
    LetterGroup,
    Overview,
    grouped,
    overview_of,
)
from triobus.stores._reading import Types, reading
from triobus.stores._transaction import Call, Transaction
from triobus.stores._values import (
    EVERYTHING,
    Append,
    Commit,
    DeadLetterKey,
    DeadLetterRow,
    GroupRow,
    LogPosition,
    NewRow,
    Row,
    Schedule,
    Selection,
    Snapshot,
    Stored,
    StoreStatistics,
    Waiting,
    check_expected,
)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class EventStore(ABC):
    """A log of events, and how far the groups of a bus have come in it.

    Use it as `async with store:`; a bus does that with the store that it is given, and then one
    that is open already stays open when the bus ends.
    """

    def __init__(
        self,
        *,
        types: Iterable[type[DomainEvent]] = (),
        max_event_bytes: int = 1_048_576,
        converters: Iterable[Converter] = (),
    ) -> None:
        _checks.whole_number("max_event_bytes", max_event_bytes, least=1)
        self._codec = EventCodec(types, max_event_bytes, converters)
        """Makes JSON of events and events of JSON."""
        self._commits = CommitQueue(self._commit, self._check_process)
        self._users = 0
        self._opening = trio.Lock()

    @property
    def is_shared(self) -> bool:
        """Whether several buses may use it at a time, and share the work of their groups."""
        return False

    def _for_bus(self) -> "EventStore":
        """Return the store as one life of a bus uses it; a `SharedEventStore` if it is shared."""
        return self

    # What a kind of store has to do

    @abstractmethod
    async def _open(self) -> None:
        """Make the store ready to be read. Called once before anything else."""

    async def _reopen(self) -> None:
        """Make the store ready to be read as it was when it was closed, or raise `StoreError`."""
        await self._open()

    @abstractmethod
    async def _close(self) -> None:
        """Let go of everything. Shielded from cancellation by the caller."""

    async def _abandon(self) -> None:
        """Let go of everything as a killed process would, so far as that is not the same."""
        await self._close()

    @property
    @abstractmethod
    def _scheduled_count(self) -> int:
        """How many events are scheduled, after the last commit."""

    @property
    @abstractmethod
    def _is_writer(self) -> bool:
        """Whether the store has been claimed since it was opened."""

    @abstractmethod
    async def _claim(self) -> Snapshot:
        """Become the only writer until the store is closed, unless it is, and say what is there.

        Nothing is stored between the two. Raises `StoreInUse` if there is another writer.
        """

    @abstractmethod
    async def _commit(self, commit: Commit) -> list[Any]:
        """Store all that is pending, so that it lasts, or raise and have stored none of it.

        Returns for every append where its events are, or the `SequenceConflict` or `Differs`
        because of which this one append was left out. An event whose id the log has already is not
        stored again (`known_places` says what that is); an append of nothing but such events does
        not conflict. Behind these it returns what came of each of the others: for a `Call` a
        `Returned`, or an `outcome.Error`, which means that nothing of this one call was done. It is
        not to be cancelled: where it waits, it does so in a shielded scope.
        """

    @abstractmethod
    async def _ask(self, call: Call) -> Any:
        """Make a call that only reads, at one moment of the store, and return what it returns."""

    @abstractmethod
    async def _fetch(
        self,
        after: int,
        limit: int,
        up_to: int | None = None,
        selected: Selection = EVERYTHING,
        *,
        backwards: bool = False,
    ) -> list[Row]:
        """Return the first events behind a position; fewer than `limit` only if there are no more.

        Or if they are large: then at least one. Backwards, the last ones up to `up_to`, the last
        of them first.
        """

    @abstractmethod
    async def _position_of(self, aggregate_id: str, sequence: int) -> int | None:
        """Return where an aggregate has its event of that sequence; None if it has none."""

    @abstractmethod
    async def _find(self, event_id: UUID) -> Row | None:
        """Return an event by its id."""

    @abstractmethod
    async def _last_position(self) -> int:
        """Return the position of the last event; 0 if there is none."""

    @abstractmethod
    async def _groups(self) -> list[GroupRow]:
        """Return the progress of every group."""

    @abstractmethod
    async def _letter_keys(self) -> list[DeadLetterKey]:
        """Return what identifies each dead letter, by rising id."""

    @abstractmethod
    async def _letters(self, ids: Sequence[int]) -> list[tuple[DeadLetterRow, Row]]:
        """Return dead letters with their events, in the order of `ids`."""

    @abstractmethod
    async def statistics(self) -> StoreStatistics:
        """Return what the store holds. Raises `StoreError`."""

    async def _overview(
        self,
        *,
        exact: bool = False,  # noqa: ARG002  # as it is anyway, where it costs no more
    ) -> Overview:
        """Return what a person wants to know first; in bounded time unless it is to be exact."""
        return overview_of(await self.statistics(), await self._groups(), self._scheduled_count)

    async def _letter_groups(self) -> list[LetterGroup]:
        """Return the dead letters by subscription and type of error; the most numerous first."""
        ids = [key.id for key in await self._letter_keys()]
        return grouped([letter for letter, _ in await self._letters(ids)])

    async def _holder(self) -> Holder | None:
        """Return who writes to the store, without a claim to it; None if nobody does."""
        await trio.lowlevel.checkpoint()
        return None

    @property
    def _warning(self) -> str | None:
        """A condition to look at, though the store works; None if there is none."""
        return None

    def _size(self) -> int | None:
        """How many bytes it takes on disk, if that can be told at once; for any thread."""
        return None

    @property
    def _is_attended(self) -> bool:
        """Whether others may store something while a bus uses it, which `_attend` tells then."""
        return False

    async def _attend(self, tell: Callable[[int, float | None], None]) -> None:
        """Tell the bus that uses the store what others store, until it is cancelled.

        `tell` gets where the log ends at least, and when something is due that was scheduled. Of
        its own commits the bus knows before. Raises `StoreError` if the bus has lost the store.
        """
        raise NotImplementedError

    def _check_process(self) -> None:  # noqa: B027  # a store in memory is of use there
        """Raise `StoreForked` in a forked child, if the store is of no use there."""

    # What every user of a store does with it

    async def __aenter__(self) -> Self:
        """Open the store, unless it is open. Raises `StoreError`, and `NotInTrio` elsewhere."""
        _checks.inside_trio("async with store")
        async with self._opening:
            if not self._users:
                await self._open()
            self._users += 1
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the store when the last one leaves that has opened it. Not to be cancelled."""
        with trio.CancelScope(shield=True):
            async with self._opening:
                if self._users:  # there are none after `_vanish`
                    self._users -= 1
                    if not self._users:
                        await self._close()

    @asynccontextmanager
    async def _reopened(self) -> AsyncIterator[None]:
        """Have the store open for a short time, to read on in what it had when it was closed.

        No other task opens or closes it meanwhile. Raises `StoreError` if what was there is gone.
        """
        async with self._opening:
            if self._users:
                yield
                return
            await self._reopen()
            try:
                yield
            finally:
                with trio.CancelScope(shield=True):
                    await self._close()

    async def _vanish(self) -> None:
        """Close the store for all its users, as the end of a killed process would. For tests."""
        with trio.CancelScope(shield=True):
            async with self._opening:
                is_open = self._users > 0
                self._users = 0
                self._commits = CommitQueue(self._commit, self._check_process)
                if is_open:
                    await self._abandon()

    @enable_ki_protection
    async def append(
        self, events: Iterable[DomainEvent], *, expected_sequence: int | None = None
    ) -> list[Stored]:
        """Store events in their order, all or none, and return them with their places.

        An event that the log already has is not stored again and keeps its first place; another
        one of the same id is `EventIdConflict`. With `expected_sequence` all must be of one
        aggregate, whose last sequence must be that (0 for none). Inside a handler the events
        inherit the correlation id of the handled one and have it as cause. If it raises,
        `Cancelled` included, nothing was stored, except for `OutcomeUnknown`. Raises
        `InvalidEvent`, `EventNotEncodable`, `SequenceConflict` and `StoreError`.
        """
        batch = Batch(list(events))
        cause = calling_cause()
        if cause is not None:
            batch.events = [with_cause(event, cause) for event in batch.events]
        batch.is_inside = calling_delivery() is not None
        await checkpoint_if_cancelled()
        if not self._is_writer:
            await self._claim()
        places = await self._submit(batch, expected_sequence)
        return [
            Stored(event, place.position, place.sequence, place.recorded_at)
            for event, place in zip(batch.events, places, strict=True)
        ]

    async def _submit(
        self, batch: Batch, expected_sequence: int | None = None
    ) -> Sequence[LogPosition]:
        """Store a batch as `append` does, and return where its events are."""
        if expected_sequence is not None:
            check_expected(batch, expected_sequence)
        records = self._rows_of(batch)
        if not records:
            await cancel_shielded_checkpoint()
            return ()
        same: frozenset[int] = frozenset()
        while True:
            submission = Submission(batch, Append(records, expected_sequence, same))
            try:
                await self._commits.submit(submission)
                return submission.positions
            except Differs as found:
                index = found.index
                check_same(self._codec, found, batch.events[index], records[index])
                same |= {found.index}

    @enable_ki_protection
    async def transact(
        self,
        function: Callable[[Transaction, *Ts], T],
        *args: *Ts,
        read_only: bool = False,
    ) -> T:
        """Call `function(transaction, *args)` and commit; if it raises, nothing was done.

        For tables, migrations and questions of the program's own, in the database of the store.
        The function is a plain `def`; it runs in the store's thread, which it holds up meanwhile,
        and shares the commit with whatever else is to be stored. What it publishes is appended.
        With `read_only` it only asks: it cannot write, and makes no commit. It is called again if a
        statement of another function was interrupted, which ends the whole transaction.

        Cancelled before it has begun, it is not called; after that its end is waited for. Raises
        what the function raises, `InvalidHandler` for an `async def`, and `StoreError`.
        """
        _checks.boolean("read_only", read_only)
        _checks.check_plain("function", function)
        await checkpoint_if_cancelled()
        call = self._call(lambda transaction: function(transaction, *args))
        if read_only:
            return cast("T", await self._ask(call))
        if not self._is_writer:
            await self._claim()
        submission = Submission(None, call)
        await self._commits.submit(submission)
        return cast("T", submission.result)

    def _call(self, function: Callable[[Transaction], Any]) -> Call:
        """Return a call of the program's own, which is no handler's."""
        return Call(
            function,
            codec=self._codec,
            rows_of=self._rows_of,
            cause=calling_cause(),
            moment=self._commits.moment(),
            is_inside=calling_delivery() is not None,
        )

    async def _schedule(self, batch: Batch, due_at: float) -> Waiting:
        """Keep one event until it is due. Raises as `append` does."""
        (record,) = self._rows_of(batch)
        is_same = False
        while True:
            submission = Submission(None, Schedule(record, due_at, is_same))
            try:
                await self._commits.submit(submission)
            except Differs as found:
                check_same(self._codec, found, batch.events[0], record)
                is_same = True
            else:
                return cast("Waiting", submission.result)

    def _rows_of(self, batch: Batch) -> list[NewRow]:
        """Make of events what goes into the log. Raises `EventNotEncodable`."""
        for event, key in zip(batch.events, batch.keys, strict=True):
            check_aggregate_id(type(event), key)
        encode, new = self._codec.encode, tuple.__new__
        return [
            new(
                NewRow,
                (
                    event.event_id,
                    _plain(event.event_type),
                    event.schema_version,
                    None if key is None else _plain(key),
                    encode(event),
                    None if event.correlation_id is None else str(event.correlation_id),
                ),
            )
            for event, key in zip(batch.events, batch.keys, strict=True)
        ]

    def read(
        self,
        after: int = 0,
        aggregate_id: str | None = None,
        types: Types | None = None,
        limit: int | None = None,
        *,
        after_sequence: int = 0,
        correlation_id: UUID | None = None,
        until: int | None = None,
        backwards: bool = False,
    ) -> AsyncIterator[Stored]:
        """Iterate over the events behind a position: `async for stored in store.read(): ...`.

        It ends at what is the end of the log when it gets there. It reads in batches, and may be
        left at any time.

        - `aggregate_id`: only the events of that aggregate, found by an index.
        - `types`: only events of these classes, each standing for its subclasses too, or of types
          with these names.
        - `limit`: at most so many events.
        - `after_sequence`: only what an aggregate has behind that sequence.
        - `correlation_id`: only the events that have it, found by an index.
        - `until`: the last position to be read.
        - `backwards`: the last event first.

        Raises `EventNotDecodable` at an event that cannot be made from its JSON (its `position` is
        in the error, and reading may go on after it), and `StoreError`.
        """
        return reading(
            self,
            after,
            until,
            limit,
            aggregate_id=aggregate_id,
            types=types,
            correlation_id=correlation_id,
            after_sequence=after_sequence,
            backwards=backwards,
        )

    async def get(self, event_id: UUID) -> Stored | None:
        """Return the event of that id, or None if the store has none.

        Raises `EventNotDecodable` and `StoreError`.
        """
        if not isinstance(event_id, UUID):
            raise InvalidOption(f"event_id={event_id!r}: give a UUID, such as event.event_id")
        record = await self._find(event_id)
        return None if record is None else self._stored(record)

    def _stored(self, record: Row) -> Stored:
        """Return a record with its event. Raises `EventNotDecodable` with its position."""
        return Stored(self._decode(record), record.position, record.sequence, record.recorded_at)

    def _decode(self, record: Row) -> DomainEvent:
        """Return the event of a record. Raises `EventNotDecodable` with its position."""
        try:
            event = self._codec.decode(record.event_type, record.schema_version, record.data)
            # In half of the time that str() of a UUID takes.
            if f"{event.event_id.int:032x}" != record.event_id.replace("-", ""):
                raise EventNotDecodable(
                    f"event_id: expected {record.event_id}, which is that of the row, found "
                    f"{event.event_id}"
                )
            return event
        except EventNotDecodable as error:
            failure = EventNotDecodable(f"position {record.position}: {error}")
            failure.position = record.position
            raise failure from error.__cause__


def _plain(text: str) -> str:
    """Return a text as SQL would take it: a member of an enum can be one, and hash otherwise."""
    return text if type(text) is str else str.__str__(text)
