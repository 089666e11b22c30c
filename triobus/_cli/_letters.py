"""`triobus dead-letters`: what handlers have failed for good, and what is done about it."""

import argparse
import re
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Any

import attrs
import trio

from triobus._cli import _replay
from triobus._cli._asking import ask
from triobus._cli._commands import Commands, add_change, add_store
from triobus._cli._lines import line_of
from triobus._cli._messages import CommandError
from triobus._cli._output import counted, cut, json_line, json_text, moment, table, width
from triobus._cli._stores import committed, shown, to_change, to_read
from triobus._text import line as one_line
from triobus.stores import EventStore
from triobus.stores._overview import grouped
from triobus.stores._values import Changes, Commit, DeadLetterKey, DeadLetterRow, Row

_TEXT = """\
Show what handlers have failed for good: grouped by subscription and error, one by one with --list,
or one with its traceback with --show. A bus may be using the store; it is not disturbed.

'discard' forgets dead letters, 'replay' delivers them again to the handlers that failed. Both need
a store that no bus has open; in a program that runs, bus.dead_letters does the same."""

_EPILOG = """\
examples:
  triobus dead-letters shop.db
  triobus dead-letters shop.db --list --group mail --error ValueError
  triobus dead-letters shop.db --show 17
  triobus dead-letters shop.db replay shop.events:bus
  triobus dead-letters shop.db replay shop.events:bus 17 20-29
  triobus dead-letters shop.db discard --error SMTPRecipientsRefused --yes

exit codes:
  0  there are none, or the action was done
  1  there are dead letters, or some have failed again
  2  a bad call, or a store that cannot be used"""

_DISCARD_TEXT = """\
Forget dead letters: those of the ids, or all that the options choose. Their events stay in the log.
It asks before."""

_AT_ONCE = 100
"""Few, for each comes with its event, which may be large."""
_LISTED = 100
_MESSAGE = 100
_IDS = re.compile(r"(\d{1,18})(?:-(\d{1,18}))?")


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "dead-letters",
        show,
        summary="show, replay and discard dead letters",
        description=_TEXT,
        epilog=_EPILOG,
        json="print JSON: an object, or one a line with --list",
    )
    add_store(parser)
    _add_filters(parser, None)
    parser.add_argument("--list", action="store_true", help="one by one, the oldest first")
    parser.add_argument("--show", metavar="ID", type=int, help="one with its traceback")
    parser.add_argument(
        "--limit", metavar="N", type=int, default=_LISTED, help="how many --list shows (100)"
    )
    actions = commands.within(parser, "ACTION")
    forget = actions.add(
        "discard",
        discard,
        summary="forget dead letters",
        description=_DISCARD_TEXT,
    )
    _add_ids(forget)
    add_change(forget, asks=True)
    again = actions.add(
        "replay",
        replay,
        summary="deliver dead letters again",
        description=_replay.TEXT,
        epilog=_replay.EPILOG,
    )
    again.add_argument("target", metavar="MODULE:NAME", help="where the bus with the handlers is")
    _add_ids(again)
    add_change(again, asks=False)


