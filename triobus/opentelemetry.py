"""Traces and metrics of a bus: `bus.add_instrument(OpenTelemetryInstrument())`.

Needs opentelemetry-api, which the extra `opentelemetry` brings; where spans and metrics go is
decided by the SDK that the program sets up. Names and values are those of the semantic conventions
for messaging, version 1.44.0, in which these conventions are still in development.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import trio

from triobus._events import DomainEvent
from triobus._events.causes import Delivery
from triobus._groups.instruments import Instrument, Metadata
from triobus._text import brief, described, line, type_of

try:
    from opentelemetry import context as contexts
    from opentelemetry import metrics, trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise ImportError(
        "triobus.opentelemetry needs opentelemetry-api: pip install 'triobus[opentelemetry]'"
    ) from error

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
"""The version of the semantic conventions."""

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""The boundaries that the conventions recommend for seconds."""
_PUBLISH = {
    "messaging.system": "triobus",
    "messaging.operation.name": "publish",
    "messaging.operation.type": "send",
}
_PROCESS = {
    "messaging.system": "triobus",
    "messaging.operation.name": "process",
    "messaging.operation.type": "process",
}
_PROPAGATOR = TraceContextTextMapPropagator()
_NOWHERE = contexts.Context()
"""A context without a span."""


