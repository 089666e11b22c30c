"""`EventBus`: what a program declares and calls."""

from collections.abc import Iterable
from datetime import datetime
from types import TracebackType
from typing import get_args
from uuid import UUID

import trio
from trio.lowlevel import checkpoint_if_cancelled, enable_ki_protection

from triobus import _checks
from triobus._bus.dead_letters import DeadLetters
from triobus._bus.grouping import group, include
from triobus._bus.health import Health, health_of, statistics_of
from triobus._bus.life import Drain, Life, StopReport, until_idle
from triobus._bus.listening import listen, wait_for
from triobus._bus.lives import Lives
from triobus._bus.retries import Retries
from triobus._errors import (
    InvalidOption,
    WouldDeadlock,
)
from triobus._events import DomainEvent, Published
from triobus._events.causes import calling_deliveries
from triobus._events.moments import check_due
from triobus._groups.failures import LogErrors, OnFailure
from triobus._groups.handlers import Handler
from triobus._groups.instruments import Instrument
from triobus._groups.outcome import Outcome, PendingOutcome
from triobus._groups.statistics import BusStatistics
from triobus._groups.subscribing import Wanted, subscribe
from triobus._groups.subscriptions import Start, Subscription
from triobus.stores import EventStore


class EventBus:
    """A bus for domain events inside a Trio program.

    Subscribe handlers, then run it as `async with bus:` or `await nursery.start(bus.run)`. It is a
    description until then, and again when it has stopped: the groups and subscriptions stay, and
    the next start begins a new life with queues, statistics and, without a store, dead letters of
    its own. All tasks of a life are in a nursery that ends with the block, or with `run`.

    - `store`: where events, progress and dead letters are kept, so that they outlive the program;
      the bus opens it when it starts and closes it when it stops. None for a bus in memory.
    - `workers`: how many deliveries the group "default" has in flight at a time, each for another
      aggregate; 1 gives total order, in which only a retry is overtaken.
    - `buffer`: how many events that group holds beyond those that workers have. Publishers wait for
      room; with a store they do not, and the rest stays on disk. `math.inf` for no limit; 0 for
      none beyond what a free worker takes (1 with a store).
    - `start`: where that group begins in a store that does not know it, as for `group`.
    - `on_failure`: what an event becomes whose handler failed for good: a "dead-letter", or with
      "raise" the error leaves through the nursery and ends the bus.
    - `drain`: what leaving the block waits for, as for `stop`.
    - `log_errors`: what the log tells about handlers' errors: their "message", with the traceback
      of those that made a dead letter, or their "type" alone, where messages may hold secrets.

    Events without an `aggregate_id` have no order among each other: with several workers they are
    handled at the same time. Raises `InvalidOption` for values that cannot work.
    """

    def __init__(
        self,
        store: EventStore | None = None,
        *,
        workers: int = 4,
        buffer: float = 1000,
        start: Start = "now",
        on_failure: OnFailure = "dead-letter",
        drain: Drain = True,
        log_errors: LogErrors = "message",
    ) -> None:
        _check_store(store)
        _checks.choice("on_failure", on_failure, get_args(OnFailure))
        _check_drain(drain)
        _checks.choice("log_errors", log_errors, get_args(LogErrors))
        self._lives = Lives(store, on_failure, log_errors, drain)
        self._lives.instruments.on_removed = lambda instrument: instrument.removed_from(self)
        self._dead_letters = DeadLetters(lambda: self._life, self._check_answerable)
        self._retries = Retries(lambda: self._life, self._check_running)
        self._default = self.group("default", workers=workers, buffer=buffer, start=start)

    @property
    def _life(self) -> Life:
        return self._lives.life

    def __repr__(self) -> str:
        life, names = self._life, ", ".join(self._lives.options)
        return f"<EventBus {life.log.where}, {life.cycle.state}, groups: {names}>"

    subscribe = subscribe
    listen = listen
    wait_for = wait_for
    group = group
    include = include

    def _subscribe(self, handler: Handler, wanted: Wanted) -> Subscription:
        """Subscribe a handler in the group "default"."""
        return self._default._subscribe(handler, wanted)

    @property
    def store(self) -> EventStore | None:
        """The store of the bus, None without one. It can be given while the bus does not run."""
        return self._lives.store

    @store.setter
    def store(self, store: EventStore) -> None:
        _check_store(store)
        self._lives.replace_store(store)

    @property
    def dead_letters(self) -> DeadLetters:
        """What handlers have failed for good: `list`, `replay` and `discard`."""
        return self._dead_letters

    @property
    def retries(self) -> Retries:
        """What waits for a retry: `list`, `retry_now` and `give_up`."""
        return self._retries

    def add_instrument(self, instrument: Instrument) -> None:
        """Tell an instrument what happens from here on; harmless if it is told already.

        Raises `InvalidOption` for what is no `Instrument`, and what its `added_to` raises.
        """
        if not isinstance(instrument, Instrument):
            raise InvalidOption(
                f"instrument={instrument!r}: give an object of a class derived from "
                "triobus.Instrument"
            )
        if instrument not in self._lives.instruments:
            instrument.added_to(self)
            self._lives.watch(instrument)

    def remove_instrument(self, instrument: Instrument) -> None:
        """Tell an instrument nothing more. Raises `InvalidOption` if it is not told anything.

        That is so, too, when it was removed because one of its methods had raised, which is logged.
        """
        if instrument not in self._lives.instruments:
            raise InvalidOption(
                f"instrument={instrument!r} is none of the bus: it was not added, or it was "
                "removed, as one is that raises; the log says so then"
            )
        self._lives.instruments.remove(instrument)

    # Starting and stopping

    @enable_ki_protection
    async def __aenter__(self) -> "EventBus":
        """Start: every worker is running when the body begins. Raises `BusAlreadyStarted`.

        With a store it raises `EventNotEncodable` if a class that is subscribed to cannot be kept.
        If it raises, `Cancelled` and `StoreError` included, nothing is left running or open.
        """
        _checks.inside_trio("async with bus")
        await self._lives.begin(self)
        return self

    @enable_ki_protection
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Drain, then stop. Cancelled, or left by KeyboardInterrupt, it cancels the handlers."""
        await self._lives.leave(exc)

    @enable_ki_protection
    async def run(
        self, *, task_status: trio.TaskStatus["EventBus"] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run until `stop` is called: `await nursery.start(bus.run)`, which returns the bus.

        Every worker is running when `start` returns. Cancelled, it cancels the handlers; what was
        left is counted and logged. Raises `BusAlreadyStarted`.
        """
        async with self:
            life = self._life
            task_status.started(self)
            await life.asked_to_stop.wait()

    @enable_ki_protection
    async def stop(self, *, drain: Drain = True, timeout: float | None = None) -> StopReport:
        """Accept nothing more from outside, let the handlers finish what there is, and stop.

        With `drain=False`, after `timeout` seconds, or when it is cancelled, the handlers are
        cancelled; with `drain="running"` those that run are waited for, and nothing else is begun.
        What they left is in the report; with a store it is delivered after the next start. What
        handlers publish while they are waited for is accepted, and what another task stores beside
        the bus from here on is left to the next start.

        Raises `BusClosed` before the start and when the bus was stopped before, `WouldDeadlock`
        in a handler of the same bus, which would wait for itself, and `StoreError` if what was
        finished could not be recorded.
        """
        if timeout is not None:
            _checks.number("timeout", timeout, least=0)
        _check_drain(drain)
        self._check_waitable("stop()")
        await checkpoint_if_cancelled()
        return await self._life.stop(drain, timeout)

    async def _crash(self) -> None:
        """End as a killed process would: for `triobus.testing.crash`."""
        life = self._life
        life.crash()
        await life.ended.wait()

    # Publishing

    @enable_ki_protection
    async def publish(
        self,
        event: DomainEvent,
        *,
        expected_sequence: int | None = None,
        at: datetime | None = None,
        delay: float | None = None,
    ) -> Published:
        """Publish an event, and return once it is accepted.

        With a store it is accepted when it is stored; an event that the store has already is
        accepted without being delivered again, and keeps its first position. `expected_sequence` is
        the last sequence that its aggregate must have before, 0 for none. Without a store it waits
        until all groups and listeners that want the event have room; inside a handler of this bus
        it does not. There the event inherits the correlation id of the handled one and has it as
        cause.

        With `at`, an aware datetime, or `delay`, in seconds, it is accepted now and delivered when
        it is due, in the order of due times and then of publication; what is due already is so at
        once. `position` is None until then. With a store it is stored now and goes into the log
        when it is due, which restarts do not change; draining does not wait for it. The time is
        that of Trio's clock while the bus lives, and wall time across restarts.

        If it raises, `Cancelled` included, the event was not accepted and no handler sees it,
        except for `OutcomeUnknown`. Raises `InvalidEvent`, `BusClosed` when the bus is not running,
        `WouldDeadlock` where a task would wait for room in the listener that it reads itself, and
        with a store `EventNotEncodable`, `EventIdConflict`, `SequenceConflict` and `StoreError`.
        """
        if at is not None or delay is not None:
            asked = check_due(at, delay)
            if expected_sequence is not None:
                raise InvalidOption(
                    f"expected_sequence={expected_sequence!r} was given beside at or delay: the "
                    "sequence that the aggregate will have then cannot be known; leave it out"
                )
            life = self._life
            life.cycle.check("publish inside a handler", "publish()")
            due_at = life.log.schedule.moment().due(asked)
            if due_at is not None:
                await checkpoint_if_cancelled()
                return await life.publishing.publish_later(event, due_at)
        await checkpoint_if_cancelled()
        return await self._lives.life.publishing.publish(event, expected_sequence)

    @enable_ki_protection
    async def cancel_scheduled(self, event_id: UUID) -> bool:
        """Take back an event that was published with `at` or `delay`; return whether it was there.

        False if it came too late: the event is due, was taken back before, or was never there. If
        it raises, `Cancelled` included, nothing was taken back. Raises `BusClosed` when the bus is
        not running, and `StoreError`.
        """
        if not isinstance(event_id, UUID):
            raise InvalidOption(f"event_id={event_id!r}: give a UUID, such as event.event_id")
        await checkpoint_if_cancelled()
        self._life.cycle.check("publish inside a handler", "cancel_scheduled()")
        return await self._life.log.cancel_scheduled(event_id)

    @enable_ki_protection
    async def publish_many(
        self, events: Iterable[DomainEvent], *, expected_sequence: int | None = None
    ) -> list[Published]:
        """Publish several events in their order, all or none of them.

        Without a store it waits until all fit; more than a group's whole buffer are let in when it
        holds nothing else. With `expected_sequence` all are of one aggregate. If it raises, none
        was accepted. Otherwise like `publish`.
        """
        events = list(events)
        await checkpoint_if_cancelled()
        return await self._lives.life.publishing.publish_many(events, expected_sequence)

    @enable_ki_protection
    def publish_nowait(self, event: DomainEvent) -> Published:
        """Publish an event without waiting: raises `BusFull` when there is no room for it.

        Only without a store, which has to be waited for. Call it in the thread of the bus; from
        others there is `publish_from_thread`. Otherwise like `publish`.
        """
        life = self._life
        if life.home is not None:
            life.home.check_same_thread("publish_nowait()", "publish_from_thread()")
        return life.publishing.publish_nowait(event)

    @enable_ki_protection
    async def publish_and_wait(self, event: DomainEvent) -> Outcome:
        """Publish an event and wait until all its handlers have finished, retries included.

        With a store that several buses share, it waits for this bus's share: a group whose other
        buses handle the event's aggregate is not waited for, and has no part in the outcome.

        Cancelled while it waits for them, the event stays accepted. Raises `BusClosed` if the bus
        stops before they have finished, and `WouldDeadlock` inside a handler of this bus. Otherwise
        like `publish`.
        """
        self._check_waitable("publish_and_wait()")
        life, completion = self._life, PendingOutcome(event)
        await checkpoint_if_cancelled()
        life.completions.add(completion)
        try:
            return await life.publishing.publish_and_wait(event, completion)
        finally:
            life.completions.discard(completion)

    def publish_from_thread(self, event: DomainEvent) -> Published:
        """Publish an event from another thread, Trio's or foreign, and block until it is accepted.

        In a thread of `trio.to_thread.run_sync` it is cancelled with that call. Otherwise like
        `publish`.
        """
        life, call = self._life, "publish_from_thread()"
        home = life.home
        if home is None:
            raise life.cycle.closed(call)
        life.log.check_process()
        home.check_same_process(call)
        home.check_other_thread(call, has_ended=life.ended.is_set())
        try:
            return home.call(self.publish, event)
        except trio.RunFinishedError:
            raise life.cycle.closed(call) from None

    # Waiting and listening

    async def wait_idle(self) -> None:
        """Wait until nothing is queued, running or waiting for a retry, and all that is recorded.

        With a store that several buses share, that is said of this bus's share.

        Raises `BusClosed` if the bus stopped and left something, `WouldDeadlock` inside a handler
        of the same bus, and `StoreError` if what is finished could not be recorded yet.
        """
        self._check_waitable("wait_idle()")
        life = self._life
        await trio.lowlevel.checkpoint()
        await until_idle(life)

    # Looking at it

    def statistics(self) -> BusStatistics:
        """Return the counters of this life of the bus, or of its last one, as they are now."""
        return statistics_of(self._life)

    def health(self) -> Health:
        """Return whether the bus works as it should, and if not, why."""
        return health_of(self._life)

    def _check_waitable(self, call: str) -> None:
        for delivery in calling_deliveries():
            if self._life.routing.is_own(delivery):
                raise WouldDeadlock(
                    f"{call} was called inside the handler {delivery.subscription.name!r} of the "
                    "same bus, for which it would wait: call it outside, or start a task for it in "
                    "a nursery that outlives the handler"
                )

    def _check_running(self, call: str) -> None:
        self._life.cycle.check("replay", call)

    def _check_answerable(self, call: str) -> None:
        self._check_waitable(call)
        self._life.cycle.check("replay", call)


def _check_store(store: object) -> None:
    if store is not None and not isinstance(store, EventStore):
        raise InvalidOption(
            f"store={store!r}: give an EventStore, such as SqliteEventStore('orders.db'), or "
            "None for a bus in memory"
        )


def _check_drain(drain: object) -> None:
    if not (isinstance(drain, bool) or drain == "running"):
        raise InvalidOption(
            f"drain={drain!r}: give True to wait until all is handled, 'running' to wait for the "
            "handlers that run and leave the rest to the store, or False to cancel them"
        )
