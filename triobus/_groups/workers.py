"""The Trio shell of a group: workers, the channel that brings them deliveries, and the retry timer.

A worker carries deliveries one after the other for as long as one is ready. When none is, it waits
at the group's memory channel, and what becomes ready then is sent to it there. Nothing else wakes
it: an idle group costs nothing.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence, Set
from datetime import datetime
from typing import Any, Protocol

import attrs
import trio
from trio.lowlevel import cancel_shielded_checkpoint, enable_ki_protection

from triobus._checks import truth
from triobus._errors import HeldBack, WouldDeadlock
from triobus._events.causes import Handling, calling_deliveries, handling, snapshot_of
from triobus._groups.bundles import BundleWorker
from triobus._groups.bundling import BundlingLanes
from triobus._groups.crew import Crew, Run
from triobus._groups.dead_letters import DeadLetter, DeadLetterKeeper
from triobus._groups.deadline import Deadline
from triobus._groups.delivery import Bundle, InFlight, Replayed
from triobus._groups.effects import Effect, Effected, Effects
from triobus._groups.failures import Failures, LogErrors, OnFailure, aggregate_id_of
from triobus._groups.handlers import NOT_MATCHED
from triobus._groups.idle import Idle
from triobus._groups.instruments import Instruments
from triobus._groups.overview import statistics_of, work_of
from triobus._groups.statistics import GroupStatistics
from triobus._groups.subscriptions import Group, Subscription
from triobus._groups.work import work

_DURATIONS_KEPT = 1024


class GroupLog(Protocol):
    """Where a group's events come from, and where it says how far it is with them."""

    @property
    def lanes(self) -> BundlingLanes:
        """The lanes of the group."""

    @property
    def buffer(self) -> float:
        """How many deliveries the group may hold."""

    @property
    def unread(self) -> int:
        """Events for the group that it has not been given yet."""

    @property
    def lag(self) -> int:
        """Events that are not settled."""

    @property
    def runs(self) -> Sequence[Callable[..., Awaitable[None]]]:
        """The tasks that bring events to the group, as `GroupShell` starts them."""

    def serve(self, shell: "GroupShell", /) -> None:
        """Bring the events to this group."""

    def advance(self, delivery: InFlight, /) -> bool:
        """Go on as `Lanes.advance` does; a delivery that is finished is settled."""

    def when_recorded(self, function: Callable[[], None], /) -> None:
        """Call a function when all is recorded that is finished by now."""

    def record_attempts(
        self, delivery: InFlight, index: int, attempts: int, delay: float, /
    ) -> None:
        """A delivery has come to a subscription of its plan, and waits for its next attempt."""

    def on_room(self, shell: "GroupShell", /) -> None:
        """There is as much room as was waited for, or a worker has nothing to do meanwhile."""

    def on_due(self) -> None:
        """The time of an event that has to be read back may have come."""

    async def event_at(self, position: int | None, /) -> Any:
        """Return the event at a position of the log, or what stands for one that is unreadable."""

    async def withdraw(self, numbers: Set[int], /) -> list[InFlight | Bundle]:
        """Return deliveries that wait for a retry, by their numbers; they are in flight now."""

    async def pause(self) -> None:
        """Wait until no bus that shares the group runs a handler of it, and keep it so."""

    async def resume(self) -> None:
        """Let all buses that share the group go on."""

    async def have(self, effects: Sequence[Effect], /) -> Sequence[Effected]:
        """Make calls with a transaction inside one commit that settles what they handle."""

    async def reset(
        self, to: int | datetime | None, transaction: Callable[[Any], object] | None, /
    ) -> None:
        """Go on from another place in the log; None for its end."""

    def replay(self, given: Replayed, /) -> None:
        """Put a replay into its lane, behind the events of its aggregate that are on disk."""


