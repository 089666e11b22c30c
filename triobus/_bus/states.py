"""The life cycle of a bus as one table: what every call gets at every moment. Pure data.

    new -> starting -> running -> draining -> ending -> stopped

1. A life begins "new" and never goes back. A bus that has stopped starts again with another life.
2. "starting": the store is being opened and the workers are coming. Handlers may already work on
   what the store has, and may publish; other tasks may not.
3. "running": every worker is there. It is the only state in which publishers from outside are let
   in and in which the bus can be asked to stop.
4. "draining": publishers from outside are refused; handlers go on, and may publish.
5. "ending": the handlers are cancelled, and nothing is accepted any more.
6. "stopped": nothing of the bus runs, its store is closed, and tasks that waited have been told.
7. Any state but the last may be followed by "ending": by cancellation, an error or a crash.
"""

from typing import Literal, get_args

import attrs

from triobus._errors import BusClosed

State = Literal["new", "starting", "running", "draining", "ending", "stopped"]

_ORDER: tuple[State, ...] = get_args(State)

_ALLOWED: dict[str, tuple[State, ...]] = {
    "start": ("new", "stopped"),
    "publish": ("running",),
    "publish inside a handler": ("starting", "running", "draining"),
    "stop": ("running",),
    "crash": ("starting", "running", "draining", "ending"),
    "listen": ("new", "starting", "running", "draining", "ending"),
    "replay": ("running", "draining"),
}
"""The states in which a call does what it is for; in the others it raises `BusClosed`."""

_REASONS: dict[State, str] = {
    "new": "it has not been started: use it inside 'async with bus:' or after "
    "'await nursery.start(bus.run)'",
    "starting": "it has not been started yet: wait until 'async with bus:' has begun",
    "running": "it is running",
    "draining": "it is stopping, and only its own handlers may still publish",
    "ending": "it is stopping, and its handlers are being cancelled",
    "stopped": "it has stopped: start it again, or make a new EventBus",
}


@attrs.define(eq=False)
class LifeCycle:
    """Where a bus is in its life."""

    state: State = attrs.field(default="new", init=False)

    def become(self, state: State) -> bool:
        """Go on to a later state; return False if that, or a later one, was reached before."""
        if _ORDER.index(state) <= _ORDER.index(self.state):
            return False
        self.state = state
        return True

    def allows(self, call: str) -> bool:
        """Whether a call of the table does what it is for now."""
        return self.state in _ALLOWED[call]

    def check(self, call: str, asked: str) -> None:
        """Raise `BusClosed`, which names what was `asked`, unless the call is allowed now."""
        if not self.allows(call):
            raise self.closed(asked)

    def closed(self, asked: str) -> BusClosed:
        """Return the error of a call that this state does not allow."""
        return BusClosed(f"{asked}: the bus is not open, for {_REASONS[self.state]}")
