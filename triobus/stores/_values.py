"""What goes into a store and comes out of it, as plain values."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import attrs

from triobus import _checks
from triobus._errors import InvalidOption, SequenceConflict
from triobus._events import DomainEvent
from triobus._events.batch import Batch
from triobus.stores._sharing import Fence, SegmentKey


class NewRow(NamedTuple):
    """An event on its way into a log, in JSON."""

    event_id: UUID
    event_type: str
    schema_version: int
    aggregate_id: str | None
    data: bytes
    correlation_id: str | None = None


class Imported(NamedTuple):
    """An event that is taken over from elsewhere."""

    record: NewRow
    recorded_at: datetime | None
    """When it was stored there; None for one that is new."""


class Erasure(NamedTuple):
    """How much there is of an aggregate to be erased, or was."""

    events: int
    dead_letters: int
    scheduled: int


class Selection(NamedTuple):
    """Which events of a log are to be read: all, or those that have all of what is given."""

    aggregate_id: str | None = None
    types: Sequence[str] | None = None
    correlation_id: str | None = None


EVERYTHING = Selection()


class Row(NamedTuple):
    """An event as a log has it."""

    position: int
    """Its place in the log, from 1, without gaps."""
    event_id: str
    event_type: str
    schema_version: int
    aggregate_id: str | None
    sequence: int | None
    """Its place in its aggregate, from 1; None without an aggregate."""
    recorded_at: datetime
    """When it was stored; UTC."""
    data: bytes


class LogPosition(NamedTuple):
    """Where an event has found its place."""

    position: int
    sequence: int | None
    recorded_at: datetime
    is_new: bool
    """False if the log already had the event, at this position."""


@attrs.frozen
class Stored:
    """An event with its place in a store's log."""

    event: DomainEvent
    """The event itself."""
    position: int
    """Its place in the log, from 1."""
    sequence: int | None
    """Its place in its aggregate, from 1; None for an event without an aggregate."""
    recorded_at: datetime
    """When it was stored; UTC, by the clock of the machine."""


class Append(NamedTuple):
    """Events that go into the log together or not at all."""

    records: Sequence[NewRow]
    expected_sequence: int | None = None
    """The last sequence that their one aggregate must have before; 0 for no events at all."""
    same: frozenset[int] = frozenset()
    """Which of them are known to be what their ids stand for, though the JSON is different."""


class Schedule(NamedTuple):
    """An event that goes into the log when it is due."""

    record: NewRow
    due_at: float
    """In seconds since 1970."""
    is_same: bool = False
    """Whether it is known to be what its id stands for, though the JSON is different."""


class Waiting(NamedTuple):
    """What became of an event that was to be scheduled."""

    position: int | None
    """Where the log has it already; None if it has not."""
    is_new: bool
    """Whether it was not there yet."""


class Unschedule(NamedTuple):
    """The event of this id is not to go into the log, unless it is due."""

    event_id: str
    now: float
    """In seconds since 1970."""


class Release(NamedTuple):
    """The first events that are due go into the log."""

    now: float
    """In seconds since 1970."""
    limit: int


@attrs.frozen
class Released:
    """What has gone into the log, and what has not."""

    rows: Sequence["Row"]
    next_due: float | None
    """When the first of what is left is due."""
    damaged: Sequence[str] = ()
    """What is said of scheduled events that cannot be read, and stay where they are."""


@attrs.frozen(eq=False)
class Reset:
    """A group is to go on from another position, and to forget its attempts and dead letters."""

    group: str
    to: int | datetime | None
    """Everything up to this position, or stored before this moment, counts as settled; None for
    everything that there is."""
    call: Any = None
    """A `Call` that is made in the same transaction, if there is one."""


@attrs.frozen(eq=False)
class RemoveGroup:
    """A group is to be forgotten: progress, attempts and dead letters."""

    group: str


@attrs.frozen
class Reached:
    """A group goes on behind this position."""

    offset: int
    call: Any = None
    """What came of the call, if there was one."""


class AskReplay(NamedTuple):
    """The owners of these dead letters are to replay them, or have done so with no success.

    What is written about a letter, and that it is no more, ends it too.
    """

    ids: Sequence[int]
    is_over: bool = False


