"""What the bus keeps in memory: for an event in its queue, an idle aggregate, a subscription."""

import gc
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import trio

import triobus
from benchmarks.measuring import Benchmark, Competitor
from benchmarks.peers_in_memory import no_op_handlers
from benchmarks.work import BATCH, Ticked, batches, events_of, handler

RAW = "raw channel, an event queued"


def resident_bytes() -> int | None:
    """Return the memory of this process, or None without psutil."""
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.Process().memory_info().rss)


def traced() -> int:
    """Return the bytes that are in use."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def queued_in_channel(count: int) -> float:
    """Return the bytes that a channel adds to an event while it is queued."""
    events = events_of(count, count)
    send, receive = trio.open_memory_channel[Ticked](count)
    with send, receive:
        before = traced()
        for event in events:
            send.send_nowait(event)
        return (traced() - before) / count


async def queued_in_bus(count: int) -> float:
    """Return the bytes that the bus adds to an event while it is queued."""
    events = events_of(count, count)
    bus = triobus.EventBus(workers=1, buffer=count)
    bus.subscribe(Ticked, handler)
    async with bus:
        before = traced()
        for event in events:
            bus.publish_nowait(event)
        return (traced() - before) / count


async def idle_aggregate(count: int) -> float:
    """Return the bytes that an aggregate leaves behind whose events are handled."""
    bus = triobus.EventBus(buffer=count)
    bus.subscribe(Ticked, handler)
    async with bus:
        await bus.publish_many(events_of(count, count))
        await bus.wait_idle()
        before = traced()
        await bus.publish_many([Ticked(f"other-{number}") for number in range(count)])
        await bus.wait_idle()
        return (traced() - before) / count


async def subscription(count: int) -> float:
    """Return the bytes of a subscription beyond its handler."""
    handlers = no_op_handlers(count)
    bus = triobus.EventBus()
    before = traced()
    for each in handlers:
        bus.subscribe(Ticked, each)
    return (traced() - before) / count


async def growth(count: int) -> float | None:
    """Return by how many MiB the process grows while many events pass through one bus."""
    events = events_of(10 * BATCH)
    bus = triobus.EventBus(buffer=2 * BATCH)
    bus.subscribe(Ticked, handler)
    async with bus:
        before = None
        for first in range(-count // 10, count, len(events)):
            if before is None and first >= 0:
                before = resident_bytes()
            for batch in batches(events):
                await bus.publish_many(batch)
        after = resident_bytes()
    return None if before is None or after is None else max(0, after - before) / 2**20


def benchmark(stack: ExitStack, *, quick: bool) -> Benchmark:  # noqa: ARG001  # as every benchmark
    """Return the competitors."""
    count = 1_000 if quick else 10_000
    passing = 200_000 if quick else 2_000_000

    def bytes_of(measure: Callable[[int], Awaitable[float]]) -> Callable[[], float]:
        def run() -> float:
            tracemalloc.start()
            try:
                return trio.run(measure, count)
            finally:
                tracemalloc.stop()

        return run

    notes = []
    if resident_bytes() is None:
        notes.append("psutil is not installed, and so the growth of the process is not known.")
    return Benchmark(
        "memory",
        "What is kept in memory",
        [
            Competitor(RAW, bytes_of(queued_in_channel), "B", kind="limit"),
            Competitor("an event queued", bytes_of(queued_in_bus), "B", limit=RAW),
            Competitor("an idle aggregate", bytes_of(idle_aggregate), "B", bound=1),
            Competitor("a subscription", bytes_of(subscription), "B", bound=4096),
            Competitor(
                f"growth over {passing:,} events",
                lambda: trio.run(growth, passing),
                "MiB",
                bound=1,
            ),
        ],
        notes,
    )
