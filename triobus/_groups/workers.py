"""The Trio shell of a group: workers, wake-ups, the retry timer, cancellation.

Workers carry deliveries one after the other and park when nothing is ready. What becomes ready is
handed over to one that is parked. Nothing else wakes them.

A wake-up costs more than carrying an event. So a task that publishes all the time wakes a worker
not at once but after its own checkpoint, when two events are there for it (`is_streaming`); and
while a worker that was woken has not run yet, no other is woken, unless that one's handler waits
while more is ready (`is_owed`). What is published after a pause is handed over at once.

What `publish` came to beside a raw memory channel, with all else the same, in figures of one
machine with two cores and Python 3.11: workers that parked on a channel without a buffer 0.61; that
looked twice more before they parked, with a checkpoint before each look, 0.84; that park by
themselves and are woken at once, 0.83; later, for two events, 0.85; and no second one while the
first has not run, 0.88 to 0.93, which is what stands here.

Also measured, in microseconds an event of `publish_many`: a context variable set for each delivery
0.15 (now once a worker), a coroutine around the handlers of each delivery 0.15 (now inlined),
asking for room whenever a worker begins 0.3 (now when there is enough for the first who waits),
asking Trio's clock for the percentiles 0.12 (`perf_counter`, unless time is virtual: 0.06; now only
now and then once a thousand are known), a carriage for each queued event 0.14 (now a tuple, and one
carriage a worker: 0.06), `Published` as a named tuple 0.12 (now a struct of msgspec: 0.06).
"""

import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence, Set
from contextvars import Context
from functools import partial
from typing import Any, Protocol

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from triobus._checks import truth
from triobus._errors import HeldBack
from triobus._events import DomainEvent
from triobus._events.causes import Handling, handling
from triobus._groups.contexts import CleanContext
from triobus._groups.dead_letters import DeadLetter, Letters
from triobus._groups.delivery import Carriage, Lanes, Watch
from triobus._groups.failures import Failures, LogErrors, OnFailure, aggregate_id_of
from triobus._groups.handlers import NOT_MATCHED, PASSED_OVER, once_it_waits
from triobus._groups.idle import Idle
from triobus._groups.instruments import Witness
from triobus._groups.statistics import GroupStatistics, percentile
from triobus._groups.subscriptions import Group, Subscription
from triobus._threads import is_virtual

Replayed = tuple[DomainEvent, str | None, tuple[Subscription, ...], Watch, int, int | None]
"""What `Lanes.add` takes for a replay."""


