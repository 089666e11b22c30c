"""`MemoryEventStore`: a log of events that lasts as long as the object, for tests.

It keeps the events in JSON, so that what comes out of it has gone the same way as through a file.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any
from uuid import UUID

import outcome
from trio.lowlevel import cancel_shielded_checkpoint, checkpoint

from triobus import _checks
from triobus._errors import InvalidOption, StoreClosed
from triobus._events import Converter, DomainEvent
from triobus.stores._duplicates import Known, known_places, refusal
from triobus.stores._memory_node import MemoryNode
from triobus.stores._memory_sharing import MemorySharing, key_of
from triobus.stores._memory_transaction import MemoryTransaction, run
from triobus.stores._scheduled import ScheduledEvents
from triobus.stores._sharing import slot_of
from triobus.stores._store import EventStore
from triobus.stores._transaction import NOT_CALLED, Call, Returned
from triobus.stores._values import (
    EVERYTHING,
    Append,
    AskReplay,
    Attempts,
    Changes,
    Commit,
    DeadLetterKey,
    DeadLetterRow,
    GroupRow,
    LogPosition,
    Reached,
    Release,
    Released,
    RemoveGroup,
    Reset,
    Row,
    Schedule,
    Selection,
    Settled,
    Snapshot,
    StoredGroup,
    StoreStatistics,
    Unschedule,
    Waiting,
    beyond,
    conflict,
    with_settled,
)


class MemoryEventStore(EventStore):
    """A log of events in memory, from which a bus gets all that it does from a file.

    What is in it stays when it is closed, so that a test can open it again as after a crash.
    `types`, `max_event_bytes` and `converters` are as with `SqliteEventStore`.

    With `lease`, several buses of one Trio run may use it at a time, as nodes that share the work
    of their groups: a cluster in one program, in virtual time if Trio's clock is. A node that has
    not renewed its lease for so many seconds is replaced by the others. Without, one bus may.
    """

    def __init__(
        self,
        *,
        types: Iterable[type[DomainEvent]] = (),
        max_event_bytes: int = 1_048_576,
        converters: Iterable[Converter] = (),
        lease: float | None = None,
    ) -> None:
        super().__init__(types=types, max_event_bytes=max_event_bytes, converters=converters)
        if lease is not None:
            _checks.number("lease", lease, least=0.01)
        self._is_open = False
        self._is_claimed = False
        self._is_unclean = False
        self._log: list[Row] = []
        self._by_id: dict[str, int] = {}
        self._correlations: dict[int, str] = {}
        """The correlation ids of those events that have one, by position."""
        self._sequences: dict[str, int] = {}
        self._offsets: dict[str, int] = {}
        self._finished: dict[str, dict[int, int]] = {}
        self._attempts: dict[str, dict[int, Attempts]] = {}
        self._kept: dict[int, DeadLetterRow] = {}
        self._last_letter = 0
        self._later = ScheduledEvents()
        self._sharing = None if lease is None else MemorySharing(lease, self._log, self._kept)

    def __repr__(self) -> str:
        state = "open" if self._is_open else "not open"
        return f"<MemoryEventStore, {state}, {len(self._log):,} event{'s' * (len(self._log) != 1)}>"

    @property
    def lease(self) -> float | None:
        """Seconds after which a node is replaced that has not renewed its lease; None without."""
        return None if self._sharing is None else self._sharing.assignments.lease

    @property
    def is_shared(self) -> bool:
        """Whether it was made with a lease, for several buses."""
        return self._sharing is not None

    def _for_bus(self) -> EventStore:
        """Return itself, or a node of its own for each life of a bus."""
        if self._sharing is None:
            return self
        return MemoryNode(self, self._sharing, self._later, self._perform)

    async def _open(self) -> None:
        """Let it be used."""
        await cancel_shielded_checkpoint()
        self._is_open = True

    async def _close(self) -> None:
        """Let it be used no more; everything stays."""
        await cancel_shielded_checkpoint()
        if self._is_claimed:
            self._is_unclean = False
        self._is_open = self._is_claimed = False

    async def _abandon(self) -> None:
        """Let it be used no more, and remember that it was not closed."""
        await cancel_shielded_checkpoint()
        self._is_unclean = self._is_unclean or self._is_claimed
        self._is_open = self._is_claimed = False

    @property
    def _is_writer(self) -> bool:
        """Whether it has been claimed since it was opened."""
        return self._is_claimed

    async def _claim(self) -> Snapshot:
        """Say what is there: there is one object, whose owner may write."""
        await self._checkpoint()
        self._is_claimed = True
        return Snapshot(
            len(self._log),
            tuple(self._group_rows()),
            tuple(self._keys_of_letters()),
            self._is_unclean,
            self._last_letter,
            len(self._later),
            self._later.next_due(),
        )

    async def _commit(self, commit: Commit) -> list[Any]:
        """Store what is pending, and tell the nodes, if there are some."""
        results = await self._perform(commit)
        if self._sharing is not None:
            self._sharing.tell_of_commit(self._later)
        return results

    async def _perform(self, commit: Commit) -> list[Any]:
        """Store what is pending. Calls go to a thread, and what comes before them can be read."""
        self._check_open()
        await cancel_shielded_checkpoint()
        now = datetime.now(UTC)
        results: list[Any] = [self._append(append, now) for append in commit.appends]
        settled: list[Settled] = []
        ended: set[object] = set()
        sharing, recorded = self._sharing, None
        if sharing is not None and commit.changes.segments:
            recorded = sharing.record(commit.changes.segments)
        resets: list[tuple[str, Reached]] = []
        for item in commit.others:
            result: Any
            if isinstance(item, Call) and item.chain in ended:
                result = NOT_CALLED
            elif isinstance(item, Call):
                result = await self._called(item, now)
                if isinstance(result, Returned):
                    settled += item.settled if sharing is None else ()
                elif item.chain is not None:
                    ended.add(item.chain)
            elif isinstance(item, Schedule):
                result = self._schedule_event(item)
            elif isinstance(item, Unschedule):
                result = self._later.remove(item.event_id, item.now)
            elif isinstance(item, RemoveGroup):
                result = self._offsets.pop(item.group, None) is not None
                self._forget_work(item.group)
            elif isinstance(item, AskReplay) and sharing is not None:
                sharing.ask(item)
                result = None
            elif isinstance(item, Reset):
                result = await self._reset(item, now)
                resets += [(item.group, result)] if isinstance(result, Reached) else []
            else:
                result = self._released(item, now)
            results.append(result)
        if sharing is not None:
            sharing.discard(commit.changes.letters)
        self._change(with_settled(commit.changes, settled, self._offsets.__getitem__))
        for group, reached in resets:  # last: what has changed of the group is of the past
            if sharing is not None:
                sharing.reset(group, reached.offset)
            else:
                self._offsets[group] = reached.offset
            self._forget_work(group)
        return results if recorded is None else [*results, recorded]

    def _forget_work(self, group: str) -> None:
        self._finished[group], self._attempts[group] = {}, {}
        for id_ in [id_ for id_, letter in self._kept.items() if letter.group == group]:
            del self._kept[id_]

    async def _reset(self, item: Reset, now: datetime) -> Reached | InvalidOption | outcome.Error:
        last = len(self._log)
        offset = last if item.to is None else item.to
        if isinstance(offset, datetime):
            since = offset
            later = (row.position - 1 for row in self._log if row.recorded_at >= since)
            offset = next(later, last)
        if offset > last:
            return beyond(offset, last)
        if item.call is None:
            return Reached(offset)
        called = await self._called(item.call, now)
        return Reached(offset, called) if isinstance(called, Returned) else called

    def _schedule_event(self, item: Schedule) -> Waiting | Exception:
        return self._later.add(item, self._known(str(item.record.event_id)))

    def _released(self, item: Release, now: datetime) -> Released:
        rows: list[Row] = []
        for record in self._later.take_due(item.now, item.limit):
            places = self._append(Append([record], None, frozenset([0])), now)
            assert isinstance(places, list)  # nothing is expected of it
            rows += [self._log[at.position - 1] for at in places if at.is_new]
        return Released(rows, self._later.next_due())

    @property
    def _scheduled_count(self) -> int:
        """How many events are scheduled."""
        return len(self._later)

    async def _called(self, call: Call, now: datetime) -> Returned | outcome.Error:
        """Make a call; if it raises, nothing of what it published is in the log."""
        transaction, kept = MemoryTransaction(call), list[str]()

        def keep(item: Schedule) -> Waiting | Exception:
            found = self._schedule_event(item)
            if isinstance(found, Waiting) and found.is_new:
                kept.append(str(item.record.event_id))
            return found

        try:
            value = await run(call, transaction)
            if self._sharing is not None:
                self._sharing.check(call.settled)
            # What is scheduled comes first, and is taken back; what is appended is so as a whole.
            returned = transaction._store_events(value, partial(self._append, now=now), keep)
        except BaseException as error:  # noqa: BLE001  # the task that waits for the call gets it
            for event_id in kept:
                self._later.forget(event_id)
            return outcome.Error(error)
        if self._sharing is not None:
            self._sharing.settle(call.settled)
        return returned

    async def _ask(self, call: Call) -> Any:
        """Make a call that only reads."""
        await self._checkpoint()
        return await run(call, MemoryTransaction(call, is_read_only=True))

    def _append(self, append: Append, now: datetime) -> list[LogPosition] | Exception:
        known = refusal(append) or known_places(append, self._known)
        if isinstance(known, Exception):
            return known
        other = self._later.conflict_with(append)
        if other is not None:
            return other
        if append.expected_sequence is not None and not all(known):
            aggregate_id = append.records[0].aggregate_id
            found = 0 if aggregate_id is None else self._sequences.get(aggregate_id, 0)
            if found != append.expected_sequence:
                return conflict(str(aggregate_id), append.expected_sequence, found)
        positions = []
        for record in append.records:
            event_id = str(record.event_id)
            position = self._by_id.get(event_id)
            is_new = position is None
            if position is None:
                self._later.forget(event_id)
                position = self._by_id[event_id] = len(self._log) + 1
                sequence = None
                if record.aggregate_id is not None:
                    sequence = self._sequences.get(record.aggregate_id, 0) + 1
                    self._sequences[record.aggregate_id] = sequence
                _, kind, version, aggregate_id, data, correlation_id = record
                if correlation_id is not None:
                    self._correlations[position] = correlation_id
                self._log.append(
                    Row(position, event_id, kind, version, aggregate_id, sequence, now, data)
                )
                if self._sharing is not None:
                    self._sharing.slots.append(slot_of(aggregate_id, event_id))
            stored = self._log[position - 1]
            positions.append(LogPosition(position, stored.sequence, stored.recorded_at, is_new))
        return positions

    def _known(self, event_id: str) -> Known | None:
        position = self._by_id.get(event_id)
        if position is None:
            return None
        record = self._log[position - 1]
        return Known(LogPosition(position, record.sequence, record.recorded_at, False), record)

    def _change(self, changes: Changes) -> None:
        for name, group in changes.groups.items():
            self._offsets[name] = group.progress.offset
            finished = self._finished.setdefault(name, {})
            for first, last in group.progress.ranges:
                if last is None:
                    finished.pop(first, None)
                else:
                    finished[first] = last
            attempts = self._attempts.setdefault(name, {})
            for position, row in group.attempts.items():
                if row is None:
                    attempts.pop(position, None)
                else:
                    attempts[position] = row
        self._last_letter = max(self._last_letter, *changes.letters, 0)
        for id_, letter in changes.letters.items():
            if letter is None:
                self._kept.pop(id_, None)
            else:
                self._kept[id_] = letter

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
        await self._checkpoint()
        end = len(self._log) if up_to is None else min(up_to, len(self._log))
        positions = range(after + 1, end + 1)
        found = (self._log[at - 1] for at in (reversed(positions) if backwards else positions))
        return [*islice((row for row in found if self._is_selected(row, selected)), limit)]

    def _is_selected(self, row: Row, selected: Selection) -> bool:
        aggregate_id, types, correlation_id = selected
        return (
            aggregate_id in (None, row.aggregate_id)
            and (types is None or row.event_type in types)
            and correlation_id in (None, self._correlations.get(row.position))
        )

    async def _position_of(self, aggregate_id: str, sequence: int) -> int | None:
        """Return where an aggregate has its event of that sequence."""
        await self._checkpoint()
        place = (aggregate_id, sequence)
        found = (row.position for row in self._log if (row.aggregate_id, row.sequence) == place)
        return next(found, None)

    async def _find(self, event_id: UUID) -> Row | None:
        """Return an event by its id."""
        await self._checkpoint()
        position = self._by_id.get(str(event_id))
        return None if position is None else self._log[position - 1]

    async def _last_position(self) -> int:
        """Return the position of the last event."""
        await self._checkpoint()
        return len(self._log)

    async def _groups(self) -> list[GroupRow]:
        """Return the progress of all groups."""
        await self._checkpoint()
        return self._group_rows()

    def _group_rows(self) -> list[GroupRow]:
        if self._sharing is not None:
            return self._sharing.group_rows()
        return [
            GroupRow(
                name,
                offset,
                tuple(self._finished[name].items()),
                tuple(self._attempts[name].values()),
            )
            for name, offset in self._offsets.items()
        ]

    async def _letter_keys(self) -> list[DeadLetterKey]:
        """Return what identifies each dead letter."""
        await self._checkpoint()
        return self._keys_of_letters()

    def _keys_of_letters(self) -> list[DeadLetterKey]:
        return [*map(key_of, self._kept.values())]

    async def _letters(self, ids: Sequence[int]) -> list[tuple[DeadLetterRow, Row]]:
        """Return dead letters with their events."""
        await self._checkpoint()
        letters = [self._kept[id_] for id_ in ids if id_ in self._kept]
        return [(letter, self._log[letter.position - 1]) for letter in letters]

    async def statistics(self) -> StoreStatistics:
        """Return what the store holds."""
        await self._checkpoint()
        log = self._log
        return StoreStatistics(
            events=len(log),
            aggregates=len(self._sequences),
            types=dict(sorted(Counter(record.event_type for record in log).items())),
            first_recorded_at=log[0].recorded_at if log else None,
            last_recorded_at=log[-1].recorded_at if log else None,
            size_bytes=sum(len(record.data) for record in log),
            groups=self._stored_groups(),
            nodes={} if self._sharing is None else self._sharing.nodes(),
        )

    def _stored_groups(self) -> dict[str, StoredGroup]:
        if self._sharing is not None:
            return self._sharing.statistics()
        last = len(self._log)
        return {
            name: StoredGroup(
                offset=offset,
                lag=last
                - offset
                - sum(last - first + 1 for first, last in self._finished[name].items()),
                dead_letters=sum(letter.group == name for letter in self._kept.values()),
            )
            for name, offset in sorted(self._offsets.items())
        }

    async def _checkpoint(self) -> None:
        self._check_open()
        await checkpoint()

    def _check_open(self) -> None:
        if not self._is_open:
            raise StoreClosed(
                "the store in memory is not open: use it inside 'async with store:', or in a bus "
                "that is running"
            )
