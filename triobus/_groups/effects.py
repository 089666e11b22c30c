"""Transactional handlers: they are called inside a commit of the store, many of them in one.

1. A worker that takes an event for such handlers takes others along that are ready and go to the
   same ones. Each is an attempt of its own, and fails alone.
2. Events of one aggregate are in the same commit in their order. Where one fails, those behind it
   are not begun, and line up behind it again; with one worker, whose order is total, all of them.
3. The store does nothing else while the handlers run, so they are as many as take a moment: few at
   first, and none is begun any more when they have taken longer than was to be expected.

An event that was tried before, a replay, and what is held back or watched goes alone.
"""

import contextvars
import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import attrs
import outcome
import trio
from trio.lowlevel import checkpoint_if_cancelled, enable_ki_protection

from triobus._checks import truth
from triobus._events import DomainEvent
from triobus._events.causes import (
    Delivery,
    Handling,
    calling_bundle,
    calling_cause,
    handling,
    snapshot_of,
)
from triobus._groups.delivery import InFlight
from triobus._groups.subscriptions import Subscription
from triobus._threads import is_virtual

MOST = 256
"""How many deliveries a worker takes into one commit."""
_MOMENT = 0.01
"""Seconds that their handlers should take together."""
_TOO_LONG = 5 * _MOMENT
"""Seconds after which no other one is begun in the same commit."""


@attrs.define(eq=False, kw_only=True)  # frozen, making one would take twice as long
class Effect:
    """A call of a transactional handler that is to be made."""

    deliveries: Sequence[InFlight]
    """What it handles."""
    told: Sequence[Delivery]
    """What it can know of them."""
    function: Callable[[Any], object]
    """Called with the transaction."""
    index: int
    """Whose turn it is in their plan."""
    after: int
    """Whose turn it is when it has succeeded."""
    timeout: float | None
    cause: DomainEvent | None
    """What causes the events that it publishes."""
    context: contextvars.Context
    chain: object = None
    """Effects of one chain are not tried after one of it has failed."""


Effected = outcome.Outcome[Any] | None
"""What came of an effect; None if it was not tried."""


class _NotNow(Exception):  # it never leaves this room
    """A handler is not to be called in this commit: its delivery was not tried."""


@attrs.define(eq=False)
class _Commit:
    """What the handlers of one commit have taken, in seconds."""

    limit: float
    spent: float = 0.0


