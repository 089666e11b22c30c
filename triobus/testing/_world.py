"""A world of one seed, in which a program runs, is killed and is started again.

The seed decides the order of tasks, the ids and times of new events, and how long each call takes
that would go to a thread; time is virtual.
"""

import inspect
import math
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID, uuid5

import attrs
import outcome
import trio
from trio.testing import MockClock

from triobus import _checks
from triobus._bus import EventBus
from triobus._environment import replaced
from triobus._errors import StoreError
from triobus._events import DomainEvent
from triobus._groups.instruments import Instrument
from triobus._text import leaves
from triobus._threads import is_clock_held
from triobus.stores import MemoryEventStore
from triobus.stores.sqlite import SqliteEventStore
from triobus.testing._cluster import Cluster, MakeBus, cluster_of
from triobus.testing._mix import Operation, calls_of, mix
from triobus.testing._promises import Promises
from triobus.testing._record import Recording
from triobus.testing._scheduler import scheduled_by

Scenario = Callable[..., Awaitable[object]]

_PATIENCE = 1e7
"""Virtual seconds after which nothing is left that could wake a program."""
_MOST_IDLE = 1000
_WAIT = 0.001
"""Real seconds between two looks whether a thread has ended."""
_MOST_WAITS = 60_000
"""So often at least; a thread that has not ended by then never will."""
_THREADS = (
    "Every task waited while a thread of the program's own was at work (trio.to_thread, or one "
    "that calls trio.from_thread). Time is virtual here and does not wait for it: do that inside "
    "'async with triobus.testing.hold_clock()', or let a plain 'def' handler do it, which is "
    "called here without a thread."
)
_NAMESPACE = UUID("0d9e6b4c-3c1e-5f0a-9a55-7b1d2f6c8e10")
_BEGINNING = datetime(2000, 1, 1, tzinfo=UTC)


@attrs.frozen(kw_only=True)
class Faults:
    """What goes wrong in a world."""

    handler_failures: float = 0.1
    """The part of the attempts that fail before the handler is called; never the last one that its
    `Retry` grants, so that they make no dead letters."""
    latency: float = 0.02
    """How many virtual seconds a call of a store or of a plain `def` handler takes, at most."""
    crashes: int = 2
    """How often a program is killed and started again, at most. A scenario that does not take the
    world never is, for it has no store to come back to."""

    def __attrs_post_init__(self) -> None:
        _checks.number("handler_failures", self.handler_failures, least=0, most=1)
        _checks.number("latency", self.latency, least=0)
        _checks.whole_number("crashes", self.crashes, least=0)


class PlannedFailure(Exception):
    """An attempt that was to fail has failed."""


class ProgramHangs(Exception):
    """Every task waits, and nothing is left that could wake one."""

    def __str__(self) -> str:
        return "every task of the program waits, and nothing is left that could wake one"


