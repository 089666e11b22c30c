"""One run of one case, in virtual time and without threads, and everything that is checked."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import attrs
import outcome
import trio
from trio.testing import MockClock

from tests.proofs.overlaps.calls import CALLS, Role
from tests.proofs.overlaps.cases import Case
from tests.proofs.overlaps.checks import (
    check_errors,
    check_handled,
    check_heard,
    check_log,
    check_order,
    check_stopped,
    leaves,
    told,
)
from tests.proofs.overlaps.ledger import number_of
from tests.proofs.overlaps.situations import SITUATIONS
from tests.proofs.overlaps.stage import Stage
from triobus import EventBus, StoreClosed, StoreError, TriobusError
from triobus._environment import replace
from triobus.testing._scheduler import scheduled_by

_PATIENCE = 1e6
"""Virtual seconds after which a run hangs: nothing is left that could wake it."""
_LONG = 300.0
"""Virtual seconds in which everything that does not wait for something else has ended."""
_MOST_IDLE = 1000
_MOST_STEPS = 20_000
_CLOSING, _AFTERWARDS = 900, 950
"""The numbers of the event that ends whoever waits for one, and of that of another life."""


class Violation(AssertionError):
    """A promise was broken; the message says which, and how to repeat it."""

    def __init__(self, problems: list[str], case: Case) -> None:
        self.problems = problems
        self.case = case
        super().__init__("\n".join([*problems, f"Repeat it: {case.command()}"]))


class Hangs(Exception):
    """A task waits, and nothing is left that could wake it."""


@attrs.define(eq=False)
class _Steps(trio.abc.Instrument):
    """Counts the steps of the first call, and does at a step what is planned for it."""

    plan: dict[int, Callable[[], None]] = attrs.field(factory=dict)
    is_counting: bool = False
    steps: int = 0
    main: Any = None
    _idle: int = 0

    def before_io_wait(self, timeout: float) -> None:
        """Tell with force what is shielded, when nothing was to be done again and again."""
        self._idle += 1
        if self._idle > _MOST_IDLE and self.main is not None:
            for task in _last_of(self.main):
                if task._next_send_fn is None:  # whoever is about to run is told the next time
                    trio.lowlevel.reschedule(task, outcome.Error(Hangs()))

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Do what is planned before this step."""
        self._idle = 0
        if self.is_counting:
            for step in [step for step in self.plan if step <= self.steps]:
                self.plan.pop(step)()
            self.steps += 1
            if self.steps > _MOST_STEPS:
                self._idle = _MOST_IDLE


def _last_of(task: Any) -> list[Any]:
    children = [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return [last for child in children for last in _last_of(child)] if children else [task]


def where(task: Any) -> str:
    """Return where a task waits, from the outside to the inside."""
    names: list[str] = []
    inner = task.coro
    while inner is not None and len(names) < 30:
        code = getattr(inner, "cr_code", None) or getattr(inner, "ag_code", None)
        frame = getattr(inner, "cr_frame", None) or getattr(inner, "ag_frame", None)
        if code is not None and frame is not None:
            names.append(f"{code.co_qualname}:{frame.f_lineno}")
        inner = getattr(inner, "cr_await", None) or getattr(inner, "ag_await", None)
    return " > ".join(names)


@contextmanager
def _directory() -> Iterator[Path]:
    """Make a directory, in memory where the system can: nothing here is about a power cut."""
    home = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="triobus-", dir=home) as name:
        yield Path(name)


