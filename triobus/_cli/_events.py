"""`triobus events`: the log, as a table or as lines."""

import argparse
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import datetime
from uuid import UUID

import attrs
import trio

from triobus._cli._commands import EXIT_CODES, Commands, add_store
from triobus._cli._growth import growing
from triobus._cli._lines import cloud_event_of, fields_of, line_of, own_of
from triobus._cli._messages import CommandError, say
from triobus._cli._output import json_line, moment, width
from triobus._cli._rows import RowPrinter
from triobus._cli._stores import to_read
from triobus._cli._times import TIMES, moment_of
from triobus.stores import EventStore
from triobus.stores._values import EVERYTHING, Row, Selection

_TEXT = """\
Show events of a log in their order: the last 20, or what the options choose. A bus may be using the
store; it is not disturbed."""

_EPILOG = f"""\
{TIMES}

examples:
  triobus events shop.db --last 100
  triobus events shop.db --type order.placed --since 2h
  triobus events shop.db --aggregate order-17 --after 0
  triobus events shop.db --follow --json | jq .data
  triobus events shop.db --after 0 --json > all.jsonl

{EXIT_CODES}"""

_LAST = 20
_AT_ONCE = 512


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "events",
        events,
        summary="show events of a log",
        description=_TEXT,
        epilog=_EPILOG,
        json="print one JSON object a line, as 'triobus run' and 'triobus import' take it",
    )
    add_store(parser)
    add = parser.add_argument
    add("--cloudevents", action="store_true", help="print one CloudEvent 1.0 a line")
    add("--source", metavar="URI", default="triobus", help="the source of CloudEvents")
    add("--last", metavar="N", type=number, help="at most the last N (default: 20, if neither "
        "--after nor --since is given)")  # fmt: skip
    add("--after", metavar="POSITION", type=number, help="only what is behind that position")
    add("--type", metavar="TYPE", action="append", help="only events of that type; may be repeated")
    add("--aggregate", metavar="ID", help="only events of that aggregate")
    add("--correlation", metavar="ID", type=event_id, help="only events of that correlation id")
    add("--since", metavar="TIME", help="only what was recorded at that time or later")
    add("--until", metavar="TIME", help="only what was recorded at that time or earlier")
    add(
        "--follow",
        action="store_true",
        help="go on with what comes, until Ctrl-C; a bus may stop and start meanwhile",
    )


def number(text: str) -> int:
    """Return a number from 0 up, as an option has it."""
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 up")
    return int(text)


def event_id(text: str) -> UUID:
    """Return the UUID that an option or an argument is."""
    try:
        return UUID(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no id of an event, such as 6f1c3a52-0b0e-4b7e-9a58-0d3b1c8a2f10"
        ) from None


def events(options: argparse.Namespace) -> tuple[int, str]:
    """Print the events."""
    if options.json and options.cloudevents:
        raise CommandError("--json and --cloudevents are two forms of a line: give one of them")
    since = None if options.since is None else moment_of(options.since)
    until = None if options.until is None else moment_of(options.until)
    if since is not None and until is not None and since > until:
        raise CommandError(f"--since {options.since} is later than --until {options.until}")
    if options.follow and until is not None:
        raise CommandError("--follow waits for what comes, and --until leaves that out: give one")
    try:
        trio.run(_Showing(options, since, until).run)
    except KeyboardInterrupt:
        if not options.follow:
            raise
    return 0, ""


@attrs.define(eq=False)
class _Showing:
    """One call of the command."""

    _options: argparse.Namespace
    _since: datetime | None
    _until: datetime | None
    _show: Callable[[list[Row]], None] = attrs.field(init=False)
    _selected: Selection = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        options = self._options
        correlation = None if options.correlation is None else str(options.correlation)
        self._selected = Selection(options.aggregate, options.type, correlation)
        if options.json or options.cloudevents:
            self._show = self._print_lines
        else:
            printer = RowPrinter(options.stdout, width())
            self._show = lambda rows: printer.print([_cells(row) for row in rows])

    async def run(self) -> None:
        async with to_read(self._options.store, self._options.schema) as store:
            if not self._options.follow:
                await self._show_all(store, await self._first(store))
                return
            async with growing(store) as has_grown:
                after = await self._first(store)
                while True:
                    # Behind all that was looked at, whether it was shown or not.
                    end = await store._last_position()
                    await self._show_all(store, after, end)
                    after = end
                    await has_grown()

    async def _first(self, store: EventStore) -> int:
        """Return the position behind which it begins."""
        options = self._options
        after = options.after or 0
        if self._since is not None:
            after = max(after, await position_at(store, self._since) - 1)
        last = options.last
        if last is None and options.after is None and self._since is None:
            last = _LAST
        if last is not None:
            after = await self._from_end(store, after, last)
        return after

    async def _from_end(self, store: EventStore, after: int, count: int) -> int:
        """Return the position behind which there are so many events that are wanted."""
        up_to = await self._end(store)
        if not count:
            return up_to
        while count:
            rows = await store._fetch(
                after, min(count, _AT_ONCE), up_to, self._selected, backwards=True
            )
            if not rows:
                return after
            count -= len(rows)
            up_to = rows[-1].position - 1
        return up_to

    async def _end(self, store: EventStore) -> int:
        last = await store._last_position()
        if self._until is None:
            return last
        return min(last, await position_at(store, self._until, or_later=False) - 1)

    async def _show_all(self, store: EventStore, after: int, end: int | None = None) -> None:
        end = await self._end(store) if end is None else end
        found = False
        async with aclosing(batches(store, after, end, self._selected)) as some:
            async for rows in some:
                found = True
                self._show(rows)
        self._options.stdout.flush()
        if not found and not self._options.follow:
            say("triobus: there are no such events")

    def _print_lines(self, rows: list[Row]) -> None:
        source = self._options.source if self._options.cloudevents else None
        for row in rows:
            line = line_of(row) if source is None else cloud_event_of(row, source)
            print(json_line(line), file=self._options.stdout)


async def batches(
    store: EventStore, after: int, end: int, selected: Selection = EVERYTHING
) -> AsyncGenerator[list[Row]]:
    """Yield the events behind a position and up to another one, some at a time."""
    while after < end:
        rows = await store._fetch(after, _AT_ONCE, end, selected)
        if not rows:
            return
        yield rows
        after = rows[-1].position


async def position_at(store: EventStore, when: datetime, *, or_later: bool = True) -> int:
    """Return the first position that was recorded at a time or later, or only later.

    By halves, for the clock that recorded them goes on; where it was set back, it is a position
    near to it.
    """
    low, high = 1, await store._last_position() + 1
    while low < high:
        middle = (low + high) // 2
        (row,) = await store._fetch(middle - 1, 1, middle)
        is_behind = row.recorded_at >= when if or_later else row.recorded_at > when
        low, high = (low, middle) if is_behind else (middle + 1, high)
    return low


def _cells(row: Row) -> list[str]:
    return [
        str(row.position),
        moment(row.recorded_at),
        row.event_type,
        "-" if row.aggregate_id is None else row.aggregate_id,
        json_line(own_of(fields_of(row))),
    ]
