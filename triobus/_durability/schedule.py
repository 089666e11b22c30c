"""Events of a store that are published for later: they go into its log when they are due.

The store has them, and here is only when the next one is due. Times are on a clock that goes on
when the program does not run, and moves with Trio's clock while the bus lives.
"""

import logging
from collections.abc import Callable, Sequence
from uuid import UUID

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from triobus._errors import BusClosed, StoreError
from triobus._events.moments import Moment, Moments
from triobus._groups.deadline import Deadline
from triobus.stores import EventStore
from triobus.stores._commits import Submission
from triobus.stores._reading import BATCH
from triobus.stores._values import Release, Released, Unschedule

logger = logging.getLogger("triobus")

_INEXACT = 1e-6
"""Seconds by which a due time may be missed: sums of floats are not exact."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1, 30
"""Seconds after which a commit that failed is made again."""


@attrs.define(eq=False)
class StoredSchedule:
    """The scheduled events of one store, while a bus uses it."""

    _store: EventStore
    on_first: Callable[[], None] = attrs.field(init=False)
    """Called when something is scheduled, so that a task runs that waits for it."""
    on_released: Callable[[], None] = attrs.field(init=False)
    """Called when events that were due are in the log."""
    count: int = attrs.field(default=0, init=False)
    """How many events are not due yet, after the last commit."""
    damaged: int = attrs.field(default=0, init=False)
    """How many of them cannot be read."""
    _deadline: Deadline = attrs.field(factory=Deadline, init=False)
    _moments: Moments = attrs.field(factory=Moments, init=False)
    """The clock of the due times in this life."""
    _is_releasing: bool = attrs.field(default=False, init=False)

    def restore(self, count: int, next_due: float | None) -> None:
        """Take up what a store has, at the beginning of a life."""
        self._moments, self.count, self.damaged = Moments(), count, 0
        self._expect(next_due)

    def moment(self) -> Moment:
        """Return the present moment."""
        return self._moments.now()

    @property
    def is_due(self) -> bool:
        """Whether an event is due that is not in the log yet."""
        return self._is_releasing or self._deadline.at <= trio.current_time()

    def drain(self) -> None:
        """Leave what is due to the store, which has it."""

    def on_stored(self, dues: Sequence[float]) -> None:
        """A commit is over, in which events were scheduled that are due at these times."""
        self.count = self._store._scheduled_count
        if dues:
            self._expect(min(dues))
            self.on_first()

    def on_news(self, due: float) -> None:
        """Another bus has scheduled something that is due then, and may be dead by that time."""
        self.on_stored([due])

    def released(self, found: Released) -> None:
        """Events that were due are in the log."""
        self.damaged += len(found.damaged)
        for said in found.damaged:
            logger.error("%s. Others that are scheduled go on", said)
        self._expect(found.next_due)

    def _expect(self, due: float | None) -> None:
        if due is not None:
            self._deadline.expect(self._moments.on_trios_clock(due))

    @enable_ki_protection
    async def cancel(self, event_id: UUID) -> bool:
        """Take an event back; return whether it was there and not due."""
        submission = Submission(None, Unschedule(str(event_id), self.moment().now))
        await self._store._commits.submit(submission)
        return bool(submission.result)

    async def run(self) -> None:
        """Bring what is due into the log, until it is cancelled or the bus has crashed.

        A commit that failed is made again after some time.
        """
        pause = _FIRST_PAUSE
        while True:
            await self._deadline.sleep()
            self._is_releasing = True
            try:
                await self._release()
                pause = _FIRST_PAUSE
            except BusClosed:
                return
            except StoreError as error:
                logger.warning("what is due could not be published, and will be: %s", error)
                self._deadline.expect(trio.current_time() + pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            finally:
                self._is_releasing = False
                self.on_released()

    @enable_ki_protection
    async def _release(self) -> None:
        now = self.moment().now + _INEXACT
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._store._commits.submit(Submission(None, Release(now, BATCH)))
