"""Paths, files and claims: what may be a store, and who may write it."""

import os
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import trio

from tests.events import Noted
from triobus import (
    EventBus,
    InvalidStorePath,
    SqliteEventStore,
    StoreError,
    StoreInUse,
    StoreNotFound,
    StoreReadOnly,
)


async def opened(path, **options):
    async with SqliteEventStore(path, **options) as store:
        await store.append([Noted(1)])


# Paths


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("", "temporary"),
        ("file:x?mode=memory", "URI"),
        ("a\0b", "NUL"),
        (None, "path"),
        (7.5, "path"),
        ("half \ud800 of a pair", "character"),
    ],
)
def test_what_is_no_path_is_refused_before_the_disk_is_looked_at(path, said):
    with pytest.raises(InvalidStorePath, match=said):
        SqliteEventStore(path)


async def test_a_directory_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StoreNotFound, match="nowhere") as caught:
        await opened(tmp_path / "nowhere" / "a.db")
    assert isinstance(caught.value, FileNotFoundError)
    assert list(tmp_path.iterdir()) == []


async def test_a_directory_is_no_store(tmp_path):
    with pytest.raises(InvalidStorePath, match="directory"):
        await opened(tmp_path)


async def test_a_file_as_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        await opened(tmp_path / "file" / "a.db")


async def test_a_name_of_5000_characters_is_refused_shortly(tmp_path):
    with pytest.raises(StoreError) as caught:
        await opened(tmp_path / ("x" * 5000))
    assert len(str(caught.value)) < 500


async def test_a_name_that_is_no_text_works(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\xfe.db"
    await opened(path)
    assert os.listdir(os.fsencode(tmp_path)) == [b"\xff\xfe.db"]


@pytest.mark.parametrize("name", ["50% off.db", "what?.db", "a#b.db", "per%63ent.db", "sp ace.db"])
async def test_names_that_mean_something_in_a_uri_are_just_names(tmp_path, name):
    await opened(tmp_path / name)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


async def test_a_dangling_link_is_refused_and_its_target_not_made(tmp_path):
    (tmp_path / "link.db").symlink_to(tmp_path / "target.db")
    with pytest.raises(InvalidStorePath, match="link"):
        await opened(tmp_path / "link.db")
    assert not (tmp_path / "target.db").exists()


async def test_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "a.db").symlink_to(tmp_path / "b.db")
    (tmp_path / "b.db").symlink_to(tmp_path / "a.db")
    with pytest.raises(StoreError, match="link"):
        await opened(tmp_path / "a.db")


async def test_a_link_to_a_file_of_something_else_leaves_that_as_it_was(tmp_path):
    system = tmp_path / "passwd"
    system.write_text("root:x:0:0\n" * 50)
    (tmp_path / "a.db").symlink_to(system)
    with pytest.raises(StoreError):
        await opened(tmp_path / "a.db")
    assert system.read_text() == "root:x:0:0\n" * 50


async def test_all_names_of_a_store_by_links_are_one_store(tmp_path):
    await opened(tmp_path / "a.db")
    (tmp_path / "link.db").symlink_to(tmp_path / "a.db")
    async with EventBus(SqliteEventStore(tmp_path / "a.db")):
        with pytest.raises(StoreInUse):
            await opened(tmp_path / "link.db")
    await opened(tmp_path / "link.db")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.db", "link.db"]


def _fifo(path):
    os.mkfifo(path)


def _socket(path):
    with socket.socket(socket.AF_UNIX) as found:
        found.bind(str(path))


@pytest.mark.parametrize("make", [_fifo, _socket])
async def test_what_is_no_regular_file_is_refused_before_sqlite_sees_it(tmp_path, make):
    make(tmp_path / "a.db")
    with pytest.raises(InvalidStorePath, match="regular"), trio.fail_after(60):
        await opened(tmp_path / "a.db")


async def test_a_device_is_refused():
    with pytest.raises(InvalidStorePath, match="device"):
        await opened("/dev/null")


async def test_a_hard_link_to_an_open_store_is_refused(tmp_path):
    async with SqliteEventStore(tmp_path / "a.db") as store:
        await store.append([Noted(1)])
        os.link(tmp_path / "a.db", tmp_path / "b.db")
        with pytest.raises(InvalidStorePath, match="hard link"):
            await opened(tmp_path / "b.db")


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
async def test_something_else_in_the_place_of_a_file_beside_is_refused(tmp_path, suffix):
    await opened(tmp_path / "a.db")
    (tmp_path / f"a.db{suffix}").mkdir()
    with pytest.raises(InvalidStorePath, match=suffix):
        await opened(tmp_path / "a.db")