BEGUN, NOT_COUNTED = -1.0, -2.0
"""The times of an attempt of which it is recorded that it is made; one does not count yet."""


class Attempts(NamedTuple):
    """How far an event has come in a group that has not finished it."""

    position: int
    subscription: str
    """Whose turn it is."""
    attempts: int
    """How many attempts that subscription has had."""
    due_at: float
    """When the next one is due, in seconds since 1970."""
    delay: float
    """How long the delay before it is: no restart waits longer."""
    done: tuple[str, ...]
    """The subscriptions that are done with the event."""

    @property
    def is_begun(self) -> bool:
        """Whether this is the record of an attempt that was about to be made."""
        return self.due_at < 0


@attrs.frozen(kw_only=True)
class DeadLetterRow:
    """A dead letter as a store keeps it; the event itself is in the log."""

    id: int
    position: int
    group: str
    subscription: str
    aggregate_id: str | None
    attempts: int
    first_failed_at: datetime
    last_failed_at: datetime
    error_type: str
    message: str
    traceback: str


class DeadLetterKey(NamedTuple):
    """What has to be known of every dead letter at any time."""

    id: int
    position: int
    group: str
    subscription: str
    aggregate_id: str | None


@attrs.frozen
class ProgressChange:
    """What a store has to write for a group to be as far as its progress."""

    offset: int
    """Everything up to it is finished."""
    ranges: tuple[tuple[int, int | None], ...] = ()
    """First and last position of finished ranges that are new or longer; a last of None means that
    the range which began there is no more."""


@attrs.frozen
class GroupChange:
    """What a group's progress has come to since the last transaction."""

    progress: ProgressChange
    attempts: Mapping[int, Attempts | None] = attrs.field(factory=dict)
    """By position; None for an event that is finished."""


@attrs.frozen
class SegmentChange:
    """What a node has come to in one segment of a shared group since the last transaction."""

    fence: Fence
    """By which right it is recorded: all of it or, if that is gone, nothing."""
    change: GroupChange
    letters: Mapping[int, "DeadLetterRow | None"] = attrs.field(factory=dict)
    """As in `Changes`; the store gives ids to those of `PROVISIONAL` and above."""


@attrs.frozen
class Changes:
    """What the groups of a bus have come to since the last transaction."""

    groups: Mapping[str, GroupChange] = attrs.field(factory=dict)
    letters: Mapping[int, DeadLetterRow | None] = attrs.field(factory=dict)
    """Dead letters that are new or have changed, by id; None for one that is no more."""
    segments: Mapping[SegmentKey, SegmentChange] = attrs.field(factory=dict)
    """The same for groups that are shared, of which the others know nothing."""


class Settled(NamedTuple):
    """How far a delivery has come when a transactional handler has succeeded."""

    group: str
    position: int
    attempts: Attempts | None = None
    """Whose turn it is now; None when the delivery is finished."""
    letter_id: int | None = None
    """The dead letter that is no more, if the delivery was its replay; nothing else changes."""
    is_recorded: bool = False
    """Whether the store has been told of attempts before."""
    segment: SegmentKey | None = None
    """The segment of the delivery, if the group is shared."""
    fence: Fence | None = None
    """By which right it is recorded; if that is gone, the transaction fails as a whole."""


def joined(positions: Iterable[int]) -> list[tuple[int, int]]:
    """Return positions as ranges: first and last of those that lie side by side."""
    ranges: list[tuple[int, int]] = []
    for position in sorted(positions):
        if ranges and ranges[-1][1] == position - 1:
            ranges[-1] = ranges[-1][0], position
        else:
            ranges.append((position, position))
    return ranges


