"""`triobus show`: one event, what caused it and what it caused, and what handlers made of them."""

import argparse
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import attrs
import trio

from triobus._cli._commands import EXIT_CODES, Commands, add_store
from triobus._cli._history import Fate, Fates
from triobus._cli._lines import Fields, fields_of, line_of, own_of, text_of
from triobus._cli._messages import CommandError
from triobus._cli._output import at, counted, duration, json_line, json_text, moment
from triobus._cli._stores import shown, to_read
from triobus._text import line as one_line
from triobus.stores import EventStore
from triobus.stores._values import Row, Selection

_TEXT = """\
Show one event of a log with its data, and the tree of what caused it and what it caused, with what
became of each event in every group: settled, waiting for a retry, a dead letter. The caused events
are found by their correlation id, which they have from their cause unless a handler set another."""

_EPILOG = f"""\
examples:
  triobus show shop.db 6f1c3a52-0b0e-4b7e-9a58-0d3b1c8a2f10
  triobus show shop.db 4711              (by its position)
  triobus show shop.db 4711 --json | jq .tree

{EXIT_CODES}"""

_DEEPEST = 100
"""How many causes are gone back."""
_BATCH = 512


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "show",
        show,
        summary="show one event, its causes and its effects",
        description=_TEXT,
        epilog=_EPILOG,
        json="print it as a JSON object",
    )
    add_store(parser)
    parser.add_argument("id", metavar="ID", type=_id, help="the id of the event, or its position")
    parser.add_argument(
        "--limit",
        metavar="N",
        type=int,
        default=200,
        help="how many events of the tree are shown at most (default: 200)",
    )


def _id(text: str) -> UUID | int:
    if text.isascii() and text.isdigit() and len(text) < 19:
        return int(text)
    try:
        return UUID(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither the id of an event nor a position"
        ) from None


def show(options: argparse.Namespace) -> tuple[int, str]:
    """Return the exit code and the text."""
    found = trio.run(_look, options)
    return 0, found.as_json() if options.json else found.as_text()


@attrs.define(eq=False)
class _Node:
    """An event of the tree."""

    row: Row
    fields: Fields
    fates: Sequence[Fate] = ()
    effects: "list[_Node]" = attrs.field(factory=list)


@attrs.frozen
class _Shown:
    """What the command has found."""

    row: Row
    root: _Node
    unknown_cause: str | None
    """The id of the first cause, where the log does not have it."""
    is_cut: bool
    """Whether there are more effects than are shown."""
    now: float

    def as_json(self) -> str:
        """Return it as a JSON object."""
        found: dict[str, Any] = {
            "event": line_of(self.row),
            "unknown_cause": self.unknown_cause,
            "is_cut": self.is_cut,
            "tree": _tree(self.root),
        }
        return json_text(found)

    def as_text(self) -> str:
        """Return it for people."""
        row, fields = self.row, fields_of(self.row)
        place = f"position {row.position:,}"
        if row.aggregate_id is not None:
            place += f", sequence {row.sequence:,} of aggregate {row.aggregate_id!r}"
        lines = [f"event {row.event_id}", f"  type         {row.event_type}"]
        lines += [f"  version      {row.schema_version}"] if row.schema_version != 1 else []
        lines += [f"  place        {place}", f"  recorded at  {moment(row.recorded_at)}"]
        for name, title in (("occurred_at", "occurred at"), ("correlation_id", "correlation"),
                            ("causation_id", "caused by")):  # fmt: skip
            if (text := text_of(fields, name)) is not None:
                lines.append(f"  {title:<11}  {text}")
        if bytes(fields.get("metadata", b"{}")) != b"{}":
            lines.append(f"  metadata     {json_line(fields['metadata'])}")
        for name, raw in own_of(fields).items():
            lines.append(f"    {one_line(name)}: {json_line(raw)}")
        lines += ["", "causes and effects:"]
        if self.unknown_cause is not None:
            lines.append(f"  {self.unknown_cause} (not in this log)")
        self._add(lines, self.root, 1 if self.unknown_cause is None else 2)
        if self.is_cut:
            lines.append("  and more; --limit N shows them")
        return "\n".join(lines)

    def _add(self, lines: list[str], root: _Node, depth: int) -> None:
        rest = [(root, depth)]
        while rest:
            node, depth = rest.pop()
            row, indent = node.row, "  " * depth
            of = "" if row.aggregate_id is None else f" of {one_line(repr(row.aggregate_id))}"
            this = "  <- this one" if row.position == self.row.position else ""
            lines.append(f"{indent}{row.position:,} {row.event_type}{of}  {row.event_id}{this}")
            for fate in node.fates:
                lines += [f"{indent}    {said}" for said in _said(fate, self.now)]
            rest += [(effect, depth + 1) for effect in reversed(node.effects)]


