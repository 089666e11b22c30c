"""The tasks of one group: started in the nursery of its bus, counted, and cancelled together."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import attrs
import trio
from trio.lowlevel import enable_ki_protection

Run = Callable[..., Awaitable[None]]
"""A task as `nursery.start` takes it."""


@attrs.define(eq=False)
class Crew:
    """The tasks of a group."""

    _when_ended: Callable[[], None]
    """Called whenever one of them has ended."""
    is_started: bool = attrs.field(default=False, init=False)
    size: int = attrs.field(default=0, init=False)
    """Tasks that were started and have not ended."""
    _scopes: list[trio.CancelScope] = attrs.field(factory=list, init=False)

    async def start(self, nursery: trio.Nursery, runs: Sequence[Run]) -> None:
        """Start the tasks; all are running when this returns."""
        for run in self._prepare(runs):
            self.size += 1
            await nursery.start(run)

    def start_soon(self, nursery: trio.Nursery, runs: Sequence[Run]) -> None:
        """Start the tasks, and do not wait until they run."""
        for run in self._prepare(runs):
            self.size += 1
            nursery.start_soon(run)

    def cancel(self) -> None:
        """Cancel all of them."""
        for scope in self._scopes:
            scope.cancel()

    def _prepare(self, runs: Sequence[Run]) -> list[Run]:
        """Give each task a scope that `cancel` knows before the task has begun."""
        self.is_started = True
        self._scopes = [trio.CancelScope() for _ in runs]
        return [
            partial(self._counted, run, scope)
            for run, scope in zip(runs, self._scopes, strict=True)
        ]

    @enable_ki_protection
    async def _counted(
        self,
        run: Run,
        scope: trio.CancelScope,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        try:
            with scope:
                await run(task_status=task_status)
        finally:
            self.size -= 1
            self._when_ended()
