"""One life of a bus: it owns the nursery, and everything in it from the start to the end.

A bus is a description until it starts. Each start begins a life, with queues and counters of its
own. One task of the nursery, the conductor, ends the life, however that is asked for: it
drains, cancels the handlers, waits for them, records what they have finished and closes the store,
in this order and once. So nothing depends on who of those that wait for the end is cancelled.
"""

import contextvars
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Literal

import attrs
import trio
from trio.lowlevel import checkpoint_if_cancelled, enable_ki_protection

from triobus._bus.dead_letters import replay_here
from triobus._bus.home import Home
from triobus._bus.log import Log, log_of
from triobus._bus.publishing import ObservedPublishing, Publishing
from triobus._bus.routing import Routing
from triobus._bus.states import LifeCycle
from triobus._durability.sharing.dead_letters import SharedDeadLetters
from triobus._errors import BusClosed, StoreError
from triobus._events import DomainEvent
from triobus._events.causes import handling
from triobus._groups.dead_letters import DeadLetterKeeper
from triobus._groups.failures import LogErrors, OnFailure
from triobus._groups.idle import Idle
from triobus._groups.instruments import Instruments
from triobus._groups.subscriptions import GroupOptions
from triobus._groups.workers import GroupShell
from triobus.stores import EventStore

logger = logging.getLogger("triobus")

Drain = Literal[True, False, "running"]

_SILENT_SECONDS = 1
"""How long a bus drains before it says what it waits for."""


@attrs.frozen(kw_only=True)
class StopReport:
    """What a bus had done and what it left when it stopped, by the name of the group."""

    settled: Mapping[str, int]
    """Deliveries finished since the start."""
    left: Mapping[str, int]
    """Deliveries that were accepted and not finished: queued, cancelled or waiting for a retry. So
    are, without a store, those of scheduled events that were not due."""


