"""What the counters mean for somebody who has to decide whether to worry."""

import logging
from typing import Literal

import attrs

logger = logging.getLogger("triobus")


@attrs.frozen(kw_only=True)
class Health:
    """How a bus is at one moment."""

    status: Literal["healthy", "degraded", "stopped"]
    """"degraded" means that it works, and that somebody should look at `reasons`."""
    reasons: tuple[str, ...]
    """A sentence for everything that is not as it should be."""
    queue_size: int
    """Deliveries queued in all groups."""
    worker_count: int
    """Workers running in all groups."""
    memory_mb: float | None
    """Memory of the whole process in MiB; None without psutil (extra `metrics`)."""


def memory_mb() -> float | None:
    """Return the resident memory of this process in MiB, or None without psutil."""
    try:
        import psutil  # optional, and only wanted here
    except ImportError:
        logger.debug("memory_mb is None, for psutil is not installed: pip install triobus[metrics]")
        return None
    return float(psutil.Process().memory_info().rss) / 2**20
