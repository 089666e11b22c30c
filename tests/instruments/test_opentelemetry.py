"""Spans and metrics of a bus, as the in-memory exporter of OpenTelemetry's SDK gets them."""

import threading

import pytest
import trio
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tests.events import Noted, Other
from tests.promises.failing import ONCE, SECONDS, failing
from triobus import BusFull, DomainEvent, EventBus, MemoryEventStore, SqliteEventStore, Transaction
from triobus.opentelemetry import OpenTelemetryInstrument


class Telemetry:
    """What is exported of the buses that it watches."""

    def __init__(self):
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers, meters = TracerProvider(), MeterProvider([self.reader])
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.instrument = OpenTelemetryInstrument(self.tracers, meters)

    def watch(self, *args, **options):
        bus = EventBus(*args, **options)
        bus.add_instrument(self.instrument)
        return bus

    def spans(self, name=None):
        """Return the finished spans, those of one name if it is given, as they began."""
        found = [s for s in self.exporter.get_finished_spans() if name in (None, s.name)]
        return sorted(found, key=lambda span: span.start_time)

    def metrics(self):
        """Return the points of each metric: their values, or counts, by attributes."""
        (resource,) = self.reader.get_metrics_data().resource_metrics
        (scope,) = resource.scope_metrics
        return {
            metric.name: {
                tuple(sorted(point.attributes.items())): getattr(point, "value", None)
                or (point.count, round(point.sum, 6))
                for point in metric.data.data_points
            }
            for metric in scope.metrics
        }


@pytest.fixture
def telemetry():
    return Telemetry()


def parent_of(span):
    return None if span.parent is None else span.parent.span_id


async def test_publishing_and_handling_are_spans_with_the_attributes_of_the_conventions(
    telemetry, autojump_clock
):
    bus = telemetry.watch(MemoryEventStore())
    bus.subscribe(Noted, failing(), name="note")
    event = Noted(1)
    async with bus:
        await bus.publish(event)
    published, processed = telemetry.spans()
    assert (published.name, published.kind) == ("publish noted", SpanKind.PRODUCER)
    assert dict(published.attributes) == {
        "messaging.system": "triobus",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "noted",
        "messaging.message.id": str(event.event_id),
    }
    assert published.links == ()
    assert (processed.name, processed.kind) == ("process noted", SpanKind.CONSUMER)
    assert dict(processed.attributes) == {
        "messaging.system": "triobus",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "noted",
        "messaging.message.id": str(event.event_id),
        "messaging.consumer.group.name": "default",
        "messaging.destination.subscription.name": "note",
        "messaging.triobus.message.delivery_attempt": 1,
        "messaging.triobus.message.position": 1,
    }
    assert processed.status.status_code is StatusCode.UNSET
    assert published.instrumentation_scope.name == "triobus"
    assert published.instrumentation_scope.schema_url == "https://opentelemetry.io/schemas/1.44.0"
    # Producer and consumer are parent and child, and linked.
    assert parent_of(processed) == published.context.span_id
    assert [link.context.span_id for link in processed.links] == [published.context.span_id]


async def test_a_trace_goes_on_from_the_caller_to_what_handlers_publish(telemetry, autojump_clock):
    bus = telemetry.watch()
    bus.subscribe(Other, failing(), name="last")

    @bus.subscribe(Noted, name="first")
    async def first(event):
        await bus.publish(Other(2))

    tracer = telemetry.tracers.get_tracer("the program")
    event = Noted(1)
    async with bus:
        with tracer.start_as_current_span("request"):
            await bus.publish(event)
        assert not trace.get_current_span().get_span_context().is_valid
    names = ["request", "publish noted", "process noted", "publish Other", "process Other"]
    spans = {span.name: span for span in telemetry.spans()}
    assert set(spans) == set(names)
    assert [parent_of(spans[name]) for name in names[1:]] == [
        spans[name].context.span_id for name in names[:-1]
    ]
    assert len({span.context.trace_id for span in spans.values()}) == 1
    conversation = spans["publish Other"].attributes["messaging.message.conversation_id"]
    assert conversation == str(event.event_id)