@attrs.define(eq=False)
class Life:
    """One life of a bus."""

    store: EventStore | None
    _on_failure: OnFailure
    _log_errors: LogErrors
    _drain: Drain
    """What leaving the block waits for."""
    instruments: Instruments
    cycle: LifeCycle = attrs.field(factory=LifeCycle, init=False)
    idle: Idle = attrs.field(factory=Idle, init=False)
    routing: Routing = attrs.field(init=False)
    log: Log = attrs.field(init=False)
    publishing: Publishing = attrs.field(init=False)
    """What accepts events: the log, with the instruments around it that there are."""
    completions: set[Any] = attrs.field(factory=set, init=False)
    """Who is told when the life ends before they have been answered."""
    asked_to_stop: trio.Event = attrs.field(factory=trio.Event, init=False)
    ended: trio.Event = attrs.field(factory=trio.Event, init=False)
    unrecorded: StoreError | None = attrs.field(default=None, init=False)
    """Why the end could not be recorded; the task that raises it takes it."""
    home: Home | None = attrs.field(default=None, init=False)
    """Where it runs, once it does."""
    _stopped_at: float | None = attrs.field(default=None, init=False)
    _mode: Drain = attrs.field(default=False, init=False)
    """What the stop waits for."""
    _draining: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _has_schedule: bool = attrs.field(default=False, init=False)
    """Whether a task waits until scheduled events are due."""
    _scheduling: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _was_drained: bool = attrs.field(default=False, init=False)
    _is_crashed: bool = attrs.field(default=False, init=False)
    _is_starting: bool = attrs.field(default=False, init=False)
    """Whether workers are still coming, who have to be waited for should it end meanwhile."""
    _context: contextvars.Context = attrs.field(init=False)
    """The context of the task that started the bus."""
    _manager: AbstractAsyncContextManager[trio.Nursery] = attrs.field(init=False)
    _nursery: trio.Nursery = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.routing = Routing(self.cycle, self.instruments)
        self.log = log_of(self.store, self.routing)
        self.log.schedule.on_released = self.idle.notice
        self.log.schedule.on_first = self._start_schedule
        if isinstance(self.letters, SharedDeadLetters):
            self.letters.execute = partial(replay_here, self)
        self.observe()

    # What belongs to it

    @property
    def shells(self) -> dict[str, GroupShell]:
        """The groups by name."""
        return self.routing.shells

    @property
    def letters(self) -> DeadLetterKeeper:
        """The dead letters."""
        return self.log.letters

    def observe(self) -> None:
        """Take it up that an instrument has come or gone."""
        is_observed = bool(self.instruments.publishing)
        self.publishing = (
            ObservedPublishing(self.log, self.instruments) if is_observed else self.log
        )
        self.routing.forget_routes()
        for shell in self.shells.values():
            shell.observe()

    def add(self, options: GroupOptions) -> None:
        """Run a group too; while the bus runs, its workers come at once."""
        group_log = self.log.add(options)
        self.shells[options.group.name] = GroupShell(
            group=options.group,
            log=group_log,
            buffer=group_log.buffer,
            worker_limit=options.workers,
            batch=options.batch,
            on_failure=self._on_failure,
            log_errors=self._log_errors,
            letters=self.letters,
            instruments=self.instruments,
            idle=self.idle,
        )
        self.routing.forget_routes()
        if self.cycle.state in ("running", "draining"):
            # Not in the context of a handler that makes a group.
            shell = self.shells[options.group.name]
            self._context.run(shell.start_soon, self._nursery)

    def check_types(self, types: Iterable[type[DomainEvent]]) -> None:
        """Raise `EventNotEncodable` for a class whose events could not be kept.

        Before the start any will do: what its fields refer to may be defined further below.
        """
        if self.cycle.state not in ("new", "stopped"):
            self.log.check_types(types)

    def resubscribed(self, name: str) -> None:
        """A subscription of a group has come or gone."""
        self.routing.forget_routes()
        self.log.resubscribed(name)

    @property
    def unsettled(self) -> int:
        """Deliveries that have still to be made."""
        return sum(shell.unsettled for shell in self.shells.values())

    @property
    def uptime(self) -> float:
        """Seconds from the start until now, or until the stop."""
        # The clock is asked, and not trio.current_time(), so that any thread may look.
        if self.home is None:
            return 0.0
        now = self.home.clock.current_time() if self._stopped_at is None else self._stopped_at
        return now - self.home.started_at

    # The beginning

    @enable_ki_protection
    async def start(self) -> None:
        """Open the store and bring every worker to work. If it raises, nothing is left running."""
        self.cycle.become("starting")
        try:
            for name in self.shells:
                for subscription in self.shells[name].group.subscriptions:
                    self.log.check_types(subscription.types)
            await self.log.open()
        except BaseException:
            if self._is_crashed:
                self._finish()
            else:
                self.cycle.state = "new"  # nothing has begun, and listeners may go on
            raise
        self.home = Home()
        self._context = contextvars.copy_context()
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        self._is_starting = True
        if self.log.schedule.count:
            self._start_schedule()
        self._nursery.start_soon(self._conduct)
        self._nursery.start_soon(self.log.run)
        if self.log.is_attended:
            self._nursery.start_soon(self.log.attend)
        try:
            await self._start_groups()
        except BaseException as error:
            self.cancel()
            await self.leave(error)
            raise
        self.cycle.become("running")

    def _start_schedule(self) -> None:
        """Start the task that waits until something is due, with the first event that is scheduled.

        It comes with the bus if its store has some.
        """
        if not self._has_schedule and self.cycle.state in ("starting", "running"):
            self._has_schedule = True
            self._context.run(self._nursery.start_soon, self._keep_schedule)

    async def _keep_schedule(self) -> None:
        """Accept what is due, until the bus accepts nothing more from outside."""
        handling.set(None)
        with self._scheduling:
            await self.log.schedule.run()

    async def _start_groups(self) -> None:
        """Start all groups, unless the bus crashes meanwhile."""
        try:
            # One more group may come in each of these steps.
            while shell := next(self._not_started(), None):
                await shell.start(self._nursery)
        finally:
            self._is_starting = False
            self.idle.notice()

    def _not_started(self) -> Iterator[GroupShell]:
        if self.cycle.state == "starting":
            yield from (shell for shell in self.shells.values() if not shell.crew.is_started)

    def is_own(self) -> bool:
        """Whether the block around this life is the calling task's."""
        return self._nursery.parent_task is trio.lowlevel.current_task()

    # Asking for the end

    @enable_ki_protection
    async def stop(self, drain: Drain, timeout: float | None) -> StopReport:
        """Ask for the end and wait for it; cancelled, the handlers are cancelled too."""
        self.cycle.check("stop", "stop()")
        self.ask_to_stop(drain, timeout)
        try:
            await self.ended.wait()
        except BaseException:
            self.cancel()
            raise
        error, self.unrecorded = self.unrecorded, None
        if error is not None:
            raise error
        return self._report()

    def _report(self) -> StopReport:
        shells = self.shells.items()
        return StopReport(
            settled={name: shell.lanes.finished for name, shell in shells},
            left={name: shell.unsettled + self.log.left(shell.group) for name, shell in shells},
        )

    def ask_to_stop(self, drain: Drain, timeout: float | None = None) -> None:
        """Let no publisher in from outside any more, and have the conductor end the life."""
        if self.cycle.allows("stop"):
            self.cycle.become("draining")
            self.routing.refuse_all()
            self._scheduling.cancel()
            if drain is True:
                self.log.schedule.drain()
            self._mode = drain
            if timeout is not None:
                self._draining.deadline = trio.current_time() + timeout
            self.asked_to_stop.set()

    def cancel(self) -> None:
        """Cancel the handlers, and wait for nothing else."""
        self._draining.cancel()
        self.asked_to_stop.set()
        self._end_handlers()

    def crash(self) -> None:
        """End as a killed process would, as soon as the handlers have ended, who are cancelled."""
        self.cycle.check("crash", "crash()")
        self._is_crashed = True
        self.log.halt()
        self.cancel()

    # The end

    @enable_ki_protection
    async def _conduct(self) -> None:
        try:
            await self.asked_to_stop.wait()
            with self._draining:
                await self._drain_groups()
        finally:
            with trio.CancelScope(shield=True):
                self._end_handlers()
                try:
                    await self.idle.wait_until(self._is_over)
                    await self.log.close()
                except StoreError as error:
                    self.unrecorded = error
                finally:
                    self._finish()

    async def _drain_groups(self) -> None:
        """Wait until nothing is left to do, or with "running" until no handler runs."""
        if not self._mode:
            return
        await checkpoint_if_cancelled()
        if self._mode == "running":
            for shell in self.shells.values():
                shell.freeze()
        await self.log.cut()
        is_met = self._is_at_rest if self._mode == "running" else self._is_drained
        with trio.move_on_after(_SILENT_SECONDS):
            await self.idle.wait_until(is_met)
        if not is_met():
            work = "; ".join(filter(None, (shell.work() for shell in self.shells.values())))
            logger.warning("the bus is stopping and waits for %s", work)
            await self.idle.wait_until(is_met)
        self._was_drained = self._mode is True

    def _is_drained(self) -> bool:
        return not any(shell.has_work for shell in self.shells.values())

    def _is_at_rest(self) -> bool:
        return all(shell.is_at_rest for shell in self.shells.values())

    def _is_over(self) -> bool:
        return not self._is_starting and not any(shell.crew.size for shell in self.shells.values())

    def _end_handlers(self) -> None:
        """Cancel the handlers, and accept nothing from anybody any more."""
        if self.cycle.become("ending"):
            self.routing.refuse_all()
            self._scheduling.cancel()
            for shell in self.shells.values():
                shell.crew.cancel()

    def _finish(self) -> None:
        """Tell every task that waits that it is over."""
        self.cycle.become("stopped")
        if self.home is not None:
            self._stopped_at = self.home.clock.current_time()
        if self._was_drained:
            for watcher in self.instruments.drained:
                watcher.drained()
        self.routing.close()
        for completion in self.completions:
            completion.cut_off()
        self.idle.notice()
        self.asked_to_stop.set()
        self.ended.set()
        left = {name: count for name, count in self._report().left.items() if count}
        if left and not self._is_crashed:
            counts = ", ".join(f"{count} in group {name!r}" for name, count in left.items())
            logger.warning("the bus stopped and left deliveries: %s", counts)

    @enable_ki_protection
    async def leave(self, error: BaseException | None) -> None:
        """End with the block, which `error` leaves if one does; raise what else has to be told.

        The block's own error is kept from the nursery, which would wrap it in a group.
        """
        if error is None or isinstance(error, Exception):
            self.ask_to_stop(self._drain)
        else:
            self.cancel()
        is_own = error is not None and not _is_cancellation(error)
        failure = await self._leave_nursery(None if is_own else error)
        unrecorded, self.unrecorded = self.unrecorded, None
        if unrecorded is not None:
            if failure is None and (error is None or is_own):
                failure = unrecorded
            else:
                logger.error("what was finished at the end could not be recorded: %s", unrecorded)
        if failure is None or failure is error:
            return
        if error is not None and is_own:
            raise BaseExceptionGroup("the block and its bus failed", [error, failure]) from None
        raise failure

    async def _leave_nursery(self, error: BaseException | None) -> BaseException | None:
        """Wait for all tasks of the life, and return what comes out of its nursery."""
        type_, traceback = (None, None) if error is None else (type(error), error.__traceback__)
        try:
            # It suppresses nothing: its own scope is cancelled only by an error, which it raises.
            await self._manager.__aexit__(type_, error, traceback)
        except BaseException as raised:  # noqa: BLE001  # the caller raises it
            return _interrupt_alone(raised)
        return None


async def until_idle(life: Life) -> None:
    """Wait until nothing is left to do and all that is recorded; raise `BusClosed` if it ends.

    Raises `StoreError` if what is finished could not be recorded yet.
    """

    def is_met() -> bool:
        is_idle = not (life.unsettled or life.log.schedule.is_due)
        return is_idle or life.cycle.state == "stopped"

    await life.idle.wait_until(is_met)
    while life.log.is_pending:
        await life.log.flush()
        await life.idle.wait_until(is_met)
    if life.unsettled:
        raise BusClosed(
            f"the bus stopped with {life.unsettled} deliveries left, which will not be made"
        )


def _is_cancellation(error: BaseException) -> bool:
    """Whether `Cancelled` is in it, so that Trio has to see it."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(trio.Cancelled) is not None
    return isinstance(error, trio.Cancelled)


def _interrupt_alone(error: BaseException) -> BaseException:
    """Return a KeyboardInterrupt by itself, if nothing else came out of the nursery."""
    found = error
    while isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
        found = found.exceptions[0]
    return found if isinstance(found, KeyboardInterrupt) else error
