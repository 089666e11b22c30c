"""`triobus graph`: which type of event leads to which, and to which handlers."""

import argparse
import os
import statistics
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any
from uuid import UUID

import attrs
import trio

from triobus._bus import EventBus
from triobus._cli._classes import types_of
from triobus._cli._commands import EXIT_CODES, Commands, add_schema
from triobus._cli._drawing import Edge, Graph, as_dot, as_mermaid, as_svg
from triobus._cli._events import batches, number
from triobus._cli._lines import fields_of, occurred_at, text_of
from triobus._cli._load import Maker, load, made
from triobus._cli._messages import CommandError
from triobus._cli._output import counted, json_text
from triobus._cli._stores import is_dsn, name_of, to_read
from triobus.stores import EventStore

_TEXT = """\
Draw which type of event leads to which. Of a store: from the causes that its events name, with how
often, after which time (the median), and the handlers that have failed, with their dead letters. Of
a bus, MODULE:NAME: which handlers get which types. The output is a diagram in Mermaid, which GitHub
and others draw, in the language of Graphviz (--dot), or drawn by Graphviz (--svg)."""

_EPILOG = f"""\
examples:
  triobus graph shop.db
  triobus graph shop.events:bus
  triobus graph shop.db --last 1000000 --svg > shop.svg
  triobus graph shop.db --json | jq .edges

{EXIT_CODES}"""

_LAST = 100_000
_REMEMBERED = 100_000
"""Of how many events the type is remembered for those that they cause."""
_SAMPLES = 1000
"""Of how many pairs of one edge the time between is looked at."""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "graph",
        graph,
        summary="draw which type leads to which",
        description=_TEXT,
        epilog=_EPILOG,
        json="print nodes and edges as a JSON object",
    )
    add = parser.add_argument
    add(
        "source",
        metavar="STORE|MODULE:NAME",
        help="a store, as other commands take it, or where a bus is",
    )
    add_schema(parser)
    add("--dot", action="store_true", help="in the language of Graphviz")
    add("--svg", action="store_true", help="as SVG; needs Graphviz's program 'dot'")
    add(
        "--last",
        metavar="N",
        type=number,
        default=_LAST,
        help=f"how many events of the log are looked at (default: {_LAST:,})",
    )


def graph(options: argparse.Namespace) -> tuple[int, str]:
    """Return the exit code and the text."""
    if options.json + options.dot + options.svg > 1:
        raise CommandError("--json, --dot and --svg are three forms: give one of them")
    is_store = is_dsn(options.source) or ":" not in options.source
    if is_store or os.path.lexists(options.source):
        found = trio.run(_of_store, options)
    else:
        bus, _ = load(options.source)
        found = trio.run(_of_bus, bus)
    if options.json:
        return 0, json_text(_as_json(found))
    if options.svg:
        print(as_svg(found), file=options.stdout, end="")
        return 0, ""
    return 0, as_dot(found) if options.dot else as_mermaid(found)


def _as_json(drawn: Graph) -> dict[str, Any]:
    return {
        "types": drawn.types,
        "handlers": [
            {"group": group, "subscription": subscription, "dead_letters": count}
            for (group, subscription), count in drawn.handlers.items()
        ],
        "edges": [attrs.asdict(edge) for edge in drawn.edges],
    }


async def _of_bus(found: EventBus | Maker) -> Graph:
    bus = await made(found) if callable(found) else found
    drawn = Graph()
    for name, options in bus._lives.options.items():
        for subscription in options.group.subscriptions:
            for event_type in types_of([subscription]):
                drawn.types.setdefault(event_type.event_type, None)
                handler = (name, subscription.name)
                drawn.handlers.setdefault(handler, 0)
                drawn.edges.append(Edge(event_type.event_type, None, handler))
    return drawn


async def _of_store(options: argparse.Namespace) -> Graph:
    async with to_read(options.source, options.schema) as store:
        looking = _Looking(store)
        last = await store._last_position()
        async with aclosing(batches(store, max(last - options.last, 0), last)) as some:
            async for rows in some:
                for row in rows:
                    fields = fields_of(row)
                    moment = occurred_at(fields)
                    await looking.add(row.event_type, text_of(fields, "causation_id"), moment)
                    looking.remember(row.event_id, row.event_type, moment)
        await looking.add_letters()
        return looking.drawn(
            f"{name_of(store)}: the last {counted(min(last, options.last), 'event')}"
        )


@attrs.define(eq=False)
class _Led:
    """How one type has led to another."""

    count: int = 0
    seconds: list[float] = attrs.field(factory=list)


@attrs.define(eq=False)
class _Looking:
    """What has been found in a log so far."""

    _store: EventStore
    _types: dict[str, int] = attrs.field(factory=dict)
    _led: dict[tuple[str, str], _Led] = attrs.field(factory=dict)
    _failed: dict[tuple[str, tuple[str, str]], int] = attrs.field(factory=dict)
    _known: "OrderedDict[str, tuple[str, datetime | None]]" = attrs.field(factory=OrderedDict)

    def remember(self, event_id: str, event_type: str, moment: datetime | None) -> None:
        """Know an event that may be the cause of later ones."""
        self._known[event_id] = event_type, moment
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    async def add(self, event_type: str, cause: str | None, moment: datetime | None) -> None:
        """Count an event, and what led to it."""
        self._types[event_type] = self._types.get(event_type, 0) + 1
        known = None if cause is None else self._known.get(cause) or await self._look_up(cause)
        if known is None:
            return
        led = self._led.setdefault((known[0], event_type), _Led())
        led.count += 1
        if moment is not None and known[1] is not None and len(led.seconds) < _SAMPLES:
            led.seconds.append((moment - known[1]).total_seconds())

    async def _look_up(self, event_id: str) -> tuple[str, datetime | None] | None:
        try:
            row = await self._store._find(UUID(event_id))
        except ValueError:
            return None
        if row is None:
            return None
        moment = occurred_at(fields_of(row))
        self.remember(event_id, row.event_type, moment)
        self._types.setdefault(row.event_type, 0)
        return row.event_type, moment

    async def add_letters(self) -> None:
        """Count the dead letters of each type and handler."""
        keys = await self._store._letter_keys()
        for first in range(0, len(keys), 100):
            ids = [key.id for key in keys[first : first + 100]]
            for letter, row in await self._store._letters(ids):
                self._types.setdefault(row.event_type, 0)
                edge = row.event_type, (letter.group, letter.subscription)
                self._failed[edge] = self._failed.get(edge, 0) + 1

    def drawn(self, title: str) -> Graph:
        """Return it as a graph."""
        handlers: dict[tuple[str, str], int] = {}
        for (_, handler), count in self._failed.items():
            handlers[handler] = handlers.get(handler, 0) + count
        return Graph(
            title,
            dict(sorted(self._types.items())),
            handlers,
            [
                *(
                    Edge(cause, effect, None, led.count, 0, _median(led.seconds))
                    for (cause, effect), led in sorted(self._led.items())
                ),
                *(
                    Edge(cause, None, handler, 0, count)
                    for (cause, handler), count in sorted(self._failed.items())
                ),
            ],
        )


def _median(seconds: Sequence[float]) -> float | None:
    return statistics.median(seconds) if seconds else None
