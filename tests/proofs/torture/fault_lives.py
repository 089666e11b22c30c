"""The roles that children play when something is done to their store."""

import os
import resource
import signal
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import trio

import triobus
from tests.proofs.torture.program import Program, report

EVENT_SIZE = 2000
REFUSALS = 3
"""How many events are refused before a program believes that something is wrong."""
_MOST = 1000
_ROOM = 60_000
_FILE_LIMIT = 100_000


def contend(path: str, first: int, events: int) -> None:
    """Publish events, for each of which the store is opened anew, whoever else has it.

    At least so many, and until somebody else has had it once. Reports: has T, lets-go T, in-use
    PID.
    """

    async def main() -> None:
        refusals = 0
        for number in range(first, first + _MOST):
            while not await _publish_once(path, number):
                refusals += 1
                await trio.sleep(0.0002)  # the other process tells nobody
            if refusals and number >= first + events - 1:
                break

    trio.run(main)


async def _publish_once(path: str, number: int) -> bool:
    program = Program.made(path)
    try:
        async with program.bus:
            report("has", time.monotonic_ns())
            await program.publish(number)
            await program.bus.wait_idle()
            report("lets-go", time.monotonic_ns())
    except triobus.StoreInUse as error:
        report("in-use", error.pid)
        return False
    return True


def hold(path: str) -> None:
    """Have the store until killed."""

    async def main() -> None:
        program = Program.made(path)
        async with program.bus:
            await program.publish(1)
            report("has", time.monotonic_ns())
            await trio.sleep_forever()

    trio.run(main)


def write(path: str, events: int) -> None:
    """Publish some events, and report when each was accepted: wrote POSITION T."""

    async def main() -> None:
        program = Program.made(path)
        async with program.bus:
            for number in range(1, events + 1):
                await program.publish(number)
                report("wrote", number, time.monotonic_ns())

    trio.run(main)


def read(path: str, events: int) -> None:
    """Read the store from end to end until so many events are there.

    Reports: waiting, then read FROM_T N, with the number of events if it found them whole.
    """

    async def main() -> None:
        found = 0
        report("waiting")
        while found < events:
            began = time.monotonic_ns()
            try:
                async with triobus.SqliteEventStore(path, read_only=True) as store:
                    _, damaged = await store.check(limit=10**6)
                    places = [stored.position async for stored in store.read()]
            except (triobus.StoreNotFound, triobus.NotAStore):
                continue  # the writer has not made it yet
            found = len(places)
            is_whole = not damaged and places == list(range(1, found + 1))
            report("read", began, found if is_whole else f"damaged: {damaged} {places}")

    trio.run(main)


def fill(path: str, is_limited: bool, crashes: bool) -> None:
    """Publish until the disk is full; go on when there is room again, or crash.

    The disk is the small one that the store is on, or is made small by a limit of file sizes.
    """
    ballast = Path(path).with_name("ballast")

    def become_full() -> None:
        if is_limited:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_LIMIT, resource.RLIM_INFINITY))
        else:
            disk = os.statvfs(ballast.parent)
            ballast.write_bytes(b"x" * (disk.f_bavail * disk.f_frsize - _ROOM))

    def become_empty() -> None:
        if is_limited:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        else:
            ballast.unlink()

    trio.run(_fill, path, become_full, become_empty, crashes)


async def _fill(
    path: str, become_full: Callable[[], None], become_empty: Callable[[], None], crashes: bool
) -> None:
    program = Program.made(path)
    numbers = count(1)
    async with program.bus:
        await program.publish(next(numbers))
        become_full()
        refused = 0
        while refused < REFUSALS:
            refused += not await program.publish(next(numbers), size=EVENT_SIZE)
        report("phase", "full")
        if crashes:
            os._exit(0)
        become_empty()
        for number in (next(numbers) for _ in range(20)):
            if not await program.publish(number, size=EVENT_SIZE):
                report("still-full", number)
        report("phase", "closing")
    report("done")


def go_on(path: str) -> None:
    """Publish until the store refuses again and again; then end."""

    async def main() -> None:
        program = Program.made(path)
        refused = 0
        try:
            async with program.bus:
                report("phase", "publishing")
                for number in count(1):
                    refused += not await program.publish(number)
                    if refused == REFUSALS:
                        break
        except triobus.StoreError as error:
            report("stopped", type(error).__name__)

    trio.run(main)


ROLES: dict[str, Callable[..., None]] = {
    "contend": contend,
    "hold": hold,
    "write": write,
    "read": read,
    "fill": fill,
    "go-on": go_on,
}
