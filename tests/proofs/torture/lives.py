"""The roles that children play."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio
from trio.testing import MockClock

import triobus
from tests.proofs.torture import sabotage
from tests.proofs.torture.program import GROUPS, POISON, Program, report
from tests.proofs.torture.shim import How, Shim
from triobus._environment import replace
from triobus.stores.sqlite import _connection
from triobus.testing._scheduler import scheduled_by

PUBLISHERS = 3
ENOUGH = 30
"""How many events a life publishes that comes to its end."""


def live(path: str, first: int, again: list[int], way: str, planted: str | None) -> None:
    """Publish and handle until killed; in some ways of life, until everything is done."""
    sabotage.plant(planted)
    trio.run(_live, path, first, again, way)


async def _live(path: str, first: int, again: list[int], way: str) -> None:
    program = Program.made(path, GROUPS[:1] if way == "alone" else GROUPS)
    sabotage.meddle(program.bus)
    numbers = iter(range(first, first + (ENOUGH if way in ("closing", "ending") else 10**9)))
    async with program.bus:
        if way == "catching-up":
            report("phase", "catching-up")
            await program.bus.wait_idle()
        while way == "replaying":
            report("phase", "replaying")
            await program.replay()
            report("phase", "publishing")
            await program.publish(*(POISON * next(numbers) for _ in range(20)))
            await program.bus.wait_idle()
        report("phase", "publishing")
        for number in again:
            # A program that does not know whether an event was accepted publishes it again.
            await program.publish(number)
        await _publish_all(program, numbers)
        if way == "ending":
            await program.bus.wait_idle()
            report("phase", "replaying")
            await program.replay()
        if way == "closing":
            # So that there is something left to do.
            await program.publish(*range(first + ENOUGH, first + 2 * ENOUGH))
        report("phase", "closing")
    report("done")


async def _publish_all(program: Program, numbers: Iterator[int]) -> None:
    """Publish from many tasks, so that they share commits, singly and in batches."""

    async def publish_singly() -> None:
        for number in numbers:
            await program.publish(number)

    async def publish_in_batches() -> None:
        while batch := [number for _, number in zip(range(5), numbers, strict=False)]:
            await program.publish(*batch)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish_in_batches)
        for _ in range(PUBLISHERS):
            nursery.start_soon(publish_singly)


def script(
    path: str,
    batches: list[list[int]],
    planted: str | None,
    plan: list[int] | None,
    crashes_at_error: bool = False,
) -> None:
    """Do the same every time: publish, fail, retry, acknowledge, dead-letter, replay, close.

    With a plan (how, at which operation, which error) that happens to an operation on the store's
    files, and all of them are reported.
    """
    sabotage.plant(planted)
    _connection.FRAMES_BEFORE_CHECKPOINT = 20  # so that there is a checkpoint before the last one
    if plan is not None:
        how, at, error = plan
        shim = Shim()
        shim.plan(How(how), at, error=error)
        shim.watch(Path(path).parent, reports=1)
    with scheduled_by(1):
        trio.run(_script, path, batches, crashes_at_error, clock=MockClock(autojump_threshold=0))


async def _script(path: str, batches: list[list[int]], crashes_at_error: bool) -> None:
    replace(instead_of_thread=_call_here)
    program = Program.made(path, delay=1)
    sabotage.meddle(program.bus)

    @contextmanager
    def going_on() -> Iterator[None]:
        try:
            yield
        except triobus.StoreError as error:
            report("error", type(error).__name__)
            if crashes_at_error:
                os._exit(0)

    try:
        async with program.bus:
            for batch in batches:
                if not await program.publish(*batch) and crashes_at_error:
                    os._exit(0)
                with going_on():
                    await program.bus.wait_idle()
            with going_on():
                await program.replay()
            report("phase", "closing")
    except triobus.StoreError as error:
        report("stopped", type(error).__name__)
    else:
        report("done")


async def _call_here(function: Callable[..., object], *arguments: object) -> object:
    """Call what would go to a thread, so that nothing depends on how fast that is."""
    await trio.lowlevel.cancel_shielded_checkpoint()
    return function(*arguments)


ROLES: dict[str, Callable[..., None]] = {"live": live, "script": script}