def _said(fate: Fate, now: float) -> list[str]:
    found = [f"{fate.group}: {fate.state}"]
    if fate.attempts is not None and not fate.attempts.is_begun:
        attempts = fate.attempts
        found[0] += (
            f": {attempts.subscription!r} after {counted(attempts.attempts, 'attempt')}, due in "
            f"{duration(attempts.due_at - now)}"
        )
    found += [
        f"{fate.group}: dead letter {letter.id}: {letter.subscription!r} after "
        f"{counted(letter.attempts, 'attempt')}, {letter.error_type}: {one_line(letter.message)}"
        for letter in fate.letters
    ]
    return found


def _tree(root: _Node) -> dict[str, Any]:
    """Return the tree as JSON has it; without recursion, for it may be deep."""
    made: dict[int, dict[str, Any]] = {}
    order, rest = [], [root]
    while rest:
        node = rest.pop()
        order.append(node)
        rest += node.effects
    for node in reversed(order):
        made[id(node)] = {
            "position": node.row.position,
            "event_id": node.row.event_id,
            "type": node.row.event_type,
            "aggregate": node.row.aggregate_id,
            "groups": [_fate(fate) for fate in node.fates],
            "effects": [made[id(effect)] for effect in node.effects],
        }
    return made[id(root)]


def _fate(fate: Fate) -> dict[str, Any]:
    found: dict[str, Any] = {"group": fate.group, "state": fate.state}
    if fate.attempts is not None:
        found |= {
            "subscription": fate.attempts.subscription,
            "attempts": fate.attempts.attempts,
            "due_at": None if fate.attempts.is_begun else at(fate.attempts.due_at),
            "done": fate.attempts.done,
        }
    letters = [
        {
            "id": letter.id,
            "subscription": letter.subscription,
            "attempts": letter.attempts,
            "error_type": letter.error_type,
            "message": letter.message,
        }
        for letter in fate.letters
    ]
    return found | ({"dead_letters": letters} if letters else {})


async def _look(options: argparse.Namespace) -> _Shown:
    async with to_read(options.store, options.schema) as store:
        row = await _found(store, options.id)
        top, unknown = await _first_cause(store, row)
        nodes, is_cut = await _with_effects(store, top, row, options.limit)
        fates = await Fates.of(store)
        for node in nodes:
            node.fates = await fates.at(node.row.position)
        return _Shown(row, nodes[0], unknown, is_cut, time.time())


async def _found(store: EventStore, wanted: UUID | int) -> Row:
    if isinstance(wanted, UUID):
        row = await store._find(wanted)
        what = f"no event with the id {wanted}"
    else:
        row = next(iter(await store._fetch(wanted - 1, 1, wanted) if wanted else ()), None)
        last = await store._last_position()
        what = f"no position {wanted:,}: the log ends at {last:,}"
    if row is None:
        raise CommandError(f"{shown(store)} has {what}")
    return row


async def _first_cause(store: EventStore, row: Row) -> tuple[Row, str | None]:
    """Return what an event goes back to, and the id of its cause that the log does not have."""
    seen = {row.event_id}
    for _ in range(_DEEPEST):
        cause = text_of(fields_of(row), "causation_id")
        if cause is None or cause in seen:
            return row, None
        seen.add(cause)
        try:
            found = await store._find(UUID(cause))
        except ValueError:
            found = None
        if found is None:
            return row, cause
        row = found
    return row, None


async def _with_effects(
    store: EventStore, top: Row, asked: Row, limit: int
) -> tuple[list[_Node], bool]:
    """Return the nodes of the tree below an event, itself first, and whether there are more."""
    root = _Node(top, fields_of(top))
    by_id = {top.event_id: root}
    is_cut = False
    correlation = text_of(root.fields, "correlation_id") or top.event_id
    after = top.position
    while rows := await store._fetch(after, _BATCH, None, Selection(correlation_id=correlation)):
        after = rows[-1].position
        for row in rows:
            fields = fields_of(row)
            cause = by_id.get(text_of(fields, "causation_id") or "")
            if cause is None or row.event_id in by_id:
                continue
            if len(by_id) >= max(limit, 1) and row.event_id != asked.event_id:
                is_cut = True
                continue
            by_id[row.event_id] = node = _Node(row, fields)
            cause.effects.append(node)
        if is_cut and asked.event_id in by_id:
            break
    return list(by_id.values()), is_cut