async def test_the_context_travels_in_the_metadata_through_a_restart(
    telemetry, tmp_path, autojump_clock
):
    def bus():
        found = telemetry.watch(SqliteEventStore(tmp_path / "events.db"), drain="running")
        group = found.group("mail", start="beginning")
        group.subscribe(Noted, failing(*[OSError()] * (not telemetry.spans("publish noted"))))
        return found

    async with bus() as first:
        await first.publish(Noted(1, metadata={"own": "kept"}))
        await trio.sleep(0.01)
    async with bus() as second:
        await second.wait_idle()
        (stored,) = [stored async for stored in second.store.read()]
    (published,) = telemetry.spans("publish noted")
    context = published.context
    traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    assert stored.event.metadata == {"own": "kept", "traceparent": traceparent}
    handled = telemetry.spans("process noted")
    assert [parent_of(span) for span in handled] == [context.span_id] * 2


async def test_an_event_that_came_with_a_context_keeps_it(telemetry, autojump_clock):
    bus = telemetry.watch()
    bus.subscribe(Noted, failing())
    traceparent = f"00-{7:032x}-{9:016x}-01"
    metadata = {"traceparent": traceparent, "tracestate": "vendor=1"}
    seen = []
    bus.subscribe(Noted, lambda event: seen.append(dict(event.metadata)))
    async with bus:
        await bus.publish(Noted(1, metadata=metadata))
    assert seen == [metadata]
    published, *processed = telemetry.spans()
    assert [link.context.span_id for link in published.links] == [9]
    assert {span.context.trace_id for span in processed} == {7}
    assert [parent_of(span) for span in processed] == [9, 9]
    assert processed[0].context.trace_state == {"vendor": "1"}


async def test_without_the_instrument_nothing_is_added_to_events(autojump_clock):
    bus, seen = EventBus(), []
    bus.subscribe(Noted, lambda event: seen.append(event))
    event = Noted(1)
    async with bus:
        await bus.publish(event)
    assert seen == [event]
    assert seen[0] is event


async def test_the_span_of_a_handler_is_current_inside_it_wherever_it_runs(
    telemetry, autojump_clock
):
    bus = telemetry.watch(MemoryEventStore())
    current = {}

    def note(name):
        context = trace.get_current_span().get_span_context()
        current[name] = context.span_id, threading.current_thread() is threading.main_thread()

    @bus.subscribe(Noted, name="async")
    async def asynchronous(event):
        await trio.sleep(1)
        note("async")

    @bus.subscribe(Noted, name="plain")
    def plain(event):
        note("plain")

    @bus.subscribe(Noted, name="transactional", transactional=True)
    def transactional(event: Noted, transaction: Transaction) -> None:
        note("transactional")
        transaction.publish(Other(2))

    async with bus:
        await bus.publish(Noted(1))
    spans = {
        span.attributes["messaging.destination.subscription.name"]: span.context.span_id
        for span in telemetry.spans("process noted")
    }
    assert {name: span_id for name, (span_id, _) in current.items()} == spans
    assert current["async"][1]
    assert not current["plain"][1]
    (published,) = telemetry.spans("publish Other")
    assert parent_of(published) == spans["transactional"]


async def test_each_attempt_is_a_span_and_a_failure_is_told(telemetry, autojump_clock):
    bus = telemetry.watch()
    bus.subscribe(Noted, failing(OSError("no network")), name="note", retry=SECONDS)
    async with bus:
        await bus.publish(Noted(1))
    failed, succeeded = telemetry.spans("process noted")
    assert failed.attributes["error.type"] == "OSError"
    assert (failed.status.status_code, failed.status.description) == (
        StatusCode.ERROR,
        "OSError: no network",
    )
    (event,) = failed.events
    assert event.name == "exception"
    assert event.attributes["exception.message"] == "no network"
    assert "in fails" in event.attributes["exception.stacktrace"]
    assert succeeded.attributes["messaging.triobus.message.delivery_attempt"] == 2
    assert "error.type" not in succeeded.attributes
    assert parent_of(failed) == parent_of(succeeded)


async def test_a_batch_has_a_trace_of_its_own_with_a_link_for_each_event(telemetry, autojump_clock):
    bus = telemetry.watch()

    async def store(events):
        """Succeed."""

    bus.group("bulk", batch=10, workers=1).subscribe((Noted, Other), store, name="store")
    events = [Noted(1), Noted(2)]
    async with bus:
        await bus.publish_many(events)
        await bus.wait_idle()
        await bus.publish(Other(3))
    (published,) = telemetry.spans("publish noted")
    assert published.attributes["messaging.batch.message_count"] == 2
    assert "messaging.message.id" not in published.attributes
    (processed,) = telemetry.spans("process noted")
    assert processed.parent is None
    assert processed.attributes["messaging.batch.message_count"] == 2
    assert [link.attributes["messaging.message.id"] for link in processed.links] == [
        str(event.event_id) for event in events
    ]
    assert {link.context.span_id for link in processed.links} == {published.context.span_id}


