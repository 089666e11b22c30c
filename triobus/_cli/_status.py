"""`triobus status`: what a store holds, how far its groups are, and what waits for a person."""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import trio

from triobus._cli._commands import EXIT_CODES, Commands, add_store
from triobus._cli._output import at, counted, duration, json_text, moment, size, table, width
from triobus._cli._stores import name_of, shown, to_read
from triobus._cli._watching import watched
from triobus.stores import EventStore
from triobus.stores._overview import Holder, Overview

_TEXT = """\
Show what a store holds, how far each group has come, what waits for a retry, who has the store
open, and what waits for a person. A bus may be using the store; it is not disturbed."""

_EPILOG = f"""\
columns:
  settled up to  everything up to this position of the log is handled, or a dead letter
  lag            events that are not settled yet, or that the group has yet to look at
  retries        events that wait for a further attempt; 'triobus retries STORE' lists them
  dead letters   what handlers have failed for good; 'triobus dead-letters STORE' says why

In a large log only the last events are looked at for their types, and the number of aggregates may
be a lower bound; --exact looks at all of it.

examples:
  triobus status shop.db
  triobus status shop.db --watch
  triobus status shop.db --json | jq .groups.default.lag
  triobus status shop.db >/dev/null || echo "somebody should look"

{EXIT_CODES.replace("something is wrong in the store", "something waits for a person")}"""

_SHOWN = 10
"""How many types are shown to people."""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "status",
        status,
        summary="show what a store holds, and what waits",
        description=_TEXT,
        epilog=_EPILOG,
        json="print it as a JSON object",
    )
    add_store(parser)
    parser.add_argument("--exact", action="store_true", help="count everything, however long it is")
    parser.add_argument(
        "--watch", action="store_true", help="show it again whenever it has changed, until Ctrl-C"
    )
    parser.add_argument(
        "--every",
        metavar="SECONDS",
        type=_seconds,
        default=1.0,
        help="how long --watch waits at least (default: 1)",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 1 to 86,400")
    return seconds


def status(options: argparse.Namespace) -> tuple[int, str]:
    """Return the exit code and the text."""
    described: Callable[[Status], str] = Status.as_json if options.json else Status.as_text
    if options.watch:
        try:
            trio.run(_watch, options, described)
        except KeyboardInterrupt:
            return 0, ""
    found = trio.run(_look, options)
    return int(bool(found.waiting)), described(found)


async def _look(options: argparse.Namespace) -> "Status":
    async with to_read(options.store, options.schema) as store:
        return await Status.of(store, exact=options.exact)


async def _watch(options: argparse.Namespace, described: Callable[["Status"], str]) -> None:
    async with to_read(options.store, options.schema) as store:
        await watched(partial(Status.of, store, exact=options.exact), described, options)


@attrs.frozen
class Status:
    """What there is to say about a store."""

    store: str
    shown: str
    """The store, as a sentence begins with it."""
    overview: Overview
    holder: Holder | None
    now: float = attrs.field(eq=False)
    """In seconds since 1970."""

    @classmethod
    async def of(cls, store: EventStore, *, exact: bool) -> "Status":
        """Look at a store that is open."""
        overview = await store._overview(exact=exact)
        return cls(name_of(store), shown(store), overview, await store._holder(), time.time())

    @property
    def waiting(self) -> list[str]:
        """What waits for a person, in sentences."""
        return [
            f"{counted(group.dead_letters, 'dead letter')} of group {name!r}: "
            "see 'triobus dead-letters'"
            for name, group in self.overview.groups.items()
            if group.dead_letters
        ]

    def as_json(self) -> str:
        """Return it as a JSON object."""
        seen, holder = self.overview, self.holder
        return json_text(
            {
                "store": self.store,
                "events": seen.events,
                "aggregates": seen.aggregates,
                "has_more_aggregates": seen.has_more_aggregates,
                "types": seen.types,
                "types_of_last": seen.types_of_last,
                "first_recorded_at": seen.first_recorded_at,
                "last_recorded_at": seen.last_recorded_at,
                "size_bytes": seen.size_bytes,
                "scheduled": seen.scheduled,
                "next_due": at(seen.next_due),
                "in_use": holder is not None,
                "pid": None if holder is None else holder.pid,
                "name": None if holder is None else holder.name,
                "groups": {
                    name: attrs.asdict(group) | {"next_due": at(group.next_due)}
                    for name, group in seen.groups.items()
                },
                "waiting": self.waiting,
            }
        )

    def as_text(self) -> str:
        """Return it as people want to read it."""
        seen = self.overview
        lines = [f"{self.shown}, {size(seen.size_bytes)}, {self._use()}"]
        lines.append(f"{counted(seen.events, 'event')}{self._times()}")
        if seen.events:
            least = "at least " if seen.has_more_aggregates else ""
            lines.append(f"{least}{counted(seen.aggregates, 'aggregate')}")
            lines.append(self._types())
        if seen.scheduled:
            due = "" if seen.next_due is None else f", the first {self._until(seen.next_due)}"
            lines.append(f"{counted(seen.scheduled, 'event')} scheduled for later{due}")
        if seen.groups:
            lines += ["", table(self._groups(), columns=width())]
        else:
            lines.append("no group has ever worked on it")
        if self.waiting:
            lines += ["", "waits for a person:", *(f"  {said}" for said in self.waiting)]
        return "\n".join(lines)

    def _use(self) -> str:
        if self.holder is None:
            return "no bus has it open"
        if self.holder.name is not None:
            return f"{self.holder.name!r} has it open"
        if self.holder.pid is None:
            return "another process has it open"
        return f"process {self.holder.pid} has it open"

    def _times(self) -> str:
        first, last = self.overview.first_recorded_at, self.overview.last_recorded_at
        if first is None or last is None:
            return ""
        ago = duration(self.now - last.timestamp())
        return f", from {moment(first)} to {moment(last)} ({ago} ago)"

    def _types(self) -> str:
        types = sorted(self.overview.types.items(), key=lambda pair: (-pair[1], pair[0]))
        shown = ", ".join(f"{name} {count:,}" for name, count in types[:_SHOWN])
        more = f" and {len(types) - _SHOWN:,} more" if len(types) > _SHOWN else ""
        some = self.overview.types_of_last
        of = f" of the last {some:,}" if some < self.overview.events else ""
        return f"{counted(len(types), 'type')}{of}: {shown}{more}"

    def _until(self, due: float) -> str:
        left = due - self.now
        return f"due in {duration(left)}" if left > 0 else f"due since {duration(-left)}"

    def _groups(self) -> list[dict[str, Any]]:
        return [
            {
                "group": name,
                "settled up to": group.offset,
                "lag": group.lag,
                "retries": group.retries,
                "next retry": None if group.next_due is None else self._until(group.next_due),
                "dead letters": group.dead_letters,
            }
            for name, group in self.overview.groups.items()
        ]
