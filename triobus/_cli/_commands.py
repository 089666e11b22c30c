"""How a command is declared: its name, what its help says, and the function that carries it out."""

import argparse
from collections.abc import Callable
from typing import Any

import attrs

Function = Callable[[argparse.Namespace], tuple[int, str]]
"""Returns the exit code and what is left to print; `options.stdout` is where output goes."""

STORE = "the file of the store, or the address of a PostgreSQL database: postgresql://..."
SCHEMA = "the schema of the database that has the store (default: triobus)"
DRY_RUN = "say what would be done, and do nothing"
YES = "do it without asking"

EXIT_CODES = """\
exit codes:
  0  done
  1  something is wrong in the store
  2  a bad call, or a store that cannot be used"""


@attrs.frozen
class Commands:
    """The commands of a parser."""

    _subparsers: Any  # argparse keeps this type to itself

    def add(
        self,
        name: str,
        function: Function,
        *,
        summary: str,
        description: str,
        epilog: str = "",
        json: str | None = None,
    ) -> argparse.ArgumentParser:
        """Add a command, and `--json` to it if that has a help text; return its parser."""
        parser: argparse.ArgumentParser = self._subparsers.add_parser(
            name,
            help=summary,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.set_defaults(command=function, json=False)
        if json is not None:
            parser.add_argument("--json", action="store_true", help=json)
        return parser

    def within(self, parser: argparse.ArgumentParser, metavar: str) -> "Commands":
        """Return commands that belong to one of these."""
        return Commands(parser.add_subparsers(title="actions", metavar=metavar))


def add_store(parser: argparse.ArgumentParser) -> None:
    """Let a command take a store."""
    parser.add_argument("store", metavar="STORE", help=STORE)
    add_schema(parser)


def add_schema(parser: argparse.ArgumentParser) -> None:
    """Let a command take the schema of a store in a database."""
    parser.add_argument("--schema", metavar="NAME", default="triobus", help=SCHEMA)


def add_file(parser: argparse.ArgumentParser) -> None:
    """Let a command take a store that is a file."""
    parser.add_argument("store", metavar="STORE", help="the file of the store")


def add_change(parser: argparse.ArgumentParser, *, asks: bool) -> None:
    """Let a command that changes something take `--dry-run`, and `--yes` if it asks."""
    parser.add_argument("--dry-run", action="store_true", help=DRY_RUN)
    if asks:
        parser.add_argument("--yes", action="store_true", help=YES)
