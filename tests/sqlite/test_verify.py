"""What `triobus verify` tells of a store beside its log."""

import re
import shutil
import sqlite3
from contextlib import closing, suppress

import pytest
import trio
import trio.testing

from tests.events import Noted
from triobus import EventBus, Retry, SqliteEventStore, StoreCorrupt, StoreError
from triobus._cli._verify import examined
from triobus.stores.sqlite import _connection, _wal
from triobus.testing import crash


async def fail(event):
    if event.number in (3, 4):
        raise ValueError("no")


async def fill(path):
    bus = EventBus(SqliteEventStore(path))
    bus.subscribe(Noted, fail, name="never", retry=Retry(attempts=1))
    late = Retry(attempts=2, delay=1000)
    bus.group("mail", start="beginning").subscribe(Noted, fail, name="late", retry=late)
    async with bus:
        await bus.publish_many([Noted(number, "abc"[number % 3]) for number in range(12)])
        await trio.testing.wait_all_tasks_blocked(0.05)
        await bus.stop(drain=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with everything in it: dead letters, attempts, ranges above the offset."""
    path = tmp_path_factory.mktemp("made") / "a.db"
    trio.run(fill, path)
    return path


@pytest.fixture
def path(made, tmp_path):
    shutil.copy(made, tmp_path)
    return tmp_path / "a.db"


def execute(path, *statements):
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def rows(path, query):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


async def complaints(path):
    """Return what verify complains of, be it that it cannot open the store."""
    try:
        async with SqliteEventStore(path, read_only=True) as store:
            return (await examined(store)).complaints
    except StoreError as error:
        return (str(error),)


async def start(path):
    """Let a bus handle what is left, and one event more."""
    bus = EventBus(SqliteEventStore(path))
    bus.subscribe(Noted, lambda event: None, name="never")
    bus.group("mail").subscribe(Noted, lambda event: None, name="late")
    async with bus:
        await bus.publish(Noted(99))
        await bus.wait_idle()
        await bus.dead_letters.list()


async def test_a_store_that_is_whole_is_not_complained_of(path, autojump_clock):
    assert rows(path, "SELECT count(*) FROM finished")[0][0] > 0
    assert rows(path, "SELECT count(*) FROM attempts")[0][0] > 0
    assert rows(path, "SELECT count(*) FROM dead_letters")[0][0] > 0
    assert await complaints(path) == ()


NO_CHECKSUMS = (
    "UPDATE progress SET checksum = NULL WHERE name > ''",
    *(f"UPDATE {table} SET checksum = NULL" for table in ("finished", "attempts", "dead_letters")),
)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE progress SET position = 5 WHERE name = 'default'", "table progress"),
        ("UPDATE finished SET first_position = first_position - 1", "table finished"),
        ("UPDATE attempts SET attempts = 2 WHERE position = 4", "table attempts"),
        ("UPDATE attempts SET subscription = 'lake'", "table attempts"),
        ("UPDATE attempts SET due_at = due_at + 1", "table attempts"),
        ("UPDATE attempts SET done = '[\"late\"]'", "table attempts"),
        ("UPDATE progress SET name = 'male' WHERE name = 'mail'", "table progress"),
    ],
)
async def test_progress_that_was_changed_is_told_and_no_bus_goes_on_from_it(
    path, autojump_clock, statement, said
):
    execute(path, statement)
    assert said in str(await complaints(path))
    with pytest.raises(StoreCorrupt, match=said):
        await start(path)
    execute(path, *NO_CHECKSUMS)
    await start(path)


async def test_a_row_whose_checksum_was_taken_away_gets_one_with_the_next_commit(
    path, autojump_clock
):
    execute(path, "UPDATE progress SET checksum = NULL WHERE name > ''")
    assert await complaints(path) == ()
    await start(path)
    assert await complaints(path) == ()
    assert rows(path, "SELECT name FROM progress WHERE checksum IS NULL") == []


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE progress SET position = 99 WHERE name = 'mail'", "table progress has 1 rows"),
        ("INSERT INTO finished VALUES ('none', 1, 1, NULL)", "table finished has 1 rows"),
        ("INSERT INTO finished VALUES ('mail', 11, 8, NULL)", "table finished has 1 rows"),
        ("INSERT INTO finished VALUES ('mail', 11, 99, NULL)", "table finished has 1 rows"),
        ("UPDATE attempts SET position = 99 WHERE position = 4", "table attempts has 1 rows"),
        ("UPDATE attempts SET done = '[1]' WHERE position = 4", "1 rows that cannot be read"),
        ("UPDATE attempts SET delay = 9e999 WHERE position = 4", "1 rows that cannot be read"),
        ("UPDATE dead_letters SET position = 99 WHERE position = 4", "dead_letters has 1 rows"),
        ("UPDATE dead_letters SET position = 6 WHERE position = 4", "dead_letters has 1 rows"),
        ("UPDATE dead_letters SET aggregate_id = NULL", "dead_letters has 2 rows"),
        ("UPDATE dead_letters SET last_failed_at = 'now'", "2 rows that cannot be read"),
        ("UPDATE events SET position = -7 WHERE position = 1", "table events has 1 rows"),
    ],
)
async def test_a_row_that_cannot_be_is_told_whatever_its_checksum(
    path, autojump_clock, statement, said
):
    execute(
        path,
        *NO_CHECKSUMS,
        statement,
    )
    assert said in str(await complaints(path))


async def test_an_index_that_has_lost_an_event_is_told(path, autojump_clock):
    ((root,),) = rows(path, "SELECT rootpage FROM sqlite_schema WHERE name = 'events_by_id'")
    data = bytearray(path.read_bytes())
    count = (root - 1) * 4096 + 3
    data[count : count + 2] = (11).to_bytes(2, "big")  # the page has one cell less
    path.write_bytes(data)
    async with SqliteEventStore(path, read_only=True) as store:
        assert await store.check() == (12, [])  # nothing in the log shows it
        assert "events_by_id" in str(await store.problems())


VALUES = ("NULL", "2.5", "x'ff00'")
COLUMNS = {
    "events": "position event_id event_type schema_version aggregate_id sequence recorded_at data "
    "checksum",
    "progress": "name position checksum fences",
    "finished": "group_name first_position last_position",
    "attempts": "group_name position subscription attempts due_at delay done",
    "dead_letters": "id position group_name subscription aggregate_id attempts first_failed_at "
    "last_failed_at error_type message traceback",
}


@pytest.mark.parametrize("table", COLUMNS)
async def test_a_value_of_another_type_is_told_and_is_an_error_of_ours_for_whatever_reads_it(
    made, tmp_path, autojump_clock, table
):
    path = tmp_path / "a.db"
    for column in COLUMNS[table].split():
        for value in VALUES:
            if (table, column, value) == ("progress", "checksum", "NULL"):
                continue  # a store from before there was one has this
            shutil.copy(made, path)
            if not put(path, table, column, value):
                continue
            assert await complaints(path), (column, value)
            with suppress(StoreError):
                try:
                    await start(path)
                except* StoreError:
                    pass
            for extra in tmp_path.glob("a.db*"):
                extra.unlink()


def put(path, table, column, value):
    """Put a value into a column of a STRICT table, as only damage can; return whether it could."""
    with closing(sqlite3.connect(path)) as connection:
        where = f"name = '{table}'"
        connection.execute("PRAGMA writable_schema = ON")
        ((sql,),) = connection.execute(f"SELECT sql FROM sqlite_schema WHERE {where}")
        loose = re.sub(r" (STRICT,?|NOT NULL|(TEXT|INTEGER|REAL)(?! PRIMARY))", "", sql)
        connection.execute(f"UPDATE sqlite_schema SET sql = ? WHERE {where}", (loose,))
        connection.commit()
    with closing(sqlite3.connect(path)) as connection:
        try:
            one = f"SELECT min({column}) FROM {table} WHERE {column} <> ''"
            connection.execute(f"UPDATE {table} SET {column} = {value} WHERE {column} = ({one})")
        except sqlite3.Error:
            return False
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(f"UPDATE sqlite_schema SET sql = ? WHERE {where}", (sql,))
        connection.commit()
    return True


async def test_a_log_that_claims_to_be_endless_is_told_at_once(path, autojump_clock):
    execute(path, f"UPDATE progress SET position = {2**62} WHERE name = ''")
    with trio.fail_after(60):
        assert "the file is too short for them" in str(await complaints(path))


# The -wal


async def killed(path, commits):
    """Leave a store as a killed process does, with some commits in its -wal."""
    bus = EventBus(SqliteEventStore(path))
    async with bus:
        for number in range(commits):
            await bus.publish(Noted(number))
        await crash(bus)


async def test_commits_behind_a_damaged_place_of_the_wal_are_told_again_and_again(tmp_path):
    path, log = tmp_path / "a.db", tmp_path / "a.db-wal"
    await killed(path, 6)
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 1
    log.write_bytes(data)
    for _ in range(2):
        assert "behind a damaged place" in str(await complaints(path))


async def test_looking_at_a_store_whose_bus_was_killed_changes_nothing_of_it(tmp_path):
    path, log = tmp_path / "a.db", tmp_path / "a.db-wal"
    await killed(path, 6)
    before = path.read_bytes(), log.read_bytes()
    assert await complaints(path) == ()
    assert (path.read_bytes(), log.read_bytes()) == before


async def test_looking_at_a_store_longer_than_its_bus_lives_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "a.db"
    async with EventBus(SqliteEventStore(path)) as bus:
        await bus.publish(Noted(1))
        store = SqliteEventStore(path, read_only=True)
        await store._open()
    assert await store.problems() == []
    await store._close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.db"]


async def test_a_wal_that_was_cut_short_is_as_after_a_power_cut(tmp_path):
    await killed(tmp_path / "a.db", 6)
    data = (tmp_path / "a.db-wal").read_bytes()
    for end in (0, 31, 32, 100, 5000, len(data) - 1, len(data)):
        (tmp_path / "a.db-wal").write_bytes(data[:end])
        assert _wal.commits_passed_over(str(tmp_path / "a.db-wal")) == 0


def test_a_commit_that_was_torn_over_an_earlier_use_of_the_wal_is_not_taken_for_two(tmp_path):
    path, log = tmp_path / "a.db", tmp_path / "a.db-wal"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (a)")
        for _ in range(60):
            connection.execute("INSERT INTO t VALUES (1)")  # each of them one frame, a commit
        earlier = log.read_bytes()
        connection.execute("PRAGMA wal_checkpoint(RESTART)")
        connection.execute("INSERT INTO t VALUES (zeroblob(4000 * 50))")  # one commit
        torn = bytearray(log.read_bytes())
    at = 32 + 41 * (24 + 4096)  # what says that this is a commit is in a sector before the rest
    assert (at + 8) % 512 == 0
    assert torn[16:24] == torn[at + 8 : at + 16] != earlier[at + 8 : at + 16]
    assert int.from_bytes(earlier[at + 4 : at + 8], "big") > 0
    for sector in (at // 512, at // 512 - 20):
        torn[sector * 512 : (sector + 1) * 512] = earlier[sector * 512 : (sector + 1) * 512]
    log.write_bytes(torn)
    assert _wal.commits_passed_over(str(log)) == 0


async def test_nothing_is_complained_of_while_a_bus_writes_and_begins_its_wal_anew(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(_connection, "FRAMES_BEFORE_CHECKPOINT", 30)
    path = tmp_path / "a.db"
    found, begun = [], set()
    async with EventBus(SqliteEventStore(path)) as bus:
        bus.subscribe(Noted, lambda event: None, name="it")

        async def look():
            async with SqliteEventStore(path, read_only=True) as store:
                while bus.statistics().published < 300:
                    found.extend(await store.problems())
                    begun.add((tmp_path / "a.db-wal").read_bytes()[16:24])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            for number in range(300):
                await bus.publish(Noted(number))
    assert found == []
    assert len(begun) > 2  # it was begun anew while somebody looked


# The checksums beside the log


async def test_every_row_beside_the_log_has_its_checksum_and_a_changed_one_is_told_of(tmp_path):
    path = tmp_path / "a.db"
    await _with_every_kind_of_row(path)
    for table, change in {
        "progress": "position = position - 1",
        "finished": "last_position = last_position + 1",
        "attempts": "attempts = attempts + 1",
        "dead_letters": "message = 'nothing of importance'",
    }.items():
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            where = "name > ''" if table == "progress" else "1"
            rows = connection.execute(f"SELECT checksum FROM {table} WHERE {where}").fetchall()
            assert rows
            assert all(checksum is not None for (checksum,) in rows)
            before = connection.execute(f"SELECT * FROM {table}").fetchall()
            connection.execute(f"UPDATE {table} SET {change} WHERE {where}")
        async with SqliteEventStore(path, read_only=True) as store:
            assert [said for said in await store.problems() if table in said]
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(f"DELETE FROM {table}")
            marks = ", ".join("?" * len(before[0]))
            connection.executemany(f"INSERT INTO {table} VALUES ({marks})", before)
        async with SqliteEventStore(path, read_only=True) as store:
            assert await store.problems() == []


async def _with_every_kind_of_row(path):
    """Leave a store with a row of every table but that of scheduled events."""
    bus = EventBus(SqliteEventStore(path))

    @bus.subscribe(Noted, retry=Retry(attempts=2, delay=1000, max_delay=1000, jitter=0))
    async def fail_some(event):
        if event.number == 1:
            raise ValueError("not yet")
        if event.number == 2:
            raise ValueError("never")

    fail_some_more = Retry(attempts=1)

    @bus.subscribe(Noted, retry=fail_some_more)
    async def fail_always(event):
        if event.number == 3:
            raise ValueError("never")

    async with bus:
        await bus.publish_many([Noted(number) for number in range(1, 6)])
        while bus.statistics().handled < 3:
            await trio.lowlevel.checkpoint()
        await bus.stop(drain="running")


# Random damage
