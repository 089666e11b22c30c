"""Workers of a group that handles events in batches: one call for all deliveries of a bundle.

1. A bundle is taken whole, fails whole and waits for its retry whole: that is one attempt.
2. When the last attempt has failed, the bundle is halved again and again, and each part gets one
   more attempt, until the events are known that fail alone. These become dead letters.
3. Its deliveries are all for the same subscriptions, and those of one aggregate are in their order.
"""

import time
from collections.abc import Sequence
from typing import Any

import attrs
import trio
from trio.lowlevel import disable_ki_protection

from triobus._events.causes import Handling, handling
from triobus._groups.contexts import CleanContext
from triobus._groups.delivery import Bundle, InFlight
from triobus._groups.handlers import PASSED_OVER
from triobus._groups.subscriptions import Subscription
from triobus._threads import is_virtual


@attrs.define(eq=False)
class BundleWorker:
    """One worker of a group with `batch`."""

    _shell: Any
    """The shell of the group."""
    _own: Handling
    _limit: int
    """How many events are handled in one call."""
    _clean: CleanContext = attrs.field(factory=lambda: CleanContext(ours=handling), init=False)

    @disable_ki_protection
    async def work(self) -> None:
        """Take bundles through their handlers, one after the other, for ever."""
        clock = trio.lowlevel.current_clock()
        now = clock.current_time if is_virtual(clock) else time.perf_counter
        while True:
            bundle = await self._next()
            started = now()
            await self._carry(bundle)
            self._own.delivery, self._own.deliveries = None, ()
            self._shell.wake()  # other workers: much may have been behind the bundle
            self._shell.notice_idle()
            self._shell.durations.append(now() - started)
            await trio.lowlevel.checkpoint()

    async def _next(self) -> Bundle:
        """Return the next bundle, as soon as an event is ready."""
        shell, lanes = self._shell, self._shell.lanes
        found = lanes.take()
        if found is None:
            shell.free += 1
            if shell.admits_at >= 0:
                shell.log.on_room(shell)
            found = await shell.receive.receive()
            shell.sent -= 1
            lanes.held -= found.size
        bundle = found if isinstance(found, Bundle) else lanes.take_along(found, self._limit)
        self._own.delivery = bundle.deliveries[0]
        if lanes.held <= shell.admits_at:
            shell.log.on_room(shell)
        return bundle

    async def _carry(self, bundle: Bundle) -> None:
        """Call one subscription after the other, until the bundle is finished or has to wait."""
        while bundle.deliveries:
            parts = bundle.parts
            subscription = parts[0].subscription
            bundle.attempt += 1
            try:
                await self._attempt(parts, bundle.attempt)
            except (Exception, trio.Cancelled, BaseExceptionGroup) as error:  # noqa: BLE001  # the one around a user's handler
                bundle.drop_finished()
                failure = self._shell.failures.put_off(bundle, subscription, error)
                await self._restore_context()
                if failure is None:  # it waits; or it was cancelled, and this raises Cancelled
                    await trio.lowlevel.checkpoint_if_cancelled()
                    return
                await self._isolate(bundle.parts, subscription, bundle.attempt, failure)
            else:
                await self._restore_context()
            bundle.drop_finished()
            bundle.attempt = 0

    async def _isolate(
        self,
        deliveries: Sequence[InFlight],
        subscription: Subscription,
        attempts: int,
        failure: Exception,
    ) -> None:
        """Find out which of some deliveries, that have failed together, fail alone."""
        failures = self._shell.failures
        if len(deliveries) == 1 or failures.on_failure == "raise":
            failures.end(deliveries[0], subscription, failure, attempts)
            self._advance(deliveries[0])
            return
        middle, index = len(deliveries) // 2, deliveries[0].index
        for half in (deliveries[:middle], deliveries[middle:]):
            try:
                await self._attempt(half, attempts + 1)
            except (Exception, trio.Cancelled, BaseExceptionGroup) as error:  # noqa: BLE001  # as above
                found = failures.counted(subscription, error)
                await self._restore_context()
                if found is None:
                    await trio.lowlevel.checkpoint_if_cancelled()
                    return
                rest = [each for each in half if each.index == index]
                await self._isolate(rest, subscription, attempts + 1, found)
            else:
                await self._restore_context()

    async def _attempt(self, deliveries: Sequence[InFlight], attempt: int) -> None:
        """Call a handler with the events that it wants of some deliveries, and go on with them.

        If it raises, only those are done with it that it was not to be called for at all.
        """
        shell, subscription = self._shell, deliveries[0].subscription
        wanted = self._wanted(deliveries, subscription)
        for each in wanted:
            each.attempt = attempt
        if wanted:
            shell.retries += attempt > 1
            own = self._own
            own.delivery, own.deliveries = wanted[0], wanted
            events = [each.event for each in wanted]
            result = await subscription._invoke(tuple(events))
            for each in own.deliveries:  # of which `where` may have left some out
                if each.completion is not None and result is not PASSED_OVER:
                    shell.handled(each, subscription, result)
        advance = shell.advance
        for each in wanted:  # as `_advance` does, of which a call would cost as much again
            if advance(each):
                each.index += 1
                if each.completion is not None:
                    each.completion.finished()

    def _wanted(
        self, deliveries: Sequence[InFlight], subscription: Subscription
    ) -> Sequence[InFlight]:
        """Return those that a subscription is called for; it is done with the others."""
        if subscription._is_plain and deliveries[0].letter_id is None:
            return deliveries
        wanted = []
        for each in deliveries:
            if self._shell.is_passed_over(each, subscription):
                self._advance(each)
            else:
                wanted.append(each)
        return wanted

    def _advance(self, delivery: InFlight) -> None:
        """Go on after a subscription; behind the last one of its plan a delivery is finished."""
        is_finished = self._shell.advance(delivery)
        if is_finished:
            delivery.index += 1
            if delivery.completion is not None:
                delivery.completion.finished()

    async def _restore_context(self) -> None:
        """Let no later attempt see what a handler has set in the context of the worker."""
        clean = self._clean
        is_changed = any(var.get() is not value for var, value in clean.given)
        if is_changed or self._own.worker.context != clean.pristine:
            await clean.restore()
