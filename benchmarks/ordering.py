"""What order costs: 10,000 events of 500 aggregates, some far more popular than others.

Handlers take 1 ms of virtual time, and 2 % of them fail once. The theoretical best for the same
workers is the longer of two: all work, evenly shared; and all work of the busiest aggregate, which
has to be done one after the other. Time is virtual, so a figure is the same in every run.
"""

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from itertools import accumulate
from zlib import crc32

import trio
from trio.testing import MockClock

import triobus
from benchmarks.measuring import Benchmark, Competitor
from benchmarks.work import Ticked

EVENTS, AGGREGATES, WORKERS = 10_000, 500, 4
SECONDS, FAILING, RETRY_SECONDS = 0.001, 0.02, 0.001


class Flaky(Exception):
    """What the chosen handlers raise at their first attempt."""


def chosen(seed: int = 1) -> tuple[list[Ticked], set[int]]:
    """Return events of Zipf-distributed aggregates, and the numbers of those that fail once."""
    chance = random.Random(seed)
    weights = list(accumulate(1 / rank for rank in range(1, AGGREGATES + 1)))
    ranks = chance.choices(range(AGGREGATES), cum_weights=weights, k=EVENTS)
    failing = set(chance.sample(range(EVENTS), round(EVENTS * FAILING)))
    return [Ticked(f"aggregate-{rank}") for rank in ranks], failing


def best(events: list[Ticked], failing: set[int]) -> float:
    """Return the seconds that no schedule can beat."""
    attempts = Counter(event.key for event in events)
    waits: Counter[str] = Counter()
    for number in failing:
        attempts[events[number].key] += 1
        waits[events[number].key] += 1
    longest = max(attempts[key] * SECONDS + waits[key] * RETRY_SECONDS for key in attempts)
    return max(longest, attempts.total() * SECONDS / WORKERS)


def handler_of(events: list[Ticked], failing: set[int]) -> Callable[[Ticked], Awaitable[None]]:
    """Return the handler."""
    left = {events[number].event_id for number in failing}

    async def handler(event: Ticked) -> None:
        await trio.sleep(SECONDS)
        if event.event_id in left:
            left.remove(event.event_id)
            raise Flaky

    return handler


async def by_bus(events: list[Ticked], failing: set[int]) -> float:
    """Let a bus do it."""
    bus = triobus.EventBus(workers=WORKERS, buffer=EVENTS)
    retry = triobus.Retry(delay=RETRY_SECONDS, jitter=0)
    bus.subscribe(Ticked, handler_of(events, failing), retry=retry)
    async with bus:
        started = trio.current_time()
        await bus.publish_many(events)
        await bus.wait_idle()
        return trio.current_time() - started


async def by_partitions(events: list[Ticked], failing: set[int]) -> float:
    """Give each worker a channel of its own and every aggregate to one of them, by its hash."""
    handler = handler_of(events, failing)
    channels = [trio.open_memory_channel[Ticked](EVENTS) for _ in range(WORKERS)]

    async def work(receive: trio.MemoryReceiveChannel[Ticked]) -> None:
        async for event in receive:
            try:
                await handler(event)
            except Flaky:
                await trio.sleep(RETRY_SECONDS)
                await handler(event)

    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _, receive in channels:
            nursery.start_soon(work, receive)
        for event in events:
            await channels[crc32(event.key.encode()) % WORKERS][0].send(event)
        for send, _ in channels:
            send.close()
    return trio.current_time() - started


async def wait_of_another() -> float:
    """Return how long an aggregate waits while another one waits an hour for its retry."""
    bus = triobus.EventBus(workers=1)
    waited: list[float] = []

    async def handler(event: Ticked) -> None:
        if event.key == "failing" and triobus.current_delivery().attempt == 1:
            raise Flaky
        waited.append(trio.current_time() - published)

    bus.subscribe(Ticked, handler, retry=triobus.Retry(2, delay=3600, max_delay=3600, jitter=0))
    async with bus:
        await bus.publish(Ticked("failing"))
        await trio.sleep(1)
        published = trio.current_time()
        await bus.publish(Ticked("another"))
    return waited[0]  # the failing one is there too, an hour later


def benchmark(stack: ExitStack, *, quick: bool) -> Benchmark:  # noqa: ARG001  # as every benchmark
    """Return the competitors."""
    events, failing = chosen()

    def virtual(run: Callable[[], Awaitable[float]]) -> Callable[[], float]:
        return lambda: trio.run(run, clock=MockClock(autojump_threshold=0))

    limit = "theoretical best"
    return Benchmark(
        "ordering",
        f"Seconds of virtual time for {EVENTS:,} events of {AGGREGATES} aggregates, in order",
        [
            Competitor(limit, lambda: best(events, failing), "s", kind="limit", is_fixed=True),
            Competitor(
                f"publish_many, {WORKERS} workers",
                virtual(partial(by_bus, events, failing)),
                unit="s",
                is_fixed=True,
                limit=limit,
                bound=1.05,
            ),
            Competitor(
                f"{WORKERS} channels, one a worker",
                virtual(partial(by_partitions, events, failing)),
                unit="s",
                kind="limit",
                is_fixed=True,
                limit=limit,
            ),
            Competitor(
                "wait of one while another retries",
                virtual(wait_of_another),
                unit="s",
                is_fixed=True,
                bound=0,
            ),
        ],
    )
