"""What a worker does: it takes deliveries through their handlers, as long as there are some."""

import time
from contextvars import Context
from typing import Any

import trio
from trio.lowlevel import disable_ki_protection

from triobus._events.causes import Handling, handling
from triobus._groups.contexts import CleanContext
from triobus._groups.delivery import InFlight
from triobus._groups.handlers import PASSED_OVER
from triobus._threads import is_virtual

_DELIVERIES_PER_TURN = 256
"""How many deliveries a worker carries before it lets other tasks run, if no handler does."""
_SECONDS_PER_TURN = 0.005
"""The same in seconds, for handlers that compute for long."""


@disable_ki_protection
async def work(shell: Any, own: Handling) -> None:
    """Take deliveries of a `GroupShell` through their handlers, one after the other, for ever."""
    # One long function with its attributes in locals: a call more costs a tenth of the speed.
    lanes, log, failures, effects = shell.lanes, shell.log, shell.failures, shell.effects
    take, receive = lanes.take, shell.receive.receive
    durations, idle = shell.durations, shell.idle
    trio_clock = trio.lowlevel.current_clock()
    clock = trio_clock.current_time if is_virtual(trio_clock) else time.perf_counter
    clean = CleanContext(ours=handling)
    given, pristine = clean.given, clean.pristine
    context: Context | None = own.worker.context
    turn = 0
    recycled: InFlight | None = None
    while True:
        delivery = take(recycled)
        if delivery is None:
            own.delivery = recycled = None  # so that an idle worker keeps no event alive
            shell.free += 1
            if shell.admits_at >= 0:
                log.on_room(shell)
            delivery = await receive()
            shell.sent -= 1
            lanes.held -= 1
            turn = 0
        if not turn:
            started = clock()
            turn_ends = started + _SECONDS_PER_TURN
        turn += 1
        own.delivery = delivery
        advance = shell.advance  # an instrument may have come or gone
        if lanes.held <= shell.admits_at:
            log.on_room(shell)
        is_open = True
        # A bus without a store pays for the first of these questions, and for no more.
        if (
            delivery.position is not None
            and delivery.plan[0]._is_transactional
            and effects.takes(delivery)
        ):
            await effects.carry(delivery, own)
            recycled, is_open = None, False
        while is_open:
            subscription = delivery.plan[delivery.index]
            delivery.attempt += 1
            try:
                if (subscription._is_plain and delivery.letter_id is None) or not (
                    shell.is_passed_over(delivery, subscription)
                ):
                    if delivery.attempt > 1:
                        shell.retries += 1
                    result = await subscription._invoke(delivery.event)
                else:
                    result = PASSED_OVER
            except (Exception, trio.Cancelled, BaseExceptionGroup) as error:  # noqa: BLE001  # the one around a user's handler
                is_waiting = failures.attempt_failed(delivery, subscription, error)
            else:
                is_waiting = False
                if delivery.completion is not None and result is not PASSED_OVER:
                    shell.handled(delivery, subscription, result)
            for var, value in given:  # has the handler changed the context, or added to it?
                if var.get() is not value:
                    context = None
            if context != pristine:
                context = await clean.restore()
            if is_waiting:
                # For a retry; or it was cancelled, and this raises Cancelled.
                await trio.lowlevel.checkpoint_if_cancelled()
                recycled = None
                break
            if advance(delivery):
                if delivery.completion is not None:
                    delivery.completion.finished()
                recycled = delivery
                break
        if idle.is_wanted:
            shell.notice_idle()
        ended = clock()
        durations.append(ended - started)
        started = ended
        if turn >= _DELIVERIES_PER_TURN or ended > turn_ends:
            own.delivery = None
            await trio.lowlevel.checkpoint()  # without a delivery in flight: other tasks go on
            turn = 0
