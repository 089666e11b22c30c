"""One run of a scenario: in virtual time, without threads, with every chance decided."""

from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from tests.proofs.every.checks import (
    Violation,
    check_counters,
    check_handled,
    check_log,
    check_lossless,
)
from tests.proofs.every.decisions import Decisions, decided_by
from tests.proofs.every.program import Program
from tests.proofs.every.scenario import Make, Scenario
from triobus import BusClosed
from triobus.testing import Faults, World
from triobus.testing._world import Broken, run_in_world, told

QUIET = Faults(handler_failures=0, latency=0.001, crashes=0)


class Interrupter(Protocol):
    """Whoever interrupts a run."""

    @property
    def has_come(self) -> bool:
        """Whether it has interrupted."""

    def start(self) -> None:
        """The scenario begins."""

    def stop(self) -> None:
        """It has ended."""


async def live(world: World, scenario: Scenario, program: Program) -> None:
    """Live through a scenario; afterwards `settle` checks it."""
    program.begin(world)
    await scenario.live(program, scenario.make(program))
    program.is_whole = True


async def settle(scenario: Scenario, program: Program) -> None:
    """Let a scenario recover if it was disturbed, and check every promise."""
    await check_after(program, None if program.is_whole else scenario.make)
    if program.is_whole and scenario.is_lossless:
        check_lossless(program)


async def check_after(program: Program, make: Make | None) -> None:
    """Check what always holds, after another life if there is a store and `make` makes the bus."""
    left = trio.lowlevel.current_statistics().tasks_living - program.tasks
    if left:
        raise Violation(f"{left} tasks are left")
    check_counters(program)
    if make is not None and program.kind != "none":
        async with make(program) as bus:
            await bus.wait_idle()
            letters = await bus.dead_letters.list()
            program.dead = [letter.event.number for letter in letters]
        async with program.reopened() as store:
            logged = [stored.event.number async for stored in store.read()]
        check_log(program, logged)
    check_handled(program)


def run(scenario: Scenario, decisions: Decisions) -> Program:
    """Run a scenario under one schedule. Raises `Violation`."""
    program = Program(scenario.kind)

    async def main(world: World) -> None:
        await live(world, scenario, program)
        await settle(scenario, program)

    _go(main, decisions)
    return program


def run_interrupted(scenario: Scenario, interrupter: Interrupter) -> Program:
    """Run a scenario and interrupt it; what it had stored then goes on in another run of Trio."""
    program = Program(scenario.kind)

    async def main(world: World) -> None:
        interrupter.start()
        await live(world, scenario, program)
        interrupter.stop()

    async def afterwards(world: World) -> None:
        program.begin(world)
        await settle(scenario, program)

    is_swallowed = True
    try:
        _go(main, Decisions())
    except KeyboardInterrupt:
        is_swallowed = False
    except BaseExceptionGroup as group:
        # A bus that was interrupted is closed to whoever still wants something of it.
        _, others = group.split((KeyboardInterrupt, BusClosed))
        if others is not None:
            raise Violation(f"beside the interrupt: {told(others)}") from group
        is_swallowed = False
    finally:
        interrupter.stop()
    if interrupter.has_come and is_swallowed:
        raise Violation("KeyboardInterrupt was swallowed")
    broken = program.world.promises.first
    if broken is not None:
        raise Violation(f"{broken}\n{program.world.timeline()}")
    _go(afterwards, Decisions())
    return program


def _go(main: Callable[[World], Awaitable[None]], decisions: Decisions) -> None:
    try:
        run_in_world(0, QUIET, main, World.step, decided_by(decisions))
    except Broken as broken:
        raise Violation(f"{told(broken.error)}\n{broken.world.timeline()}") from broken.error
