"""How often a bus with nothing to do wakes up: never."""

import time
from collections.abc import Mapping
from contextlib import ExitStack

import trio

import triobus
from benchmarks.measuring import Benchmark, Competitor
from benchmarks.work import Ticked, events_of, handler


def voluntary_switches() -> int | None:
    """Return how often this process has given up the processor, where the system tells."""
    try:
        import resource
    except ImportError:  # Windows does not
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


async def measure(seconds: float, *, with_bus: bool) -> Mapping[str, float | None]:
    """Return what happens in that time, with a bus that has worked before it idles, or without."""

    async def count() -> Mapping[str, float | None]:
        before, worked = voluntary_switches(), time.process_time()
        await trio.sleep(seconds)
        after, worked = voluntary_switches(), time.process_time() - worked
        # The sleep itself is one: the process waits for its end.
        switches = None if before is None or after is None else after - before - 1
        return {"switches": switches, "us of processor": worked * 1e6}

    if not with_bus:
        return await count()
    bus = triobus.EventBus()
    bus.subscribe(Ticked, handler)
    async with bus:
        await bus.publish_many(events_of(1000))
        await bus.wait_idle()
        return await count()


def benchmark(stack: ExitStack, *, quick: bool) -> Benchmark:  # noqa: ARG001  # as every benchmark
    """Return the competitors."""
    seconds = 0.5 if quick else 2.0
    return Benchmark(
        "idle",
        f"What happens in {seconds:g} s of idleness",
        [
            Competitor(
                "Trio alone",
                lambda: trio.run(lambda: measure(seconds, with_bus=False)),
                "",
                kind="limit",
            ),
            Competitor(
                "a bus with nothing to do",
                lambda: trio.run(lambda: measure(seconds, with_bus=True)),
                "",
                bounds={"switches": 0},
            ),
        ],
    )
