"""A world of one seed, in which a program runs, is killed and is started again.

In it nothing is left to chance: the scheduler, the ids and times of new events and the duration of
every call that would go to a thread come from the seed, and time is virtual. What ends a run is its
program, a crash, a broken promise, or the end of patience, when nothing is left that could wake it.
"""

import inspect
import math
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
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
from triobus._threads import is_clock_held
from triobus.stores.sqlite import SqliteEventStore
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
    """Which part of the attempts fail before the handler is called; never one that its `Retry`
    would not repeat, so that they make no dead letters."""
    latency: float = 0.02
    """How many virtual seconds a call of a store or of a plain `def` handler takes, at most."""
    crashes: int = 2
    """How often a program is killed and started again, at most. Only a scenario that takes the
    world is, for only that can have a store to come back to."""

    def __attrs_post_init__(self) -> None:
        _checks.number("handler_failures", self.handler_failures, least=0, most=1)
        _checks.number("latency", self.latency, least=0)
        _checks.whole_number("crashes", self.crashes, least=0)


class PlannedFailure(Exception):
    """What an attempt fails with because a world had it so."""


class ProgramHangs(Exception):
    """Every task waits, and nothing is left that could wake one."""


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
    """For what outlives a crash besides files: whatever the world outside remembers."""
    crashes: int = attrs.field(default=0, init=False)
    """How often it was killed."""
    recording: Recording = attrs.field(factory=lambda: Recording(is_shared=True), init=False)
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

    def store(self, name: str = "events.db", **options: Any) -> SqliteEventStore:
        """Return a new `SqliteEventStore` on a file of the world; the options are its own."""
        return SqliteEventStore(self.directory / name, **options)

    def event_id(self, name: str) -> UUID:
        """Return the id of that name: the same in every life, so that publishing is idempotent."""
        return uuid5(_NAMESPACE, name)

    def calls(
        self, bus: EventBus, make_event: Callable[[int], DomainEvent]
    ) -> dict[str, Operation]:
        """Return the public calls of a bus that runs and of its store, by their names, for `mix`.

        They publish what `make_event(1)`, `make_event(2)`, ... return, make groups and
        subscriptions of their own, listen, look, replay and discard, and check what they are told
        of positions. `stop` is not among them. What a scenario does not bear is taken out with
        `del calls["dead_letters.discard"]`, and its own calls are put in.
        """
        return calls_of(bus, make_event, self.random)

    async def mix(
        self, operations: Mapping[str, Operation], *, tasks: int = 3, steps: int = 10
    ) -> None:
        """Let several tasks make calls, each chosen by chance: `mix(world.calls(bus, Order))`.

        Each of `tasks` makes `steps` calls, one after the other; a quarter of them is cancelled in
        some moment. Refusals of a bus or store that has closed are no failure, anything else that
        a call raises is. The timeline shows which call began and ended when, so that of a program
        that hangs it shows where.
        """
        await mix(
            operations, tasks=tasks, steps=steps, random=self.random, note=self.recording.note
        )

    def timeline(self) -> str:
        """Return what happened so far, in all lives; see `Recording.timeline`."""
        return self.recording.timeline().replace(str(self.directory), "...")

    def hint(self) -> str:
        """Return what may explain a failure and is not seen in the timeline, or nothing."""
        return f"{_THREADS}\n\n" if self.has_left_a_thread_behind else ""

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
            self._crash_at = math.inf
            if self.crashes < most:
                self._crash_at = self.steps + int(math.exp(self._chance.uniform(2, 7)))
            crashes = self.crashes
            with self.scope:
                try:
                    await self.give_to(scenario)
                except BaseException as error:
                    if self.crashes == crashes:
                        raise
                    # Whatever a killed program still says, nobody hears.
                    _raise_unless_error(error)
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
        bus._watch(self.promises.of(bus, self._plan_failure))
        return self.recording  # the last, and so around the others: it sees planned failures

    def _plan_failure(self) -> Exception | None:
        if self._chance.random() < self.faults.handler_failures:
            return PlannedFailure("planned by the exploration")
        return None

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
    """Tells somebody of each step of the scheduler."""

    _tell: Callable[[], None]
    _on_thread: Callable[[], None]
    main: trio.lowlevel.Task | None = None
    _threads: frozenset[threading.Thread] = attrs.field(
        factory=lambda: frozenset(threading.enumerate())
    )
    """Those that were there before, and are nobody's affair."""
    _idle: int = 0

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002  # time is virtual
        """Give up when there was nothing to do again and again, although patience has ended.

        What is shielded from its end is told with force; otherwise the run would go on for ever. A
        task that waits for a thread of Trio's must be woken by that alone, so it is given real time
        to end: a busy machine may not have let it run yet.
        """
        self._idle += 1
        if threading.active_count() > 1 and not is_clock_held() and self._is_a_thread_at_work():
            self._on_thread()
        if self._idle > _MOST_IDLE and self.main is not None:
            if _threads_of_trio() and self._idle < _MOST_IDLE + _MOST_WAITS:
                time.sleep(_WAIT)
                return
            for task in _leaves(self.main):
                trio.lowlevel.reschedule(task, outcome.Error(_hangs()))

    def _is_a_thread_at_work(self) -> bool:
        """Whether every task waits, and a thread that the program has started does not."""
        if trio.lowlevel.current_statistics().tasks_runnable:
            return False
        if _threads_of_trio():
            return True
        others = set(threading.enumerate()) - self._threads
        return any(not thread.name.startswith("Trio thread") for thread in others)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002  # which does not matter
        self._idle = 0
        self._tell()


