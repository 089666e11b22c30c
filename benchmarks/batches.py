"""A handler of batches against one that gets an event at a time, at the same events.

Both buses get the same batches by `publish_many`. A handler of batches is called for 500 events at
once; what it costs besides is that its deliveries are taken together, each lane in its order, and
that each of them is finished by itself.
"""

from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import triobus
from benchmarks.measuring import Benchmark, Competitor
from benchmarks.throughput import publish_many, seconds
from benchmarks.work import BATCH, Ticked, events_of, run_in_batches

LIMIT = "handler of one, {}"
SIZE = 500
AGGREGATES = {"100 aggregates": 100, "10,000 aggregates": 10_000}


async def handler(events: tuple[Ticked, ...]) -> None:
    """Do nothing: what is measured is the way to here."""


async def publish_to_batches(events: list[Ticked]) -> None:
    """Publish the events in batches, to a handler of batches."""
    bus = triobus.EventBus(buffer=2 * BATCH)
    bus.group("bulk", batch=SIZE, workers=1, buffer=2 * BATCH).subscribe(Ticked, handler)
    await run_in_batches(bus, events)


def benchmark(stack: ExitStack, *, quick: bool) -> Benchmark:  # noqa: ARG001  # as every benchmark
    """Return the competitors."""
    count = 20_000 if quick else 100_000

    def rate(
        run: Callable[[list[Ticked]], Awaitable[None]], aggregates: int
    ) -> Callable[[], float]:
        events = events_of(count, aggregates)
        return lambda: count / seconds(run, events)

    competitors = []
    for name, aggregates in AGGREGATES.items():
        limit = LIMIT.format(name)
        competitors += [
            Competitor(limit, rate(publish_many, aggregates), kind="limit"),
            Competitor(
                f"batches of {SIZE}, {name}",
                rate(publish_to_batches, aggregates),
                limit=limit,
                bound=0.9,
            ),
        ]
    return Benchmark(
        "batches",
        "Events a second to a handler of batches",
        competitors,
        [f"A batch of publish_many has {BATCH:,} events."],
    )