def _add_ids(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", metavar="ID", nargs="*", type=_ids, help="such as 17, or 20-29")
    parser.add_argument("--all", action="store_true", help="all of the store")
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    _add_filters(parser, argparse.SUPPRESS)


def _add_filters(parser: argparse.ArgumentParser, default: str | None) -> None:
    # An option that is given before the action must not be forgotten by its parser.
    for name, what in (("group", "NAME"), ("error", "TYPE"), ("aggregate", "ID")):
        of = {"group": "that group", "error": "that type of error", "aggregate": "that aggregate"}
        parser.add_argument(f"--{name}", metavar=what, default=default, help=f"only of {of[name]}")


def _ids(text: str) -> range:
    found = _IDS.fullmatch(text)
    if found is None or int(found[2] or found[1]) < int(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no id of a dead letter, such as 17 or 20-29")
    return range(int(found[1]), int(found[2] or found[1]) + 1)


def show(options: argparse.Namespace) -> tuple[int, str]:
    """Return the exit code and the text."""
    if options.limit < 0:
        raise CommandError(f"--limit {options.limit}: give a number from 0 up")
    if options.show is not None:
        return trio.run(_one, options)
    return trio.run(_listed if options.list else _grouped, options)


async def _one(options: argparse.Namespace) -> tuple[int, str]:
    async with to_read(options.store, options.schema) as store:
        found = await store._letters([options.show]) if 0 < options.show < 2**63 else []
        if not found:
            raise _unknown(store, [options.show], len(await store._letter_keys()))
    ((letter, row),) = found
    if options.json:
        return 1, json_text(attrs.asdict(letter) | {"event": line_of(row)})
    lines = [
        f"dead letter {letter.id}: {letter.subscription!r} of group {letter.group!r}",
        f"  {letter.error_type}: {one_line(letter.message)}",
        f"  {counted(letter.attempts, 'attempt')}, first failed at "
        f"{moment(letter.first_failed_at)}, last at {moment(letter.last_failed_at)}",
        f"  event {row.event_id}, {row.event_type}, position {row.position:,}"
        + ("" if row.aggregate_id is None else f", aggregate {row.aggregate_id!r}"),
        f"  {json_line(line_of(row)['data'])}",
        "",
        letter.traceback.rstrip(),
    ]
    return 1, "\n".join(lines)


async def _listed(options: argparse.Namespace) -> tuple[int, str]:
    rows: list[dict[str, Any]] = []
    total = 0
    async with to_read(options.store, options.schema) as store:
        keys = _of_filters(await store._letter_keys(), options)
        if options.error is None:  # which they are is known before they are read
            total, keys = len(keys), keys[: options.limit]
        async with aclosing(chosen(store, options, keys)) as letters:
            async for letter, row in letters:
                total += options.error is not None
                if options.error is not None and total > options.limit:
                    continue
                if options.json:
                    listed = attrs.asdict(letter) | {"event": line_of(row)}
                    print(json_line(listed), file=options.stdout)
                else:
                    rows.append(_as_row(letter, row))
    code = int(total > 0)
    if options.json:
        return code, ""
    if not rows:
        return code, _none(total)
    left = total - len(rows)
    more = [f"and {left:,} more; --limit N shows them"] if left else []
    return code, "\n".join([table(rows, columns=width()), *more])


def _as_row(letter: DeadLetterRow, row: Row) -> dict[str, Any]:
    return {
        "id": letter.id,
        "position": letter.position,
        "type": row.event_type,
        "aggregate": letter.aggregate_id,
        "group": letter.group,
        "subscription": letter.subscription,
        "attempts": letter.attempts,
        "last failed at": letter.last_failed_at,
        "error": letter.error_type,
        "message": cut(one_line(letter.message), _MESSAGE),
    }


async def _grouped(options: argparse.Namespace) -> tuple[int, str]:
    async with to_read(options.store, options.schema) as store:
        if options.aggregate is None:
            wanted_by, error = options.group, options.error
            found = [
                group
                for group in await store._letter_groups()
                if wanted_by in (None, group.group) and error in (None, group.error_type)
            ]
        else:
            async with aclosing(chosen(store, options)) as letters:
                found = grouped([letter async for letter, _ in letters])
    code = int(bool(found))
    if options.json:
        total = sum(group.count for group in found)
        return code, json_text({"dead_letters": total, "groups": [attrs.asdict(g) for g in found]})
    if not found:
        return code, _none(0)
    rows = [
        {
            "dead letters": group.count,
            "group": group.group,
            "subscription": group.subscription,
            "error": group.error_type,
            "ids": str(group.first) if group.count == 1 else f"{group.first}..{group.last}",
            "last failed at": group.last_failed_at,
            "latest message": cut(one_line(group.message), _MESSAGE),
        }
        for group in found
    ]
    return code, "\n".join(
        [
            table(rows, columns=width()),
            "",
            f"--list shows them one by one, --show {found[0].first} one with its traceback",
        ]
    )


def _none(total: int) -> str:
    return f"{counted(total, 'dead letter')}" if total else "no dead letters"


async def chosen(
    store: EventStore, options: argparse.Namespace, keys: Sequence[DeadLetterKey] | None = None
) -> AsyncGenerator[tuple[DeadLetterRow, Row]]:
    """Yield the dead letters that the options choose, the oldest first, each with its event."""
    found = await store._letter_keys() if keys is None else keys
    ids = [key.id for key in _of_filters(found, options)]
    for first in range(0, len(ids), _AT_ONCE):
        for letter, row in await store._letters(ids[first : first + _AT_ONCE]):
            if options.error in (None, letter.error_type):
                yield letter, row


def _of_filters(
    keys: Sequence[DeadLetterKey], options: argparse.Namespace
) -> Sequence[DeadLetterKey]:
    return [
        key
        for key in keys
        if options.group in (None, key.group) and options.aggregate in (None, key.aggregate_id)
    ]


async def wanted(store: EventStore, options: argparse.Namespace) -> list[DeadLetterKey]:
    """Return the dead letters that an action is about. Raises `CommandError` if ids are not there.

    Without ids the options have to choose, or `--all`.
    """
    keys = await store._letter_keys()
    is_filtered = (options.group, options.error, options.aggregate) != (None, None, None)
    if options.ids:
        if options.all:
            raise CommandError("ids and --all were given: give one of them")
        keys = _of_ids(store, keys, options.ids)
    elif not is_filtered and not options.all:
        raise CommandError(
            "which ones? Give ids, --group, --error or --aggregate, or --all for all of the store"
        )
    if not is_filtered:
        return keys
    async with aclosing(chosen(store, options, keys)) as letters:
        left = {letter.id async for letter, _ in letters}
    return [key for key in keys if key.id in left]


def _of_ids(
    store: EventStore, keys: Sequence[DeadLetterKey], ids: Iterable[range]
) -> list[DeadLetterKey]:
    """Return the keys of ids; those of a range that are no more are passed over."""
    by_id = {key.id: key for key in keys}
    missing = [each.start for each in ids if len(each) == 1 and each.start not in by_id]
    missing += [each.start for each in ids if not any(id_ in each for id_ in by_id)]
    if missing:
        raise _unknown(store, sorted(set(missing)), len(keys))
    return [key for id_, key in by_id.items() if any(id_ in each for each in ids)]


def _unknown(store: EventStore, ids: Sequence[int], count: int) -> CommandError:
    return CommandError(
        f"{shown(store)} has no dead letter {', '.join(map(str, ids))}: it never was, or "
        f"was replayed or discarded; --list shows the {count:,} that there are"
    )


def discard(options: argparse.Namespace) -> tuple[int, str]:
    """Forget dead letters."""
    return trio.run(_discard, options)


async def _discard(options: argparse.Namespace) -> tuple[int, str]:
    async with to_change(options) as store:
        keys = await wanted(store, options)
        what = counted(len(keys), "dead letter")
        if keys and not options.dry_run:
            ask(f"Forget {what} of {shown(store)}?", options)
            letters = dict.fromkeys(key.id for key in keys)
            await committed(store, Commit(changes=Changes(letters=letters)))
    if options.json:
        return 0, json_text({"discarded": [key.id for key in keys], "dry_run": options.dry_run})
    return 0, f"would discard {what}" if options.dry_run else f"discarded {what}"


def replay(options: argparse.Namespace) -> tuple[int, str]:
    """Deliver dead letters again."""
    return _replay.replay(options, wanted)