async def test_what_is_cancelled_is_no_error(telemetry, autojump_clock):
    bus = telemetry.watch()

    @bus.subscribe(Noted, name="note")
    async def note(event):
        await trio.sleep_forever()

    async with bus:
        await bus.publish(Noted(1))
        await trio.sleep(1)
        await bus.stop(drain=False)
    (span,) = telemetry.spans("process noted")
    assert span.status.status_code is StatusCode.UNSET
    assert "error.type" not in span.attributes


async def test_publishing_that_fails_is_told(telemetry, autojump_clock):
    bus = telemetry.watch(buffer=0, workers=1)
    bus.subscribe(Noted, failing())
    async with bus:
        with pytest.raises(BusFull):
            for number in range(9):
                bus.publish_nowait(Noted(number))
    failed = telemetry.spans("publish noted")[-1]
    assert failed.attributes["error.type"] == "BusFull"
    sent = telemetry.metrics()["messaging.client.sent.messages"]
    assert any(("error.type", "BusFull") in labels for labels in sent)


async def test_metrics_are_those_of_the_conventions(telemetry, autojump_clock):
    bus = telemetry.watch()

    @bus.subscribe(Noted, name="note", retry=ONCE)
    async def note(event):
        await trio.sleep(2)
        if event.number == 3:
            raise OSError

    async with bus:
        await bus.publish_many([Noted(1), Noted(2)])
        await bus.publish(Noted(3))
    metrics = telemetry.metrics()
    system = ("messaging.system", "triobus")
    noted = ("messaging.destination.name", "noted")
    publish = ("messaging.operation.name", "publish")
    consumer = (
        ("messaging.consumer.group.name", "default"),
        noted,
        ("messaging.destination.subscription.name", "note"),
        ("messaging.operation.name", "process"),
        system,
    )
    failed = (("error.type", "OSError"), *consumer)
    assert metrics["messaging.client.sent.messages"] == {(noted, publish, system): 3}
    assert metrics["messaging.client.consumed.messages"] == {consumer: 2, failed: 1}
    assert metrics["messaging.process.duration"] == {consumer: (2, 4.0), failed: (1, 2.0)}
    (operation,) = metrics["messaging.client.operation.duration"].items()
    labels, (count, seconds) = operation
    assert labels == (noted, publish, ("messaging.operation.type", "send"), system)
    assert count == 2
    assert 0 < seconds < 1
    assert set(metrics) == {
        "messaging.client.operation.duration",
        "messaging.client.sent.messages",
        "messaging.client.consumed.messages",
        "messaging.process.duration",
    }


async def test_the_span_in_which_a_bus_was_started_is_no_parent(telemetry, autojump_clock):
    bus = telemetry.watch()
    group = bus.group("mail")
    group.subscribe(Noted, failing(), name="note")
    with telemetry.tracers.get_tracer("the program").start_as_current_span("start"):
        async with trio.open_nursery() as nursery:
            await nursery.start(bus.run)
            await group.pause()
            bus.remove_instrument(telemetry.instrument)
            await bus.publish(Noted(1))
            bus.add_instrument(telemetry.instrument)
            await group.resume()
            await bus.wait_idle()
            await bus.stop()
    (span,) = telemetry.spans("process noted")
    assert span.parent is None


async def test_an_error_that_cannot_be_told_is_told_all_the_same(telemetry, autojump_clock):
    class Hostile(Exception):
        def __str__(self):
            raise RuntimeError("no")

    bus = telemetry.watch()
    bus.subscribe(Noted, failing(Hostile()), name="note", retry=ONCE)
    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        bus.remove_instrument(telemetry.instrument)  # it is there: it was not removed for raising
    (span,) = telemetry.spans("process noted")
    assert span.attributes["error.type"] == "Hostile"


async def test_an_unreadable_traceparent_is_left_alone(telemetry, autojump_clock):
    bus = telemetry.watch()
    bus.subscribe(DomainEvent, failing(), name="note")
    async with bus:
        await bus.publish(Noted(1, metadata={"traceparent": "nonsense"}))
    (span,) = telemetry.spans("process noted")
    assert (span.parent, span.links) == (None, ())