@attrs.define(eq=False)
class World:
    """What a scenario is given: a place for its files, and chances that its seed decides."""

    seed: int
    """What decides everything."""
    directory: Path
    """An empty directory for the scenario's files, which outlive crashes."""
    faults: Faults
    life: int = attrs.field(default=0, init=False)
    """How often the program has been started: 1 at first, 2 after the first crash."""
    random: Random = attrs.field(init=False)
    """For the scenario's own choices."""
    outside: dict[str, Any] = attrs.field(factory=dict, init=False)
    """For what outlives a crash besides files: what the world outside remembers."""
    crashes: int = attrs.field(default=0, init=False)
    """How often it was killed."""
    recording: Recording = attrs.field(init=False)
    steps: int = attrs.field(default=0, init=False)
    """How many steps Trio's scheduler has taken."""
    buses: list[EventBus] = attrs.field(factory=list, init=False)
    """Those that were started in this life."""
    promises: Promises = attrs.field(init=False)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    """What the program runs in."""
    is_over: bool = attrs.field(default=False, init=False)
    """Whether the program has ended, and only a check still runs."""
    has_left_a_thread_behind: bool = attrs.field(default=False, init=False)
    """Whether time went on while a thread of the program's own was at work."""
    _chance: Random = attrs.field(init=False)
    _crash_at: float = attrs.field(default=math.inf, init=False)
    """The step at which the program is killed."""

    def __attrs_post_init__(self) -> None:
        self.random = Random(f"{self.seed} scenario")
        self._chance = Random(f"{self.seed} faults")
        self.promises = Promises(lambda: self.scope.cancel())
        self.recording = Recording(self.promises.changed)

    def store(self, name: str = "events.db", **options: Any) -> SqliteEventStore:
        """Return a new `SqliteEventStore` on a file of the world; the options are its own."""
        return SqliteEventStore(self.directory / name, **options)

    def cluster(
        self, make_bus: MakeBus, *, nodes: int = 3, lease: float = 5.0
    ) -> AbstractAsyncContextManager[Cluster]:
        """Run buses that share a store: `async with world.cluster(make_bus) as cluster:`.

        `make_bus(store)` returns one more of them. They join, leave, are killed, hang and are cut
        off as the scenario says, or with `cluster.disturb` as chance does. The store is a
        `MemoryEventStore` with that lease, which all lives of the program have.
        """
        store = self.outside.setdefault("cluster", MemoryEventStore(lease=lease))
        return cluster_of(make_bus, store, nodes, self.random, self.recording.note)

    def event_id(self, name: str) -> UUID:
        """Return the id of that name: the same in every life, so that publishing is idempotent."""
        return uuid5(_NAMESPACE, name)

    def calls(
        self, bus: EventBus, make_event: Callable[[int], DomainEvent]
    ) -> dict[str, Operation]:
        """Return the public calls of a bus that runs and of its store, by their names, for `mix`.

        They publish what `make_event(1)`, `make_event(2)`, ... return, make groups and
        subscriptions of their own, and check the positions that they are told. `stop` is not among
        them. Take out what a scenario does not bear by `del calls["dead_letters.discard"]`, and put
        in calls of its own.
        """
        return calls_of(bus, make_event, self.random)

    async def mix(
        self, operations: Mapping[str, Operation], *, tasks: int = 3, steps: int = 10
    ) -> None:
        """Let several tasks make calls, each chosen by chance: `mix(world.calls(bus, Order))`.

        Each of `tasks` makes `steps` calls, one after the other; a quarter of them is cancelled at
        some moment. Refusals of a bus or store that has closed are no failure, anything else that
        a call raises is. The timeline shows when each call began and ended.
        """
        await mix(
            operations, tasks=tasks, steps=steps, random=self.random, note=self.recording.note
        )

    def timeline(self) -> str:
        """Return what happened so far, in all lives; see `Recording.timeline`."""
        return self.recording.timeline().replace(str(self.directory), "...")

    def report(self, repeat: str) -> str:
        """Return what happened, and how to repeat it, as the end of a failure's message."""
        hint = f"{_THREADS}\n\n" if self.has_left_a_thread_behind else ""
        happened = f"What happened, to step {self.steps}:\n{self.timeline()}"
        return f"\n\n{hint}Repeat it with {repeat}\n\n{happened}"

    # Living

    async def live(self, scenario: Scenario) -> None:
        """Run a scenario, and again after each crash, until it has ended by itself."""
        most = self._chance.randint(0, self.faults.crashes) if takes_argument(scenario) else 0
        while True:
            self.life += 1
            self.scope = trio.CancelScope()
            self.buses.clear()
            if self.life > 1:
                self.recording.note(f"--- life {self.life} begins ---")
            if self.crashes < most:
                self._crash_at = self.steps + int(math.exp(self._chance.uniform(2, 7)))
            crashes = self.crashes
            with self.scope:
                try:
                    await self.give_to(scenario)
                except BaseException as error:
                    if self.crashes == crashes:
                        raise
                    # An error of a killed program reaches no one.
                    rest: BaseException | None = error
                    if isinstance(error, BaseExceptionGroup):
                        rest = error.split(Exception)[1]
                    if not isinstance(rest, Exception | None):
                        raise rest from None
            self._crash_at = math.inf
            if self.crashes == crashes:
                return

    def give_to(self, function: Callable[..., Any]) -> Any:
        """Call a scenario or a check, with the world if it wants it."""
        return function(self) if takes_argument(function) else function()

    def step(self) -> None:
        """Count a step of the scheduler, before which the program may be killed."""
        self.steps += 1
        if self.steps >= self._crash_at:
            self._crash_at = math.inf
            self.crashes += 1
            self.recording.note("--- crash ---")
            for bus in self.buses:
                if bus._life.cycle.allows("crash"):  # others have ended in this life already
                    bus._life.crash()
            self.scope.cancel()

    def watch(self, bus: EventBus) -> Instrument:
        """Come to know a bus that starts."""
        self.buses.append(bus)
        bus.add_instrument(self.promises.of(bus, self._plan_failure))
        return (
            self.recording.witness
        )  # the last, and so around the others: it sees planned failures

    def _plan_failure(self) -> Exception | None:
        is_planned = self._chance.random() < self.faults.handler_failures
        return PlannedFailure("planned by the exploration") if is_planned else None

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Make a call that would go to a thread: here, and in virtual time."""
        crashes = self.crashes
        with trio.CancelScope(shield=True):
            await trio.sleep(self._chance.random() * self.faults.latency)
            is_commit = getattr(function, "makes_durable", False)
            if is_commit and self.crashes != crashes and self._chance.random() < 0.5:
                raise StoreError("the process was killed before this was written")
            try:
                return function(*args)
            finally:
                await trio.sleep(self._chance.random() * self.faults.latency)


@attrs.define(eq=False)
class _Steps(trio.abc.Instrument):
    """Follows the steps of the scheduler, and ends a program that hangs."""

    _world: World
    _on_step: Callable[[World], None]
    main: trio.lowlevel.Task | None = None
    _threads: frozenset[threading.Thread] = attrs.field(
        factory=lambda: frozenset(threading.enumerate())
    )
    """The threads that were there before, which the program has not started."""
    _idle: int = 0

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002  # time is virtual
        """Give up when there was nothing to do again and again, although patience has ended.

        A task that is shielded from that is woken with an error; otherwise the run would go on for
        ever. A task that waits for a thread of Trio's must be woken by that alone, so the thread is
        given real time to end: a busy machine may not have let it run yet.
        """
        self._idle += 1
        if threading.active_count() > 1 and not is_clock_held() and self._is_a_thread_at_work():
            self._world.has_left_a_thread_behind = True
        if self._idle > _MOST_IDLE and self.main is not None:
            if _threads_of_trio() and self._idle < _MOST_IDLE + _MOST_WAITS:
                time.sleep(_WAIT)
                return
            for task in _tasks_without_children(self.main):
                trio.lowlevel.reschedule(task, outcome.Error(ProgramHangs()))

    def _is_a_thread_at_work(self) -> bool:
        """Whether every task waits, and a thread that the program has started does not."""
        if trio.lowlevel.current_statistics().tasks_runnable:
            return False
        others = set(threading.enumerate()) - self._threads
        return _threads_of_trio() > 0 or any(
            not thread.name.startswith("Trio thread") for thread in others
        )

    def before_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002  # any task
        self._idle = 0
        self._on_step(self._world)


def _threads_of_trio() -> int:
    """Return how many threads work for tasks that wait for them."""
    return trio.to_thread.current_default_thread_limiter().borrowed_tokens


def _tasks_without_children(task: trio.lowlevel.Task) -> list[trio.lowlevel.Task]:
    children = [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return [leaf for child in children for leaf in _tasks_without_children(child)] or [task]


def run_in_world(
    seed: int,
    faults: Faults,
    main: Callable[[World], Awaitable[None]],
    on_step: Callable[[World], None],
    scheduled: AbstractContextManager[None] | None = None,
) -> World:
    """Run `main(world)` in a new world, and return that. Raises `Broken`, which has it too.

    The order of tasks comes from the seed, unless `scheduled` decides it.
    """
    scheduled = scheduled or scheduled_by(seed)
    clock = MockClock(autojump_threshold=0)
    with tempfile.TemporaryDirectory(prefix="triobus-") as directory:
        world = World(seed, Path(directory), faults)
        steps = _Steps(world, on_step)

        async def run() -> None:
            steps.main = trio.lowlevel.current_task()
            with trio.move_on_after(_PATIENCE) as patience:
                await main(world)
            if patience.cancelled_caught:
                raise ProgramHangs()

        def now() -> datetime:
            return _BEGINNING + timedelta(seconds=clock.current_time())

        around = replaced(
            random_bits=partial(Random(f"{seed} ids").getrandbits, 80),
            time_ns=lambda: int(now().timestamp() * 1e9),
            now=now,
            instead_of_thread=world.call,
            instrument_of=world.watch,
        )
        try:
            with scheduled, around:
                trio.run(run, clock=clock, instruments=[steps])
            world.promises.check()
        except Exception as error:
            raise Broken(world, world.promises.first or error) from error
    return world


@attrs.define(eq=False)
class Broken(Exception):
    """A run in a world has failed; it never leaves the kit."""

    world: World
    error: BaseException


def takes_argument(function: Callable[..., object]) -> bool:
    """Whether a scenario or check wants the world."""
    return any(
        parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
        for parameter in inspect.signature(function).parameters.values()
    )


def told(error: BaseException) -> str:
    """Return what an error says; of a group, what the errors in it say."""
    texts = (f"{type(leaf).__name__}: {leaf}" for leaf in leaves(error))
    return "; ".join(dict.fromkeys(texts))
