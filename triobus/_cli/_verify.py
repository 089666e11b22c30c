"""Looks whether a store is whole."""

import contextlib
import sys
from collections.abc import Callable, Iterator

import attrs
import trio

from triobus._cli._messages import CommandError
from triobus._cli._summary import table
from triobus._errors import StoreCorrupt, StoreError
from triobus.stores import SqliteEventStore, StoreStatistics

try:
    import rich.progress as rich_progress
    from rich.console import Console
except ImportError:  # the extra "cli" is not installed
    rich_progress = None  # type: ignore[assignment]  # there is no other way to say so

_EVENTS_AT_ONCE = 5000
_SHOWN = 20


def verify(path: str) -> tuple[int, str]:
    """Return the exit code and what there is to say; raises `CommandError`."""
    try:
        return trio.run(_verify, path)
    except StoreError as error:
        raise CommandError(str(error)) from None


async def _verify(path: str) -> tuple[int, str]:
    async with SqliteEventStore(path, read_only=True) as store:
        found = await examined(store)
        verdict = "is damaged" if found.complaints else "is whole"
        lines = [f"store {store.path!r} {verdict}", *found.complaints]
        lines.append(f"events whole: {found.last - len(found.damaged):,} of {found.last:,}")
        if found.statistics is not None:
            lines += _described(found.statistics)
        return int(bool(found.complaints)), "\n".join(lines)


@attrs.frozen
class Examined:
    """What has been found in a store."""

    complaints: tuple[str, ...]
    """What is wrong, in sentences."""
    damaged: tuple[int, ...]
    """The positions of events that are damaged or missing."""
    last: int
    """The position up to which the log has been looked at."""
    statistics: StoreStatistics | None
    """None if they cannot be had."""


async def examined(store: SqliteEventStore) -> Examined:
    """Look at everything that is in a store. Raises `StoreError` where nothing can be read."""
    complaints: list[str] = []
    statistics = None
    try:
        complaints += await store.problems()
    except StoreCorrupt as error:
        complaints.append(str(error))
    try:
        statistics = await store.statistics()
        await store.last_position()
    except StoreCorrupt as error:
        complaints.append(str(error))
    damaged: list[int] = []
    after, end = -1, 0
    with _bar(0 if statistics is None else statistics.events) as show:
        while end != after:
            after = end
            end, found = await store.check(after, _EVENTS_AT_ONCE)
            damaged += found
            show(end)
    if damaged:
        complaints.append(f"damaged or missing: {len(damaged):,} events, at {_ranges(damaged)}")
    return Examined(tuple(complaints), tuple(damaged), end, statistics)


def _described(statistics: StoreStatistics) -> list[str]:
    lines = [
        f"aggregates: {statistics.aggregates:,}, types: {len(statistics.types):,}, "
        f"size: {statistics.size_bytes:,} bytes"
    ]
    if statistics.first_recorded_at is not None:
        first, last = statistics.first_recorded_at, statistics.last_recorded_at
        lines.append(f"recorded from {first:%Y-%m-%d %H:%M:%S} to {last:%Y-%m-%d %H:%M:%S} UTC")
    if statistics.groups:
        groups = [
            {
                "group": name,
                "settled up to": group.offset,
                "left": group.lag,
                "dead letters": group.dead_letters,
            }
            for name, group in statistics.groups.items()
        ]
        lines += ["", *table(groups)]
    return lines


def _ranges(positions: list[int]) -> str:
    """Return positions as "3, 7-9"."""
    ranges: list[list[int]] = []
    for position in positions:
        if ranges and ranges[-1][1] == position - 1:
            ranges[-1][1] = position
        else:
            ranges.append([position, position])
    shown = [str(low) if low == high else f"{low}-{high}" for low, high in ranges[:_SHOWN]]
    more = [] if len(ranges) <= _SHOWN else [f"and {len(ranges) - _SHOWN:,} more places"]
    return ", ".join(shown + more)


@contextlib.contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how far the reading is."""
    if rich_progress is None or not sys.stderr.isatty():
        yield lambda _: None
        return
    bar = rich_progress.Progress(console=Console(stderr=True), transient=True)
    task = bar.add_task("verifying", total=total or None)
    with bar:
        yield lambda position: bar.update(task, completed=position)