@attrs.define(eq=False)
class Effects:
    """Has the effects of one group's deliveries."""

    _shell: Any
    """The shell of the group."""
    _calls: int = attrs.field(default=0, init=False)
    _seconds: float = attrs.field(default=0.0, init=False)
    """How long the calls took in the thread of the store."""

    async def call(self, function: Callable[[Any], object], timeout: float | None) -> object:
        """Call a function inside a commit for the deliveries whose handler is calling."""
        bundle = calling_bundle()
        effect = Effect(
            deliveries=bundle,
            told=[snapshot_of(delivery) for delivery in bundle],
            function=function,
            index=bundle[0].index,
            after=bundle[0].index + 1,
            timeout=timeout,
            cause=calling_cause(),
            context=contextvars.copy_context(),
        )
        (found,) = await self._shell.log.have([effect])
        return found.unwrap()

    def takes(self, delivery: InFlight) -> bool:
        """Whether a delivery that was taken is to be carried in a commit with others."""
        is_fresh = not (delivery.is_recorded or delivery.letter_id is not None)
        return is_fresh and all(subscription._shares_commits for subscription in delivery.plan)

    async def carry(self, first: InFlight, own: Handling) -> None:
        """Take a delivery, and what can go along, through their handlers in one commit."""
        shell = self._shell
        bundle = shell.lanes.take_along(first, self._limit()).deliveries
        if shell.lanes.held <= shell.admits_at:
            shell.log.on_room(shell)
        own.deliveries = bundle
        commit = _Commit(math.inf if is_virtual(trio.lowlevel.current_clock()) else _TOO_LONG)
        planned = [self._planned(delivery, own, commit) for delivery in bundle]
        effects = [effect for some in planned for effect in some]
        found: Sequence[Effected] = await shell.log.have(effects) if effects else ()
        own.deliveries = ()
        if self._finish(bundle, planned, iter(found)):
            await checkpoint_if_cancelled()  # an error of a worker that was cancelled is none

    def _limit(self) -> int:
        """Return how many deliveries take a moment, as far as is known."""
        if is_virtual(trio.lowlevel.current_clock()):
            return MOST
        calls, seconds = self._calls, self._seconds
        if calls > 4 * MOST:  # what is long ago counts less
            self._calls, self._seconds = calls // 2, seconds / 2
        most = min(MOST, 2 * calls)  # a few calls tell little
        if seconds:
            most = min(most, int(_MOMENT * calls / seconds))
        return max(1, most)

    def _planned(self, delivery: InFlight, own: Handling, commit: _Commit) -> list[Effect]:
        """Return the calls that a delivery needs, by one subscription after the other."""
        delivery.attempt = 1
        effects: list[Effect] = []
        for index in range(len(delivery.plan)):
            effect = self._effect(delivery, index, own, commit)
            if effect is not None:
                effects.append(effect)
        for effect, following in itertools.pairwise(effects):
            effect.after = following.index
        return effects

    def _effect(
        self, delivery: InFlight, index: int, own: Handling, commit: _Commit
    ) -> Effect | None:
        """Return the call of one subscription; None if it does not want the event."""
        seen = delivery
        if index:  # whose turn comes only after others in the same commit
            seen = copy.copy(delivery)
            seen.index = index
        context = contextvars.copy_context()
        context.run(handling.set, Handling(own.worker, own.outer, seen))
        call = context.run(self._call_of, seen.subscription, delivery.event, commit)
        if call is None:
            return None
        chain: object = (self, delivery.key)
        if self._shell.worker_limit == 1:
            chain = self
        elif delivery.key is None:
            chain = delivery
        return Effect(
            deliveries=(delivery,),
            told=(snapshot_of(seen),),
            function=call,
            index=index,
            after=len(delivery.plan),
            timeout=seen.subscription._timeout,
            cause=delivery.event,
            context=context,
            chain=chain,
        )

    def _call_of(
        self, subscription: Subscription, event: DomainEvent, commit: _Commit
    ) -> Callable[[Any], object] | None:
        """Return what calls a handler with a transaction; None for an event it does not want."""
        where, handler = subscription._where, subscription._handler
        try:
            if where is not None and not truth("where", where(event)):
                return None
        except Exception as error:  # noqa: BLE001  # it is a failed attempt
            return _raising(error)

        def call(transaction: Any) -> object:
            if commit.spent > commit.limit or not subscription.is_active:
                raise _NotNow
            started = time.perf_counter()
            try:
                return handler(event, transaction)
            finally:
                seconds = time.perf_counter() - started
                commit.spent += seconds
                self._calls += 1
                self._seconds += seconds

        return call

    @enable_ki_protection
    def _finish(
        self,
        bundle: Sequence[InFlight],
        planned: Sequence[Sequence[Effect]],
        found: Iterator[Effected],
    ) -> bool:
        """Go on with every delivery as its handlers have ended; return whether one has failed."""
        failed: list[tuple[InFlight, BaseException]] = []
        held_up: dict[str | None, InFlight] = {}
        untried: list[InFlight] = []
        stopped: set[str | None] = set()  # the aggregates of both
        for delivery, effects in zip(bundle, planned, strict=True):
            outcomes = [next(found) for _ in effects]
            if delivery.key in stopped:
                untried.append(delivery)
                continue
            error = self._go_through(delivery, effects, outcomes)
            if error is None:
                continue
            is_begun = not isinstance(error, _NotNow) or delivery.index > effects[0].index
            if is_begun:
                failed.append((delivery, error))
            else:
                untried.append(delivery)
            if delivery.key is not None:
                stopped.add(delivery.key)
                if is_begun:
                    held_up[delivery.key] = delivery
        self._shell.lanes.put_back(untried, held_up)
        for delivery, error in failed:
            self._fail(delivery, error)
        self._shell.wake()  # other workers, for more than one delivery may have become ready
        return bool(failed)

    def _go_through(
        self, delivery: InFlight, effects: Sequence[Effect], outcomes: Sequence[Effected]
    ) -> BaseException | None:
        """Go on with a delivery as far as its handlers have succeeded; return the error, if any."""
        for effect, found in zip(effects, outcomes, strict=True):
            delivery.index = effect.index
            if found is None:  # something before it has failed
                return _NotNow()
            if isinstance(found, outcome.Error):
                return found.error
            if delivery.completion is not None:
                delivery.completion.handled(delivery.subscription, found.unwrap())
        delivery.index = len(delivery.plan) - 1
        self._advance(delivery)
        return None

    def _fail(self, delivery: InFlight, error: BaseException) -> None:
        """Do what is to be done after a failed attempt, and go on behind the last one."""
        shell = self._shell
        if isinstance(error, _NotNow):
            delivery.attempt = 0
        else:
            is_waiting = shell.failures.attempt_failed(delivery, delivery.subscription, error)
            if is_waiting or self._advance(delivery):
                return
        shell.lanes.go_on(delivery)

    def _advance(self, delivery: InFlight) -> bool:
        """Go on after a subscription; return whether the delivery is finished."""
        is_finished: bool = self._shell.advance(delivery)
        if is_finished and delivery.completion is not None:
            delivery.completion.finished()
        return is_finished


def _raising(error: Exception) -> Callable[[Any], NoReturn]:
    def call(_: Any) -> NoReturn:
        raise error

    return call