class Ledger(Protocol):
    """What records how far the group has come, if there is a store."""

    @property
    def lanes(self) -> Lanes:
        """The lanes of the group."""

    @property
    def unread(self) -> int:
        """Events for the group that it has not been given yet."""

    @property
    def lag(self) -> int:
        """Events that are not settled."""

    def settle(self, carriage: Carriage, /) -> None:
        """A delivery is finished."""

    def note_attempts(self, carriage: Carriage, index: int, attempts: int, delay: float, /) -> None:
        """A delivery has come to a subscription of its plan, and waits for its next attempt."""

    def notice_idle(self) -> None:
        """A worker finds nothing ready."""

    def notice_room(self) -> None:
        """There is as much room as was waited for."""

    def notice_due(self) -> None:
        """The time of something may have come that has to be read back."""

    def replay(self, given: Replayed, /) -> None:
        """Put a replay into its lane, behind what has to be read back of it."""

    async def run(
        self,
        scope: trio.CancelScope,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Give the group its events, until the scope is cancelled."""


_DELIVERIES_PER_TURN = 256
"""How many deliveries a worker carries before it lets other tasks run, if no handler does."""
_SECONDS_PER_TURN = 0.005
"""The same in seconds, for handlers that compute for long."""
_DURATIONS_KEPT = 1024
_QUICK = 0.0005
"""Seconds: one that takes less is timed only now and then, once `_DURATIONS_KEPT` were timed."""
_UNTIMED = 7
"""How many deliveries are then not timed."""


@attrs.define(eq=False)
class GroupShell:
    """What runs for one group. The bus adds deliveries to `lanes` and then calls `wake`."""

    group: Group
    lanes: Lanes
    buffer: float
    _workers: int
    _on_failure: OnFailure
    _log_errors: LogErrors
    _letters: Letters
    _witnesses: Sequence[Witness]
    _on_room: Callable[["GroupShell"], None]
    """Called when a worker begins a delivery and publishers wait."""
    idle: Idle
    """Where waiting until nothing is left to do is kept."""

    waiting: OrderedDict[Any, None] = attrs.field(factory=OrderedDict, init=False)
    """The publishers that wait for room here, as the bus keeps them."""
    admits_at: float = attrs.field(default=-1, init=False)
    """How few deliveries may be held for the first of them to fit; -1 when none waits."""
    ledger: Ledger | None = attrs.field(default=None, init=False)
    """What the store is told through."""
    is_started: bool = attrs.field(default=False, init=False)
    task_count: int = attrs.field(default=0, init=False)
    """Tasks that were started and have not ended."""
    parked: "dict[Handling, None]" = attrs.field(factory=dict, init=False)
    """Workers that wait for a delivery, the last one that has parked at the end."""
    is_streaming: bool = attrs.field(default=False, init=False)
    """Whether the worker that parked last had found more than what it was woken for."""
    is_owed: bool = attrs.field(default=False, init=False)
    """Whether parked workers are to be woken if a handler waits before nothing is ready."""
    worker_count: int = attrs.field(default=0, init=False)
    handed_over: int = attrs.field(default=0, init=False)
    """Deliveries on their way to a parked worker: still queued, for nobody has begun them."""
    _is_frozen: bool = attrs.field(default=False, init=False)
    _offering: int = attrs.field(default=0, init=False)
    """Workers that are about to park."""
    _scopes: list[trio.CancelScope] = attrs.field(factory=list, init=False)
    _workers_hands: "dict[Handling, None]" = attrs.field(factory=dict, init=False)
    _timer: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _durations: deque[float] = attrs.field(
        factory=lambda: deque(maxlen=_DURATIONS_KEPT), init=False
    )
    _failures: Failures = attrs.field(init=False)
    _retries: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._failures = Failures(
            group=self.group.name,
            on_failure=self._on_failure,
            lanes=self.lanes,
            letters=self._letters,
            witnesses=self._witnesses,
            log_errors=self._log_errors,
            expect=self.expect,
        )
        self.group.on_gone = self._let_go

    def _let_go(self, subscription: Subscription) -> None:
        """Carry on with what waits for a retry of a subscription that has gone."""
        # By the name, for what is damaged or suspect has somebody who stands in for it.
        self._release(lambda owner, _: owner.name == subscription.name)

    def let_go_of_letters(self, ids: Set[int]) -> None:
        """Carry on behind replays that wait for a retry, and whose dead letters are gone."""
        self._release(lambda _, letter_id: letter_id in ids)

    def _release(self, is_meant: Callable[[Subscription, int | None], bool]) -> None:
        self.lanes.let_go(is_meant)
        self._notice_due()
        self.wake()

    def replay(
        self, letter: DeadLetter, event: Any, subscription: Subscription, watch: Any
    ) -> None:
        """Deliver a dead letter again, behind what there is of its aggregate."""
        given = (event, letter.aggregate_id, (subscription,), watch, letter.id, letter.position)
        if self.ledger is None:
            self.lanes.add(*given)
        else:
            self.ledger.replay(given)
        self.wake()

    def become_durable(self, ledger: Ledger, letters: Letters) -> None:
        """Let a store have what the group comes to; nobody waits for room then but the ledger."""
        self.ledger = ledger
        self.lanes = self._failures.lanes = ledger.lanes
        self._letters = self._failures.letters = letters
        self._failures.note_attempts = ledger.note_attempts
        self.buffer = max(self.buffer, 1)
        self._on_room = lambda _: ledger.notice_room()

    def has_room(self, count: int) -> bool:
        """Whether `count` more events fit; more than fit at all do when nothing else is held.

        With a buffer of 0 there is room for an event when a worker is free to take it.
        """
        return self._limit > 0 and self.lanes.held <= self.held_for(count)

    def held_for(self, count: int) -> float:
        """Return how few deliveries must be held for `count` more to fit."""
        return self._limit - min(count, self._limit)

    async def start(self, nursery: trio.Nursery) -> None:
        """Run the workers and the retry timer in `nursery`; all are running when this returns."""
        for run in self._tasks():
            self.task_count += 1
            await nursery.start(run)

    def start_soon(self, nursery: trio.Nursery) -> None:
        """Do the same for a group that was made while its bus is running."""
        for run in self._tasks():
            self.task_count += 1
            nursery.start_soon(run)

    def freeze(self) -> None:
        """Begin nothing any more; what runs goes on."""
        self._is_frozen = True
        self.lanes.freeze()

    @property
    def is_at_rest(self) -> bool:
        """Whether no handler runs, nor is about to."""
        return not (self.lanes.in_flight or self.handed_over)

    def work(self) -> str:
        """Say what there is still to do, by handler; "" if there is nothing."""
        running = Counter(
            own.delivery.subscription.name for own in self._workers_hands if own.delivery
        )
        lanes = self.lanes
        parts = [f"{name!r}" + f" ({n} times)" * (n > 1) + " to end" for name, n in running.items()]
        queued = self.unsettled - lanes.in_flight - lanes.waiting
        if queued > 0:
            parts.append(f"{queued} more to be handled")
        if lanes.waiting:
            parts.append(f"{lanes.waiting} retries to be due")
        return f"group {self.group.name!r}: {', '.join(parts)}" if parts else ""

    def cancel(self) -> None:
        """Cancel the workers with their handlers, and the timer."""
        for scope in self._scopes:
            scope.cancel()

    @enable_ki_protection
    def wake(self) -> None:
        """Hand ready deliveries to parked workers."""
        lanes = self.lanes
        self.is_owed = False
        while self.parked and lanes.ready:
            carriage = lanes.take()
            if carriage is None:
                return
            lanes.held += 1
            self.handed_over += 1
            worker, _ = self.parked.popitem()
            worker.delivery = carriage
            trio.lowlevel.reschedule(worker.worker)

    def wake_later(self) -> None:
        """Do so now if no worker is about to run, else as soon as that one's handler waits."""
        if not self.handed_over:
            self.wake()
        elif self.lanes.ready:
            self.is_owed = True

    def statistics(self) -> GroupStatistics:
        """Return the counters as they are now."""
        lanes = self.lanes
        # What a worker had that was cancelled is in nobody's hands: it is left.
        in_flight = min(lanes.in_flight, self.worker_count)
        return GroupStatistics(
            published=lanes.added,
            handled=lanes.finished,
            failed_attempts=self._failures.attempts,
            retries=self._retries + self._failures.first_again,
            dead_lettered=self._failures.dead_lettered,
            queued=lanes.queued + lanes.in_flight - in_flight,
            in_flight=in_flight,
            waiting_for_retry=lanes.waiting,
            worker_count=self.worker_count,
            busy_workers=in_flight,
            subscription_count=len(self.group.subscriptions),
            lag=lanes.unsettled if self.ledger is None else self.ledger.lag,
            p50=percentile(self._durations, 0.5),
            p99=percentile(self._durations, 0.99),
        )

    @property
    def unsettled(self) -> int:
        """How many events the group still has to deal with."""
        return self.lanes.unsettled + (0 if self.ledger is None else self.ledger.unread)

    @property
    def is_idle(self) -> bool:
        """Whether a worker has nothing to do."""
        return bool(self.parked)

    def expect(self, due: float) -> None:
        """Look for what is due at that time, and not later."""
        self._timer.deadline = min(self._timer.deadline, due)

    def _notice_due(self) -> None:
        if self.ledger is not None:
            self.ledger.notice_due()

    def notice_quiet(self) -> None:
        """Tell whoever waits for it that nothing is left to do, or to run, if that is so."""
        if self.idle.is_wanted and not (
            self.worker_count and self.unsettled and not (self._is_frozen and self.is_at_rest)
        ):
            self.idle.notice()

    @property
    def most_workers(self) -> int:
        """How many workers the group has when it runs."""
        return self._workers

    @property
    def is_total(self) -> bool:
        """Whether one worker alone handles everything in its order."""
        return self._workers == 1

    @property
    def _limit(self) -> float:
        return self.buffer or len(self.parked) + self.handed_over + self._offering

    def _tasks(self) -> list[Callable[..., Awaitable[None]]]:
        """Return what to run, each with a scope that `cancel` knows before it has begun."""
        runs: list[Callable[..., Awaitable[None]]] = [self._run_timer]
        if self.ledger is not None:
            runs.append(self.ledger.run)
        runs.extend([self._run_worker] * self._workers)
        self.is_started = True
        self._scopes = [trio.CancelScope() for _ in runs]
        return [
            partial(self._counted, run, scope)
            for run, scope in zip(runs, self._scopes, strict=True)
        ]

    async def _counted(
        self,
        run: Callable[..., Awaitable[None]],
        scope: trio.CancelScope,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        try:
            await run(scope, task_status=task_status)
        finally:
            self.task_count -= 1
            self.idle.notice()

    async def _run_timer(
        self,
        scope: trio.CancelScope,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Release the retries that are due. It sleeps until the next one is, or for ever."""
        with scope:
            task_status.started()
            while True:
                with self._timer:
                    await trio.sleep_forever()
                self.lanes.release(trio.current_time())
                self._notice_due()
                due = self.lanes.next_due()
                self._timer = trio.CancelScope(deadline=math.inf if due is None else due)
                self.wake()

    async def _run_worker(
        self,
        scope: trio.CancelScope,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        with scope:
            own = Handling(trio.lowlevel.current_task(), handling.get())
            handling.set(own)
            self._workers_hands[own] = None
            self.worker_count += 1
            try:
                task_status.started()
                await trio.lowlevel.checkpoint_if_cancelled()  # it begins nothing any more
                await self._work(own)
            finally:
                self.worker_count -= 1
                del self._workers_hands[own]
                self.parked.pop(own, None)  # if KeyboardInterrupt came before it could wait
                self.notice_quiet()

    async def _work(self, own: Handling) -> None:
        """Take deliveries through their handlers, one after the other, for ever."""
        # One long function with its attributes in locals: a call more costs a tenth of the speed.
        lanes = self.lanes
        take = lanes.take
        ledger = self.ledger
        advance = lanes.advance if ledger is None else self._advance
        durations = self._durations
        trio_clock = trio.lowlevel.current_clock()
        clock = trio_clock.current_time if is_virtual(trio_clock) else time.perf_counter
        parked, wait_task_rescheduled = self.parked, trio.lowlevel.wait_task_rescheduled
        idle = self.idle

        def abort(_: Any) -> trio.lowlevel.Abort:
            del parked[own]
            return trio.lowlevel.Abort.SUCCEEDED

        clean = CleanContext(ours=handling)
        given, pristine = clean.given, clean.pristine
        context: Context | None = own.worker.context
        turn = untimed = 0
        spare: Carriage | None = None
        while True:
            carriage = take(spare)
            if carriage is None:
                self.is_owed = False
                if self.waiting or ledger is not None:
                    carriage = self._find()
                if carriage is None:
                    own.delivery = spare = None  # so that an idle worker keeps no event alive
                    if clean.is_changed():
                        context = await clean.restore()
                        continue
                    self.is_streaming = turn > 1
                    parked[own] = None
                    await wait_task_rescheduled(abort)
                    carriage = self._begin(own)
                turn = untimed = 0
            if not turn:
                started = clock()
                turn_ends = started + _SECONDS_PER_TURN
            turn += 1
            if lanes.held <= self.admits_at:
                self._on_room(self)
            own.delivery = carriage
            while True:
                subscription = carriage.plan[carriage.index]
                for var, value in given:  # as in `CleanContext.is_changed`
                    if var.get() is not value:
                        context = None
                if context != pristine:
                    context = await clean.restore()
                carriage.attempt += 1
                try:
                    if (subscription.is_plain and carriage.letter_id is None) or not (
                        self._is_passed_over(carriage, subscription)
                    ):
                        if carriage.attempt > 1:
                            self._retries += 1
                        call = subscription.invoke(carriage.event)
                        if self.is_owed and lanes.ready:
                            result = await once_it_waits(self.wake, call)
                        else:
                            result = await call
                    else:
                        result = PASSED_OVER
                except (Exception, trio.Cancelled, BaseExceptionGroup) as error:  # noqa: BLE001  # the one around a user's handler
                    if self._failures.attempt_failed(carriage, subscription, error):
                        # It waits for a retry; or was cancelled, and this raises Cancelled.
                        await trio.lowlevel.checkpoint_if_cancelled()
                        spare = None
                        break
                else:
                    if carriage.watch is not None and result is not PASSED_OVER:
                        self._report(carriage, subscription, result)
                if advance(carriage):
                    if carriage.watch is not None:
                        carriage.watch.finished()
                    spare = carriage
                    break
            if idle.is_wanted:
                self.notice_quiet()
            if untimed:
                untimed -= 1
                if not untimed:
                    started = clock()
                continue
            ended = clock()
            took = ended - started
            durations.append(took)
            started = ended
            if turn >= _DELIVERIES_PER_TURN or ended > turn_ends:
                await trio.lowlevel.checkpoint()  # with empty hands: the others go on meanwhile
                turn = 0
            elif took < _QUICK and len(durations) == _DURATIONS_KEPT:
                untimed = _UNTIMED

    @enable_ki_protection
    def _advance(self, carriage: Carriage) -> bool:
        """Go on as `Lanes.advance` does; what is finished is recorded."""
        assert self.ledger is not None
        is_finished = self.lanes.advance(carriage)
        if is_finished:
            self.ledger.settle(carriage)
        return is_finished

    def _find(self) -> Carriage | None:
        """Tell those who wait for an idle worker, and return the delivery that comes of it."""
        if self.ledger is not None:
            self.ledger.notice_idle()
        if not self.waiting:
            return None
        self._offering += 1
        try:
            self._on_room(self)
        finally:
            self._offering -= 1
        return self.lanes.take()

    @enable_ki_protection
    def _begin(self, own: Handling) -> Carriage:
        """Return the delivery that was handed over to a worker."""
        self.handed_over -= 1
        self.lanes.held -= 1
        carriage: Carriage = own.delivery
        return carriage

    def _is_passed_over(self, carriage: Carriage, subscription: Subscription) -> bool:
        """Whether it was unsubscribed, a replay's letter is gone, or an earlier event is held.

        An event that is held back becomes a dead letter itself, untried.
        """
        if not subscription.is_active:
            return True
        letter_id = carriage.letter_id
        if letter_id is not None and letter_id not in self._letters:
            return True
        aggregate_id = aggregate_id_of(carriage, self.lanes)
        if not subscription.hold or aggregate_id is None:
            return False
        first = self._letters.first_of(self.group.name, subscription.name, aggregate_id)
        if first is None or first == letter_id:
            return False
        where = subscription.where
        is_wanted = where is None or truth("where", where(carriage.event))
        if letter_id is None and is_wanted:
            reason = HeldBack(
                f"not tried, for dead letter {first} is an earlier event of {aggregate_id!r}: "
                "replay or discard that one first"
            )
            self._failures.give_up(carriage, subscription, reason, 0)
        return True

    def _report(self, carriage: Carriage, subscription: Subscription, result: object) -> None:
        if carriage.letter_id is not None:
            self._letters.remove(carriage.letter_id)
        if carriage.watch is not None and result is not NOT_MATCHED:
            carriage.watch.handled(subscription, result)
