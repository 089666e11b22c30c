"""What instruments cost: the same events without one, with one that overrides nothing, and more."""

from collections.abc import Callable
from contextlib import ExitStack

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

import triobus
from benchmarks.measuring import Benchmark, Competitor
from benchmarks.throughput import seconds
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


def benchmark(stack: ExitStack, *, quick: bool) -> Benchmark:  # noqa: ARG001  # as every benchmark
    """Return the competitors."""
    count = 5_000 if quick else 20_000
    events = events_of(count)
    first, *_ = INSTRUMENTS
    competitors = []
    for call, run in (("publish", publish), ("publish_many", publish_many)):
        for name, instruments in INSTRUMENTS.items():

            def rate(run=run, instruments=instruments) -> float:  # type: ignore[no-untyped-def]  # bound here
                return count / seconds(lambda events: run(events, instruments), events)

            is_limit = name == first
            competitors.append(
                Competitor(
                    f"{call}, {name}",
                    rate,
                    limit="" if is_limit else f"{call}, {first}",
                    kind="limit" if is_limit else "bus",
                )
            )
    return Benchmark(
        "instruments",
        "Events a second to one handler, with instruments",
        competitors,
        ["OpenTelemetry's SDK makes the spans and counts, and exports nothing."],
    )
