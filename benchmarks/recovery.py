"""Coming back: a new group works off what a store has, a bus starts again after it was killed."""

import gc
import multiprocessing
import os
import signal
import sqlite3
import time
from contextlib import ExitStack, closing
from functools import cache, partial
from itertools import count
from pathlib import Path

import msgspec
import trio

import triobus
from benchmarks.durable import Booked, events_of
from benchmarks.measuring import Benchmark, Competitor
from benchmarks.memory import resident_bytes
from benchmarks.work import new_paths
from triobus.testing import crash

BACKLOG_MIB = 60
PLAIN = "reading and decoding in a plain loop"


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


def fill(path: Path, count: int) -> None:
    """Make a store with events that nobody has handled."""

    async def run() -> None:
        async with triobus.SqliteEventStore(path) as store:
            for first in range(0, count, 5000):
                await store.append(events_of(min(5000, count - first)))

    trio.run(run)


def work_off(path: Path, group: str) -> tuple[float, float | None]:
    """Let a new group work off a store; return seconds an event and the growth of memory in MiB."""
    most = handled = 0

    async def run() -> float:
        bus = triobus.EventBus(triobus.SqliteEventStore(path))

        async def count(_: Booked) -> None:
            nonlocal most, handled
            handled += 1
            if handled % 1000 == 0:
                most = max(most, resident_bytes() or 0)

        bus.group(group, start="beginning").subscribe(Booked, count)
        started = time.perf_counter()
        async with bus:
            await bus.wait_idle()
            return (time.perf_counter() - started) / handled

    gc.collect()
    before = resident_bytes()
    seconds = trio.run(run)
    return seconds, None if before is None else (most - before) / 2**20


def work_off_apart(path: Path, group: str) -> tuple[float, float | None]:
    """Do so in a process of its own, whose memory nothing else has filled before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work_off, (path, group))


def restart_ms(path: Path, left: int) -> float:
    """Return the milliseconds from a start after a crash to the first event handled again."""

    async def run() -> float:
        stuck = trio.Event()

        async def never(_: Booked) -> None:
            await stuck.wait()

        async with triobus.EventBus(triobus.SqliteEventStore(path)) as bus:
            bus.subscribe(Booked, never, name="handle")
            await bus.publish_many(events_of(left))
            await crash(bus)
        again = trio.Event()

        async def handle(_: Booked) -> None:
            again.set()

        bus = triobus.EventBus(triobus.SqliteEventStore(path))
        bus.subscribe(Booked, handle, name="handle")
        started = time.perf_counter()
        async with bus:
            await again.wait()
            return (time.perf_counter() - started) * 1e3

    return trio.run(run)


def kill_in(path: Path, left: int) -> None:
    """Let a bus publish events that it does not handle, and kill its process."""

    async def run() -> None:
        async def never(_: Booked) -> None:
            await trio.sleep_forever()

        async with triobus.EventBus(triobus.SqliteEventStore(path)) as bus:
            bus.subscribe(Booked, never, name="handle")
            for _ in range(left // 10):
                await bus.publish_many(events_of(10))
            os.kill(os.getpid(), signal.SIGKILL)

    trio.run(run)


def start_after_kill_ms(path: Path, left: int) -> float:
    """Return the milliseconds that a start takes after a process was killed with a bus in it."""
    process = multiprocessing.get_context("spawn").Process(target=kill_in, args=(path, left))
    process.start()
    process.join()
    if process.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"the process to be killed ended by itself with {process.exitcode}")

    async def run() -> float:
        bus = triobus.EventBus(triobus.SqliteEventStore(path))
        started = time.perf_counter()
        async with bus:
            return (time.perf_counter() - started) * 1e3

    return trio.run(run)


def benchmark(stack: ExitStack, *, quick: bool) -> Benchmark:
    """Return the competitors."""
    few, many = 10_000, 100_000 if quick else 1_000_000
    caught_up, backlog = (20_000, 50_000) if quick else (100_000, 500_000)
    paths = new_paths(stack)

    def filled(events: int) -> Path:
        path = next(paths)
        fill(path, events)
        return path

    path = filled(caught_up)
    killed = {count: cache(partial(filled, count)) for count in (few, many)}

    def catch_up() -> float:
        group = f"group {next(groups)}"
        return 1 / work_off_apart(path, group)[0]

    groups = count()
    notes = []
    if resident_bytes() is None:
        notes.append("psutil is not installed, and so the memory of a backlog is not known.")
    return Benchmark(
        "recovery",
        "Coming back to a store",
        [
            Competitor(PLAIN, lambda: 1 / plain_loop(path), kind="limit"),
            Competitor(f"catching up on {caught_up:,} events", catch_up, limit=PLAIN),
            Competitor(
                f"memory of a backlog of {backlog:,}",
                lambda: work_off_apart(filled(backlog), "all")[1],
                "MiB",
                bound=BACKLOG_MIB,
                is_fixed=True,
            ),
            Competitor("restart after a crash", lambda: restart_ms(next(paths), 1000), "ms"),
            *(
                Competitor(
                    f"start after a kill, {count:,} events",
                    partial(lambda filled: start_after_kill_ms(filled(), 1000), killed[count]),
                    "ms",
                )
                for count in (few, many)
            ),
        ],
        notes,
    )
