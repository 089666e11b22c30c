"""What instruments cost: the same events without one, with one that overrides nothing, and more.

Counted is the time of the processor, which other programs on the machine disturb least.
"""

import gc
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial

import trio
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

import triobus
from benchmarks.measuring import Benchmark, Competitor
from benchmarks.work import BATCH, Ticked, events_of, handler, run_in_batches
from triobus.opentelemetry import OpenTelemetryInstrument
from triobus.prometheus import PrometheusInstrument

Instruments = Callable[[], list[triobus.Instrument]]


def opentelemetry() -> OpenTelemetryInstrument:
    """Return one whose spans are made, and go nowhere."""
    return OpenTelemetryInstrument(TracerProvider(), MeterProvider([InMemoryMetricReader()]))


INSTRUMENTS: dict[str, Instruments] = {
    "no instrument": list,
    "one that overrides nothing": lambda: [triobus.Instrument()],
    "Prometheus": lambda: [PrometheusInstrument(CollectorRegistry())],
    "OpenTelemetry": lambda: [opentelemetry()],
}


async def publish(events: list[Ticked], instruments: Instruments) -> None:
    """Publish every event by a call of its own."""
    bus = _bus(instruments)
    async with bus:
        for event in events:
            await bus.publish(event)


async def publish_many(events: list[Ticked], instruments: Instruments) -> None:
    """Publish the events in batches."""
    await run_in_batches(_bus(instruments), events)


def _bus(instruments: Instruments) -> triobus.EventBus:
    bus = triobus.EventBus(buffer=2 * BATCH)
    bus.subscribe(Ticked, handler)
    for instrument in instruments():
        bus.add_instrument(instrument)
    return bus


def microseconds(
    run: Callable[[list[Ticked], Instruments], Awaitable[None]],
    instruments: Instruments,
    events: list[Ticked],
) -> float:
    """Return how long the processor is busy with an event."""
    gc.collect()
    gc.freeze()
    started = time.process_time()
    trio.run(run, events, instruments)
    return 1e6 * (time.process_time() - started) / len(events)


def benchmark(stack: ExitStack, *, quick: bool) -> Benchmark:  # noqa: ARG001  # as every benchmark
    """Return the competitors."""
    events = events_of(5_000 if quick else 20_000)
    first, *_ = INSTRUMENTS
    competitors = []
    for run in (publish, publish_many):
        for name, instruments in INSTRUMENTS.items():
            is_limit = name == first
            competitors.append(
                Competitor(
                    f"{run.__name__}, {name}",
                    partial(microseconds, run, instruments, events),
                    unit="us",
                    limit="" if is_limit else f"{run.__name__}, {first}",
                    kind="limit" if is_limit else "bus",
                )
            )
    return Benchmark(
        "instruments",
        "Microseconds of processor for an event to one handler, with instruments",
        competitors,
        ["OpenTelemetry's SDK makes the spans and counts, and exports nothing."],
    )
