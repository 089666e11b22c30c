"""The earliest time at which something is expected, and the one task that sleeps until it."""

import math

import attrs
import trio


@attrs.define(eq=False)
class Deadline:
    """Lets one task sleep until the earliest time that is expected, or for ever."""

    at: float = math.inf
    """That time, on Trio's clock."""
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)

    def expect(self, due: float) -> None:
        """Let the task wake at that time, and not later."""
        if due < self.at:
            self.at = self._scope.deadline = due

    async def sleep(self) -> None:
        """Sleep until the time has come; nothing is expected then any more."""
        with trio.CancelScope(deadline=self.at) as self._scope:
            await trio.sleep_forever()
        self.at = math.inf
