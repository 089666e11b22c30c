"""Metrics of a bus for Prometheus: `bus.add_instrument(PrometheusInstrument())`.

Needs prometheus-client, which the extra `prometheus` brings. What the bus counts anyway is read
when a scrape comes; beside it stands what only an instrument sees. How they are served is up to the
program: `prometheus_client.start_http_server(8000)`, or its WSGI and ASGI applications.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import trio

from triobus._errors import InvalidOption
from triobus._events import DomainEvent
from triobus._events.causes import Delivery
from triobus._groups.dead_letters import DeadLetter
from triobus._groups.instruments import Instrument
from triobus._groups.statistics import GroupStatistics
from triobus._text import type_of

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError(
        "triobus.prometheus needs prometheus-client: pip install 'triobus[prometheus]'"
    ) from error

_COMMIT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

_GAUGES = {
    "lag": ("triobus_lag", "Accepted events of the group that are not settled."),
    "queued": ("triobus_queued", "Deliveries that no worker has and that wait for no retry."),
    "waiting_for_retry": ("triobus_retries_waiting", "Deliveries that wait for a retry."),
    "busy_workers": ("triobus_workers_busy", "Workers that carry a delivery."),
}
"""Fields of `GroupStatistics`, and what they are called here."""


class PrometheusInstrument(Instrument, Collector):
    """Shows a bus to Prometheus, in a registry: prometheus_client's own unless one is given.

    Counters: `triobus_events_published_total`, `triobus_deliveries_total` by `group` and `outcome`
    ("handled", or "dead_lettered" if it was so by one of its handlers), and
    `triobus_attempts_failed_total` by `group`, `subscription` and `error`, the name of its class.
    Histograms: `triobus_handler_seconds` by `group` and `subscription`, and, with a store,
    `triobus_commit_seconds`. Gauges by `group`: `triobus_lag`, `triobus_queued`,
    `triobus_retries_waiting`, `triobus_dead_letters` (those that are there now) and
    `triobus_workers_busy`; and `triobus_store_bytes` for a store in a file.

    Deliveries, failures and seconds are counted from the moment when it was added. The others begin
    at 0 with each start of the bus, which Prometheus takes for a restart, as it is. A batch counts
    as one attempt, and as many deliveries as it has.

    It watches one bus: adding it to a second one raises `InvalidOption`, and so does a registry
    that shows another bus already. Scrapes may come in any thread.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._registry = REGISTRY if registry is None else registry
        self._bus: Any = None
        self._dead: set[tuple[str, Any]] = set()
        """Groups and ids of events that have become dead letters, and are not settled."""
        by_handler = ("group", "subscription")
        self._deliveries = Counter(
            "triobus_deliveries",
            "Deliveries that are settled, by how they ended.",
            ("group", "outcome"),
            registry=None,
        )
        self._failed = Counter(
            "triobus_attempts_failed",
            "Calls of handlers that raised or timed out.",
            (*by_handler, "error"),
            registry=None,
        )
        self._handler_seconds = Histogram(
            "triobus_handler_seconds", "Seconds that a handler took.", by_handler, registry=None
        )
        self._commit_seconds = Histogram(
            "triobus_commit_seconds",
            "Seconds that a commit of the store took.",
            buckets=_COMMIT_BUCKETS,
            registry=None,
        )
        self._observe: dict[tuple[str, str], Any] = {}
        """What takes the seconds of a handler; asking the histogram takes as long again."""
        self._handled: dict[str, Any] = {}

    def added_to(self, bus: Any) -> None:
        """Show the bus in the registry."""
        if self._bus is not None:
            raise InvalidOption(
                f"the instrument watches {self._bus!r} already: make one for each bus, with a "
                "registry of its own"
            )
        try:
            self._registry.register(self)
        except ValueError as error:
            raise InvalidOption(
                f"the registry shows another bus, or metrics of the same names ({error}): give "
                "PrometheusInstrument(registry=...) one of its own"
            ) from None
        self._bus = bus

    def removed_from(self, bus: Any) -> None:  # noqa: ARG002  # it has one
        """Show it no more."""
        self._registry.unregister(self)
        self._bus = None
        self._dead.clear()

    # What it is told

    def attempt_finished(
        self, delivery: Delivery, seconds: float, error: BaseException | None
    ) -> None:
        """Count how long a handler took, and how it ended."""
        group, subscription = delivery.group, delivery.subscription
        observe = self._observe.get((group, subscription))
        if observe is None:
            observe = self._handler_seconds.labels(group, subscription).observe
            self._observe[group, subscription] = observe
        observe(seconds)
        if error is not None and not isinstance(error, trio.Cancelled):
            self._failed.labels(group, subscription, type_of(error)).inc()

    def dead_lettered(self, letter: DeadLetter) -> None:
        """Know how the delivery is going to end."""
        self._dead.add((letter.group, letter.event_id))

    def settled(self, delivery: Delivery) -> None:
        """Count how it ended."""
        key = (delivery.group, delivery.event.event_id)
        if self._dead and key in self._dead:
            self._dead.remove(key)
            self._deliveries.labels(delivery.group, "dead_lettered").inc()
            return
        count = self._handled.get(delivery.group)
        if count is None:
            count = self._deliveries.labels(delivery.group, "handled").inc
            self._handled[delivery.group] = count
        count()

    def committed(
        self,
        events: Sequence[DomainEvent],  # noqa: ARG002  # they are counted when published
        seconds: float,
        error: BaseException | None,  # noqa: ARG002  # as long as it took
    ) -> None:
        """Count how long a commit took."""
        self._commit_seconds.observe(seconds)

    # What it shows

    def describe(self) -> Iterable[Metric]:
        """Yield the names, without a look at the bus."""
        yield CounterMetricFamily("triobus_events_published", "")
        for name in (*dict(_GAUGES.values()), "triobus_dead_letters", "triobus_store_bytes"):
            yield GaugeMetricFamily(name, "")
        for counted in (self._deliveries, self._failed, self._handler_seconds):
            yield from counted.describe()
        yield from self._commit_seconds.describe()

    def collect(self) -> Iterable[Metric]:
        """Yield all metrics as they are now; for the registry."""
        if self._bus is None:
            return
        statistics = self._bus.statistics()
        yield CounterMetricFamily(
            "triobus_events_published",
            "Events accepted by the bus since it was started.",
            value=statistics.published,
        )
        yield from _gauges(statistics.groups)
        yield _dead_letters(statistics.groups, self._bus._life.letters.counts())
        store = self._bus.store
        if store is not None:
            yield from self._commit_seconds.collect()
        size = None if store is None else store._size()
        if size is not None:
            yield GaugeMetricFamily("triobus_store_bytes", "What the store takes.", value=size)
        for counted in (self._deliveries, self._failed, self._handler_seconds):
            yield from counted.collect()


def _gauges(groups: Any) -> Iterator[Metric]:
    for field, (name, text) in _GAUGES.items():
        gauge = GaugeMetricFamily(name, text, labels=["group"])
        for group, found in groups.items():
            assert isinstance(found, GroupStatistics)
            gauge.add_metric([group], getattr(found, field))
        yield gauge


def _dead_letters(groups: Iterable[str], counts: Any) -> Metric:
    gauge = GaugeMetricFamily(
        "triobus_dead_letters", "Dead letters that are there.", labels=["group"]
    )
    for group in sorted({*groups, *counts}):
        gauge.add_metric([group], counts.get(group, 0))
    return gauge
