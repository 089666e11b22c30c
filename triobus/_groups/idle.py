"""One place for a bus and all its groups where waiting for the end of work is kept."""

from collections.abc import Callable

import attrs
import trio


@attrs.define(eq=False)
class Idle:
    """Wakes those who wait until nothing is left to do."""

    is_wanted: bool = attrs.field(default=False, init=False)
    """Whether a task waits, so that it has to be noticed when work runs out."""
    _noticed: trio.Event = attrs.field(factory=trio.Event, init=False)

    async def wait_until(self, is_met: Callable[[], bool]) -> None:
        """Wait for a condition that can become true when work runs out, or tasks end."""
        while not is_met():
            self.is_wanted = True
            await self._noticed.wait()

    def notice(self) -> None:
        """Have every task that waits look again; those that are not content wait on."""
        self.is_wanted = False
        self._noticed.set()
        self._noticed = trio.Event()
