"""What disks and other programs do to a store. Every test shows that its fault has happened."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import asynccontextmanager, closing
from pathlib import Path
from uuid import UUID

import pytest
import trio
import trio.testing

from tests.events import Noted
from tests.proofs.torture.shim import built
from triobus import (
    EventBus,
    SqliteEventStore,
    StoreClosed,
    StoreFull,
    StoreInUse,
    StoreIOError,
    StoreNotFound,
    StoreReplaced,
)
from triobus.stores._values import Append, Commit, NewRow
from triobus.stores.sqlite import _connection, _faults

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


def logged(path):
    """Return the numbers in a store's log, read by another program."""
    with closing(sqlite3.connect(path)) as connection:
        return [n for (n,) in connection.execute("SELECT data ->> 'number' FROM events ORDER BY 1")]


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


# Other programs


LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(sys.argv[2])
connection.execute("SELECT count(*) FROM events").fetchall()
print("locked", flush=True)
sys.stdin.read()
connection.execute("COMMIT")
connection.close()
"""


def other_program(path, statement):
    process = subprocess.Popen(
        [sys.executable, "-c", LOCKER, str(path), statement],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"locked\n"
    return process


async def test_a_file_that_another_program_has_locked_is_told_and_the_bus_goes_on(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(_faults, "BUSY_SECONDS", 0.01)
    async with EventBus(SqliteEventStore(tmp_path / "a.db")) as bus:
        await bus.publish(Noted(0))
        with other_program(tmp_path / "a.db", "BEGIN IMMEDIATE") as process:
            with pytest.raises(StoreInUse, match="Another program") as caught:
                await bus.publish(Noted(1))
            assert caught.value.__cause__.sqlite_errorname.startswith("SQLITE_BUSY")
            process.stdin.close()
        await bus.publish(Noted(2))
    assert logged(tmp_path / "a.db") == [0, 2]


async def test_a_reader_that_never_ends_is_told_until_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(_connection, "FRAMES_BEFORE_CHECKPOINT", 1)
    async with EventBus(SqliteEventStore(tmp_path / "a.db")) as bus:
        await bus.publish(Noted(0))
        with other_program(tmp_path / "a.db", "BEGIN") as process:
            for number in range(1, 5):
                await bus.publish(Noted(number))
            (reason,) = bus.health().reasons
            assert "a reader holds up the checkpoint" in reason
            process.stdin.close()
        for number in range(5, 7):
            await bus.publish(Noted(number))
        assert bus.health().status == "healthy"
    assert logged(tmp_path / "a.db") == list(range(7))


async def test_a_reader_never_takes_a_log_that_grows_for_a_damaged_one(tmp_path):
    path = tmp_path / "a.db"
    async with SqliteEventStore(path) as writer, SqliteEventStore(path, read_only=True) as reader:
        await writer.append([Noted(0)])
        last = 1

        def another_writes(_statement):
            nonlocal last
            event = Noted(last)
            record = NewRow(event.event_id, "noted", 1, None, writer._codec.encode(event))
            writer._writer.commit(Commit([Append([record])]))
            last += 1

        # It is called before each statement of the reader.
        reader._database.connection.set_trace_callback(another_writes)
        assert await reader._fetch(last + 1, limit=1) == []
        assert last == 3
        assert 3 < await reader._last_position() < last
        end, damaged = await reader.check()
        assert damaged == []
        assert 5 < end < last


def _rename(path):
    path.rename(path.with_name("moved.db"))


def _replace(path):
    path.with_name("new.db").write_bytes(b"")
    path.with_name("new.db").replace(path)


def _remove_wal(path):
    path.with_name("a.db-wal").unlink()


def _replace_wal(path):
    path.with_name("new").write_bytes(path.with_name("a.db-wal").read_bytes())
    path.with_name("new").replace(path.with_name("a.db-wal"))


@pytest.mark.parametrize("harm", [Path.unlink, _rename, _replace, _remove_wal])
async def test_a_store_that_is_removed_or_replaced_while_it_is_open_is_noticed(tmp_path, harm):
    handled = []
    bus = EventBus(SqliteEventStore(tmp_path / "a.db"))
    bus.subscribe(Noted, lambda event: handled.append(event.number))
    async with bus:
        await bus.publish(Noted(0))
        await bus.wait_idle()
        harm(tmp_path / "a.db")
        for _ in range(2):
            with pytest.raises(StoreReplaced, match="open the store again"):
                await bus.publish(Noted(1))
        assert bus.health().status == "degraded"
    assert handled == [0]


@pytest.mark.parametrize("harm", [_remove_wal, _replace_wal])
async def test_a_log_that_is_removed_or_replaced_before_the_first_commit_is_noticed(tmp_path, harm):
    async with EventBus(SqliteEventStore(tmp_path / "a.db")) as bus:
        harm(tmp_path / "a.db")
        with pytest.raises(StoreReplaced, match="open the store again"):
            await bus.publish(Noted(1))


async def test_a_commit_that_fails_by_a_broken_disk_does_not_lose_what_was_handled(
    tmp_path, monkeypatch
):
    handled = []
    store = SqliteEventStore(tmp_path / "a.db")
    bus = EventBus(store, workers=1)

    async def note(event):
        handled.append(event.number)

    bus.subscribe(Noted, note, name="note")
    commit = store._commits._commit
    is_broken = False

    async def breakable(transaction):
        await trio.lowlevel.cancel_shielded_checkpoint()
        if is_broken:
            raise StoreIOError("broken")
        return await commit(transaction)

    store._commits._commit = breakable
    async with bus:
        await bus.publish(Noted(0))
        is_broken = True
        with pytest.raises(StoreIOError):
            await bus.wait_idle()
        is_broken = False
        await bus.wait_idle()
    async with store:
        assert (await store.statistics()).groups["default"].offset == 1
    assert handled == [0]


@asynccontextmanager
async def bus_that_cannot_record(path):
    """Run a bus whose store fails for good after one event was handled."""
    store = SqliteEventStore(path)
    bus = EventBus(store)

    async def note(event):
        commit.is_broken = True

    async def commit(transaction):
        await trio.lowlevel.cancel_shielded_checkpoint()
        if commit.is_broken:
            raise StoreIOError("broken for good")
        return await whole(transaction)

    whole, store._commits._commit, commit.is_broken = store._commits._commit, commit, False
    bus.subscribe(Noted, note)
    async with bus:
        await bus.publish(Noted(0))
        yield bus


async def test_what_cannot_be_recorded_at_a_clean_end_is_an_error_as_itself(tmp_path):
    with pytest.raises(StoreIOError, match="broken for good"):
        async with bus_that_cannot_record(tmp_path / "a.db"):
            pass


async def test_what_cannot_be_recorded_leaves_together_with_the_error_of_the_block(tmp_path):
    with pytest.raises(BaseExceptionGroup) as caught:
        async with bus_that_cannot_record(tmp_path / "a.db"):
            raise KeyError("mine")
    assert caught.group_contains(KeyError, match="mine")
    assert caught.group_contains(StoreIOError, match="broken for good")


async def test_cancellation_goes_on_though_something_cannot_be_recorded(tmp_path, caplog):
    with trio.CancelScope() as scope:
        async with bus_that_cannot_record(tmp_path / "a.db") as bus:
            await trio.testing.wait_all_tasks_blocked()
            assert bus.health().status == "degraded"
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert "could not be recorded: broken for good" in caplog.text
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.db"]


async def test_a_bus_can_be_stopped_though_something_cannot_be_recorded(tmp_path):
    async with bus_that_cannot_record(tmp_path / "a.db") as bus:
        with pytest.raises(StoreIOError, match="broken for good"):
            await bus.stop()
        assert bus.health().status == "stopped"


def _rename_directory(path):
    path.parent.rename(path.parent.with_name("moved"))


def _rename_its_parent(path):
    path.parent.parent.rename(path.parent.parent.with_name("moved"))


@pytest.mark.parametrize("harm", [_rename_directory, _rename_its_parent])
async def test_a_directory_that_is_renamed_is_told_and_what_is_in_it_is_whole(tmp_path, harm):
    path = tmp_path / "one" / "two" / "a.db"
    path.parent.mkdir(parents=True)
    bus = EventBus(SqliteEventStore(path))
    bus.subscribe(Noted, lambda _: None)
    async with bus:
        await bus.publish(Noted(0))
        await bus.wait_idle()
        harm(path)
        for number in (1, 2):
            with pytest.raises(StoreReplaced, match=r"renamed .*open the store again"):
                await bus.publish(Noted(number))
    (moved,) = tmp_path.rglob("a.db")
    assert moved != path
    async with SqliteEventStore(moved) as store:
        assert [s.event.number async for s in store.read()] == [0, 1]
        assert await store.problems() == []
        await store.append([Noted(3)])
    assert not list(tmp_path.rglob("*-wal"))


async def test_a_read_that_fails_is_an_error_of_the_disk_and_the_next_one_works(tmp_path):
    async with SqliteEventStore(tmp_path / "a.db") as store:
        await store.append([Noted(n) for n in range(3)])
        connection = store._database.connection
        for read in (
            lambda: store._fetch(0, 10),
            lambda: store.get(UUID(int=1)),
            store._last_position,
            store._groups,
            store._letter_keys,
            store.statistics,
            store.check,
            store._claim,
        ):
            connection.set_progress_handler(lambda: 1, 1)
            with pytest.raises(StoreIOError, match=r"could not be read.*Try it again"):
                await read()
            connection.set_progress_handler(None, 1)
            await read()
        await store.append([Noted(3)])
        assert [s.event.number async for s in store.read()] == [0, 1, 2, 3]


@pytest.mark.parametrize("refusal", [OSError(5, "Input/output error"), PermissionError(13, "no")])
async def test_what_the_system_refuses_while_reading_is_an_error_of_the_store(
    tmp_path, monkeypatch, refusal
):
    async with SqliteEventStore(tmp_path / "a.db") as store:
        await store.append([Noted(0)])
        with monkeypatch.context() as patched:

            def refuse(*_):
                raise refusal

            patched.setattr(_faults.Faults, "room", refuse)
            with pytest.raises(StoreIOError, match="could not be read"):
                await store.statistics()
        assert (await store.statistics()).events == 1


# Reading on in what a bus has closed


async def listening_behind(store, found, between):
    async with EventBus(store) as bus, bus.listen(buffer=1) as events:
        await bus.publish_many([Noted(n) for n in range(1200)])
        await bus.stop()
        between()
        async for event in events:
            found.append(event.number)  # it ends with an error


async def test_the_rest_of_a_file_that_is_gone_is_an_error_and_the_file_is_not_made_again(
    tmp_path,
):
    path, found = tmp_path / "a.db", []
    with pytest.raises(StoreNotFound, match=r"a\.db"):
        await listening_behind(SqliteEventStore(path), found, path.unlink)
    assert found == [0]
    assert list(tmp_path.iterdir()) == []


async def test_the_rest_of_a_file_is_not_read_from_another(tmp_path):
    path, found = tmp_path / "a.db", []
    async with SqliteEventStore(tmp_path / "b.db") as other:
        await other.append([Noted(n) for n in range(2000, 4000)])
    with pytest.raises(StoreReplaced, match="replaced after it had been closed"):
        await listening_behind(
            SqliteEventStore(path), found, lambda: (tmp_path / "b.db").replace(path)
        )
    assert found == [0]


async def test_the_rest_of_a_store_in_memory_is_an_error_unless_somebody_keeps_it_open():
    found = []
    with pytest.raises(StoreClosed, match="async with store"):
        await listening_behind(SqliteEventStore(":memory:"), found, lambda: None)
    assert found == [0]
    async with SqliteEventStore(":memory:") as store:
        found = []
        await listening_behind(store, found, lambda: None)
    assert found == list(range(1200))
