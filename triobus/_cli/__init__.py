"""The command line: running a bus, and looking after its store.

What a command finds out goes to standard output, everything else to standard error.
"""

import argparse
import contextlib
import math
import sys
from collections.abc import Sequence

import trio

from triobus import __version__
from triobus._cli import (
    _backup,
    _erase,
    _events,
    _export,
    _graph,
    _groups,
    _import,
    _letters,
    _retries,
    _schema,
    _show,
    _status,
    _verify,
)
from triobus._cli._commands import Commands, add_schema
from triobus._cli._demo import DEMO, generated_prices
from triobus._cli._input import BytesSource, FileSource
from triobus._cli._load import load
from triobus._cli._messages import CommandError, log_on_stderr, say
from triobus._cli._run import Run
from triobus._cli._stores import to_run
from triobus._cli._streams import ReaderGone, drop_output, readers_watched
from triobus._cli._summary import as_json, as_text, report_of_store, report_rows
from triobus._errors import StoreCorrupt, StoreError
from triobus._text import escaped

RESTORE = "triobus_restore"
"""The function of the user's module that takes up the events of the store."""

_DESCRIPTION = """\
Run a domain-event bus that lives inside a Trio program, and look after its store."""

_EPILOG = "'triobus COMMAND --help' has examples of each."

_RUN_TEXT = """\
Start the EventBus that a Python module holds, or that a function of it makes, publish the events of
the input to it, wait until all of them are handled, and print a summary. The current directory is
importable, as with 'python -m'.

The input is one JSON object a line, in UTF-8. "type" is the event_type of a class that the module
has loaded, "data" its fields; "aggregate" (checked, if given) and "metadata" are optional:

  {"type": "order.placed", "data": {"order_id": "order-17", "quantity": "2.5"}}

If the module has a function triobus_report(), it is called after the bus has stopped, and the
rows that it returns, a list of dicts, are printed below the summary. An async function
triobus_report(store) can ask the store of the bus.

With --store the bus is durable: its events are kept in a file, and a run that was interrupted or
killed is finished by the next one with the rest of the input. Lines whose "data" has an "event_id"
may be given again: an event that is stored is not stored twice. If the module has an async function
triobus_restore(store), it is called before the bus starts, to take up from the log what the module
knew. An event may be handled twice if the program was killed, but for transactional handlers."""

_RUN_EPILOG = """\
examples:
  triobus run shop.events:bus --input events.jsonl
  tail -f events.jsonl | triobus run shop.events:bus
  triobus run shop.events:bus --input events.jsonl --json > summary.json
  triobus run shop.events:bus --input events.jsonl --store shop.db

Ctrl-C and SIGTERM end the reading; the handlers then have --stop-timeout seconds to finish what
was read. A second one ends the program at once.

When the reader of the output goes away, as head does, the run ends at once; with a store the next
one goes on.

exit codes:
  0    everything was handled
  1    there are dead letters, lines were skipped, events were left, or a handler ended the bus
  2    bad input or usage
  130  Ctrl-C ended it (SIGTERM: 143)"""

_DEMO_TEXT = """\
Run the small trading pipeline of triobus.demo, which is short and worth reading. Without --input it
makes up closing prices, the same ones every time. A few orders become dead letters on purpose; the
exit code is 0 nevertheless."""

_DEMO_EPILOG = """\
examples:
  triobus demo
  triobus demo --input prices.jsonl
  triobus demo --store demo.db     (kill it in the middle, and start it again)

a line of the input:
  {"type": "price.closed", "data": {"symbol": "IBM", "day": "2000-01-01", "close": "100.52"}}"""

