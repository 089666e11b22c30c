"""Cancel a scenario at every step that Trio takes in it.

A task can be cancelled whenever it is not running, so the moments at which something can go wrong
are the steps of the scheduler, and there are few enough to visit them all.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import attrs
import trio
from trio.testing import MockClock

R = TypeVar("R")

MOST_STEPS = 5000
"""More than any scenario may take; one that takes more goes round in circles."""
_PATIENCE = 1e6
"""Virtual seconds after which a scenario hangs: nothing is left that could wake it."""


@attrs.define(eq=False)
class StepScope:
    """A cancel scope that is cancelled before the Nth step that Trio takes while it is entered.

    With 0 it is cancelled before it is entered. What comes before and after it is the same in
    every run, whichever of those steps a cancellation would come at.
    """

    step: int
    steps_seen: int = 0
    was_entered: bool = False
    _is_entered: bool = False
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    def __attrs_post_init__(self) -> None:
        if self.step == 0:
            self._scope.cancel()

    def __enter__(self) -> None:
        self._scope.__enter__()
        self.was_entered = self._is_entered = True

    def __exit__(self, *error: Any) -> bool | None:
        self._is_entered = False
        return self._scope.__exit__(*error)

    def count(self) -> None:
        if self._is_entered:
            self.steps_seen += 1
            if self.steps_seen == self.step:
                self._scope.cancel()


@attrs.define(eq=False)
class _Steps(trio.abc.Instrument):
    """Tells a scope of every step of a run."""

    scope: StepScope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.scope.count()


def at_every_step(
    make: Callable[[], R],
    scenario: Callable[[R, StepScope], Awaitable[None]],
    check: Callable[[R], None],
) -> int:
    """Run `scenario(record, scope)` once for every step in its scope; return how many there were.

    In one run `scope` is cancelled before it is entered, and in one more before each step in it;
    the scenario enters it around whatever is to be cancelled. `record` is made anew for every run
    by `make`, and what the run has left in it goes to `check`. The last run is the first one that
    ends before its step has come. Raises `trio.TooSlowError` if a run hangs.
    """

    async def run(record: R, scope: StepScope) -> None:
        with trio.fail_after(_PATIENCE):
            await scenario(record, scope)

    for step in range(MOST_STEPS):
        scope = StepScope(step)
        record = make()
        clock = MockClock(autojump_threshold=0)
        trio.run(run, record, scope, clock=clock, instruments=[_Steps(scope)])
        check(record)
        assert scope.was_entered, "the scenario does not enter its scope"
        if scope.steps_seen < step:
            return step - 1
    raise AssertionError(f"the scenario has not ended within {MOST_STEPS} steps")
