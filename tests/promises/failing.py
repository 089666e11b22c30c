"""Handlers that fail in turn with the errors that they are given."""

from collections.abc import Callable
from typing import Any

import trio

from triobus import DomainEvent, Retry, current_delivery

ONCE = Retry(attempts=1)
SECONDS = Retry(attempts=4, delay=1, factor=2, jitter=0)


def now() -> float:
    return round(trio.current_time(), 6)


def failing(*errors: BaseException, calls: list[Any] | None = None) -> Callable[[Any], Any]:
    """A handler that raises the errors, one an attempt, and then succeeds."""
    left = list(errors)

    async def fails(event: DomainEvent) -> str:
        if calls is not None:
            calls.append((now(), current_delivery().attempt))
        if left:
            raise left.pop(0)
        return "done"

    return fails