# Rights


async def test_a_new_store_is_its_owners_alone(tmp_path):
    before = os.umask(0)
    try:
        async with SqliteEventStore(tmp_path / "a.db") as store:
            await store.append([Noted(1)])
            modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"a.db": 0o600, "a.db-wal": 0o600, "a.db-shm": 0o600, "a.db-lock": 0o600}


async def test_after_the_block_nothing_is_left_and_the_file_can_be_deleted(tmp_path):
    path = tmp_path / "a.db"
    bus = EventBus(SqliteEventStore(path))
    bus.subscribe(Noted, lambda event: None)
    async with bus:
        await bus.publish(Noted(1))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.db"]
    assert not [found for found in psutil.Process().open_files() if "a.db" in found.path]
    path.unlink()
    await opened(path)


UNPRIVILEGED = """
import os, sys, trio
from tests.events import Noted
from triobus import SqliteEventStore, StoreError

async def main():
    path, how = sys.argv[1:]
    os.setgid(65534)
    os.setuid(65534)
    assert not os.access(path, os.W_OK) or not os.access(os.path.dirname(path), os.W_OK)
    try:
        async with SqliteEventStore(path, read_only=how == "read") as store:
            print(len([stored async for stored in store.read()]))
            await store.append([Noted(2)])
    except StoreError as error:
        print(type(error).__name__, "directory" in str(error))

trio.run(main)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody with fewer rights")
@pytest.mark.parametrize(("file_mode", "folder_mode"), [(0o444, 0o777), (0o666, 0o555)])
@pytest.mark.parametrize("how", ["write", "read"])
async def test_what_cannot_be_written_is_said_at_open_and_can_be_read(
    tmp_path_factory, file_mode, folder_mode, how
):
    folder = Path(os.path.realpath("/tmp"), f"triobus-rights-{os.getpid()}-{file_mode:o}-{how}")
    folder.mkdir()
    try:
        path = folder / "a.db"
        await opened(path)
        path.chmod(file_mode)
        folder.chmod(folder_mode)
        done = await trio.run_process(
            [sys.executable, "-c", UNPRIVILEGED, str(path), how],
            capture_stdout=True,
            cwd=Path(__file__).parent.parent.parent,
        )
        lines = done.stdout.decode().split("\n")[:-1]
        assert lines[-1].startswith("StoreReadOnly")
        # Readers need a file beside the store, too, which they cannot make in such a directory.
        assert lines[:-1] == (["1"] if how == "read" and folder_mode == 0o777 else [])
    finally:
        folder.chmod(0o777)
        for entry in folder.iterdir():
            entry.unlink()
        folder.rmdir()


async def test_a_store_that_is_only_to_be_read_is_not_made_and_not_written(tmp_path):
    with pytest.raises(StoreNotFound):
        await opened(tmp_path / "a.db", read_only=True)
    await opened(tmp_path / "a.db")
    with pytest.raises(StoreReadOnly, match="read_only"):
        await opened(tmp_path / "a.db", read_only=True)
    with pytest.raises(StoreReadOnly):
        async with EventBus(SqliteEventStore(tmp_path / "a.db", read_only=True)):
            pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.db"]


# Claims

HOLDER = """
import sys, trio
from triobus import EventBus, SqliteEventStore

