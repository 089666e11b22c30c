"""An alarm: one task sleeps until it rings. Cheaper than a `trio.Event` for each time."""

import attrs
import trio
from trio.lowlevel import Abort, enable_ki_protection


@attrs.define(eq=False)
class Alarm:
    """Wakes the one task that sleeps, if it does; ringing beforehand means nothing."""

    _sleeper: trio.lowlevel.Task | None = None

    async def sleep(self) -> None:
        """Sleep until it rings."""
        self._sleeper = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    @enable_ki_protection
    def ring(self) -> None:
        """Wake the sleeper."""
        sleeper, self._sleeper = self._sleeper, None
        if sleeper is not None:
            trio.lowlevel.reschedule(sleeper)

    def _abort(self, _: object) -> Abort:
        self._sleeper = None
        return Abort.SUCCEEDED