@attrs.define(eq=False)
class Run:
    """One case, as it runs."""

    case: Case
    steps: _Steps = attrs.field(factory=_Steps)
    problems: list[str] = attrs.field(factory=list)
    length: int = 0
    """How many steps the first call took, alone or not."""

    def go(self) -> None:
        """Run the case. Raises `Violation`."""
        clock = MockClock(autojump_threshold=0)
        try:
            with _directory() as directory, scheduled_by(self.case.seed):
                trio.run(self._main, directory, clock=clock, instruments=[self.steps])
        except (Hangs, trio.TrioInternalError):  # the latter of being told with force
            self.problems.append("the run hangs, and could not be cancelled")
        except BaseExceptionGroup as error:
            self.problems.append(f"the run ended with {error!r}")
        if self.problems:
            raise Violation(self.problems, self.case)

    async def _main(self, directory: Path) -> None:
        self.steps.main = trio.lowlevel.current_task()
        tasks = trio.lowlevel.current_statistics().tasks_living
        with trio.move_on_after(_PATIENCE) as patience:
            async with trio.open_nursery() as nursery:
                random = Random(self.case.seed)
                stage = Stage(self.case.kind, directory, random, nursery)
                replace(instead_of_thread=stage.call)
                await self._live(stage)
                nursery.cancel_scope.cancel()
        if patience.cancelled_caught:
            self.problems.append("the run hangs")
            return
        await trio.testing.wait_all_tasks_blocked()
        left = trio.lowlevel.current_statistics().tasks_living - tasks
        if left:
            self.problems.append(f"{left} tasks are left")

    async def _live(self, stage: Stage) -> None:
        situation = SITUATIONS[self.case.situation]
        stage.buffer_of_gone = situation.buffer_of_gone
        stage.make_store()
        if situation.is_held and stage.store is not None:
            async with stage.store:
                await self._meet(stage)
        else:
            await self._meet(stage)
        if not self.problems:
            self.problems.extend(await self._afterwards(stage))

    async def _meet(self, stage: Stage) -> None:
        """Let the two calls meet, and everything come to its end."""
        situation = SITUATIONS[self.case.situation]
        roles = Role("A", CALLS[self.case.first]), Role("B", CALLS[self.case.second])
        await self._prepare(stage, is_running=roles[0].call.needs == "running")
        stage.is_probing = not (
            situation.is_held
            or any(role.call.shares for role in roles)
            or roles[1].call.needs == "new"
        )
        await self._overlap(stage, roles)
        await trio.sleep(60)
        if stage.bus.statistics().running:
            stage.check_workers(stage.bus, "afterwards")
            await self._close(stage)
        for host in stage.hosts:
            host.leaving.set()
            await self._until_over(host.over, f"the block ({host.form})", host.task)
        for role in roles:
            if role.call.waits and not any(host.has_entered for host in stage.hosts):
                role.scope.cancel()  # a bus that has never run may still be started
            await self._until_over(role.over, f"{role.name} ({role.call.name})", role.task)
        self.problems.extend(stage.ledger.problems)
        if not any("hangs" in problem for problem in self.problems):
            self.problems.extend(check_errors(stage, roles))
            self.problems.extend(check_stopped(stage.bus) if stage.hosts else ())
            self.problems.extend(check_heard(stage.ledger))

    async def _prepare(self, stage: Stage, *, is_running: bool) -> None:
        """Make the situation, on the bus itself or, if that does not run yet, by one before it."""
        situation = SITUATIONS[self.case.situation]
        stage.bus = stage.make_bus(stage.store)
        if not (is_running or (stage.is_durable and situation.events)):
            return
        host = stage.host()
        await host.begin()
        for number, (key, behaviour) in enumerate(situation.events, 1):
            await stage.publish(number, key, behaviour)
        await trio.sleep(situation.seconds)
        if not is_running:
            host.scope.cancel()
            await host.over.wait()
            stage.hosts.clear()
            stage.ledger.life += 1
            stage.gone_sub = None
            stage.bus = stage.make_bus(stage.store)

    async def _overlap(self, stage: Stage, roles: tuple[Role, Role]) -> None:
        first, second = roles
        go = trio.Event()
        steps = self.steps
        steps.steps = 0

        def begin() -> None:
            go.set()
            if self.case.cancels:
                role = first if self.case.cancels == "A" else second
                steps.plan[steps.steps + self.case.after] = role.scope.cancel

        async def play_second() -> None:
            await go.wait()
            await second.play(stage)

        steps.plan[self.case.step] = begin
        stage.nursery.start_soon(play_second)
        await trio.testing.wait_all_tasks_blocked()
        stage.nursery.start_soon(first.play, stage)
        steps.is_counting = True
        await self._enough(first)
        self.length = steps.steps
        if not go.is_set():
            steps.plan.clear()
            begin()
        await self._enough(second)
        await self._enough(first)
        steps.is_counting = False
        for action in list(steps.plan.values()):
            action()
        steps.plan.clear()

    async def _enough(self, role: Role) -> None:
        """Wait until a call is over, or until time does not change it any more."""
        for _ in range(3000):
            with trio.move_on_after(_LONG):
                await role.over.wait()
            if role.over.is_set() or not role.in_thread:
                break
            time.sleep(0.001)  # noqa: ASYNC251  # virtual time does not see that a thread is at work
        if not role.over.is_set() and not role.call.waits:
            self._hangs(f"{role.name} ({role.call.name})", role.task)

    async def _until_over(self, over: trio.Event, who: str, task: Any) -> None:
        with trio.move_on_after(_LONG):
            await over.wait()
        if not over.is_set():
            self._hangs(who, task)

    def _hangs(self, who: str, task: Any) -> None:
        place = "before it has begun" if task is None else f"in {where(task)}"
        problem = f"{who} hangs {place}"
        if problem not in self.problems:
            self.problems.append(problem)

    async def _close(self, stage: Stage) -> None:
        """Publish for whoever waits for an event, and has not got one yet."""
        with trio.move_on_after(_LONG) as scope:
            await stage.publish(_CLOSING, None)
        if scope.cancelled_caught:
            self.problems.append("publish() hangs when both calls are over")
        await trio.sleep(60)

    # Afterwards

    async def _afterwards(self, stage: Stage) -> list[str]:
        problems: list[str] = []
        if stage.kind == "file" and not stage.ledger.is_crashed:
            beside = set(os.listdir(stage.directory)) - {"events.db"}
            if beside:
                problems.append(f"beside the store was left {sorted(beside)}")
        if stage.store is not None:
            problems.extend(await self._check_closed(stage))
        dead: set[int] = set()
        left: dict[str, int] | None = None
        if stage.is_durable:
            dead = await self._next_life(stage, problems)
        else:
            left = {
                name: group.queued + group.in_flight + group.waiting_for_retry
                for name, group in stage.bus.statistics().groups.items()
            }
            dead = {n for n, behaviour in stage.behaviours.items() if behaviour == "dead"}
            if len(stage.hosts) > 1:
                left = dict.fromkeys(left, 1000)  # several lives: only the last one's are known
        problems.extend(check_handled(stage, left, dead))
        problems.extend(check_order(stage))
        if can_restart() and stage.hosts:
            problems.extend(await self._start_again(stage))
        return problems

    async def _check_closed(self, stage: Stage) -> list[str]:
        assert stage.store is not None
        try:
            await stage.store.statistics()
        except StoreClosed:
            return []
        except StoreError as error:
            return [f"the store said {told(error)}"]
        return ["the store is open after the block"]

    async def _next_life(self, stage: Stage, problems: list[str]) -> set[int]:
        """Let another bus take up what is left; return the numbers of its dead letters."""
        stage.ledger.life += 1
        store = stage.another_store()
        assert store is not None
        bus = stage.make_bus(store)
        dead: set[int] = set()
        try:
            async with bus:
                stage.check_workers(bus, "when the next life begins")
                await bus.wait_idle()
                dead = {number_of(letter.event) for letter in await bus.dead_letters.list()}
            async with store:
                log = [stored async for stored in store.read()]
        except Exception as error:  # noqa: BLE001  # whatever it is, it is not promised
            said = "; ".join(told(inner) for inner in leaves(error))
            problems.append(f"the next bus on the store raised {said}")
            return dead
        problems.extend(check_stopped(bus))
        problems.extend(check_log(stage.ledger, log))
        return dead

    async def _start_again(self, stage: Stage) -> list[str]:
        """Start the bus of the case again, which has stopped."""
        stage.ledger.life += 1
        bus, problems = stage.bus, []
        try:
            async with bus:
                before = bus.statistics().published
                stage.workers = {name: stage.workers[name] for name in bus.statistics().groups}
                stage.check_workers(bus, "when it was started again")
                await stage.publish(_AFTERWARDS, "a")
                await bus.wait_idle()
                published = bus.statistics().published
        except Exception as error:  # noqa: BLE001  # the same
            said = "; ".join(told(inner) for inner in leaves(error))
            return [f"the stopped bus could not be started again: {said}"]
        if (before, published) != (0, 1):
            problems.append(f"started again, {before} and then {published} were published")
        if stage.ledger.times(("all", "every"), _AFTERWARDS) != 1:
            problems.append("started again, the bus did not handle what was published")
        return problems + list(check_stopped(bus))


@cache
def can_restart() -> bool:
    """Whether a bus that has stopped can be started again."""

    async def try_it() -> bool:
        bus = EventBus()
        async with bus:
            pass
        try:
            async with bus:
                return True
        except TriobusError:
            return False

    return trio.run(try_it)


@cache
def length(kind: Any, first: str, situation: str) -> int:
    """Return how many steps a call takes in a situation, if it is left alone."""
    run = Run(Case(kind, first, "nothing", situation, _MOST_STEPS))
    with suppress(Violation):
        run.go()
    return run.length


def play(case: Case) -> None:
    """Run one case. Raises `Violation`."""
    can_restart()
    Run(case).go()


def scaled(case: Case) -> Case:
    """Return a case whose step, given as a share of 1000, is one of its first call's."""
    steps = length(case.kind, case.first, case.situation)
    return attrs.evolve(case, step=case.step * (steps + 1) // 1000)
