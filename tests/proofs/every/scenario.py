"""What a scenario is."""

from collections.abc import Awaitable, Callable

import attrs

from tests.proofs.every.program import Kind, Program
from triobus import EventBus

Make = Callable[[Program], EventBus]
Live = Callable[[Program, EventBus], Awaitable[None]]


@attrs.frozen
class Scenario:
    """What happens, and with which bus."""

    name: str
    make: Make
    """Makes the bus of a life."""
    live: Live
    """Lives with the bus of the first one."""
    kind: Kind
    """Which store it has."""
    is_lossless: bool
    """Whether it handles everything that is accepted in it before it ends."""


def scenario(
    make: Make, *, kind: Kind = "none", is_lossless: bool = True
) -> Callable[[Live], Scenario]:
    """Make a scenario of the function that lives through it."""

    def named(live: Live) -> Scenario:
        return Scenario(live.__name__, make, live, kind, is_lossless)

    return named
