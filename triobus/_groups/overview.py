"""What a group is doing, in words and numbers."""

from collections import Counter
from typing import Any

from triobus._groups.statistics import GroupStatistics, percentile


def work_of(shell: Any) -> str:
    """Say what there is still to do, by handler; "" if there is nothing."""
    running = Counter(own.delivery.subscription.name for own in shell._handlings if own.delivery)
    lanes = shell.lanes
    parts = [f"{name!r}" + f" ({n} times)" * (n > 1) + " to end" for name, n in running.items()]
    queued = shell.unsettled - lanes.in_flight - lanes.waiting
    if queued > 0:
        parts.append(f"{queued} more to be handled")
    if lanes.waiting:
        parts.append(f"{lanes.waiting} retries to be due")
    return f"group {shell.group.name!r}: {', '.join(parts)}" if parts else ""


def statistics_of(shell: Any) -> GroupStatistics:
    """Return the counters of a group as they are now."""
    lanes, failures = shell.lanes, shell.failures
    # A delivery whose worker was cancelled is in flight no more: it is left.
    had = [len(own.deliveries) or 1 for own in [*shell._handlings] if own.delivery is not None]
    if shell._batch is None:
        in_flight, busy = min(lanes.in_flight, sum(had)), min(lanes.in_flight, len(had))
    else:
        in_flight, busy = lanes.in_flight * bool(shell.worker_count), len(had)
    return GroupStatistics(
        published=lanes.added,
        handled=lanes.finished,
        failed_attempts=failures.attempts,
        retries=shell.retries + failures.first_again,
        dead_lettered=failures.dead_lettered,
        queued=lanes.queued + lanes.in_flight - in_flight,
        in_flight=in_flight,
        waiting_for_retry=lanes.waiting,
        worker_count=shell.worker_count,
        busy_workers=busy,
        subscription_count=len(shell.group.subscriptions),
        lag=shell.log.lag,
        p50=percentile(shell.durations, 0.5),
        p99=percentile(shell.durations, 0.99),
        paused=shell.group._is_paused,
    )
