"""What a person wants to know of a store first."""

from collections.abc import Iterable, Mapping
from datetime import datetime

import attrs

from triobus.stores._values import DeadLetterRow, GroupRow, StoreStatistics


@attrs.frozen(kw_only=True)
class GroupOverview:
    """A group's progress, and what of it waits."""

    offset: int
    """Everything up to this position is settled."""
    lag: int
    """Events that are not settled for the group, or that it has yet to look at."""
    retries: int
    """Deliveries that wait for a further attempt."""
    next_due: float | None
    """When the first of them is due, in seconds since 1970."""
    dead_letters: int
    """Dead letters of the group."""


@attrs.frozen(kw_only=True)
class Overview:
    """What a person wants to know of a store first, had in little time however long the log is."""

    events: int
    """Events in the log."""
    aggregates: int
    """Different aggregates that they are about."""
    has_more_aggregates: bool
    """Whether there may be more of them."""
    types: Mapping[str, int]
    """How many events there are of each type, among those that were looked at."""
    types_of_last: int
    """How many events, the last ones, were looked at for that."""
    first_recorded_at: datetime | None
    last_recorded_at: datetime | None
    size_bytes: int
    scheduled: int
    """Events that are not due yet."""
    next_due: float | None
    """When the first of them is due, in seconds since 1970."""
    groups: Mapping[str, GroupOverview]


@attrs.frozen
class Holder:
    """Who has a store for writing."""

    pid: int | None
    """The process; None if it cannot be seen from here."""
    name: str | None = None
    """What it calls itself, where it may be on another machine."""


@attrs.frozen(kw_only=True)
class LetterGroup:
    """Dead letters of one subscription with one type of error."""

    group: str
    subscription: str
    error_type: str
    message: str
    """What the last one says."""
    count: int
    held_back: int
    """How many of them were never tried, for an earlier event of their aggregate had failed."""
    first: int
    """The lowest id."""
    last: int
    """The highest id."""
    first_failed_at: datetime
    last_failed_at: datetime


def grouped(letters: Iterable[DeadLetterRow]) -> list[LetterGroup]:
    """Return dead letters by subscription and type of error; the most numerous first."""
    groups: dict[tuple[str, str, str], list[DeadLetterRow]] = {}
    for letter in letters:
        key = letter.group, letter.subscription, letter.error_type
        groups.setdefault(key, []).append(letter)
    found = [
        LetterGroup(
            group=group,
            subscription=subscription,
            error_type=error_type,
            message=max(some, key=lambda letter: letter.id).message,
            count=len(some),
            held_back=sum(letter.attempts == 0 for letter in some),
            first=min(letter.id for letter in some),
            last=max(letter.id for letter in some),
            first_failed_at=min(letter.first_failed_at for letter in some),
            last_failed_at=max(letter.last_failed_at for letter in some),
        )
        for (group, subscription, error_type), some in groups.items()
    ]
    return sorted(found, key=by_count)


def by_count(group: LetterGroup) -> tuple[int, str, str, str]:
    """Return what puts the most numerous first."""
    return -group.count, group.group, group.subscription, group.error_type


def overview_of(held: StoreStatistics, groups: Iterable[GroupRow], scheduled: int) -> Overview:
    """Return the overview of a store in which everything is counted."""
    due = {
        group.name: [each.due_at for each in group.attempts if not each.is_begun]
        for group in groups
    }
    return Overview(
        events=held.events,
        aggregates=held.aggregates,
        has_more_aggregates=False,
        types=held.types,
        types_of_last=held.events,
        first_recorded_at=held.first_recorded_at,
        last_recorded_at=held.last_recorded_at,
        size_bytes=held.size_bytes,
        scheduled=scheduled,
        next_due=None,
        groups={
            name: GroupOverview(
                offset=group.offset,
                lag=group.lag,
                retries=len(due[name]),
                next_due=min(due[name], default=None),
                dead_letters=group.dead_letters,
            )
            for name, group in held.groups.items()
        },
    )