class OpenTelemetryInstrument(Instrument):
    """Makes spans and metrics of what a bus does; the providers are the global ones if not given.

    **Spans.** `publish EVENT_TYPE`, of kind PRODUCER, around each call that publishes, and
    `process EVENT_TYPE`, of kind CONSUMER, around each attempt of a handler, retries included. It
    is the current span inside the handler: in a plain one in its thread, and in a transactional
    one, too. The attributes are `messaging.system` (triobus), `messaging.operation.name` and
    `.type`, `messaging.destination.name` (the event type), `messaging.message.id`,
    `messaging.message.conversation_id` (the correlation id), `messaging.batch.message_count` for
    several events, of a handler also `messaging.consumer.group.name`,
    `messaging.destination.subscription.name`, `messaging.triobus.message.delivery_attempt` and
    `messaging.triobus.message.position`; `error.type` names the class of an error, which is told as
    an event of the span. What is cancelled is no error.

    **A trace goes on** wherever the event goes: through a store, a restart, another machine. For
    that the context of the publishing span is put into the event's `metadata`, as `traceparent` and
    `tracestate` (W3C Trace Context), and nothing else of the event changes. An event that has a
    `traceparent` keeps it, and the publishing span links to it. That context is the parent of the
    handler's span, which links to it too. A handler that takes a batch has a trace of its own, with
    a link for each of its events. The span in which a bus was started is no parent of anything.

    **Metrics.** `messaging.client.operation.duration` (of publishing),
    `messaging.client.sent.messages`, `messaging.client.consumed.messages` (calls of handlers count,
    so an event that two handlers get, or one gets twice, counts twice) and
    `messaging.process.duration`, with those of the attributes above that are the same for many
    events. An instrument may be added to several buses.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self._tracer = trace.get_tracer("triobus", None, tracer_provider, SCHEMA_URL)
        meter = metrics.get_meter("triobus", "", meter_provider, SCHEMA_URL)
        self._operation_duration = meter.create_histogram(
            "messaging.client.operation.duration",
            "s",
            "Duration of messaging operation initiated by a producer or consumer client.",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        self._sent = meter.create_counter(
            "messaging.client.sent.messages",
            "{message}",
            "Number of messages producer attempted to send to the broker.",
        )
        self._consumed = meter.create_counter(
            "messaging.client.consumed.messages",
            "{message}",
            "Number of messages that were delivered to the application.",
        )
        self._process_duration = meter.create_histogram(
            "messaging.process.duration",
            "s",
            "Duration of processing operation.",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )

    # Publishing

    @contextmanager
    def publishing(self, events: Sequence[DomainEvent]) -> Iterator[Metadata]:
        """Make a span, and put its context into the events."""
        about = {**_PUBLISH, **_destination(events)}
        span = self._tracer.start_span(
            _name("publish", about),
            kind=trace.SpanKind.PRODUCER,
            attributes={**about, **_messages(events)},
            links=_links(events, map(_extracted, events)),
        )
        started, failure = time.perf_counter(), {}
        try:
            with _current(span):
                carrier: dict[str, str] = {}
                _PROPAGATOR.inject(carrier)
                yield [{} if "traceparent" in event.metadata else carrier for event in events]
        except BaseException as error:
            failure = _failure(error)
            raise
        finally:
            self._operation_duration.record(time.perf_counter() - started, {**about, **failure})
            for event_type, count in _counts(events).items():
                told = {**_PUBLISH, "messaging.destination.name": event_type, **failure}
                del told["messaging.operation.type"]
                self._sent.add(count, told)

    # Handling

    @contextmanager
    def handling(self, delivery: Delivery) -> Iterator[None]:
        """Make a span around a handler."""
        events = _events(delivery)
        about = {**_PROCESS, **_destination(events)}
        origins = [_extracted(event) for event in events]
        span = self._tracer.start_span(
            _name("process", about),
            context=_NOWHERE if delivery.batch else origins[0],
            kind=trace.SpanKind.CONSUMER,
            attributes={**about, **_messages(events), **_consumer(delivery), **_place(delivery)},
            links=_links(events, origins),
        )
        with _current(span):
            yield

    def attempt_finished(
        self, delivery: Delivery, seconds: float, error: BaseException | None
    ) -> None:
        """Count it, and how long it took."""
        events = _events(delivery)
        failure = {} if error is None else _failure(error)
        about = {**_PROCESS, **_destination(events), **_consumer(delivery), **failure}
        del about["messaging.operation.type"]
        self._process_duration.record(seconds, about)
        for event_type, count in _counts(events).items():
            self._consumed.add(count, {**about, "messaging.destination.name": event_type})


@contextmanager
def _current(span: trace.Span) -> Iterator[None]:
    """Make a span the current one, tell it of an error, and end it."""
    token = contexts.attach(trace.set_span_in_context(span))
    try:
        yield
    except BaseException as error:
        failure = _failure(error)
        if failure and span.is_recording():
            _record(span, error, failure)
        raise
    finally:
        contexts.detach(token)
        span.end()


def _record(span: trace.Span, error: BaseException, failure: Mapping[str, str]) -> None:
    """Tell a span of an error, within limits and whatever the error does when it is asked."""
    found = described(error)
    span.add_event(
        "exception",
        {
            "exception.type": found["error_type"],
            "exception.message": found["message"],
            "exception.stacktrace": found["traceback"],
        },
    )
    span.set_attributes(dict(failure))
    span.set_status(trace.Status(trace.StatusCode.ERROR, brief(error)))


def _failure(error: BaseException) -> dict[str, str]:
    return {} if isinstance(error, trio.Cancelled) else {"error.type": line(type_of(error))}


def _events(delivery: Delivery) -> Sequence[DomainEvent]:
    return [each.event for each in delivery.batch] or [delivery.event]


def _counts(events: Sequence[DomainEvent]) -> Mapping[str, int]:
    """Return how many events there are of each type."""
    counts: dict[str, int] = {}
    for event in events:
        counts[event.event_type] = counts.get(event.event_type, 0) + 1
    return counts


def _destination(events: Sequence[DomainEvent]) -> dict[str, str]:
    """Return the event type, if it is one."""
    types = {event.event_type for event in events}
    return {"messaging.destination.name": types.pop()} if len(types) == 1 else {}


def _name(operation: str, about: Mapping[str, str]) -> str:
    return f"{operation} {about.get('messaging.destination.name', '')}".rstrip()


def _messages(events: Sequence[DomainEvent]) -> dict[str, Any]:
    """Return what a span says of its message, or of how many it has."""
    if len(events) != 1:
        return {"messaging.batch.message_count": len(events)}
    event = events[0]
    found = {"messaging.message.id": str(event.event_id)}
    if event.correlation_id is not None:
        found["messaging.message.conversation_id"] = str(event.correlation_id)
    return found


def _consumer(delivery: Delivery) -> dict[str, str]:
    return {
        "messaging.consumer.group.name": delivery.group,
        "messaging.destination.subscription.name": delivery.subscription,
    }


def _place(delivery: Delivery) -> dict[str, int]:
    """Return what the conventions have no name for."""
    found = {"messaging.triobus.message.delivery_attempt": delivery.attempt}
    if delivery.position is not None and not delivery.batch:
        found["messaging.triobus.message.position"] = delivery.position
    return found


def _extracted(event: DomainEvent) -> contexts.Context:
    """Return the context that an event came with, without a span if it came with none."""
    if "traceparent" not in event.metadata:
        return _NOWHERE
    return _PROPAGATOR.extract(event.metadata, context=_NOWHERE)


def _links(events: Sequence[DomainEvent], origins: Iterable[contexts.Context]) -> list[trace.Link]:
    """Return a link for each event that came with a context; it names the event among several."""
    found = []
    for event, origin in zip(events, origins, strict=True):
        context = trace.get_current_span(origin).get_span_context()
        if context.is_valid:
            is_one = len(events) == 1
            about = {} if is_one else {"messaging.message.id": str(event.event_id)}
            found.append(trace.Link(context, about))
    return found
