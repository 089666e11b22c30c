"""What a bus counts, as frozen values."""

import math
from collections.abc import Mapping, Sequence

import attrs


@attrs.frozen(kw_only=True)
class GroupStatistics:
    """The counters of one group at one moment."""

    published: int
    """Events accepted for the group: those that a subscription of it wants, and replays."""
    handled: int
    """Deliveries finished, including those in which a handler ended as a dead letter."""
    failed_attempts: int
    """Calls of a handler that raised or timed out."""
    retries: int
    """Calls of a handler that were made again after a failure."""
    dead_lettered: int
    """Dead letters made so far, whatever became of them."""
    queued: int
    """Deliveries that no worker has, begun and cancelled or not, and that wait for no retry."""
    in_flight: int
    """Deliveries that a worker is carrying through the handlers."""
    waiting_for_retry: int
    """Deliveries that wait for the next attempt; they occupy no worker."""
    worker_count: int
    """Workers running."""
    busy_workers: int
    """Workers that carry a delivery."""
    subscription_count: int
    """Subscriptions in the group."""
    lag: int
    """Accepted events of the group that are not settled yet."""
    p50: float | None
    """Median of the seconds spent in handlers per delivery, of the last 1,024 that were timed; None
    before any. Once there are so many, those that take no time are timed one in eight."""
    p99: float | None
    """The same for the slowest hundredth."""
    paused: bool = False
    """Whether the group begins nothing until it is resumed."""


@attrs.frozen(kw_only=True)
class BusStatistics:
    """The counters of a bus at one moment: sums over its groups, `published` aside."""

    running: bool
    """Whether the bus accepts events."""
    uptime_seconds: float
    """Seconds on Trio's clock from start until now, or until the stop."""
    published: int
    """Events accepted by the bus."""
    unhandled: Mapping[str, int]
    """Those of them that neither a subscription nor a listener wanted, by their event types."""
    handled: int
    """Deliveries finished: one for every event and group."""
    failed_attempts: int
    """Calls of a handler that raised or timed out."""
    retries: int
    """Calls of a handler that were made again after a failure."""
    dead_lettered: int
    """Dead letters made so far, whatever became of them."""
    queued: int
    """Deliveries that no worker has begun and that do not wait for a retry."""
    in_flight: int
    """Deliveries that a worker is carrying through the handlers."""
    waiting_for_retry: int
    """Deliveries that wait for the next attempt; they occupy no worker."""
    worker_count: int
    """Workers running."""
    subscription_count: int
    """Subscriptions in all groups."""
    scheduled: int = 0
    """Events that were published for later and are not due."""
    groups: Mapping[str, GroupStatistics]
    """The same for each group, by its name."""


def percentile(durations: Sequence[float], fraction: float) -> float | None:
    """Return the smallest duration that `fraction` of them do not exceed, or None without any."""
    if not durations:
        return None
    ordered = sorted(durations)
    return ordered[max(math.ceil(len(ordered) * fraction) - 1, 0)]
