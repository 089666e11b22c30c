"""The context of a worker, which every attempt finds as it was before the first one.

A handler runs in the context of its worker's task, for a context of its own would have to be
entered at every step that it takes. So a worker looks after each attempt whether a variable was
set. While none was, its context still shares its table of variables with the copy that was made
when the worker began, and comparing the two compares two pointers. Variables that had a value by
then are compared by identity first, so that no `__eq__` is ever asked whether a value is the same.

Once something was set the task gets a new context: the only way to have a variable without a value
again. Trio enters it at the task's next step.

Measured with `publish_many` and a handler that returns at once, in microseconds an event: comparing
0.04 to 0.05 of 0.93, and 0.04 more for each variable that had a value; a context of its own for
each attempt, entered at each of its steps, 0.7. A handler that does set something makes its worker
take a turn more, 2.8. Not undone is what is changed inside of a value, as with
`decimal.getcontext().prec = 5`, if that value was there before.
"""

import contextvars
from typing import Any

import attrs
import trio


@attrs.define(eq=False)
class CleanContext:
    """The context of the worker that calls, as it is at that moment."""

    _ours: contextvars.ContextVar[Any]
    """A variable that no handler sets."""
    pristine: contextvars.Context = attrs.field(factory=contextvars.copy_context)
    """A copy that is never entered."""
    given: tuple[tuple[contextvars.ContextVar[Any], Any], ...] = attrs.field(init=False)
    """The other variables that have a value in it."""

    def __attrs_post_init__(self) -> None:
        self.given = tuple(each for each in self.pristine.items() if each[0] is not self._ours)

    async def restore(self) -> contextvars.Context:
        """Give the worker that context again, and return it; whatever is cancelled."""
        context = trio.lowlevel.current_task().context = self.pristine.copy()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return context