def _threads_of_trio() -> int:
    """Return how many threads work for tasks that wait for them."""
    return trio.to_thread.current_default_thread_limiter().borrowed_tokens


def _leaves(task: trio.lowlevel.Task) -> list[trio.lowlevel.Task]:
    children = [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return [leaf for child in children for leaf in _leaves(child)] if children else [task]


def _hangs() -> ProgramHangs:
    return ProgramHangs("every task of the program waits, and nothing is left that could wake one")


@attrs.define(eq=False)
class _VirtualTime:
    """Tells the time of new events by Trio's clock."""

    _clock: MockClock

    def now(self) -> datetime:
        return _BEGINNING + timedelta(seconds=self._clock.current_time())

    def time_ns(self) -> int:
        return int(self.now().timestamp() * 1e9)


def run_in_world(
    seed: int,
    faults: Faults,
    main: Callable[[World], Awaitable[None]],
    on_step: Callable[[World], None],
    scheduled: AbstractContextManager[None] | None = None,
) -> World:
    """Run `main(world)` in a new world, and return that; what it raises has the world with it.

    The order of tasks comes from the seed too, unless `scheduled` decides it.
    """
    scheduled = scheduled or scheduled_by(seed)
    clock = MockClock(autojump_threshold=0)
    with tempfile.TemporaryDirectory(prefix="triobus-") as directory:
        world = World(seed, Path(directory), faults)

        def on_thread() -> None:
            world.has_left_a_thread_behind = True

        steps = _Steps(lambda: on_step(world), on_thread)

        async def run() -> None:
            steps.main = trio.lowlevel.current_task()
            with trio.move_on_after(_PATIENCE) as patience:
                await main(world)
            if patience.cancelled_caught:
                raise _hangs()

        time = _VirtualTime(clock)
        around = replaced(
            random_bytes=Random(f"{seed} ids").randbytes,
            time_ns=time.time_ns,
            now=time.now,
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


class Broken(Exception):
    """A run in a world has failed; it never leaves the kit."""

    def __init__(self, world: World, error: BaseException) -> None:
        super().__init__(world, error)
        self.world = world
        self.error = error


def takes_argument(function: Callable[..., object]) -> bool:
    """Whether a scenario or check wants the world."""
    return any(
        parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
        for parameter in inspect.signature(function).parameters.values()
    )


def told(error: BaseException) -> str:
    """Return what an error says, those in its group included."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(told(inner) for inner in error.exceptions))
    return f"{type(error).__name__}: {error}"


def _raise_unless_error(error: BaseException) -> None:
    rest: BaseException | None = None if isinstance(error, Exception) else error
    if isinstance(error, BaseExceptionGroup):
        rest = error.split(Exception)[1]
    if rest is not None:
        raise rest
