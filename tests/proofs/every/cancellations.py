"""Scenarios and single calls are cancelled before every step of the scheduler."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from tests.proofs.every.checks import Violation
from tests.proofs.every.program import Kind, Program
from tests.proofs.every.runs import check_after, live, settle
from tests.proofs.every.scenario import Scenario
from tests.proofs.every.stage import Call, Stage, check_call, make_bus
from triobus.testing import World, cancel_at_every_step


def cancel_scenario(
    scenario: Scenario, *, kind: Kind | None = None, seed: int = 0, stride: int = 1
) -> int:
    """Cancel a scenario at every step, or so manyeth; return how many. Raises `StepFailed`."""
    is_over = False

    async def begin(world: World) -> None:
        program = world.outside["program"] = Program(kind or scenario.kind)
        await live(world, scenario, program)

    async def check(world: World) -> None:
        nonlocal is_over
        is_over = not world.scope.cancel_called  # it has ended before its step came
        await settle(scenario, world.outside["program"])

    with _files_in_memory():
        if stride == 1:
            return cancel_at_every_step(begin, check, seed=seed)
        for done, step in enumerate(count(1, stride)):
            cancel_at_every_step(begin, check, seed=seed, step=step)
            if is_over:
                return done
    raise AssertionError("count never ends")


def cancel_call(
    call: Call, kind: Kind, *, is_alone: bool, seed: int = 0, step: int | None = None
) -> int:
    """Cancel a call at every step, alone or with its bus; return how many steps there are.

    Raises `StepFailed`.
    """

    async def begin(world: World) -> None:
        stage = world.outside["stage"] = Stage(Program(kind))
        stage.program.begin(world)
        await stage.play(call, is_alone=is_alone)

    async def check(world: World) -> None:
        stage = world.outside["stage"]
        await check_after(stage.program, make_bus)
        await check_call(call, stage)
        beside = {path.name for path in world.directory.iterdir()} - {"events.db"}
        if beside:
            raise Violation(f"beside the store was left {beside}")

    with _files_in_memory():
        return cancel_at_every_step(begin, check, seed=seed, step=step)


@contextmanager
def _files_in_memory() -> Iterator[None]:
    """Have temporary files in memory where the system can: nothing here is about a power cut."""
    before = tempfile.tempdir
    if os.access("/dev/shm", os.W_OK):
        tempfile.tempdir = "/dev/shm"
    try:
        yield
    finally:
        tempfile.tempdir = before