_ON_STORES = (
    _status.add,
    _events.add,
    _show.add,
    _letters.add,
    _retries.add,
    _groups.add,
    _export.add,
    _import.add,
    _backup.add,
    _erase.add,
    _graph.add,
    _schema.add,
    _verify.add,
)
"""The commands that work on a store."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command with the arguments of the program, or those given, and return its exit code.

    Without any it shows the help. Raises SystemExit for arguments that cannot be understood, as
    argparse does.
    """
    try:
        with readers_watched():
            return _carried_out(arguments)
    except ReaderGone:
        drop_output()  # the interpreter must not trip over it at its end
        return 1


def _carried_out(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    stdout = sys.stdout
    # What the user's module prints must not end up in the middle of the JSON.
    quiet = contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext()
    try:
        with quiet:
            options.stdout = stdout
            code, text = options.command(options)
        if text:
            print(escaped(text, kept="\n"), file=stdout, flush=True)
    except (CommandError, StoreError) as error:
        say(escaped(f"triobus: {error}"))
        return 1 if isinstance(error, StoreCorrupt) else 2
    except KeyboardInterrupt:
        say("triobus: interrupted")
        return 130
    except OSError as error:
        say(escaped(f"triobus: cannot write to standard output: {error.strerror}"))
        drop_output()
        return 2
    return int(code)  # argparse has lost its type


def _run(options: argparse.Namespace) -> tuple[int, str]:
    found, module = load(options.target)
    run = Run(
        found=found,
        source=FileSource(options.input)
        if options.input is not None
        else BytesSource(generated_prices(), "made-up prices"),
        skip_bad=options.skip_bad,
        stop_timeout=options.stop_timeout,
        store=None if options.store is None else to_run(options.store, options.schema),
        restore=getattr(module, RESTORE, None),
        report=report_of_store(module),
    )
    with log_on_stderr():
        trio.run(run.carry_out)
    code, rows = run.exit_code(are_dead_letters_expected=options.target == DEMO), None
    try:
        rows = report_rows(module, run)
    except CommandError as error:
        # The summary is worth having without it.
        say(escaped(f"triobus: {error}"))
        code = 2
    return code, as_json(run, rows) if options.json else as_text(run, rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="triobus", description=_DESCRIPTION, epilog=_EPILOG, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"triobus {__version__}")
    parser.set_defaults(command=None)
    commands = Commands(parser.add_subparsers(title="commands", metavar="COMMAND"))
    for add in (_add_run, _add_demo, *_ON_STORES):
        add(commands)
    return parser


def _add_run(commands: Commands) -> None:
    run = commands.add(
        "run",
        _run,
        summary="run a bus of yours on events that are read",
        description=_RUN_TEXT,
        epilog=_RUN_EPILOG,
    )
    run.add_argument(
        "target",
        metavar="MODULE:NAME",
        help="where the EventBus is, such as shop.events:bus, or a function, plain or async, that "
        "makes it",
    )
    _add_options(run, input_default="-", input_help="default: -, standard input")


def _add_demo(commands: Commands) -> None:
    demo = commands.add(
        "demo",
        _run,
        summary="run a small trading pipeline",
        description=_DEMO_TEXT,
        epilog=_DEMO_EPILOG,
    )
    demo.set_defaults(target=DEMO)
    _add_options(demo, input_default=None, input_help="default: made-up prices")


def _add_options(
    parser: argparse.ArgumentParser, *, input_default: str | None, input_help: str
) -> None:
    add = parser.add_argument
    read = "read events from this file, or from standard input if it is -"
    add("--input", metavar="FILE", default=input_default, help=f"{read} ({input_help})")
    kept = "keep everything in this file or PostgreSQL database, and go on from what it has"
    add("--store", metavar="STORE", help=kept)
    add_schema(parser)
    add("--json", action="store_true", help="print the summary as JSON")
    add("--skip-bad", action="store_true", help="report bad lines and go on, instead of stopping")
    seconds = "how long handlers may go on after Ctrl-C or SIGTERM (default: 10)"
    add("--stop-timeout", metavar="SECONDS", type=_seconds, default=10.0, help=seconds)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0 up")
    return seconds