@attrs.define(eq=False)
class GroupShell:
    """What runs for one group. The bus adds deliveries to `lanes` and then calls `wake`."""

    group: Group
    log: GroupLog
    buffer: float
    worker_limit: int
    """How many workers the group has when it runs."""
    _batch: int | None
    """How many events are handled in one call, if the group does that."""
    _on_failure: OnFailure
    _log_errors: LogErrors
    letters: DeadLetterKeeper
    _instruments: Instruments
    idle: Idle
    """Where waiting until nothing is left to do is kept."""

    waiting: OrderedDict[Any, None] = attrs.field(factory=OrderedDict, init=False)
    """The publishers that wait for room here, as the bus keeps them."""
    admits_at: float = attrs.field(default=-1, init=False)
    """How few deliveries may be held for the first of them to fit; -1 when none waits."""
    worker_count: int = attrs.field(default=0, init=False)
    free: int = attrs.field(default=0, init=False)
    """Workers that wait for a delivery, none of which is on its way to them."""
    sent: int = attrs.field(default=0, init=False)
    """Deliveries on their way to a worker: still queued, for none has begun them."""
    crew: Crew = attrs.field(init=False)
    lanes: BundlingLanes = attrs.field(init=False)
    failures: Failures = attrs.field(init=False)
    advance: Callable[[InFlight], bool] = attrs.field(init=False)
    """Goes on with a delivery as the log does, while instruments look on if there are some."""
    effects: Effects = attrs.field(init=False)
    retries: int = attrs.field(default=0, init=False)
    """Attempts that were made again."""
    durations: deque[float] = attrs.field(factory=lambda: deque(maxlen=_DURATIONS_KEPT), init=False)
    """Seconds that the last deliveries took."""
    _send: trio.MemorySendChannel[Any] = attrs.field(init=False)
    receive: trio.MemoryReceiveChannel[Any] = attrs.field(init=False)
    """The channel at which free workers wait. No more is ever sent than workers are free."""
    _is_frozen: bool = attrs.field(default=False, init=False)
    _handlings: dict[Handling, None] = attrs.field(factory=dict, init=False)
    _retries_due: Deadline = attrs.field(factory=Deadline, init=False)

    def __attrs_post_init__(self) -> None:
        self._send, self.receive = trio.open_memory_channel[Any](math.inf)
        self.crew = Crew(self.idle.notice)
        self.lanes = self.log.lanes
        self.failures = Failures(
            group=self.group.name,
            on_failure=self._on_failure,
            lanes=self.lanes,
            letters=self.letters,
            instruments=self._instruments,
            log_errors=self._log_errors,
            expect=self.expect,
            record_attempts=self.log.record_attempts,
        )
        self.observe()
        self.effects = Effects(self)
        self.group._running = self
        self.log.serve(self)
        if self.group._is_paused:
            self.lanes.freeze()

    # Deliveries

    def observe(self) -> None:
        """Take it up that an instrument has come or gone."""
        is_told = bool(self._instruments.settled)
        self.advance = self._advance_observed if is_told else self.log.advance

    def _advance_observed(self, delivery: InFlight) -> bool:
        """Go on as the log does, and tell instruments when a delivery is settled."""
        is_finished = self.log.advance(delivery)
        if is_finished:
            told = snapshot_of(delivery)
            if delivery.is_settled:  # in the commit of its handler
                self._instruments.call("settled", told)
            else:
                self.log.when_recorded(lambda: self._instruments.call("settled", told))
        return is_finished

    @enable_ki_protection
    def wake(self) -> None:
        """Send ready deliveries to free workers."""
        lanes = self.lanes
        while self.free:
            delivery = lanes.take()
            if delivery is None:
                return
            lanes.held += delivery.size
            self.sent += 1
            self.free -= 1
            self._send.send_nowait(delivery)

    def replay(
        self, letter: DeadLetter, event: Any, subscription: Subscription, completion: Any
    ) -> None:
        """Deliver a dead letter again, behind what there is of its aggregate."""
        self.log.replay(
            (event, letter.aggregate_id, (subscription,), completion, letter.id, letter.position)
        )
        self.wake()

    def let_go_of_letters(self, ids: Set[int]) -> None:
        """Carry on behind replays that wait for a retry, and whose dead letters are gone."""
        self._release(lambda _, letter_id: letter_id in ids)

    def let_go(self, subscription: Subscription) -> None:
        """Carry on with what waits for a retry of a subscription that has gone."""
        # By the name, for another one stands in for it where an event is damaged or suspect.
        self._release(lambda owner, _: owner.name == subscription.name)

    def _release(self, is_meant: Callable[[Subscription, int | None], bool]) -> None:
        self.lanes.let_go(is_meant)
        self.log.on_due()
        self.wake()

    def hurry(self, numbers: Set[int]) -> int:
        """Make attempts now that would be due later, by numbers; return for how many events."""
        count = self.lanes.hurry(numbers)
        self.log.on_due()
        self.wake()
        return count

    async def give_up(self, numbers: Set[int]) -> int:
        """Make dead letters of what waits for a retry, by numbers; return of how many events."""
        found = await self.log.withdraw(numbers)
        count = sum(self.failures.end_waiting(delivery, self.advance) for delivery in found)
        self.wake()
        self.notice_idle()
        return count

    # Room

    def has_room(self, count: int) -> bool:
        """Whether `count` more events fit; more than fit at all do when nothing else is held.

        With a buffer of 0 there is room for an event when a worker is free to take it.
        """
        return self._limit > 0 and self.lanes.held <= self.held_for(count)

    def held_for(self, count: int) -> float:
        """Return how few deliveries must be held for `count` more to fit."""
        return self._limit - min(count, self._limit)

    @property
    def _limit(self) -> float:
        return self.buffer or self.free + self.sent

    # Starting and stopping

    async def start(self, nursery: trio.Nursery) -> None:
        """Run the workers and the retry timer in `nursery`; all are running when this returns."""
        await self.crew.start(nursery, self._runs)

    def start_soon(self, nursery: trio.Nursery) -> None:
        """Do the same for a group that was made while its bus is running."""
        self.crew.start_soon(nursery, self._runs)

    @property
    def _runs(self) -> list[Run]:
        return [self._run_timer, *self.log.runs, *[self._run_worker] * self.worker_limit]

    async def transact(self, function: Callable[[Any], object], timeout: float | None) -> object:
        """Call a function with a transaction, inside a commit that settles the calling delivery."""
        return await self.effects.call(function, timeout)

    # Pausing

    def check_not_inside(self, call: str) -> None:
        """Raise `WouldDeadlock` inside a handler of the group."""
        for delivery in calling_deliveries():
            if delivery.subscription._owner is self.group:
                raise WouldDeadlock(
                    f"{call} was called inside the handler {delivery.subscription.name!r} of the "
                    "same group, for which it would wait: call it outside"
                )

    async def rest(self) -> None:
        """Begin nothing any more, and wait until no handler runs."""
        self.lanes.freeze()
        self.idle.notice()  # a bus that drains waits for it no more
        await cancel_shielded_checkpoint()
        await self.log.pause()
        await self.idle.wait_until(
            lambda: self.is_at_rest or not self.worker_count or not self.group._is_paused
        )

    def go_on(self) -> None:
        """Begin again what there is, unless the bus is stopping."""
        if not self._is_frozen:
            self.lanes.thaw()
            self.idle.notice()
            self.log.on_due()
            self.wake()

    async def resume(self) -> None:
        """Begin again what there is, on every bus that shares the group."""
        self.go_on()
        await self.log.resume()

    async def reset(
        self, to: int | datetime | None, transaction: Callable[[Any], object] | None
    ) -> None:
        """Go on from another place in the log; None for its end."""
        await self.log.reset(to, transaction)

    @property
    def has_work(self) -> bool:
        """Whether there is something that a bus that drains waits for."""
        return bool(self.unsettled) and not (self.group._is_paused and self.is_at_rest)

    def freeze(self) -> None:
        """Begin nothing any more; what runs goes on."""
        self._is_frozen = True
        self.lanes.freeze()

    # The retry timer

    def expect(self, due: float) -> None:
        """Look for what is due at that time, and not later."""
        self._retries_due.expect(due)

    async def _run_timer(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Release the retries that are due. It sleeps until the next one is, or for ever."""
        task_status.started()
        while True:
            await self._retries_due.sleep()
            self.lanes.release(trio.current_time())
            self.log.on_due()
            due = self.lanes.next_due()
            if due is not None:
                self.expect(due)
            self.wake()

    # Workers

    async def _run_worker(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        own = Handling(trio.lowlevel.current_task(), handling.get())
        handling.set(own)
        self._handlings[own] = None
        self.worker_count += 1
        try:
            task_status.started()
            await trio.lowlevel.checkpoint_if_cancelled()  # it begins nothing any more
            if self._batch is None:
                await work(self, own)
            else:
                await BundleWorker(self, own, self._batch).work()
        finally:
            self.worker_count -= 1
            del self._handlings[own]
            self.notice_idle()

    def is_passed_over(self, delivery: InFlight, subscription: Subscription) -> bool:
        """Whether it was unsubscribed, a replay's letter is gone, or an earlier event is held.

        An event that is held back becomes a dead letter itself, untried.
        """
        if not subscription.is_active:
            return True
        letter_id = delivery.letter_id
        if letter_id is not None and letter_id not in self.letters:
            return True
        aggregate_id = aggregate_id_of(delivery, self.lanes)
        if not subscription.hold or aggregate_id is None:
            return False
        first = self.letters.first_of(self.group.name, subscription.name, aggregate_id)
        if first is None or first == letter_id:
            return False
        where = subscription._where
        is_wanted = where is None or truth("where", where(delivery.event))
        if letter_id is None and is_wanted:
            reason = HeldBack(
                f"not tried, for dead letter {first} is an earlier event of {aggregate_id!r}: "
                "replay or discard that one first"
            )
            self.failures.give_up(delivery, subscription, reason, 0)
        return True

    def handled(self, delivery: InFlight, subscription: Subscription, result: object) -> None:
        """Tell the publisher that waits what a handler returned; a replayed letter goes."""
        if delivery.letter_id is not None:
            self.letters.remove(delivery.letter_id)
        if delivery.completion is not None and result is not NOT_MATCHED:
            delivery.completion.handled(subscription, result)

    # Looking at it

    @property
    def unsettled(self) -> int:
        """How many events the group still has to deal with."""
        return self.lanes.unsettled + self.log.unread

    @property
    def is_at_rest(self) -> bool:
        """Whether no handler runs, nor is about to."""
        return not (self.lanes.in_flight or self.sent)

    @property
    def _is_resting(self) -> bool:
        return self._is_frozen or self.group._is_paused

    def notice_idle(self) -> None:
        """Wake the tasks that wait until nothing is left to do, or to run, if that is so."""
        if self.idle.is_wanted and not (
            self.worker_count and self.unsettled and not (self._is_resting and self.is_at_rest)
        ):
            self.idle.notice()

    def work(self) -> str:
        """Say what there is still to do, by handler; "" if there is nothing."""
        return work_of(self)

    def statistics(self) -> GroupStatistics:
        """Return the counters as they are now."""
        return statistics_of(self)
