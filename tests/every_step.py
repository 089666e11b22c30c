"""Cancel a scenario at every step that Trio takes in it.

A task can be cancelled whenever it is not running, so the moments at which something can go wrong
are the steps of the scheduler, and there are few enough to visit them all.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import attrs
import trio
from trio.testing import MockClock

R = TypeVar("R")

MOST_STEPS = 5000
"""More than any scenario may take; one that takes more goes round in circles."""
_PATIENCE = 1e6
"""Virtual seconds after which a scenario hangs: nothing is left that could wake it."""


@attrs.define(eq=False)
class _CancelBefore(trio.abc.Instrument):
    """Cancels a scope before the Nth step of a run, and counts the steps."""

    step: int
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    steps_seen: int = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps_seen += 1
        if self.steps_seen == self.step:
            self.scope.cancel()


def at_every_step(
    make: Callable[[], R],
    scenario: Callable[[R, trio.CancelScope], Awaitable[None]],
    check: Callable[[R], None],
) -> int:
    """Run `scenario(record, scope)` once for every step of it, and return how many there were.

    In the Nth run `scope` is cancelled before the Nth step; the scenario enters it around whatever
    is to be cancelled. `record` is made anew for every run by `make`, and what the run has left in
    it goes to `check`. The last run is the first one that ends before its step has come. Raises
    `trio.TooSlowError` if a run hangs.
    """

    async def run(record: R, scope: trio.CancelScope) -> None:
        with trio.fail_after(_PATIENCE):
            await scenario(record, scope)

    for step in range(1, MOST_STEPS):
        instrument = _CancelBefore(step)
        record = make()
        clock = MockClock(autojump_threshold=0)
        trio.run(run, record, instrument.scope, clock=clock, instruments=[instrument])
        check(record)
        if instrument.steps_seen < step:
            return step - 1
    raise AssertionError(f"the scenario has not ended within {MOST_STEPS} steps")