async def main():
    async with EventBus(SqliteEventStore(sys.argv[1])):
        print("held", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


def holder(path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent.parent,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


async def test_a_second_bus_in_this_process_is_told_who_has_the_store(tmp_path):
    async with EventBus(SqliteEventStore(tmp_path / "a.db")):
        with pytest.raises(StoreInUse) as caught:
            async with EventBus(SqliteEventStore(tmp_path / "a.db")):
                pass
        assert caught.value.pid == os.getpid()
    async with EventBus(SqliteEventStore(tmp_path / "a.db")):
        pass


async def test_a_bus_in_another_process_is_told_too_and_the_claim_dies_with_its_process(tmp_path):
    path = tmp_path / "a.db"
    with holder(path) as process:
        with pytest.raises(StoreInUse) as caught:
            async with EventBus(SqliteEventStore(path)):
                pass
        assert caught.value.pid == process.pid
        assert str(process.pid) in str(caught.value)
        async with SqliteEventStore(path) as store:
            assert (await store.statistics()).events == 0
            with pytest.raises(StoreInUse):
                await store.append([Noted(1)])
        process.send_signal(signal.SIGKILL)
        process.wait()
    await opened(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.db"]


async def test_readers_look_while_a_bus_writes(tmp_path):
    async with EventBus(SqliteEventStore(tmp_path / "a.db")) as bus:
        async with SqliteEventStore(tmp_path / "a.db") as reader:
            for number in range(5):
                await bus.publish(Noted(number))
                assert [s.event.number async for s in reader.read()] == list(range(number + 1))
        await bus.publish(Noted(5))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.db"]


async def test_two_writers_without_a_bus_conflict_only_while_one_is_open(tmp_path):
    async with (
        SqliteEventStore(tmp_path / "a.db") as one,
        SqliteEventStore(tmp_path / "a.db") as two,
    ):
        await one.append([Noted(1)])
        with pytest.raises(StoreInUse):
            await two.append([Noted(2)])
        assert (await two.statistics()).events == 1
    async with SqliteEventStore(tmp_path / "a.db") as two:
        (stored,) = await two.append([Noted(2)])
        assert stored.position == 2


FORKER = """
import os, sys, trio
from tests.events import Noted
from triobus import EventBus, SqliteEventStore, StoreForked

async def main():
    path = sys.argv[1]
    store = SqliteEventStore(path)
    async with store:
        await store.append([Noted(1)])
        pid = os.fork()
        if not pid:
            try:
                await store.append([Noted(2)])
            except StoreForked as error:
                print("forked", str(os.getpid()) in str(error), flush=True)
            if sys.argv[2] == "exit":
                os._exit(0)
            # A child that lives on after its parent was killed must not have the store.
            os.kill(os.getppid(), 9)
            print("orphan", flush=True)
            sys.stdin.read()
            os._exit(0)
        os.waitpid(pid, 0)
        await store.append([Noted(3)])
        async with SqliteEventStore(path) as other:
            try:
                await other.append([Noted(4)])
            except Exception as error:
                print(type(error).__name__, flush=True)
        print(len([stored async for stored in store.read()]), flush=True)

trio.run(main)
"""


def forker(path, how):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FORKER, str(path), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent.parent,
    )


def test_a_forked_child_is_refused_and_its_exit_drops_nothing_of_the_parents(tmp_path):
    with forker(tmp_path / "a.db", "exit") as process:
        out, _ = process.communicate()
    assert out.decode().split("\n") == ["forked True", "StoreInUse", "2", ""]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.db"]


async def test_a_forked_child_does_not_keep_the_claim_of_its_killed_parent(tmp_path):
    with forker(tmp_path / "a.db", "stay") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"forked True\n"
        assert process.stdout.readline() == b"orphan\n"
        process.wait()
        await opened(tmp_path / "a.db")
        process.stdin.close()


async def test_in_memory_there_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with SqliteEventStore(":memory:") as store:
        (stored,) = await store.append([Noted(1)])
        assert stored.position == 1
        bus = EventBus(store)
        handled = []
        bus.group("all", start="beginning").subscribe(
            Noted, lambda event: handled.append(event.number)
        )
        async with bus:
            await bus.publish(Noted(2))
        assert sorted(handled) == [1, 2]
    assert list(tmp_path.iterdir()) == []


async def test_the_log_can_be_read_with_plain_sqlite(tmp_path):
    async with SqliteEventStore(tmp_path / "a.db") as store:
        await store.append([Noted(7, "a"), Noted(8)])
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        rows = connection.execute(
            "SELECT position, event_type, aggregate_id, sequence, data ->> 'number' FROM events"
        ).fetchall()
        plan = connection.execute(
            "EXPLAIN QUERY PLAN SELECT * FROM events WHERE aggregate_id = 'a' ORDER BY position"
        ).fetchall()
    assert rows == [(1, "noted", "a", 1, 7), (2, "noted", None, None, 8)]
    assert "events_by_aggregate" in plan[0][3]
    assert len(plan) == 1  # no sorting
