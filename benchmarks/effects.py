"""A transactional handler with one INSERT, against the same rows written by raw `sqlite3`.

Every event is stored, handled, and settled together with the row that its handler writes. The raw
limit writes the same rows of both tables and does nothing else. Beside it stands what a handler
costs that opens a connection of its own and commits there, as people write it without transactional
handlers: there a crash between the two commits leaves one of them, and it has a file of its own,
for on the store's it would wait for the store and the store for it.

What was tried, in microseconds of processor time an event, of which the raw limit takes 6: a worker
that has one event in a commit 240, with 64 workers 120, with 256 workers 180; many events of one
worker in a commit 75 to 90, of which publishing alone is 40 and the call itself 7. Half of the rest
is the interpreter's lock, for which the two threads take turns: nearly nothing is done by both at
once, so that twice as fast needs half as much Python, in publishing first of all.
"""

import sqlite3
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import triobus
from benchmarks.durable import (
    BATCH,
    MANY,
    ROWS_A_COMMIT,
    Booked,
    Publish,
    by_256_publishers,
    events_of,
    in_batches,
    measured,
    open_raw,
    rows_of,
)
from benchmarks.measuring import Benchmark, Competitor
from benchmarks.work import new_paths

CREATE = "CREATE TABLE IF NOT EXISTS books (number INTEGER PRIMARY KEY, account TEXT)"
INSERT = "INSERT INTO books VALUES (?, ?)"
RAW, OWN = f"raw, {ROWS_A_COMMIT:,} rows of each a commit", "raw with the bus's ids"


def raw(path: Path, events: list[Booked], *, random_ids: bool) -> float:
    """Return the seconds an event that raw SQLite takes for both rows."""
    rows = rows_of(events, random_ids=random_ids)
    books = [(event.number, event.key) for event in events]
    with open_raw(path) as (connection, insert):
        connection.execute(CREATE)
        started = time.perf_counter()
        for first in range(0, len(rows), ROWS_A_COMMIT):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(insert, rows[first : first + ROWS_A_COMMIT])
            connection.executemany(INSERT, books[first : first + ROWS_A_COMMIT])
            connection.execute("COMMIT")
        return (time.perf_counter() - started) / len(rows)


def _make_table(transaction: triobus.Transaction) -> None:
    transaction.execute(CREATE)


def in_transaction(path: Path, events: list[Booked], publish: Publish) -> float:
    """Return the seconds an event with a transactional handler."""
    store = triobus.SqliteEventStore(path)
    bus = triobus.EventBus(store)

    @bus.subscribe(Booked, transactional=True)
    def keep(event: Booked, transaction: triobus.Transaction) -> None:
        transaction.execute(INSERT, (event.number, event.key))

    return measured(bus, events, publish, partial(store.transact, _make_table))


def by_itself(path: Path, events: list[Booked], publish: Publish) -> float:
    """Return the seconds an event with a handler that opens a connection and commits there."""
    own = path.with_suffix(".books")
    with closing(sqlite3.connect(own)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(CREATE)
    bus = triobus.EventBus(triobus.SqliteEventStore(path))

    @bus.subscribe(Booked)
    def keep(event: Booked) -> None:
        with closing(sqlite3.connect(own, timeout=60)) as connection, connection:
            connection.execute(INSERT, (event.number, event.key))

    return measured(bus, events, publish)


def benchmark(stack: ExitStack, *, quick: bool) -> Benchmark:
    """Return the competitors."""
    many, few = (10_000, 500) if quick else (50_000, 2000)
    paths = new_paths(stack)

    def raw_rate(*, random_ids: bool) -> Callable[[], float]:
        return lambda: 1 / raw(next(paths), events_of(many), random_ids=random_ids)

    def rate(
        measure: Callable[[Path, list[Booked], Publish], float], publish: Publish, count: int
    ) -> Callable[[], float]:
        return lambda: 1 / measure(next(paths), events_of(count), publish)

    return Benchmark(
        "effects",
        "Events a second whose handler writes a row: both in one commit, settled",
        [
            Competitor(RAW, raw_rate(random_ids=True), kind="limit"),
            Competitor(OWN, raw_rate(random_ids=False), limit=RAW, kind="limit"),
            Competitor(
                "handler that commits itself",
                rate(by_itself, by_256_publishers, few),
                limit=RAW,
                kind="limit",
            ),
            Competitor(
                MANY, rate(in_transaction, by_256_publishers, many // 2), limit=RAW, bound=0.5
            ),
            Competitor(
                f"publish_many of {BATCH}", rate(in_transaction, in_batches, many), limit=RAW
            ),
        ],
    )
