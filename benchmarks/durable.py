"""Publishing with an SQLite store against raw `sqlite3`: table, indexes and rows of the same kind.

Everything that is published is stored, handled and acknowledged within the time. The raw limit
writes rows of the same table with its indexes, WAL and synchronous=FULL, and does nothing else. Its
event ids are random, as `uuid4` makes them; those of triobus begin with the time, which makes raw
writing faster too, so that limit is shown beside it.

What was tried to make a lone publisher faster, in microseconds of its 270 an event: a thread of the
store's own in place of Trio's cache of threads 40, the time of the directory in place of a `stat`
of the -wal file (which makes the next sync slower) 30 to 50, one page for the two small tables 15,
no shielded scope for each commit 8. What remains is the commit itself, 160, two switches between
threads, 80, and 30 of our own. Moving the leader's yield before or after gained nothing.
"""

import gc
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import attrs
import trio

import triobus
from benchmarks import peers
from benchmarks.measuring import Benchmark, Competitor
from benchmarks.work import new_paths
from triobus._events import EventCodec
from triobus.stores.sqlite import _schema


@attrs.frozen
class Booked(triobus.DomainEvent):
    """An event of one aggregate."""

    key: str
    number: int

    @property
    def aggregate_id(self) -> str:
        """The aggregate."""
        return self.key


async def handler(event: Booked) -> None:
    """Do nothing: what is measured is the way to here and back."""


PUBLISHERS = 256
BATCH = 500
ROWS_A_COMMIT = 1000
RAW, OWN, SINGLE = "raw, 1,000 rows a commit", "raw with the bus's ids", "raw, one row a commit"
MANY = f"{PUBLISHERS} publishers"


def events_of(count: int) -> list[Booked]:
    """Make events of 100 aggregates."""
    return [Booked(f"aggregate-{number % 100}", number) for number in range(count)]


# Raw SQLite


def rows_of(events: list[Booked], *, random_ids: bool) -> list[tuple[Any, ...]]:
    """Return the rows that a store would make of events."""
    codec = EventCodec()
    return [
        (
            position,
            str(uuid4() if random_ids else event.event_id),
            event.event_type,
            event.schema_version,
            event.key,
            position // 100 + 1,
            "2026-01-01T12:00:00.000000+00:00",
            codec.encode(event).decode(),
            position,
        )
        for position, event in enumerate(events, 1)
    ]


@contextmanager
def open_raw(path: Path) -> Iterator[tuple[sqlite3.Connection, str]]:
    """Open a file with the tables of a store; the statement inserts a row of `rows_of`."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        for statement in _schema.statements(_schema.MIGRATIONS[0]):
            connection.execute(statement)
        yield connection, "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"


def raw(path: Path, rows: list[tuple[Any, ...]], rows_a_commit: int) -> float:
    """Return the seconds a row that raw SQLite takes."""
    with open_raw(path) as (connection, insert):
        started = time.perf_counter()
        for first in range(0, len(rows), rows_a_commit):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(insert, rows[first : first + rows_a_commit])
            connection.execute("COMMIT")
        return (time.perf_counter() - started) / len(rows)


# The bus


Publish = Callable[[triobus.EventBus, list[Booked]], Awaitable[None]]


async def by_256_publishers(bus: triobus.EventBus, events: list[Booked]) -> None:
    """Publish by many tasks, each one event after the other."""
    left: Iterator[Booked] = iter(events)

    async def publish() -> None:
        for event in left:
            await bus.publish(event)

    async with trio.open_nursery() as nursery:
        for _ in range(PUBLISHERS):
            nursery.start_soon(publish)


async def in_batches(bus: triobus.EventBus, events: list[Booked]) -> None:
    """Publish by `publish_many`."""
    for first in range(0, len(events), BATCH):
        await bus.publish_many(events[first : first + BATCH])


async def one_by_one(bus: triobus.EventBus, events: list[Booked]) -> None:
    """Publish by one task, one event after the other."""
    for event in events:
        await bus.publish(event)


def durable(path: Path, events: list[Booked], publish: Publish) -> float:
    """Return the seconds an event from being published until it is acknowledged on disk."""
    bus = triobus.EventBus(triobus.SqliteEventStore(path))
    bus.subscribe(Booked, handler)
    return measured(bus, events, publish)


async def _nothing() -> None:
    """Nothing is to be made before."""


def measured(
    bus: triobus.EventBus,
    events: list[Booked],
    publish: Publish,
    prepare: Callable[[], Awaitable[object]] = _nothing,
) -> float:
    """Return the seconds an event until a bus has nothing left to do, what it needs made before."""

    async def run() -> float:
        async with bus:
            await prepare()
            started = time.perf_counter()
            await publish(bus, events)
            await bus.wait_idle()
            return (time.perf_counter() - started) / len(events)

    gc.collect()
    gc.freeze()
    return trio.run(run)


def benchmark(stack: ExitStack, *, quick: bool) -> Benchmark:
    """Return the competitors."""
    many, few = (10_000, 500) if quick else (50_000, 4000)
    paths = new_paths(stack)

    def raw_rate(rows_a_commit: int, *, random_ids: bool = True) -> Callable[[], float]:
        rows = rows_of(events_of(few if rows_a_commit == 1 else many), random_ids=random_ids)
        return lambda: 1 / raw(next(paths), rows, rows_a_commit)

    def bus_rate(publish: Publish, count: int) -> Callable[[], float]:
        return lambda: 1 / durable(next(paths), events_of(count), publish)

    return Benchmark(
        "durable",
        "Events a second with a store: committed, handled, and acknowledged on disk",
        [
            Competitor(RAW, raw_rate(ROWS_A_COMMIT), kind="limit"),
            Competitor(OWN, raw_rate(ROWS_A_COMMIT, random_ids=False), limit=RAW, kind="limit"),
            Competitor(SINGLE, raw_rate(1), kind="limit"),
            Competitor(MANY, bus_rate(by_256_publishers, many // 2), limit=RAW, bound=0.35),
            Competitor(
                f"publish_many of {BATCH}", bus_rate(in_batches, many), limit=RAW, bound=0.6
            ),
            Competitor("one publisher", bus_rate(one_by_one, few), limit=SINGLE, bound=0.5),
            *peers.competitors(
                stack,
                "durable",
                is_durable=True,
                scale=0.3 if quick else 1,
                limit=MANY,
                bounds={"litequeue, synced": 10, "huey, synced": 10, "eventsourcing": 10},
            ),
        ],
        [
            f"The bus syncs every commit to disk. Peers are shown beside {MANY}; theirs would wait "
            "for one another, so each has one.",
        ],
    )
