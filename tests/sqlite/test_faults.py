"""Faults of disks: they are full, or refuse to sync."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.events import Noted
from tests.proofs.torture.shim import built
from tests.sqlite.other_program import logged
from triobus import EventBus, SqliteEventStore, StoreFull

ROOT = Path(__file__).parent.parent.parent


def child(script: str, *arguments: object, **environment: str) -> list[object]:
    """Run a script in a process of its own, and return what it has printed, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


# Full disks


needs_mount = pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("mount") is None, reason="mounting a small disk needs root"
)


@pytest.fixture
def small_disk(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


@needs_mount
async def test_a_full_disk_fails_exactly_its_publishes_and_the_bus_goes_on_when_there_is_room(
    small_disk,
):
    handled, failed, causes = [], [], set()
    bus = EventBus(SqliteEventStore(small_disk / "a.db"), workers=1)

    async def note(event):
        handled.append(event.number)

    bus.subscribe(Noted, note)
    ballast = small_disk / "ballast"
    async with bus:
        await bus.publish(Noted(0))
        ballast.write_bytes(b"x" * (os.statvfs(small_disk).f_bavail * 4096 - 60_000))
        for number in range(1, 100):
            try:
                await bus.publish(Noted(number, "x" * 2000))
            except StoreFull as error:
                causes.add(error.__cause__.sqlite_errorname)
                failed.append(number)
                if len(failed) == 3:
                    break
        assert (len(failed), causes) == (3, {"SQLITE_FULL"})
        assert bus.health().status == "degraded"
        ballast.unlink()
        await bus.publish(Noted(200))
        assert bus.health().status == "healthy"
    expected = [n for n in range(failed[-1]) if n not in failed] + [200]
    assert handled == expected
    assert logged(small_disk / "a.db") == expected


FILE_LIMIT = """
import json, resource, signal, sys, trio
from tests.events import Noted
from triobus import EventBus, SqliteEventStore, StoreIOError

async def main():
    handled, failed = [], []
    bus = EventBus(SqliteEventStore(sys.argv[1]), workers=1)
    async def note(event):
        handled.append(event.number)
    bus.subscribe(Noted, note)
    async with bus:
        await bus.publish(Noted(0))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        for number in range(1, 100):
            try:
                await bus.publish(Noted(number, "x" * 2000))
            except StoreIOError as error:
                failed.append((number, error.__cause__.sqlite_errorname))
                break
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        await bus.publish(Noted(200))
    print(json.dumps([handled, failed]))

trio.run(main)
"""


def test_a_limit_of_file_sizes_is_an_error_of_the_disk_and_the_bus_goes_on(tmp_path):
    ((handled, failed),) = child(FILE_LIMIT, tmp_path / "a.db")
    ((number, name),) = failed
    assert name == "SQLITE_IOERR_WRITE"
    assert handled == [*range(number), 200]
    assert logged(tmp_path / "a.db") == handled


# Disks that refuse to sync


@pytest.fixture
def shim():
    library = built()
    if library is None:
        pytest.skip("there is no C compiler to make the disk fail with")
    return library


def failing(script, path, shim, suffix):
    """Run a script in which `fail(n)` lets the next n syncs of a file fail."""
    prelude = f"""
import json, os, sys, trio
from pathlib import Path
from tests.events import Noted
from tests.proofs.torture.shim import How, Kind, Shim
from triobus import *
from triobus.stores.sqlite import _connection

path = sys.argv[1]
shim = Shim()
shim.watch(Path(path).parent)

def fail(times):
    shim.plan(How.FAIL, times=times, kinds=Kind.SYNC, suffix={suffix!r})

def left():
    return max(shim.last - shim.seen, 0)

def say(*words):
    print(json.dumps(words), flush=True)
"""
    return child(prelude + script, path, LD_PRELOAD=str(shim))


def test_a_commit_that_fails_to_sync_is_fenced_and_not_in_the_log_after_a_crash(tmp_path, shim):
    script = """
async def main():
    handled = []
    bus = EventBus(SqliteEventStore(path), workers=1)
    async def note(event):
        handled.append(event.number)
    bus.subscribe(Noted, note)
    async with bus:
        await bus.publish(Noted(0))
        await bus.wait_idle()
        fail(1)
        try:
            await bus.publish(Noted(1))
        except StoreIOError as error:
            say(error.__cause__.sqlite_errorname, left())
        await bus.wait_idle()
        say(handled)
        os._exit(0)

trio.run(main)
"""
    found = failing(script, tmp_path / "a.db", shim, "-wal")
    assert found == [["SQLITE_IOERR_FSYNC", 0], [[0]]]
    assert logged(tmp_path / "a.db") == [0]


def test_a_commit_whose_fence_fails_too_has_an_unknown_outcome_and_can_be_repeated(tmp_path, shim):
    script = """
async def main():
    event = Noted(1)
    handled = []
    store = SqliteEventStore(path)
    try:
        async with EventBus(store) as bus:
            await bus.publish(Noted(0))
            await bus.wait_idle()
            fail(2)
            try:
                await bus.publish(event)
            except OutcomeUnknown as error:
                say("unknown", left())
            for _ in range(2):
                try:
                    await bus.publish(Noted(2))
                except OutcomeUnknown:
                    say("refused")
    except OutcomeUnknown:
        say("refused at the end")
    async with EventBus(store) as bus:
        await bus.publish(event)
        await bus.publish(event)
    async with store:
        say([stored.event.number async for stored in store.read()])

trio.run(main)
"""
    found = failing(script, tmp_path / "a.db", shim, "-wal")
    assert found[:3] == [["unknown", 0], ["refused"], ["refused"]]
    assert found[-1] == [[0, 1]]
    assert logged(tmp_path / "a.db") == [0, 1]


def test_a_checkpoint_that_fails_to_sync_loses_nothing_and_is_told(tmp_path, shim):
    script = """
_connection.FRAMES_BEFORE_CHECKPOINT = 1

async def main():
    async with EventBus(SqliteEventStore(path)) as bus:
        await bus.publish(Noted(0))
        fail(1)
        await bus.publish(Noted(1))
        say(left(), bus.health().status, bus.health().reasons)
        await bus.publish(Noted(2))
        say(bus.health().status)

trio.run(main)
"""
    found = failing(script, tmp_path / "a.db", shim, "a.db")
    assert found[0][:2] == [0, "degraded"]
    assert "checkpoint" in found[0][2][0]
    assert found[1] == ["healthy"]
    assert logged(tmp_path / "a.db") == [0, 1, 2]
