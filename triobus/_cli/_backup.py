"""`triobus backup`: a whole copy of a store, looked at before it gets its name."""

import argparse
import os
from contextlib import suppress

import trio

from triobus._cli._commands import DRY_RUN, Commands, add_file
from triobus._cli._messages import CommandError
from triobus._cli._output import counted, json_text, size
from triobus._cli._progress import Bar
from triobus._cli._stores import file_to_read
from triobus._cli._verify import examined
from triobus._errors import StoreCorrupt
from triobus.stores import SqliteEventStore
from triobus.stores.sqlite._path import check_path, sync_directory

_TEXT = """\
Copy a store into a new file: events, groups, retries, dead letters and the program's own tables,
as they are at one moment. A bus may be using the store and goes on meanwhile. The copy is compared
with its checksums before it gets its name, so that a FILE that is there is a whole copy."""

_EPILOG = """\
examples:
  triobus backup shop.db shop-monday.db
  triobus status shop-monday.db

To restore it, stop the bus, move the damaged store with its '-wal' and '-shm' out of the way, and
copy the backup to its place.

exit codes:
  0  the copy is there, and whole
  1  the store is damaged, and so was the copy; none is kept
  2  a bad call, or a store or file that cannot be used"""

_UNFINISHED = ".unfinished"


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "backup",
        backup,
        summary="copy a store while a bus runs",
        description=_TEXT,
        epilog=_EPILOG,
        json="print what was done as a JSON object",
    )
    add_file(parser)
    parser.add_argument("file", metavar="FILE", help="where there is no file yet")
    parser.add_argument("--dry-run", action="store_true", help=DRY_RUN)


def backup(options: argparse.Namespace) -> tuple[int, str]:
    """Make the copy."""
    path = check_path(options.file)
    if os.path.lexists(path):
        raise CommandError(f"{path!r} is there already: give another name, or move it")
    return trio.run(_backup, options, path)


async def _backup(options: argparse.Namespace, path: str) -> tuple[int, str]:
    unfinished = path + _UNFINISHED
    async with file_to_read(options.store) as store:
        if options.dry_run:
            last = await store._last_position()
            return 0, _said(options, path, last, (await store._overview()).size_bytes)
        try:
            with Bar(f"copying {store.path}", None) as bar:
                _make(unfinished)
                await store._back_up(
                    unfinished,
                    lambda left, total: bar.show(total - left, f"{total - left:,} of {total:,}"),
                )
            last = await _looked_at(unfinished)
            _give_name(unfinished, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(unfinished)
    return 0, _said(options, path, last, os.stat(path).st_size)


def _said(options: argparse.Namespace, path: str, last: int, size_bytes: int) -> str:
    if options.json:
        return json_text(
            {"file": path, "events": last, "size_bytes": size_bytes, "dry_run": options.dry_run}
        )
    verb = "would copy" if options.dry_run else "copied"
    whole = "" if options.dry_run else "; it is whole"
    return f"{verb} {counted(last, 'event')}, {size(size_bytes)}, to {path!r}{whole}"


def _make(path: str) -> None:
    """Make an empty file for its owner alone."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        raise CommandError(
            f"{path!r} is there: another backup is being made, or was killed; remove that file"
        ) from None
    except OSError as error:
        raise CommandError(f"cannot write {path!r}: {error.strerror}") from None


async def _looked_at(path: str) -> int:
    """Return how many events the copy has. Raises `StoreCorrupt` unless it is whole."""
    async with SqliteEventStore(path, read_only=True) as copy:
        found = await examined(copy)
    if found.complaints:
        raise StoreCorrupt(
            f"the store is damaged: {'; '.join(found.complaints[:3])}. 'triobus verify' says what "
            "is whole. No copy was kept"
        )
    return found.last


def _give_name(unfinished: str, path: str) -> None:
    """Give the file its name, and no second one: SQLite refuses a store with two names."""
    if os.path.lexists(path):
        raise CommandError(f"{path!r} has come meanwhile: give another name")
    os.rename(unfinished, path)
    sync_directory(os.path.dirname(path))
