"""Scheduled events: what `publish(delay=...)` costs, and how much those cost that wait.

An event that is scheduled is accepted as any other, and is not handled yet; so the ordinary
`publish` beside it stands for acceptance and handling, and the other for acceptance and for keeping
it until it is due. With a store both are stored, by 256 publishers.
"""

import gc
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import trio

import triobus
from benchmarks.idle import voluntary_switches
from benchmarks.measuring import Benchmark, Competitor
from benchmarks.work import Ticked, events_of, handler, new_paths

ORDINARY, STORED = "publish", "publish, SQLite"
HOUR, PUBLISHERS = 3600.0, 256


def seconds(path: Path | None, events: list[Ticked], delay: float | None) -> float:
    """Return the seconds until all events are accepted, by publishers that are many with a store.

    What waits is thrown away with the bus.
    """
    bus = triobus.EventBus(None if path is None else triobus.SqliteEventStore(path))
    bus.subscribe(Ticked, handler)

    async def publish(some: list[Ticked]) -> None:
        if delay is None:
            for event in some:
                await bus.publish(event)
        else:
            for event in some:
                await bus.publish(event, delay=delay)

    async def run() -> float:
        async with bus:
            started = time.perf_counter()
            if path is None:
                await publish(events)
            else:
                async with trio.open_nursery() as nursery:
                    for first in range(PUBLISHERS):
                        nursery.start_soon(publish, events[first::PUBLISHERS])
            taken = time.perf_counter() - started
            await bus.stop(timeout=0)
        return taken

    gc.collect()
    gc.freeze()
    return trio.run(run)


async def idle(waiting: int, seconds: float) -> Mapping[str, float | None]:
    """Return what happens in that time while many events wait until they are due."""
    bus = triobus.EventBus()
    bus.subscribe(Ticked, handler)
    async with bus:
        for event in events_of(waiting):
            await bus.publish(event, delay=HOUR)
        await bus.wait_idle()
        before, worked = voluntary_switches(), time.process_time()
        await trio.sleep(seconds)
        after, worked = voluntary_switches(), time.process_time() - worked
        assert bus.statistics().scheduled == waiting
        # The sleep itself is one: the process waits for its end.
        switches = None if before is None or after is None else after - before - 1
        return {"switches": switches, "us of processor": worked * 1e6}


def benchmark(stack: ExitStack, *, quick: bool) -> Benchmark:
    """Return the competitors."""
    count, stored, waiting = (10_000, 2_000, 10_000) if quick else (50_000, 20_000, 100_000)
    paths = new_paths(stack)
    log = logging.getLogger(
        "triobus"
    )  # which would tell that events are left: they are meant to be
    stack.callback(log.setLevel, log.level)
    log.setLevel(logging.ERROR)
    pause = 0.5 if quick else 2.0

    def rate(delay: float | None) -> Callable[[], float]:
        return lambda: count / seconds(None, events_of(count), delay)

    def stored_rate(delay: float | None) -> Callable[[], float]:
        return lambda: stored / seconds(next(paths), events_of(stored), delay)

    return Benchmark(
        "scheduled",
        "Scheduled events",
        [
            Competitor(ORDINARY, rate(None), kind="limit"),
            Competitor("publish(delay=...)", rate(HOUR), limit=ORDINARY, bound=0.83),
            Competitor(STORED, stored_rate(None), kind="limit"),
            Competitor("publish(delay=...), SQLite", stored_rate(HOUR), limit=STORED, bound=0.83),
            Competitor(
                f"{waiting:,} waiting, in {pause:g} s",
                lambda: trio.run(idle, waiting, pause),
                "",
                bounds={"switches": 0},
            ),
        ],
    )
