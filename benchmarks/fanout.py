"""One event for ten handlers: counted in calls of handlers."""

from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import triobus
from benchmarks import peers
from benchmarks.measuring import Benchmark, Competitor
from benchmarks.peers_in_memory import no_op_handlers
from benchmarks.throughput import RAW, raw_channel, seconds
from benchmarks.work import BATCH, Ticked, events_of, run_in_batches

HANDLERS = 10


async def one_group(events: list[Ticked]) -> None:
    """Publish in batches to one group, which calls its subscriptions one after the other."""
    bus = triobus.EventBus(buffer=2 * BATCH)
    for handler in no_op_handlers(HANDLERS):
        bus.subscribe(Ticked, handler)
    await run_in_batches(bus, events)


async def one_by_one(events: list[Ticked]) -> None:
    """Publish event after event to the same group."""
    bus = triobus.EventBus()
    for handler in no_op_handlers(HANDLERS):
        bus.subscribe(Ticked, handler)
    async with bus:
        for event in events:
            await bus.publish(event)


async def ten_groups(events: list[Ticked]) -> None:
    """Publish in batches to ten groups, each with its own workers, order and progress."""
    bus = triobus.EventBus(buffer=2 * BATCH)
    for number, handler in enumerate(no_op_handlers(HANDLERS)):
        bus.group(f"group-{number}").subscribe(Ticked, handler)
    await run_in_batches(bus, events)


def benchmark(stack: ExitStack, *, quick: bool) -> Benchmark:
    """Return the competitors."""
    count = 5_000 if quick else 20_000
    events = events_of(count)
    raw = events_of(5 * count)

    def rate(run: Callable[[list[Ticked]], Awaitable[None]]) -> Callable[[], float]:
        return lambda: HANDLERS * count / seconds(run, events)

    group = "publish_many, one group"
    return Benchmark(
        "fanout",
        f"Calls a second of {HANDLERS} handlers of one event",
        [
            Competitor(RAW, lambda: len(raw) / seconds(raw_channel, raw), "calls/s", kind="limit"),
            Competitor(group, rate(one_group), unit="calls/s", limit=RAW, bound=15),
            Competitor("publish, one group", rate(one_by_one), unit="calls/s", limit=RAW),
            Competitor("publish_many, ten groups", rate(ten_groups), unit="calls/s", limit=RAW),
            *peers.competitors(
                stack,
                "throughput",
                handlers=HANDLERS,
                scale=0.1 if quick else 0.3,
                unit="calls/s",
                limit=group,
            ),
        ],
    )
