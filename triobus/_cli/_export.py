"""`triobus export`: all events of a store as lines."""

import argparse
import os
from contextlib import aclosing
from typing import Any, TextIO

import trio

from triobus._cli._commands import Commands, add_store
from triobus._cli._events import batches
from triobus._cli._lines import cloud_event_of, line_of
from triobus._cli._messages import CommandError, say
from triobus._cli._output import counted, json_line
from triobus._cli._progress import Bar
from triobus._cli._stores import name_of, to_read
from triobus.stores import EventStore
from triobus.stores._values import Row

_TEXT = """\
Write the whole log of a store as lines of JSON, with positions, ids and times. 'triobus import'
makes the same log of them, and 'triobus run' takes them. A bus may be using the store; what it
stores meanwhile is left out. Progress of groups and dead letters are no events and are not part of
it: 'triobus backup' copies everything."""

_EPILOG = """\
examples:
  triobus export shop.db > shop.jsonl
  triobus export shop.db --to shop.jsonl
  triobus export shop.db --cloudevents --source https://shop.example.com | gzip > shop.jsonl.gz

exit codes:
  0  all of it was written
  1  something is damaged; the lines before it are written to standard output, none to a file
  2  a bad call, or a store or file that cannot be used"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "export",
        export,
        summary="write all events as lines of JSON",
        description=_TEXT,
        epilog=_EPILOG,
        json="lines of JSON, as without it",
    )
    add_store(parser)
    add = parser.add_argument
    add("--to", metavar="FILE", help="a file that is not there yet (default: standard output)")
    add("--cloudevents", action="store_true", help="write CloudEvents 1.0")
    add("--source", metavar="URI", default="triobus", help="the source of CloudEvents")


def export(options: argparse.Namespace) -> tuple[int, str]:
    """Write the lines."""
    if options.to is None:
        trio.run(_export, options, options.stdout)
        return 0, ""
    written = new_file(options.to)
    is_done = False
    try:
        with written:
            count = trio.run(_export, options, written)
            written.flush()
            os.fsync(written.fileno())
            is_done = True
    except OSError as error:
        raise CommandError(f"cannot write {options.to!r}: {error.strerror}") from None
    finally:
        if not is_done:
            os.unlink(options.to)
    say(f"triobus: wrote {counted(count, 'event')} to {options.to!r}")
    return 0, ""


def new_file(path: str) -> TextIO:
    """Make a file for its owner alone. Raises `CommandError` if there is one, or it cannot be."""
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        return os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8", newline="\n")
    except FileExistsError:
        raise CommandError(f"{path!r} is there already: give another name, or move it") from None
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise CommandError(f"cannot write {path!r}: {said}") from None


async def _export(options: argparse.Namespace, to: TextIO) -> int:
    async with to_read(options.store, options.schema) as store:
        return await _write(store, options, to)


async def _write(store: EventStore, options: argparse.Namespace, to: TextIO) -> int:
    last = await store._last_position()
    with Bar(f"exporting {name_of(store)}", last) as bar:
        async with aclosing(batches(store, 0, last)) as some:
            async for rows in some:
                for row in rows:
                    to.write(json_line(_line(row, options)) + "\n")
                bar.show(rows[-1].position, f"{rows[-1].position:,} events")
    return last


def _line(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    return cloud_event_of(row, options.source) if options.cloudevents else line_of(row)
