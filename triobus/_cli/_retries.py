"""`triobus retries`: what waits for a further attempt, and until when."""

import argparse
import time
from typing import Any

import attrs
import trio

from triobus._cli._commands import EXIT_CODES, Commands, add_store
from triobus._cli._messages import CommandError
from triobus._cli._output import at, duration, json_line, table, width
from triobus._cli._stores import to_read
from triobus.stores import EventStore
from triobus.stores._values import Attempts

_TEXT = """\
List the events that wait for a further attempt: of which handler, after how many attempts, and when
the next one is due. What the failed attempts said is in the log of the program that made them; it
is kept with the event when the last one has failed, by 'triobus dead-letters'."""

_EPILOG = f"""\
examples:
  triobus retries shop.db
  triobus retries shop.db --group mail --json
  triobus show shop.db 4711              (one of them, by its position)

{EXIT_CODES}"""

_LISTED = 100


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "retries",
        retries,
        summary="list what waits for a further attempt",
        description=_TEXT,
        epilog=_EPILOG,
        json="print one JSON object a line",
    )
    add_store(parser)
    parser.add_argument("--group", metavar="NAME", help="only of that group")
    parser.add_argument(
        "--limit",
        metavar="N",
        type=int,
        default=_LISTED,
        help="how many are listed, those that are due first (default: 100)",
    )


@attrs.frozen
class _Waiting:
    """One event that waits in a group."""

    group: str
    attempts: Attempts
    event_id: str = ""
    event_type: str = ""
    aggregate_id: str | None = None


def retries(options: argparse.Namespace) -> tuple[int, str]:
    """Return the exit code and the text."""
    if options.limit < 0:
        raise CommandError(f"--limit {options.limit}: give a number from 0 up")
    found, total = trio.run(_look, options)
    if options.json:
        return 0, "\n".join(json_line(_as_json(waiting)) for waiting in found)
    if not total:
        return 0, "nothing waits for a retry"
    now = time.time()
    left = total - len(found)
    rows = [_as_row(waiting, now) for waiting in found]
    more = [f"and {left:,} more; --limit N lists them"]
    return 0, "\n".join([table(rows, columns=width()), *(more if left else [])])


async def _look(options: argparse.Namespace) -> tuple[list[_Waiting], int]:
    async with to_read(options.store, options.schema) as store:
        found = [
            _Waiting(group.name, attempts)
            for group in await store._groups()
            if options.group in (None, group.name)
            for attempts in group.attempts
            if not attempts.is_begun
        ]
        found.sort(key=lambda waiting: (waiting.attempts.due_at, waiting.attempts.position))
        return [await _with_event(store, each) for each in found[: options.limit]], len(found)


async def _with_event(store: EventStore, waiting: _Waiting) -> _Waiting:
    position = waiting.attempts.position
    for row in await store._fetch(position - 1, 1, position):
        return attrs.evolve(
            waiting,
            event_id=row.event_id,
            event_type=row.event_type,
            aggregate_id=row.aggregate_id,
        )
    return waiting


def _as_row(waiting: _Waiting, now: float) -> dict[str, Any]:
    attempts = waiting.attempts
    left = attempts.due_at - now
    return {
        "group": waiting.group,
        "position": attempts.position,
        "type": waiting.event_type,
        "aggregate": waiting.aggregate_id,
        "subscription": attempts.subscription,
        "attempts": attempts.attempts,
        "due": f"in {duration(left)}" if left > 0 else "now",
        "due at": at(attempts.due_at),
    }


def _as_json(waiting: _Waiting) -> dict[str, Any]:
    attempts = waiting.attempts
    return {
        "group": waiting.group,
        "position": attempts.position,
        "event_id": waiting.event_id,
        "type": waiting.event_type,
        "aggregate": waiting.aggregate_id,
        "subscription": attempts.subscription,
        "attempts": attempts.attempts,
        "due_at": at(attempts.due_at),
        "delay": attempts.delay,
        "done": attempts.done,
    }
