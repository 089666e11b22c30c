"""Publishing to one handler against a raw memory channel with the same handler, and peers.

What was tried to make the bus faster, in figures of one machine with two cores and Python 3.11.
`publish` beside a raw channel, with all else the same:

- workers at a memory channel, each woken at once for each event: 0.61 to 0.68;
- woken after the publisher's own checkpoint, so that one that runs meanwhile takes two: 0.70 to
  0.83, which is what stands here;
- the same, and no second worker while the first has not run, which then wakes it: 0.57 to 0.63;
- without a channel, workers that park by themselves, and that wake another one when their handler
  waits, for which they drive its coroutine by hand: 0.84 to 0.93.

In microseconds an event of `publish_many`: a context variable set for each delivery 0.15 (now once
a worker), a coroutine around the handlers of each delivery 0.15 (now inlined), asking for room
whenever a worker begins 0.3 (now when there is enough for the first that waits), an object for
each queued event 0.14 (now a tuple, and one object a worker: 0.06), `Published` as a named tuple
0.12 (now a struct of msgspec: 0.06).
"""

import gc
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import trio

import triobus
from benchmarks import peers
from benchmarks.measuring import Benchmark, Competitor
from benchmarks.work import BATCH, Ticked, events_of, handler, run_in_batches, through_channel

RAW = "raw memory channel"
MANY = "publish_many, {}"
ORDERED = MANY.format("100 aggregates")


async def raw_channel(events: list[Ticked]) -> None:
    """Send every event through a memory channel to one task that calls the handler."""
    async with through_channel(handler) as send:
        for event in events:
            await send(event)


async def plain_loop(events: list[Ticked]) -> None:
    """Call the handler in a loop: no queue, no other task, no promise."""
    for event in events:
        await handler(event)


async def publish(events: list[Ticked]) -> None:
    """Publish every event by a call of its own."""
    bus = triobus.EventBus()
    bus.subscribe(Ticked, handler)
    async with bus:
        for event in events:
            await bus.publish(event)


async def publish_many(events: list[Ticked]) -> None:
    """Publish the events in batches."""
    bus = triobus.EventBus(buffer=2 * BATCH)
    bus.subscribe(Ticked, handler)
    await run_in_batches(bus, events)


def seconds(run: Callable[[list[Ticked]], Awaitable[None]], events: list[Ticked]) -> float:
    """Time one run. The garbage collector runs as always, over what the run itself makes."""
    gc.collect()
    gc.freeze()
    started = time.perf_counter()
    trio.run(run, events)
    return time.perf_counter() - started


def benchmark(stack: ExitStack, *, quick: bool) -> Benchmark:
    """Return the competitors."""
    count = 20_000 if quick else 100_000

    def rate(
        run: Callable[[list[Ticked]], Awaitable[None]], aggregates: int = 100
    ) -> Callable[[], float]:
        events = events_of(count, aggregates)
        return lambda: count / seconds(run, events)

    return Benchmark(
        "throughput",
        "Events a second to one handler",
        [
            Competitor(RAW, rate(raw_channel), kind="limit"),
            Competitor("plain loop of handler calls", rate(plain_loop), limit=RAW, kind="limit"),
            Competitor("publish", rate(publish), limit=RAW, bound=0.9),
            Competitor(MANY.format("1 aggregate"), rate(publish_many, 1), limit=RAW, bound=6),
            Competitor(ORDERED, rate(publish_many, 100), limit=RAW, bound=6),
            Competitor(
                MANY.format("10,000 aggregates"), rate(publish_many, 10_000), limit=RAW, bound=6
            ),
            *peers.competitors(
                stack,
                "throughput",
                scale=0.5 if quick else 1,
                limit=ORDERED,
                bounds={"bubus": 100, "pyventus": 10, "pyee": 3},
            ),
        ],
        [f"A batch of publish_many has {BATCH:,} events."],
    )
