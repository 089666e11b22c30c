"""What a test may replace for one program: threads, ids, times, and who watches every bus.

A context has it, so that all tasks of a run have what was there when the run began, and nothing is
global. The test kit makes worlds of it in which the same seed repeats the same run.
"""

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from time import time_ns
from typing import Any

import attrs


def _utc_now() -> datetime:
    return datetime.now(UTC)


_IDS_A_BLOCK = 256
_BYTES_AN_ID = 10


class _RandomBits:
    """Random bits of the operating system, read for many ids at once: for each one costs ten times.

    Threads may share it, for the step of an iterator cannot be divided, and a forked child has
    others than its parent.
    """

    def __init__(self) -> None:
        self.renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        """Read the next ones anew."""
        self._left: Iterator[int] = iter(())

    def __call__(self) -> int:
        found = next(self._left, None)
        if found is not None:
            return found
        block = os.urandom(_BYTES_AN_ID * _IDS_A_BLOCK)
        places = range(0, len(block), _BYTES_AN_ID)
        first, *rest = [int.from_bytes(block[at : at + _BYTES_AN_ID]) for at in places]
        self._left = iter(rest)
        return first


@attrs.frozen
class Environment:
    """Where chance, time and threads come from."""

    random_bits: Callable[[], int] = attrs.field(factory=_RandomBits)
    """Returns 80 random bits, for an event's id."""
    time_ns: Callable[[], int] = time_ns
    """Nanoseconds since 1970, for an event's id."""
    now: Callable[[], datetime] = _utc_now
    """The time of a new event; UTC."""
    instead_of_thread: Callable[..., Awaitable[Any]] | None = None
    """Makes the calls that would go to a thread, where a test decides what time passes."""
    instrument_of: Callable[[Any], Any] | None = None
    """Called with every bus that starts; returns what watches it."""


environment: ContextVar[Environment] = ContextVar("triobus environment", default=Environment())  # noqa: B039  # it is frozen


def replace(**changes: Any) -> None:
    """Replace parts of the environment, for the task that calls and those that it starts."""
    environment.set(attrs.evolve(environment.get(), **changes))


@contextmanager
def replaced(**changes: Any) -> Iterator[None]:
    """Replace parts of it inside the block, for a run of Trio that begins there."""
    token = environment.set(attrs.evolve(environment.get(), **changes))
    try:
        yield
    finally:
        environment.reset(token)
