"""`triobus import`: events from lines into a store, all of them or none."""

import argparse
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress

import attrs
import trio

from triobus._cli._commands import DRY_RUN, Commands, add_file
from triobus._cli._input import FileSource, Line, LineSplitter
from triobus._cli._messages import CommandError
from triobus._cli._output import counted, json_text
from triobus._cli._parsing import LONGEST, BadLine, Parsed, parsed
from triobus._cli._progress import Bar
from triobus._cli._stores import check_file
from triobus._errors import EventIdConflict, EventNotEncodable
from triobus.stores import SqliteEventStore
from triobus.stores._values import Imported, LogPosition
from triobus.stores.sqlite._store import Importing

_TEXT = """\
Take events over into a store: lines as 'triobus export' and 'triobus events --json' write them, or
CloudEvents 1.0. Positions, ids and times stay what they are. The store is made if there is none; no
bus may have it open. All lines are taken over, or none.

An event whose id the store has with the same content is passed over, so that a file may be imported
again. Another event of the same id is an error, and so is one whose position is taken: --renumber
puts it behind what is there. Events without a position come behind what is there, too."""

_EPILOG = """\
examples:
  triobus import copy.db shop.jsonl
  triobus export shop.db | triobus import copy.db -
  triobus import all.db branch.jsonl --renumber --dry-run

exit codes:
  0  all of it is in the store
  2  a bad line, a conflict, a bad call, or a store that cannot be used: nothing was taken over"""

_AT_ONCE = 500


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "import",
        import_,
        summary="take events over from lines of JSON",
        description=_TEXT,
        epilog=_EPILOG,
        json="print what was done as a JSON object",
    )
    add_file(parser)
    add = parser.add_argument
    add("input", metavar="FILE", nargs="?", default="-", help="default: -, standard input")
    add("--renumber", action="store_true", help="give new positions to events that need them")
    add("--dry-run", action="store_true", help=DRY_RUN)


@attrs.define(eq=False)
class _Counts:
    """What has been done."""

    new: int = 0
    known: int = 0


class _DryRun(Exception):
    """Everything fits, and is taken back."""


def import_(options: argparse.Namespace) -> tuple[int, str]:
    """Take the events over."""
    check_file(options.store)
    counts = _Counts()
    path = SqliteEventStore(options.store).path
    is_new = not os.path.lexists(path)
    is_kept = False
    try:
        trio.run(_import, options, counts)
        is_kept = True
    except _DryRun:
        pass
    finally:
        if is_new and not is_kept:
            with suppress(OSError):  # it may not even have been made
                os.unlink(path)
    if options.json:
        values = {"imported": counts.new, "known_already": counts.known}
        return 0, json_text(values | {"dry_run": options.dry_run})
    verb = "would import" if options.dry_run else "imported"
    return 0, f"{verb} {counted(counts.new, 'event')}; known already: {counts.known:,}"


async def _import(options: argparse.Namespace, counts: _Counts) -> None:
    source = FileSource(options.input)
    await source.open()
    try:
        async with SqliteEventStore(options.store) as store, store._importing() as importing:
            await _take_over(importing, source, options.renumber, counts)
            if options.dry_run:
                raise _DryRun
    finally:
        source.close()


async def _take_over(
    importing: Importing, source: FileSource, renumbers: bool, counts: _Counts
) -> None:
    with Bar(f"importing {source.name}", source.size) as bar:
        async with aclosing(_lines(source)) as chunks:
            async for lines, read in chunks:
                for first in range(0, len(lines), _AT_ONCE):
                    some = lines[first : first + _AT_ONCE]
                    events = [_parsed(line, source) for line in some]
                    places = await _added(importing, events, some, source)
                    for line, event, place in zip(some, events, places, strict=True):
                        if place.is_new and not renumbers:
                            _check_place(line, event, place, source)
                        counts.new += place.is_new
                        counts.known += not place.is_new
                bar.show(read, f"{counts.new:,} events")


async def _lines(source: FileSource) -> AsyncGenerator[tuple[list[Line], int]]:
    """Yield lines, and how many bytes have been read."""
    splitter, read = LineSplitter(LONGEST), 0
    while chunk := await source.read():
        read += len(chunk)
        yield splitter.feed(chunk), read
    yield splitter.end(), read


async def _added(
    importing: Importing, events: Sequence[Parsed], lines: Sequence[Line], source: FileSource
) -> list[LogPosition]:
    try:
        return await importing.add([Imported(event.record, event.recorded_at) for event in events])
    except (EventIdConflict, EventNotEncodable) as error:
        line = lines[int(error.__notes__[0])]
        raise _refused(line, source, str(error)) from None


def _parsed(line: Line, source: FileSource) -> Parsed:
    try:
        return parsed(line.text)
    except BadLine as error:
        raise _refused(line, source, str(error)) from None


def _check_place(line: Line, event: Parsed, place: LogPosition, source: FileSource) -> None:
    for what, wanted, found in (
        ("position", event.position, place.position),
        ("sequence", event.sequence, place.sequence),
    ):
        if wanted is not None and wanted != found:
            raise _refused(
                line,
                source,
                f"{what} {wanted} would be {found} in this store, which has other events or lacks "
                "some; --renumber takes what comes",
            )


def _refused(line: Line, source: FileSource, why: str) -> CommandError:
    return CommandError(f"line {line.number} of {source.name}: {why}. Nothing was imported")
