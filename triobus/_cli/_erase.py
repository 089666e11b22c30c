"""`triobus erase`: the data of one aggregate are overwritten, and nothing of them is left."""

import argparse

import trio

from triobus._cli._asking import ask
from triobus._cli._commands import EXIT_CODES, Commands, add_change, add_file
from triobus._cli._messages import CommandError
from triobus._cli._output import counted, json_text
from triobus._cli._stores import file_to_read, file_to_write
from triobus.stores._values import Erasure

_TEXT = """\
Erase what a store has of one aggregate, such as a person: the data of its events, its dead letters
with their errors, and its scheduled events. In the place of each event stands 'triobus.erased' with
the position, the id, the time and the type of the event, and no data. The aggregate is not named
any more, and a new one of its id begins at sequence 1. Nothing of it is left in the file or beside
it.

Copies and exports that were made before have it still, and so have tables of your own and other
events that mention it. The store must not be open in a bus. It asks before. If it is ended by
force, erase again: the data go in one commit, and every call overwrites what SQLite has left, with
VACUUM; that numbers the rows of your own tables anew where they have no INTEGER PRIMARY KEY."""

_EPILOG = f"""\
examples:
  triobus erase shop.db --aggregate customer-17 --dry-run
  triobus erase shop.db --aggregate customer-17 --yes

{EXIT_CODES}"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "erase",
        erase,
        summary="erase the data of an aggregate",
        description=_TEXT,
        epilog=_EPILOG,
        json="print how much was erased as a JSON object",
    )
    add_file(parser)
    parser.add_argument("--aggregate", metavar="ID", required=True, help="which aggregate")
    add_change(parser, asks=True)


def erase(options: argparse.Namespace) -> tuple[int, str]:
    """Return the exit code and the text."""
    found = trio.run(_erase, options)
    if not any(found):
        raise CommandError(f"the store has nothing of an aggregate {options.aggregate!r}")
    if options.json:
        return 0, json_text(found._asdict() | {"dry_run": options.dry_run})
    verb = "would erase" if options.dry_run else "erased"
    return 0, f"{verb} {_described(found)} of aggregate {options.aggregate!r}"


async def _erase(options: argparse.Namespace) -> Erasure:
    async with file_to_read(options.store) as store:
        found = await store._erasure(options.aggregate)
    if options.dry_run:
        return found
    what = f"{_described(found)} of aggregate {options.aggregate!r} in store {store.path!r}"
    ask(f"Erase {what}? They cannot be had back.", options)
    async with file_to_write(options.store) as store:
        return await store._erase(options.aggregate)


def _described(found: Erasure) -> str:
    letters = counted(found.dead_letters, "dead letter")
    return f"{counted(found.events, 'event')}, {letters} and {found.scheduled:,} scheduled"
