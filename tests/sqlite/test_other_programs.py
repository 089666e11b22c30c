"""What other programs do to a store, and what is told of it."""

import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import pytest
import trio
import trio.testing

from tests.events import Noted
from tests.sqlite.other_program import logged
from triobus import EventBus, SqliteEventStore, StoreInUse, StoreIOError, StoreReplaced
from triobus.stores._values import Append, Commit, NewRow
from triobus.stores.sqlite import _connection, _faults

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
