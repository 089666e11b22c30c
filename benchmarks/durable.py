"""Publishing with an SQLite store against raw `sqlite3`: table, indexes and rows of the same kind.

Everything that is published is stored, handled and acknowledged within the time. The raw limit
writes rows of the same table with its indexes, WAL and synchronous=FULL, and does nothing else. Its
event ids are random, as `uuid4` makes them; those of triobus begin with the time, which makes raw
writing faster too, so that limit is shown beside it.
"""

import gc
import multiprocessing
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import attrs
import msgspec
import psutil
import trio

import triobus
from triobus._codec import EventCodec
from triobus.stores import _schema


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
CATCH_UP_PER_SECOND = 60_000
BACKLOG_MIB = 60

BOUNDS = {"256 publishers": 0.35, "publish_many of 500": 0.6, "one publisher": 0.5}


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


def raw(path: Path, rows: list[tuple[Any, ...]], rows_a_commit: int) -> float:
    """Return the seconds a row that raw SQLite takes."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        for statement in _schema.statements(_schema.MIGRATIONS[0]):
            connection.execute(statement)
        insert = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
        started = time.perf_counter()
        for first in range(0, len(rows), rows_a_commit):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(insert, rows[first : first + rows_a_commit])
            connection.execute("COMMIT")
        return (time.perf_counter() - started) / len(rows)


def plain_loop(path: Path) -> float:
    """Return the seconds an event that reading and decoding in a plain loop takes."""
    decode = msgspec.json.Decoder(Booked).decode
    with closing(sqlite3.connect(path)) as connection:
        count = 0
        started = time.perf_counter()
        for (data,) in connection.execute("SELECT data FROM events ORDER BY position"):
            decode(data)
            count += 1
        return (time.perf_counter() - started) / count


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

    async def run() -> float:
        bus = triobus.EventBus(triobus.SqliteEventStore(path))
        bus.subscribe(Booked, handler)
        async with bus:
            started = time.perf_counter()
            await publish(bus, events)
            await bus.wait_idle()
            return (time.perf_counter() - started) / len(events)

    gc.collect()
    gc.freeze()
    return trio.run(run)


def fill(path: Path, count: int) -> None:
    """Make a store with events that nobody has handled."""

    async def run() -> None:
        async with triobus.SqliteEventStore(path) as store:
            for first in range(0, count, 5000):
                await store.append(events_of(min(5000, count - first)))

    trio.run(run)


def work_off(path: Path) -> tuple[float, float]:
    """Let a new group work off a store; return seconds an event and the growth of memory in MiB."""
    memory = psutil.Process().memory_info
    most = handled = 0

    async def run() -> float:
        bus = triobus.EventBus(triobus.SqliteEventStore(path))

        async def count(_: Booked) -> None:
            nonlocal most, handled
            handled += 1
            if handled % 1000 == 0:
                most = max(most, memory().rss)

        bus.group("all", start="beginning").subscribe(Booked, count)
        started = time.perf_counter()
        async with bus:
            await bus.wait_idle()
            return (time.perf_counter() - started) / handled

    gc.collect()
    before = memory().rss
    seconds = trio.run(run)
    return seconds, (most - before) / 2**20


def work_off_apart(path: Path) -> tuple[float, float]:
    """Do so in a process of its own, whose memory nothing else has filled before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work_off, (path,))


# Measuring


def main(*, quick: bool, rounds: int | None) -> bool:
    """Measure, print a table, and return whether every bound was kept."""
    rounds = rounds or (3 if quick else 9)
    many, few = (10_000, 1000) if quick else (50_000, 4000)
    caught_up, backlog = (20_000, 50_000) if quick else (100_000, 500_000)
    publishers: dict[str, tuple[Publish, int]] = {
        "256 publishers": (by_256_publishers, many // 2),
        "publish_many of 500": (in_batches, many),
        "one publisher": (one_by_one, few),
    }
    names = ["raw, 1,000 rows a commit", "the same with the bus's ids", "raw, one row a commit"]
    times: dict[str, list[float]] = {name: [] for name in [*names, *publishers]}
    with tempfile.TemporaryDirectory(prefix="triobus-") as directory:
        paths = (Path(directory, f"{number}.db") for number in range(10**9))
        for number in range(rounds):
            print(f"durable: round {number + 1} of {rounds}", flush=True)
            events = events_of(many)
            rows, own = (rows_of(events, random_ids=is_random) for is_random in (True, False))
            times[names[0]].append(raw(next(paths), rows, ROWS_A_COMMIT))
            times[names[1]].append(raw(next(paths), own, ROWS_A_COMMIT))
            times[names[2]].append(raw(next(paths), rows[:few], 1))
            for name, (publish, count) in publishers.items():
                times[name].append(durable(next(paths), events_of(count), publish))
        path = next(paths)
        fill(path, caught_up)
        plain = statistics.median(plain_loop(path) for _ in range(3))
        caught, _ = work_off_apart(path)
        path = next(paths)
        fill(path, backlog)
        _, growth = work_off_apart(path)

    print(f"\n{'':38}{'events/s':>12}{'ratio':>8}{'bound':>8}")
    for name in names:
        print(f"{name:38}{1 / statistics.median(times[name]):12,.0f}{'':8}{'':8}")
    is_good = True
    for name, bound in BOUNDS.items():
        limit = times[names[2] if name == "one publisher" else names[0]]
        ratio = statistics.median(
            raw_time / bus_time for raw_time, bus_time in zip(limit, times[name], strict=True)
        )
        is_good &= ratio >= bound
        rate = 1 / statistics.median(times[name])
        print(f"{name:38}{rate:12,.0f}{ratio:8.2f}{bound:8.2f}{_verdict(ratio >= bound)}")
    least = min(CATCH_UP_PER_SECOND, 0.5 / plain)
    is_fast = 1 / caught >= least
    print(f"{'reading and decoding in a plain loop':38}{1 / plain:12,.0f}")
    print(
        f"{f'catching up on {caught_up:,} events':38}{1 / caught:12,.0f}{plain / caught:8.2f}"
        f"{least:8,.0f}{_verdict(is_fast)}"
    )
    is_small = growth < BACKLOG_MIB
    print(
        f"{f'memory of a backlog of {backlog:,}':38}{growth:8.1f} MiB{'':8}{BACKLOG_MIB:4} MiB"
        f"{_verdict(is_small)}"
    )
    return is_good and is_fast and is_small


def _verdict(is_good: bool) -> str:
    return "" if is_good else "  not reached"
