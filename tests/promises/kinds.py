"""The stores whose promises are tested. A further one is added to `NEW` and `KINDS` in one line."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.postgres import server
from triobus import EventStore, MemoryEventStore, PostgresEventStore, SqliteEventStore

Reopened = Callable[[], EventStore]
"""Returns a store with what was in it before, as a program does that starts again."""


NEW: dict[str, Callable[[], EventStore | None]] = {
    "no store": lambda: None,
    "memory": MemoryEventStore,
    "sqlite": lambda: SqliteEventStore(":memory:"),
    "postgres": lambda: PostgresEventStore(server.dsn(), schema=server.new_schema()),
}
"""What a bus may be made with, for the promises of every bus."""


def _kept(store: EventStore) -> Reopened:
    return lambda: store


KINDS: dict[str, Callable[..., Reopened]] = {
    "sqlite": lambda path, **options: partial(SqliteEventStore, path / "events.db", **options),
    "memory": lambda path, **options: _kept(MemoryEventStore(**options)),
    "postgres": lambda path, **options: partial(
        PostgresEventStore, server.dsn(), schema=server.new_schema(), **options
    ),
}


def reopened(kind: str, path: Path, **options: Any) -> Reopened:
    """Return what opens a store of that kind, again and again."""
    return KINDS[kind](path, **options)
