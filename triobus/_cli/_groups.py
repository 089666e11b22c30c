"""`triobus groups`: how far they are; letting one go on from elsewhere, or forgetting one."""

import argparse
from datetime import datetime
from typing import Any

import attrs
import trio

from triobus._cli._asking import ask
from triobus._cli._commands import EXIT_CODES, Commands, add_change, add_store
from triobus._cli._events import position_at
from triobus._cli._messages import CommandError
from triobus._cli._output import at, counted, json_text, table, width
from triobus._cli._stores import committed, shown, to_change, to_read
from triobus._cli._times import TIMES, moment_of
from triobus._errors import InvalidOption
from triobus.stores import EventStore
from triobus.stores._overview import GroupOverview
from triobus.stores._values import Commit, RemoveGroup, Reset

_TEXT = """\
Show how far the groups of a store have come. 'reset' lets one go on from elsewhere, 'remove'
forgets one that no program has any more. Both need a store that no bus has open; in a program that
runs, 'await group.reset(to)' does the same."""

_EPILOG = f"""\
examples:
  triobus groups shop.db
  triobus groups shop.db reset report --to beginning
  triobus groups shop.db reset mail --to 2026-01-31T12:00Z --dry-run
  triobus groups shop.db remove old-report --yes

{EXIT_CODES}"""

_RESET_TEXT = f"""\
Let a group go on from elsewhere when its bus starts again. What it had begun, its retries and its
dead letters are forgotten; events behind the place are handled again, and those before it never.

  --to beginning   everything is handled again
  --to end         nothing that is in the log now
  --to POSITION    everything up to that position counts as handled
  --to TIME        everything recorded before it counts as handled

{TIMES}

It asks before."""

_REMOVE_TEXT = """\
Forget a group: how far it is, its retries and its dead letters. If a bus has a group of that name
it begins anew, as its 'start' says. It asks before."""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "groups",
        groups,
        summary="show, reset and remove groups",
        description=_TEXT,
        epilog=_EPILOG,
        json="print it as a JSON object",
    )
    add_store(parser)
    actions = commands.within(parser, "ACTION")
    anew = actions.add("reset", reset, summary="let one go on from elsewhere",
                       description=_RESET_TEXT)  # fmt: skip
    gone = actions.add("remove", remove, summary="forget one", description=_REMOVE_TEXT)
    for action in (anew, gone):
        action.add_argument("group", metavar="GROUP", help="the name of the group")
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS,
                            help="print what was done as JSON")  # fmt: skip
        add_change(action, asks=True)
    anew.add_argument("--to", metavar="PLACE", required=True, help="where it goes on")


def groups(options: argparse.Namespace) -> tuple[int, str]:
    """Return the exit code and the text."""
    found = trio.run(_look, options)
    if options.json:
        return 0, json_text(
            {name: attrs.asdict(group) | {"next_due": at(group.next_due)}
             for name, group in found.items()}
        )  # fmt: skip
    rows = [
        {
            "group": name,
            "settled up to": group.offset,
            "lag": group.lag,
            "retries": group.retries,
            "next retry at": at(group.next_due),
            "dead letters": group.dead_letters,
        }
        for name, group in found.items()
    ]
    return 0, table(rows, columns=width()) if rows else "no group has ever worked on it"


async def _look(options: argparse.Namespace) -> dict[str, GroupOverview]:
    async with to_read(options.store, options.schema) as store:
        return dict((await store._overview()).groups)


def reset(options: argparse.Namespace) -> tuple[int, str]:
    """Let a group go on from elsewhere."""
    return trio.run(_reset, options, _place(options.to))


def _place(text: str) -> int | datetime | None:
    """Return what `--to` means; None for the end."""
    if text in ("beginning", "end"):
        return 0 if text == "beginning" else None
    if text.isascii() and text.isdigit():
        if len(text) > 18:
            raise CommandError(f"--to {text}: no log is that long")
        return int(text)
    return moment_of(text)


async def _reset(options: argparse.Namespace, to: int | datetime | None) -> tuple[int, str]:
    async with to_change(options) as store:
        group = await _group(store, options.group)
        last = await store._last_position()
        if isinstance(to, int) and to > last:
            raise CommandError(f"--to {to}: the log ends at position {last:,}; give one up to that")
        loses = _losses(group)
        if options.dry_run:
            found = await _offset_of(store, to, last)
        else:
            ask(
                f"Let group {options.group!r} of {shown(store)} go on from {options.to}{loses}?",
                options,
            )
            (reached,) = await committed(store, Commit(others=[Reset(options.group, to)]))
            if isinstance(reached, InvalidOption):
                raise CommandError(str(reached))
            found = reached.offset
    done: dict[str, Any] = {"group": options.group, "from": group.offset, "to": found}
    if options.json:
        return 0, json_text(done | {"dry_run": options.dry_run})
    verb = "would go on" if options.dry_run else "goes on"
    return 0, (
        f"group {options.group!r} {verb} behind position {found:,} (it was at {group.offset:,}), "
        f"{counted(last - found, 'event')} to handle{loses}"
    )


async def _offset_of(store: EventStore, to: int | datetime | None, last: int) -> int:
    """Return the position behind which a group would go on."""
    if to is None:
        return last
    if isinstance(to, int):
        return to
    return await position_at(store, to) - 1


def remove(options: argparse.Namespace) -> tuple[int, str]:
    """Forget a group."""
    return trio.run(_remove, options)


async def _remove(options: argparse.Namespace) -> tuple[int, str]:
    async with to_change(options) as store:
        group = await _group(store, options.group)
        loses = _losses(group)
        if not options.dry_run:
            ask(f"Forget group {options.group!r} of {shown(store)}{loses}?", options)
            await committed(store, Commit(others=[RemoveGroup(options.group)]))
    if options.json:
        return 0, json_text({"removed": options.group, "dry_run": options.dry_run})
    verb = "would remove" if options.dry_run else "removed"
    return 0, f"{verb} group {options.group!r}, which was at position {group.offset:,}{loses}"


def _losses(group: GroupOverview) -> str:
    lost = [
        counted(count, what).replace("retrys", "retries")
        for count, what in ((group.retries, "waiting retry"), (group.dead_letters, "dead letter"))
        if count
    ]
    return f"; forgets {' and '.join(lost)}" if lost else ""


async def _group(store: EventStore, name: str) -> GroupOverview:
    found = (await store._overview()).groups
    if name not in found:
        there = ", ".join(map(repr, found)) or "none"
        raise CommandError(f"{shown(store)} has no group {name!r}; it has: {there}")
    return found[name]
