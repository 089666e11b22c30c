"""Looks whether a store is whole."""

import argparse
import contextlib
from collections.abc import Iterator
from functools import partial

import attrs
import trio

from triobus._cli._commands import Commands, add_file
from triobus._cli._messages import CommandError
from triobus._cli._output import json_text, table
from triobus._cli._progress import Bar
from triobus._cli._stores import file_to_read
from triobus._errors import StoreCorrupt, StoreError
from triobus._events import Erased
from triobus.stores import SqliteEventStore, StoreStatistics

_EVENTS_AT_ONCE = 5000
_LETTERS_AT_ONCE = 20
"""Few, for each comes with its event, which may be large."""
_SHOWN = 20


_TEXT = """\
Read the whole log of a store, compare every event with its checksum, and list what is
damaged. It changes nothing, and a bus may be using the store meanwhile. A checksum finds accidents,
not forgeries."""

_EPILOG = """\
exit codes:
  0  everything is whole
  1  something is damaged
  2  the store cannot be looked at"""


def add(commands: Commands) -> None:
    """Add the command."""
    check = commands.add(
        "verify",
        verify,
        summary="look whether a store is whole",
        description=_TEXT,
        epilog=_EPILOG,
        json="print the findings as a JSON object",
    )
    add_file(check)


def verify(options: argparse.Namespace) -> tuple[int, str]:
    """Return the exit code and what there is to say; raises `CommandError`."""
    try:
        return trio.run(_verify, options)
    except StoreError as error:  # here damage that hides all the rest is no finding
        raise CommandError(str(error)) from None


async def _verify(options: argparse.Namespace) -> tuple[int, str]:
    async with file_to_read(options.store) as store:
        found = await examined(store)
        code = int(bool(found.complaints))
        if options.json:
            return code, _as_json(store.path, found)
        verdict = "is damaged" if found.complaints else "is whole"
        lines = [f"store {store.path!r} {verdict}", *found.complaints]
        lines.append(f"events whole: {found.last - len(found.damaged):,} of {found.last:,}")
        if found.statistics is not None:
            erased = found.statistics.types.get(Erased.event_type, 0)
            if erased:
                lines.append(f"events erased: {erased:,}")
            lines += _described(found.statistics)
        return code, "\n".join(lines)


@attrs.frozen
class Examined:
    """The findings about a store."""

    complaints: tuple[str, ...]
    """The damage, in sentences."""
    damaged: tuple[int, ...]
    """The positions of events that are damaged or missing."""
    last: int
    """The position up to which the log has been looked at."""
    statistics: StoreStatistics | None
    """None if they cannot be had."""


async def examined(store: SqliteEventStore) -> Examined:
    """Look at everything that is in a store. Raises `StoreError` where nothing can be read."""
    complaints: dict[str, None] = {}  # one for what several have noticed
    with _noting(complaints):
        complaints |= dict.fromkeys(await store.problems())
    statistics = None
    with _noting(complaints):
        statistics = await store.statistics()
    for look in (store._last_position, store._groups, partial(_look_at_letters, store)):
        with _noting(complaints):
            await look()
    damaged: list[int] = []
    after, end = -1, 0
    total = None if statistics is None else statistics.events
    with Bar("verifying", total) as bar, _noting(complaints):
        while end != after:
            after = end
            end, found = await store.check(after, _EVENTS_AT_ONCE)
            damaged += found
            bar.show(end, f"{end:,} events")
    with contextlib.suppress(StoreCorrupt):  # the rows themselves are damaged, which has been said
        if wrong := await store.check_sequences(_SHOWN):
            complaints[f"events out of sequence, the first at {_ranges(wrong)}"] = None
    if damaged:
        what = f"damaged or missing: {len(damaged):,} events, at {_ranges(damaged)}"
        complaints[what] = None
    return Examined(tuple(complaints), tuple(damaged), end, statistics)


@contextlib.contextmanager
def _noting(complaints: dict[str, None]) -> Iterator[None]:
    """Turn damage that is found into one more complaint."""
    try:
        yield
    except StoreCorrupt as error:
        complaints[str(error)] = None


async def _look_at_letters(store: SqliteEventStore) -> None:
    """Read all dead letters. Raises `StoreCorrupt` at the first that is damaged."""
    ids = [key.id for key in await store._letter_keys()]
    for first in range(0, len(ids), _LETTERS_AT_ONCE):
        await store._letters(ids[first : first + _LETTERS_AT_ONCE])


def _as_json(path: str, found: "Examined") -> str:
    return json_text(
        {
            "store": path,
            "is_whole": not found.complaints,
            "complaints": found.complaints,
            "damaged": found.damaged,
            "events": found.last,
        }
    )


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
        lines += ["", table(groups)]
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
