"""What a bus counts, and what that means for a person who has to decide whether to worry."""

import logging
from collections.abc import Callable
from typing import Literal

import attrs

from triobus._bus.life import Life
from triobus._bus.routing import describe_waiting
from triobus._groups.statistics import BusStatistics, GroupStatistics

logger = logging.getLogger("triobus")


@attrs.frozen(kw_only=True)
class Health:
    """How a bus is at one moment."""

    status: Literal["healthy", "degraded", "stopped"]
    """"degraded" means that it works, and that `reasons` should be looked at."""
    reasons: tuple[str, ...]
    """A sentence for everything that is not as it should be."""
    queue_size: int
    """Deliveries queued in all groups."""
    worker_count: int
    """Workers running in all groups."""
    memory_mb: float | None
    """Memory of the whole process in MiB; None without psutil (extra `metrics`)."""


def statistics_of(life: Life) -> BusStatistics:
    """Return the counters of one life of a bus."""
    groups = {name: shell.statistics() for name, shell in [*life.shells.items()]}

    def total(counter: Callable[[GroupStatistics], int]) -> int:
        return sum(map(counter, groups.values()))

    return BusStatistics(
        running=life.cycle.state == "running",
        uptime_seconds=life.uptime,
        published=life.routing.published,
        unhandled=dict(life.routing.unhandled),
        handled=total(lambda group: group.handled),
        failed_attempts=total(lambda group: group.failed_attempts),
        retries=total(lambda group: group.retries),
        dead_lettered=total(lambda group: group.dead_lettered),
        queued=total(lambda group: group.queued),
        in_flight=total(lambda group: group.in_flight),
        waiting_for_retry=total(lambda group: group.waiting_for_retry),
        worker_count=total(lambda group: group.worker_count),
        subscription_count=total(lambda group: group.subscription_count),
        scheduled=life.log.schedule.count,
        groups=groups,
    )


def health_of(life: Life) -> Health:
    """Return whether one life of a bus works as it should, and if not, why."""
    statistics, letters = statistics_of(life), life.letters
    hindrances = [] if statistics.running else [str(life.cycle.closed("the bus"))]
    hindrances += [describe_waiting(place) for place in life.routing.places if place.waiting]
    hindrances += life.log.reasons()
    hindrances += [
        f"group {name!r} is paused: await group.resume() to let it go on."
        for name, group in statistics.groups.items()
        if group.paused
    ]
    notes = []
    if len(letters):
        notes.append(f"dead letters wait to be replayed or discarded: {len(letters)}.")
    if letters.dropped:
        notes.append(f"dead letters were dropped to make room: {letters.dropped}.")
    is_stopped = life.cycle.state in ("new", "starting", "stopped")
    status: Literal["degraded", "healthy"] = "degraded" if hindrances else "healthy"
    return Health(
        status="stopped" if is_stopped else status,
        reasons=(*hindrances, *notes),
        queue_size=statistics.queued,
        worker_count=statistics.worker_count,
        memory_mb=memory_mb(),
    )


def memory_mb() -> float | None:
    """Return the resident memory of this process in MiB, or None without psutil."""
    try:
        import psutil  # optional, and only wanted here
    except ImportError:
        logger.debug("memory_mb is None, for psutil is not installed: pip install triobus[metrics]")
        return None
    return float(psutil.Process().memory_info().rss) / 2**20
