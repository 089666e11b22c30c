"""`EventBus`: wires groups, listeners and the caller together, and owns the nursery."""

import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from itertools import repeat
from types import TracebackType
from typing import Any, Literal, TypeVar, get_args

import attrs
import trio
from trio.lowlevel import (
    cancel_shielded_checkpoint,
    checkpoint_if_cancelled,
    enable_ki_protection,
)

from triobus import _checks
from triobus._dead_letters import DeadLetterBox, Letters
from triobus._delivery import Carriage, Lanes
from triobus._errors import (
    BusAlreadyStarted,
    BusClosed,
    BusFull,
    DuplicateName,
    InvalidOption,
    StoreError,
    WouldDeadlock,
)
from triobus._events import DomainEvent, Published, published, with_cause
from triobus._group import GroupShell, OnFailure, carried
from triobus._handlers import Predicate
from triobus._health import Health, memory_mb
from triobus._intake import Intake, describe_full
from triobus._listeners import Listener, Waiter
from triobus._publishing import Batch, Outcome, OutcomeWatch
from triobus._recorder import Recorder
from triobus._replay import DeadLetters
from triobus._statistics import BusStatistics, GroupStatistics
from triobus._stored_listener import StoredListener
from triobus._subscriptions import Group, event_types
from triobus._witness import Witness, watcher_of_run
from triobus.stores import EventStore

logger = logging.getLogger("triobus")

E = TypeVar("E", bound=DomainEvent)
Ordering = Literal["aggregate", "none"]
Start = Literal["now", "beginning"]
State = Literal["new", "starting", "running", "draining", "stopped"]


@attrs.frozen(kw_only=True)
class StopReport:
    """What a bus had done and what it left when it stopped, by the name of the group."""

    settled: Mapping[str, int]
    """Deliveries finished since the start."""
    left: Mapping[str, int]
    """Deliveries that were accepted and not finished: queued, cancelled or waiting for a retry."""


