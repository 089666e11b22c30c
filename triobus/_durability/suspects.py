"""Events in which the process may have died: what is recorded before their handlers are called.

After an unclean end it is not known in which events handlers were: attempts are not recorded before
they are made, for that would cost a commit each. So at the next start the first events that are not
finished, one of each aggregate and what may have shared a commit with it, are *suspects*: that
their handlers are called is recorded before.
If the process dies again, the recorded ones were in flight, and are *blamed*: they are handled one
at a time, each attempt is recorded before it is made, and after the last one that the policy grants
the event becomes a dead letter without another call. A suspect's attempt counts only if no other
was in flight.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import attrs
import trio

from triobus._errors import ProcessDied, StoreError
from triobus._events.causes import calling_delivery
from triobus._groups.delivery import InFlight
from triobus._groups.effects import MOST
from triobus._groups.handlers import PASSED_OVER
from triobus._groups.retry import RetryAfter
from triobus._groups.subscriptions import Subscription
from triobus.stores._values import NOT_COUNTED, Attempts, GroupRow

_BESIDE_WORKERS = 100
"""How many suspects there may be beside those that workers had: finished ones may not have been
recorded, and come before those."""


class Noting(Protocol):
    """Notes that a handler is about to be called, as `Acknowledgements.record_begun` does."""

    def __call__(self, delivery: InFlight, *, is_counted: bool) -> None: ...


@attrs.define(eq=False)
class Suspects:
    """The suspects of one group, from a start after an unclean end on."""

    _last: int
    """The position of the log's last event at the start: none behind it is one."""
    _workers: int
    """How many the group has."""
    _alone: trio.Lock
    """The delivery that is blamed has it, of whichever group of the bus."""
    _note: Noting
    _flush: Callable[[], Awaitable[None]]
    """Waits until what was noted is recorded. Raises `StoreError`."""
    _left: int = attrs.field(init=False)
    """How many more aggregates with suspects there may be."""
    _left_sharing: int = attrs.field(init=False)
    """The same where events shared a commit."""
    _seen: dict[str, int] = attrs.field(factory=dict, init=False)
    """How many suspects each aggregate has: the first that is not finished, and what may have been
    in the same commit."""

    def __attrs_post_init__(self) -> None:
        self._left = self._workers + _BESIDE_WORKERS
        self._left_sharing = self._workers * MOST + _BESIDE_WORKERS

    def plan(
        self,
        position: int,
        key: str | None,
        plan: tuple[Subscription, ...],
        row: Attempts | None,
        now: float,
    ) -> tuple[Subscription, ...]:
        """Return who gets an event, with what has to be done before if it is a suspect.

        `now` is in seconds since 1970, as the times of attempts are.
        """
        if position > self._last:
            return plan
        if row is not None and row.is_begun:
            return tuple(self._blamed(subscription) for subscription in plan)
        was_waiting = row is not None and row.due_at > now
        if was_waiting or not self._is_suspect(key, plan):
            return plan
        return tuple(self._suspected(subscription) for subscription in plan)

    def _is_suspect(self, key: str | None, plan: tuple[Subscription, ...]) -> bool:
        """Whether an event of an aggregate, the next one in the log, may have been in flight."""
        shared = all(subscription._shares_commits for subscription in plan)
        count = 0 if key is None else self._seen.get(key, 0)
        if not count:
            if not (self._left_sharing if shared else self._left):
                return False
            self._left_sharing -= shared
            self._left -= not shared
        elif not shared or count >= MOST:
            return False
        if key is not None:
            self._seen[key] = count + 1
        return True

    def _suspected(self, subscription: Subscription) -> Subscription:
        async def handle(event: object) -> object:
            await self._record(_delivery(), is_counted=False)
            return await _handle(subscription, event)

        return attrs.evolve(subscription, invoke=handle, is_transactional=False)

    def _blamed(self, subscription: Subscription) -> Subscription:
        async def handle(event: object) -> object:
            delivery = _delivery()
            if delivery.attempt > subscription.retry.attempts:
                delivery.attempt -= 1  # this one is not made
                raise ProcessDied(
                    f"the process died in it at each of {delivery.attempt} attempts, and it is "
                    "not tried again: see what its handler does to the process, then replay it"
                )
            async with self._alone:
                await self._record(delivery, is_counted=True)
                return await _handle(subscription, event)

        return attrs.evolve(subscription, invoke=handle, is_transactional=False)

    async def _record(self, delivery: InFlight, *, is_counted: bool) -> None:
        """Record the attempt that is about to be made, counted as if it had been or not."""
        self._note(delivery, is_counted=is_counted)
        try:
            await self._flush()
        except StoreError as error:
            raise RetryAfter(1, counts=False) from error


def blamed_alone(groups: Sequence[GroupRow]) -> Sequence[GroupRow]:
    """Count the attempt in which the process died, if one event alone was in flight."""
    rows = [row for group in groups for row in group.attempts if row.is_begun]
    if len(rows) != 1 or rows[0].due_at != NOT_COUNTED:
        return groups
    counted = rows[0]._replace(attempts=rows[0].attempts + 1)
    return [
        attrs.evolve(
            group, attempts=tuple(counted if row is rows[0] else row for row in group.attempts)
        )
        for group in groups
    ]


def _delivery() -> InFlight:
    found: InFlight = calling_delivery()
    return found


async def _handle(subscription: Subscription, event: object) -> object:
    # It may have been unsubscribed while that was recorded.
    return await subscription._invoke(event) if subscription.is_active else PASSED_OVER