def with_settled(
    changes: Changes, settled: Sequence[Settled], offset_of: Callable[[str], int]
) -> Changes:
    """Return changes with what transactional handlers have settled in the same transaction.

    Positions that lie side by side make one range, and move the offset if they begin behind it.

    `offset_of` returns the offset of a group that has not changed otherwise.
    """
    if not settled:
        return changes
    letters = {each.letter_id: None for each in settled if each.letter_id is not None}
    of_groups: dict[str, list[Settled]] = {}
    for each in settled:
        if each.letter_id is None:
            of_groups.setdefault(each.group, []).append(each)
    groups = dict(changes.groups)
    for name, some in of_groups.items():
        change = groups.get(name) or GroupChange(ProgressChange(offset_of(name)))
        offset, attempts = change.progress.offset, dict(change.attempts)
        for each in some:
            if each.attempts is not None or each.is_recorded:
                attempts[each.position] = each.attempts
            else:
                attempts.pop(each.position, None)  # an earlier call of this commit's was there
        finished = joined(each.position for each in some if each.attempts is None)
        if finished and finished[0][0] == offset + 1:
            offset = finished.pop(0)[1]
        progress = ProgressChange(offset, (*change.progress.ranges, *finished))
        groups[name] = GroupChange(progress, attempts)
    return Changes(groups, {**changes.letters, **letters})


@attrs.frozen
class Commit:
    """What is stored together or not at all; but an append that conflicts fails alone."""

    appends: Sequence[Append] = ()
    changes: Changes = attrs.field(factory=Changes)
    others: Sequence[Any] = ()
    """What else is done, after the events are appended."""


@attrs.frozen
class GroupRow:
    """A group's progress as a store has it."""

    name: str
    offset: int
    ranges: tuple[tuple[int, int], ...]
    attempts: tuple[Attempts, ...]


@attrs.frozen
class Snapshot:
    """What a bus has to know of a store when it starts, all of it of one moment."""

    last: int
    """The position of the last event; 0 if there is none."""
    groups: tuple[GroupRow, ...]
    """The progress of every group."""
    letters: tuple[DeadLetterKey, ...]
    """What identifies each dead letter, by rising id."""
    is_unclean: bool
    """Whether the last writer before this one ended without closing the store."""
    last_letter: int = 0
    """The highest id that a dead letter ever had: none is used again."""
    scheduled: int = 0
    """How many events are scheduled."""
    next_due: float | None = None
    """When the first of them is due, in seconds since 1970."""


@attrs.frozen(kw_only=True)
class StoredGroup:
    """A group's progress, in numbers."""

    offset: int
    """Everything up to this position is settled."""
    lag: int
    """Events in the log that are not settled for the group, or that it has yet to look at."""
    dead_letters: int
    """Dead letters of the group."""


@attrs.frozen(kw_only=True)
class StoredNode:
    """A bus that shares a store with others."""

    name: str
    """Where it runs."""
    segments: Mapping[str, int]
    """How many segments it has of each group; the others have the rest."""


@attrs.frozen(kw_only=True)
class StoreStatistics:
    """What a store holds."""

    events: int
    """Events in the log."""
    aggregates: int
    """Different aggregates that they are about."""
    types: Mapping[str, int]
    """How many events there are of each type."""
    first_recorded_at: datetime | None
    """When the first event was stored; None without events."""
    last_recorded_at: datetime | None
    """When the last one was."""
    size_bytes: int
    """What the store takes on disk; for one in memory, the events in JSON."""
    groups: Mapping[str, StoredGroup]
    """Every group that has ever had a subscription, by name."""
    nodes: Mapping[int, StoredNode] = attrs.field(factory=dict)
    """The buses that share the store, by numbers that are never used again; none of a store that
    has one bus."""


def beyond(position: int, last: int) -> InvalidOption:
    """Return the error of a position that the log does not have."""
    return InvalidOption(
        f"to={position}: the log ends at position {last:,}; give one up to that, or 'end'"
    )


def conflict(aggregate_id: str, expected: int, found: int) -> SequenceConflict:
    """Return the error of an append that expected another sequence."""
    return SequenceConflict(
        f"aggregate {aggregate_id!r} was expected to have sequence {expected} and has {found}: "
        "read what came meanwhile, decide again and append with the sequence that it has then",
        expected=expected,
        found=found,
    )


def check_expected(batch: Batch, expected_sequence: int) -> None:
    """Raise `InvalidOption` unless an append of this batch may expect that sequence."""
    _checks.whole_number("expected_sequence", expected_sequence, least=0)
    keys = set(batch.keys)
    if len(keys) != 1 or None in keys:
        raise InvalidOption(
            f"expected_sequence={expected_sequence}: the events must be of one aggregate, and "
            f"these are of {len(keys - {None})}" + (", and some of none" if None in keys else "")
        )
