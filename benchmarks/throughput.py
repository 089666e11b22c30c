"""Publishing to one handler against a raw memory channel with the same handler, in one process."""

import gc
import statistics
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator

import attrs
import trio

import triobus


@attrs.frozen
class Ticked(triobus.DomainEvent):
    """An event of one aggregate."""

    key: str

    @property
    def aggregate_id(self) -> str:
        """The aggregate."""
        return self.key


async def handler(event: Ticked) -> None:
    """Do nothing: what is measured is the way to here."""


BATCH = 1000
AGGREGATES = (1, 100, 10_000)
BYTES_PER_EVENT = 600


def events_of(count: int, aggregates: int) -> list[Ticked]:
    """Make events, spread evenly over the aggregates."""
    return [Ticked(f"aggregate-{number % aggregates}") for number in range(count)]


async def raw_channel(events: list[Ticked]) -> None:
    """Send every event through a memory channel to one task that calls the handler."""
    send, receive = trio.open_memory_channel[Ticked](BATCH)

    async def consume() -> None:
        async for event in receive:
            await handler(event)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume)
        async with send:
            for event in events:
                await send.send(event)


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
    async with bus:
        for batch in batches(events):
            await bus.publish_many(batch)


def batches(events: list[Ticked]) -> Iterator[list[Ticked]]:
    """Cut a list into lists of `BATCH`."""
    for first in range(0, len(events), BATCH):
        yield events[first : first + BATCH]


def seconds_per_event(
    run: Callable[[list[Ticked]], Awaitable[None]], events: list[Ticked]
) -> float:
    """Time one run. The garbage collector runs as always, over what the run itself makes."""
    gc.collect()
    gc.freeze()
    started = time.perf_counter()
    trio.run(run, events)
    return (time.perf_counter() - started) / len(events)


def bytes_per_queued_event(count: int = 10_000) -> float:
    """Return what the bus adds to the memory of an event while it is queued."""
    events = events_of(count, count)

    async def fill() -> float:
        bus = triobus.EventBus(workers=1, buffer=count)
        bus.subscribe(Ticked, handler)
        async with bus:
            tracemalloc.start()
            for event in events:
                bus.publish_nowait(event)
            queued, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            return queued / count

    return trio.run(fill)


def main(*, quick: bool, rounds: int | None) -> bool:
    """Measure, print a table, and return whether every bound was kept."""
    count = 20_000 if quick else 100_000
    rounds = rounds or (3 if quick else 9)
    runs: dict[str, tuple[Callable[[list[Ticked]], Awaitable[None]], list[Ticked], float]] = {
        "raw memory channel": (raw_channel, events_of(count, 100), 1.0),
        "publish": (publish, events_of(count, 100), 0.8),
    }
    for aggregates in AGGREGATES:
        name = f"publish_many, {aggregates:,} aggregate{'s' * (aggregates > 1)}"
        runs[name] = (publish_many, events_of(count, aggregates), 5.0)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        print(f"throughput: round {number + 1} of {rounds}", flush=True)
        for name, (run, events, _) in runs.items():
            times[name].append(seconds_per_event(run, events))

    medians = {name: statistics.median(found) for name, found in times.items()}
    limit = medians["raw memory channel"]
    print(f"\n{'':34}{'events/s':>12}{'spread':>9}{'ratio':>8}{'bound':>8}")
    is_good = True
    for name, (_, _, bound) in runs.items():
        spread = (max(times[name]) - min(times[name])) / medians[name]
        ratio = limit / medians[name]
        is_good &= ratio >= bound
        print(f"{name:34}{1 / medians[name]:12,.0f}{spread:9.0%}{ratio:8.2f}{bound:8.1f}")
    size = bytes_per_queued_event()
    is_good &= size < BYTES_PER_EVENT
    print(f"{'memory of a queued event':34}{size:10.0f} B{'':17}{BYTES_PER_EVENT:6} B")
    return is_good