class EventBus:
    """A bus for domain events inside a Trio program.

    Subscribe handlers, then run it as `async with bus:` or `await nursery.start(bus.run)`. It runs
    once. All its tasks live in a nursery that ends with the block, or with `run`.

    - `store`: where events, progress and dead letters are kept, so that they outlive the program;
      the bus opens it when it starts and closes it when it stops. None for a bus in memory.
    - `workers`: how many deliveries of the group "default" are carried at a time, each for another
      aggregate; 1 gives total order, in which only a retry is overtaken.
    - `buffer`: how many events that group holds beyond those that workers have. Publishers wait for
      room; with a store they do not, and the rest stays on disk. `math.inf` for no limit; 0 for
      none beyond what a free worker takes (1 with a store).
    - `on_failure`: what an event becomes whose handler failed for good: a "dead-letter", or with
      "raise" the error leaves through the nursery and ends the bus.

    Raises `InvalidOption` for values that cannot work.
    """

    def __init__(
        self,
        store: EventStore | None = None,
        *,
        workers: int = 4,
        buffer: float = 1000,
        on_failure: OnFailure = "dead-letter",
    ) -> None:
        self._on_failure: OnFailure = on_failure
        _checks.choice("on_failure", on_failure, get_args(OnFailure))
        self._intake = Intake()
        self._was_drained = False
        self._is_crashed = False
        self._recorder: Recorder | None = None
        self._letters: Letters = DeadLetterBox()
        self._from_beginning: dict[str, bool] = {}
        self._watches: set[Any] = set()
        self._state: State = "new"
        self._started_at = 0.0
        self._stopped_at = 0.0
        self._quiet: trio.Event | None = None
        self._is_cancelled = False
        self._recording = trio.CancelScope()
        self._ended = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._manager: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._clock: trio.abc.Clock | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._thread = self._pid = 0

        self.dead_letters = self._dead_letters_of(self._letters)
        """What handlers have failed for good: `list`, `replay` and `discard`."""
        if store is not None:
            self.store = store
        self.subscribe = self.group("default", workers=workers, buffer=buffer).subscribe
        """Subscribe a handler in the group "default"; see `Group.subscribe`."""

    @property
    def store(self) -> EventStore | None:
        """The store of the bus, None without one. It can be given until the bus starts."""
        return None if self._recorder is None else self._recorder.store

    @store.setter
    def store(self, store: EventStore) -> None:
        if not isinstance(store, EventStore):
            raise InvalidOption(
                f"store={store!r}: give an EventStore, such as SqliteEventStore('orders.db'), or "
                "None for a bus in memory"
            )
        if self._state != "new":
            raise BusAlreadyStarted("the bus has started: give it its store before")
        self._recorder = Recorder(store, self._intake.tell, self._intake.witnesses)
        self._letters = self._recorder.letters
        self.dead_letters = self._dead_letters_of(self._letters)
        for shell in self._intake.shells.values():
            self._make_durable(shell)
        self._intake.forget_routes()

    def _make_durable(self, shell: GroupShell) -> None:
        if self._recorder is not None:
            name = shell.group.name
            feed = self._recorder.add(shell, from_beginning=self._from_beginning[name])
            shell.become_durable(feed, self._letters)

    def _dead_letters_of(self, letters: Letters) -> DeadLetters:
        return DeadLetters(letters, self._intake.shells, self._watches, self._check_answerable)

    def group(
        self,
        name: str,
        *,
        workers: int = 4,
        buffer: float = 1000,
        ordering: Ordering = "aggregate",
        start: Start = "now",
    ) -> Group:
        """Make a further group, with its own workers, order and buffer.

        `ordering="none"` lets the events of one aggregate be handled at the same time. `start` says
        whether a group that the store does not know begins with what is stored from the
        "beginning", or with what comes after its first subscription; one that it knows goes on
        where it ended. Without a store there is nothing before "now". Raises `InvalidOption` or
        `DuplicateName`, and `BusClosed` after the stop.
        """
        _checks.name("name", name)
        _checks.whole_number("workers", workers, least=1)
        _checks.capacity("buffer", buffer, least=0)
        _checks.choice("ordering", ordering, get_args(Ordering))
        _checks.choice("start", start, get_args(Start))
        if name in self._intake.shells:
            raise DuplicateName(f"the bus already has a group {name!r}: choose another name")
        self._check_not_stopped(f"group({name!r})")
        shell = GroupShell(
            group=Group(name, trio.CapacityLimiter(workers), partial(self._resubscribed, name)),
            lanes=Lanes(is_ordered=ordering == "aggregate"),
            buffer=buffer,
            workers=workers,
            on_failure=self._on_failure,
            letters=self._letters,
            witnesses=self._intake.witnesses,
            on_room=self._intake.admit,
            on_quiet=self._notice_quiet,
        )
        self._intake.shells[name] = shell
        self._attend(shell.group)
        self._from_beginning[name] = start == "beginning"
        self._make_durable(shell)
        if self._nursery is not None:
            shell.start_soon(self._nursery)
            if self._is_cancelled:
                shell.cancel()
        return shell.group

    def _resubscribed(self, name: str) -> None:
        self._intake.forget_routes()
        self._attend(self._intake.shells[name].group)
        if self._recorder is not None:
            self._recorder.notice_subscriptions(self._recorder.feeds[name])

    # Being watched

    def _watch(self, witness: Witness) -> None:
        """Let a witness see what happens from here on."""
        self._intake.witnesses.append(witness)
        self._intake.forget_routes()
        for shell in self._intake.shells.values():
            witness.attend(shell.group)

    def _attend(self, group: Group) -> None:
        for witness in self._intake.witnesses:
            witness.attend(group)

    # Starting and stopping

    @enable_ki_protection
    async def __aenter__(self) -> "EventBus":
        """Start: every worker is running when the body begins. Raises `BusAlreadyStarted`."""
        _checks.inside_trio("async with bus")
        if self._state != "new":
            raise BusAlreadyStarted(
                "this bus has been started before, and a bus runs once: make a new EventBus"
            )
        if (watcher := watcher_of_run.get()) is not None:
            self._watch(watcher(self))
        if self._recorder is not None:
            self._become("starting")
            try:
                await self._recorder.attach()
            except BaseException:
                self._become("new")
                raise
        self._become("running")
        self._clock = trio.lowlevel.current_clock()
        self._started_at = self._clock.current_time()
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.get_ident()
        self._pid = os.getpid()
        self._manager = trio.open_nursery()
        nursery = await self._manager.__aenter__()
        try:
            for shell in self._intake.shells.values():
                await shell.start(nursery)
            if self._recorder is not None:
                await nursery.start(self._record)
        except BaseException as error:
            self._close()
            try:
                await self._manager.__aexit__(type(error), error, error.__traceback__)
            finally:
                await self._detach()
            raise
        self._nursery = nursery
        return self

    @enable_ki_protection
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Drain, then stop. Cancelled, or left by KeyboardInterrupt, it cancels the handlers.

        The body's own exception is kept from the nursery, which would wrap it in a group.
        """
        assert self._manager is not None
        is_own = exc is not None and not _is_cancellation(exc)
        into_nursery = None if is_own else exc
        unrecorded: StoreError | None = None
        try:
            if self._state == "running" and (exc is None or isinstance(exc, Exception)):
                await self._wind_down(drain=True, timeout=None)
            elif exc is not None and not isinstance(exc, Exception):
                self._cancel()
        except StoreError as error:
            unrecorded = error
        except BaseException as error:  # noqa: BLE001  # the nursery gets it and decides
            into_nursery = error
        failure: BaseException | None = None
        try:
            # It suppresses nothing: its own scope is cancelled only by an error, which it raises.
            await self._manager.__aexit__(
                None if into_nursery is None else type(into_nursery),
                into_nursery,
                None if into_nursery is None else into_nursery.__traceback__,
            )
        except BaseException as error:  # noqa: BLE001  # it is raised below
            failure = error
        try:
            await self._detach()
        except StoreError as error:
            unrecorded = error
        finally:
            self._close()
        failure = failure or (None if into_nursery is exc else into_nursery)
        if unrecorded is not None and (failure is not None or not (is_own or exc is None)):
            logger.error("what was finished at the end could not be recorded: %s", unrecorded)
        failure = failure or (unrecorded if is_own or exc is None else None)
        if failure is not None and is_own:
            assert exc is not None
            raise BaseExceptionGroup("the block and its bus failed", [exc, failure]) from None
        if failure is not None and failure is not exc:
            raise failure

    @enable_ki_protection
    async def run(
        self, *, task_status: trio.TaskStatus["EventBus"] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run until `stop` is called: `await nursery.start(bus.run)`, which returns the bus.

        Every worker is running when `start` returns. Cancelled, it cancels the handlers; what was
        left is counted and logged. Raises `BusAlreadyStarted`.
        """
        async with self:
            task_status.started(self)
            await self._ended.wait()

    @enable_ki_protection
    async def stop(self, *, drain: bool = True, timeout: float | None = None) -> StopReport:
        """Accept nothing more from outside, let the handlers finish what there is, and stop.

        With `drain=False`, after `timeout` seconds, or when it is cancelled, the handlers are
        cancelled; what they left is in the report. What handlers publish meanwhile is accepted.
        Raises `BusClosed` before the start and when the bus was stopped before, and `WouldDeadlock`
        in a handler of the same bus, which would wait for itself.
        """
        if timeout is not None:
            _checks.number("timeout", timeout, least=0)
        self._check_waitable("stop()")
        await checkpoint_if_cancelled()
        if self._state != "running":
            raise self._closed("stop()")
        await self._wind_down(drain=drain, timeout=timeout)
        return self._report()

    async def _wind_down(self, *, drain: bool, timeout: float | None) -> None:
        await checkpoint_if_cancelled()
        self._become("draining")
        self._intake.refuse_all()
        try:
            if drain:
                with trio.CancelScope(
                    deadline=float("inf") if timeout is None else trio.current_time() + timeout
                ):
                    await self._until_quiet(lambda: not self._unsettled)
                    while self._recorder is not None and await self._recorder.wait_for_publishers():
                        await self._until_quiet(lambda: not self._unsettled)
                    self._was_drained = True
        finally:
            self._cancel()
            await self._end()

    async def _end(self) -> None:
        """Wait for the handlers, who have been cancelled, and close."""
        try:
            await self._until_quiet(lambda: not self._worker_count)
        except BaseException:
            self._ended.set()  # so that `run` goes on, which waits for them and closes
            raise
        try:
            await self._detach()
        finally:
            self._close()

    async def _crash(self) -> None:
        """End as a killed process would: for `triobus.testing.crash`."""
        if self._state not in ("running", "draining"):
            raise self._closed("crash()")
        self._crash_soon()
        await self._end()

    def _crash_soon(self) -> None:
        """Do so as soon as the handlers have ended, who are cancelled."""
        self._become("draining")
        self._is_crashed = True
        if self._recorder is not None:
            self._recorder.halt()
        self._intake.refuse_all()
        self._cancel()

    async def _detach(self) -> None:
        """Record what is finished and let go of the store. Not to be cancelled.

        Nobody from outside is let in any more: it would be stored behind the last recording.
        """
        if self._recorder is not None:
            if self._state == "running":
                self._become("draining")
            await self._recorder.detach()

    async def _record(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        assert self._recorder is not None
        with self._recording:
            await self._recorder.run(task_status=task_status)

    def _become(self, state: State) -> None:
        self._state = state
        self._intake.is_open = state == "running"

    def _cancel(self) -> None:
        self._is_cancelled = True
        self._recording.cancel()
        for shell in self._intake.shells.values():
            shell.wants_quiet = True
            shell.cancel()

    async def _until_quiet(self, is_met: Callable[[], bool]) -> None:
        """Wait for a condition that can become true when work runs out, or the workers end."""
        while not is_met() and self._state != "stopped":
            if self._quiet is None:
                self._quiet = trio.Event()
            for shell in self._intake.shells.values():
                shell.wants_quiet = True
            await self._quiet.wait()

    def _notice_quiet(self) -> None:
        is_over = self._recorder is None or self._is_crashed
        if self._state == "draining" and not self._worker_count and is_over:
            self._close()
        elif self._quiet is not None and not (self._worker_count and self._unsettled):
            for shell in self._intake.shells.values():
                # The end is noticed in any case: whoever waits for it may be cancelled.
                shell.wants_quiet = self._is_cancelled
            self._quiet.set()
            self._quiet = None

    def _close(self) -> None:
        """End everything that waits for the bus. Does nothing the second time."""
        if self._state == "stopped":
            return
        self._become("stopped")
        if self._clock is not None:
            self._stopped_at = self._clock.current_time()
        self._nursery = None
        if self._was_drained:
            for witness in self._intake.witnesses:
                witness.drained()
        self._intake.refuse_all()
        for listener in self._intake.listeners:
            listener.close()
        for waiter in self._intake.waiters:
            waiter.fail(BusClosed("the bus stopped before an event came that wait_for() wanted"))
        for watch in self._watches:
            watch.cut_off()
        self._ended.set()
        if self._quiet is not None:
            self._quiet.set()
            self._quiet = None
        left = {name: count for name, count in self._report().left.items() if count}
        if left and not self._is_crashed:
            counts = ", ".join(f"{count} in group {name!r}" for name, count in left.items())
            logger.warning("the bus stopped and left deliveries: %s", counts)

    def _report(self) -> StopReport:
        shells = self._intake.shells.items()
        return StopReport(
            settled={name: shell.lanes.finished for name, shell in shells},
            left={name: shell.unsettled for name, shell in shells},
        )

    @property
    def _unsettled(self) -> int:
        return sum(shell.unsettled for shell in self._intake.shells.values())

    @property
    def _worker_count(self) -> int:
        return sum(shell.worker_count for shell in self._intake.shells.values())

    # Publishing

    @enable_ki_protection
    async def publish(
        self, event: DomainEvent, *, expected_sequence: int | None = None
    ) -> Published:
        """Publish an event, and return once it is accepted.

        With a store it is accepted when it is stored; an event that the store has already is
        accepted without being delivered again, and keeps its first position. `expected_sequence` is
        the last sequence that its aggregate must have before, 0 for none. Without a store it waits
        until all groups and listeners that want the event have room; inside a handler of this bus
        it does not. There the event inherits the correlation id of the handled one and has it as
        cause.

        If it raises, `Cancelled` included, the event was not accepted and no handler sees it,
        except for `OutcomeUnknown`. Raises `InvalidEvent`, `BusClosed` when the bus is not running,
        and with a store `EventNotEncodable`, `SequenceConflict` and `StoreError`.
        """
        await checkpoint_if_cancelled()
        if self._recorder is not None:
            batch = Batch([event])
            self._take_cause(batch)
            (place,) = await self._recorder.store.submit(batch, expected_sequence)
            return Published(event.event_id, place.position)
        if expected_sequence is not None:
            raise InvalidOption(
                f"expected_sequence={expected_sequence!r}: a bus without a store knows no "
                "sequences; give it one: EventBus(store=...)"
            )
        shells = self._intake.accept(event)
        if shells is None:
            await self._publish_batch(Batch([event]))
        else:
            await cancel_shielded_checkpoint()
            # Workers that were about to run may have taken it meanwhile.
            for shell in shells:
                if shell.parked and shell.lanes.held:
                    shell.wake_later()
        return Published(event.event_id, None)

    @enable_ki_protection
    async def publish_many(self, events: Iterable[DomainEvent]) -> list[Published]:
        """Publish several events in their order, all or none of them.

        Without a store it waits until all fit; more than a group's whole buffer are let in when it
        holds nothing else. If it raises, none was accepted. Otherwise like `publish`.
        """
        batch = Batch(list(events))
        await checkpoint_if_cancelled()
        if self._recorder is not None:
            self._take_cause(batch)
            places = await self._recorder.store.submit(batch)
            return published(batch.events, [place.position for place in places])
        await self._publish_batch(batch)
        return published(batch.events, repeat(None))

    @enable_ki_protection
    def publish_nowait(self, event: DomainEvent) -> Published:
        """Publish an event without waiting: raises `BusFull` when there is no room for it.

        Only without a store, which has to be waited for. Call it in the thread of the bus; from
        others there is `publish_from_thread`. Otherwise like `publish`.
        """
        if self._recorder is not None:
            raise InvalidOption(
                "publish_nowait() cannot wait for the store that this bus has: use "
                "'await bus.publish(event)'"
            )
        if self._state != "new" and threading.get_ident() != self._thread:
            raise InvalidOption(
                "publish_nowait() was called in another thread than the bus runs in: "
                "call publish_from_thread() there"
            )
        shells = self._intake.accept(event)
        if shells is None:
            batch = Batch([event])
            is_inside = self._take_cause(batch)
            full = None if is_inside else self._intake.first_full(batch)
            if full is not None:
                raise BusFull(describe_full(full))
            self._intake.commit(batch)
        else:
            for shell in shells:
                shell.wake()
        return Published(event.event_id, None)

    @enable_ki_protection
    async def publish_and_wait(self, event: DomainEvent) -> Outcome:
        """Publish an event and wait until all its handlers have finished, retries included.

        Cancelled while it waits for them, the event stays accepted. Raises `BusClosed` if the bus
        stops before they have finished, and `WouldDeadlock` inside a handler of this bus. Otherwise
        like `publish`.
        """
        self._check_waitable("publish_and_wait()")
        watch = OutcomeWatch(event)
        batch = Batch([event], watch)
        await checkpoint_if_cancelled()
        self._watches.add(watch)
        try:
            if self._recorder is None:
                await self._publish_batch(batch)
                return await watch.wait()
            self._take_cause(batch)
            (place,) = await self._recorder.store.submit(batch)
            return await watch.wait(place.position)
        finally:
            self._watches.discard(watch)

    def publish_from_thread(self, event: DomainEvent) -> Published:
        """Publish an event from another thread, Trio's or foreign, and block until it is accepted.

        In a thread of `trio.to_thread.run_sync` it is cancelled with that call. Otherwise like
        `publish`.
        """
        if self._token is None:
            raise self._closed("publish_from_thread()")
        if os.getpid() != self._pid:
            if self._recorder is not None:
                self._recorder.store.check_process()
            raise BusClosed(
                f"publish_from_thread(): the bus runs in process {self._pid}, and process "
                f"{os.getpid()} is a forked child of it, in which it does not run"
            )
        if threading.get_ident() == self._thread:
            raise WouldDeadlock(
                "publish_from_thread() was called in the thread that the bus runs in, which it "
                "would block: use 'await bus.publish(event)' there"
            )
        try:
            token = None if trio.from_thread.run_sync(self._is_own_run) else self._token
        except RuntimeError:
            token = self._token
        try:
            return trio.from_thread.run(self.publish, event, trio_token=token)
        except trio.RunFinishedError:
            raise self._closed("publish_from_thread()") from None

    def _is_own_run(self) -> bool:
        return trio.lowlevel.current_trio_token() is self._token

    async def _publish_batch(self, batch: Batch) -> None:
        """Accept a batch as soon as there is room. Cancelled while it waits, none of it is."""
        is_inside = self._take_cause(batch)
        full = None if is_inside else self._intake.first_full(batch)
        if full is None:
            self._intake.commit(batch)
            await cancel_shielded_checkpoint()
            return
        batch.task = trio.lowlevel.current_task()
        self._intake.wait_at(full, batch)

        def abort(_: Any) -> trio.lowlevel.Abort:
            place = batch.place
            del place.waiting[batch]
            self._intake.admit(place)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        if batch.is_refused:
            raise self._closed("publish()")

    def _take_cause(self, batch: Batch) -> bool:
        """Give the batch its cause; return whether it comes from a handler of this bus."""
        cause = carried()
        is_inside = cause is not None and self._is_mine(cause)
        if self._state != "running" and not (is_inside and self._state == "draining"):
            raise self._closed("publish()")
        if cause is not None:
            batch.events = [with_cause(event, cause.event) for event in batch.events]
        return is_inside

    def _is_mine(self, carriage: Carriage) -> bool:
        subscription = carriage.subscription
        shell = self._intake.shells.get(subscription.group)
        return shell is not None and shell.group is subscription.owner

    # Waiting and listening

    async def wait_idle(self) -> None:
        """Wait until nothing is queued, running or waiting for a retry, and all that is recorded.

        Raises `BusClosed` if the bus stopped and left something, `WouldDeadlock` inside a handler
        of the same bus, and `StoreError` if what is finished could not be recorded yet.
        """
        self._check_waitable("wait_idle()")
        await trio.lowlevel.checkpoint()
        await self._until_quiet(lambda: not self._unsettled)
        while self._recorder is not None and self._recorder.is_pending:
            await self._recorder.flush()
            await self._until_quiet(lambda: not self._unsettled)
        if self._unsettled:
            raise BusClosed(
                f"the bus stopped with {self._unsettled} deliveries left, which will not be made"
            )

    @asynccontextmanager
    async def listen(
        self, *types: type[DomainEvent], buffer: float = 100
    ) -> AsyncIterator[Listener]:
        """Listen to events without a handler: `async with bus.listen(OrderPlaced) as events:`.

        `async for event in events` then gives every event of the types (without types: every event)
        that is accepted from here on, in that order. It has no retries and no statistics. Up to
        `buffer` events are held for it; after that publishers wait, as they do for a group, and
        with a store it reads the rest from there. The iteration ends when the bus has stopped.
        """
        found = event_types(types or DomainEvent)
        _checks.capacity("buffer", buffer, least=1)
        self._check_not_stopped("listen()")
        if self._recorder is None:
            listener = Listener(found, buffer, self._intake.admit)
        else:
            listener = StoredListener(found, buffer, self._intake.admit, self._recorder.store)
        self._intake.add(listener)
        try:
            await trio.lowlevel.checkpoint()
            yield listener
        finally:
            self._intake.remove(listener)

    async def wait_for(self, type_: type[E], where: Predicate | None = None) -> E:
        """Wait for the next event of a type, or of a tuple of types, that `where` is true for.

        Use it under `trio.fail_after`. Raises what `where` raises, and `BusClosed` if the bus stops
        before such an event.
        """
        self._check_not_stopped("wait_for()")
        _checks.predicate("where", where)
        waiter = Waiter(event_types(type_), where)
        self._intake.add(waiter)
        try:
            return await waiter.wait()  # type: ignore[return-value]  # it offers only such events
        finally:
            self._intake.remove(waiter)

    # Looking at it

    def statistics(self) -> BusStatistics:
        """Return the counters as they are now."""
        groups = {name: shell.statistics() for name, shell in self._intake.shells.items()}

        def total(counter: Callable[[GroupStatistics], int]) -> int:
            return sum(map(counter, groups.values()))

        return BusStatistics(
            running=self._state == "running",
            uptime_seconds=self._uptime(),
            published=self._intake.published,
            handled=total(lambda group: group.handled),
            failed_attempts=total(lambda group: group.failed_attempts),
            retries=total(lambda group: group.retries),
            dead_lettered=total(lambda group: group.dead_lettered),
            queued=total(lambda group: group.queued),
            in_flight=total(lambda group: group.in_flight),
            waiting_for_retry=total(lambda group: group.waiting_for_retry),
            worker_count=total(lambda group: group.worker_count),
            subscription_count=total(lambda group: group.subscription_count),
            groups=groups,
        )

    def health(self) -> Health:
        """Return whether the bus works as it should, and if not, why."""
        reasons = []
        if self._state != "running":
            reasons.append(str(self._closed("the bus")))
        shells = self._intake.shells.values()
        reasons.extend(describe_full(shell) for shell in shells if shell.waiting)
        if len(self._letters):
            reasons.append(f"dead letters wait to be replayed or discarded: {len(self._letters)}.")
        if self._letters.dropped:
            reasons.append(f"dead letters were dropped to make room: {self._letters.dropped}.")
        if self._recorder is not None:
            if self._recorder.failure is not None:
                reasons.append(f"the last commit failed: {self._recorder.failure}.")
            warning = self._recorder.store.warning
            if warning is not None:
                reasons.append(warning)
        statistics = self.statistics()
        degraded: Literal["degraded", "healthy"] = "degraded" if reasons else "healthy"
        return Health(
            status="stopped" if self._state in ("new", "starting", "stopped") else degraded,
            reasons=tuple(reasons),
            queue_size=statistics.queued,
            worker_count=statistics.worker_count,
            memory_mb=memory_mb(),
        )

    def _uptime(self) -> float:
        # The clock is asked, and not trio.current_time(), so that any thread may look.
        if self._clock is None or self._state == "stopped":
            return self._stopped_at - self._started_at
        return self._clock.current_time() - self._started_at

    def _check_waitable(self, call: str) -> None:
        carriage = carried()
        if carriage is not None and self._is_mine(carriage):
            raise WouldDeadlock(
                f"{call} was called inside the handler {carriage.subscription.name!r} of the same "
                "bus, for which it would wait: call it outside, or start a task for it in a "
                "nursery that outlives the handler"
            )

    def _check_answerable(self, call: str) -> None:
        self._check_waitable(call)
        if self._state in ("new", "starting"):
            raise self._closed(call)
        self._check_not_stopped(call)

    def _check_not_stopped(self, call: str) -> None:
        if self._state == "stopped":
            raise self._closed(call)

    def _closed(self, call: str) -> BusClosed:
        reason = {
            "starting": "it has not been started yet: wait until 'async with bus:' has begun",
            "new": "it has not been started: use it inside 'async with bus:' or after "
            "'await nursery.start(bus.run)'",
            "running": "it is running",
            "draining": "it is stopping, and only its own handlers may still publish",
            "stopped": "it has stopped, and a bus runs once: make a new EventBus",
        }[self._state]
        return BusClosed(f"{call}: the bus is not open, for {reason}")


def _is_cancellation(error: BaseException) -> bool:
    """Whether `Cancelled` is in it, so that Trio has to see it."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(trio.Cancelled) is not None
    return isinstance(error, trio.Cancelled)
