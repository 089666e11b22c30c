"""How long it takes from `publish` to the first line of the handler.

On an idle bus, one event is published after everything has come to rest. Under load, events are due
at half of the competitor's own top speed, and the time runs from when an event was due, so that one
that is late makes those behind it late too, as it would for its user.
"""

import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager

import trio
import trio.testing

import triobus
from benchmarks import peers
from benchmarks.measuring import Benchmark, Competitor
from benchmarks.work import Send, Ticked, events_of, through_channel

RAW = "raw memory channel"
Way = Callable[[Callable[[Ticked], Awaitable[None]]], AbstractAsyncContextManager[Send]]
"""How events get to a handler."""


@asynccontextmanager
async def through_bus(handler: Callable[[Ticked], Awaitable[None]]) -> AsyncIterator[Send]:
    """Through a bus."""
    bus = triobus.EventBus()
    bus.subscribe(Ticked, handler)
    async with bus:
        yield bus.publish


async def idle(way: Way, count: int) -> list[float]:
    """Return the seconds of `count` events, each published when all tasks have come to rest."""
    begun: list[float] = []
    started: list[float] = []

    async def handler(event: Ticked) -> None:  # noqa: ARG001  # the time is what counts
        begun.append(time.perf_counter())

    async with way(handler) as send:
        for event in events_of(count):
            await trio.testing.wait_all_tasks_blocked()
            started.append(time.perf_counter())
            await send(event)
    return [end - start for start, end in zip(started, begun, strict=True)]


async def loaded(way: Way, count: int) -> list[float]:
    """Return the seconds of `count` events that are due at half of the top speed."""
    begun: list[float] = []

    async def handler(event: Ticked) -> None:  # noqa: ARG001  # the time is what counts
        begun.append(time.perf_counter())

    events = events_of(count)
    async with way(handler) as send:
        started = time.perf_counter()
        for event in events:
            await send(event)
        gap = 2 * (time.perf_counter() - started) / count
        await trio.testing.wait_all_tasks_blocked()
        begun.clear()
        started = time.perf_counter() + gap
        for number, event in enumerate(events):
            while time.perf_counter() < started + number * gap:
                await trio.lowlevel.checkpoint()
            await send(event)
    return [moment - (started + number * gap) for number, moment in enumerate(begun)]


def percentiles(
    measure: Callable[[Way, int], Awaitable[list[float]]], way: Way, count: int
) -> Callable[[], Mapping[str, float | None]]:
    """Return how to measure p50, p99 and p99.9, in microseconds."""

    def run() -> Mapping[str, float | None]:
        gc.collect()
        gc.freeze()
        found = sorted(trio.run(measure, way, count))
        return {
            name: found[min(count - 1, int(share * count))] * 1e6
            for name, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))
        }

    return run


def benchmark(stack: ExitStack, *, quick: bool) -> Benchmark:
    """Return the competitors."""
    few, many = (2_000, 20_000) if quick else (5_000, 50_000)
    raw_load = "raw channel at half its speed"
    return Benchmark(
        "latency",
        "Microseconds from publish to the first line of the handler",
        [
            Competitor(RAW, percentiles(idle, through_channel, few), "us", kind="limit"),
            Competitor(
                "publish",
                percentiles(idle, through_bus, few),
                unit="us",
                limit=RAW,
                bounds={"p50": 2.5},
            ),
            Competitor(raw_load, percentiles(loaded, through_channel, many), "us", kind="limit"),
            Competitor(
                "publish at half its speed",
                percentiles(loaded, through_bus, many),
                unit="us",
                limit=raw_load,
            ),
            *peers.competitors(
                stack, "latency", scale=0.02 if quick else 0.05, unit="us", limit="publish, p50"
            ),
        ],
        ["A peer's figure is its median on an idle loop, beside the bus's median."],
    )
