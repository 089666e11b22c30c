"""Files that are no stores, and stores that are damaged: an error, and never a changed event."""

import random
import shutil
import sqlite3
import zipfile
from contextlib import closing

import pytest

from tests.events import Noted
from triobus import (
    EventBus,
    NotAStore,
    SqliteEventStore,
    StoreCorrupt,
    StoreError,
    StoreTooNew,
)


async def make(path, count=20):
    async with SqliteEventStore(path) as store:
        await store.append([Noted(number, "ab"[number % 2]) for number in range(count)])


async def read(path):
    async with SqliteEventStore(path) as store:
        return [stored.event.number async for stored in store.read()]


def execute(path, *statements):
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


# Files that are no stores


def _text(path):
    path.write_text("position,event\n1,hello\n" * 100)


def _zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("events", "x" * 5000)


def _half_header(path):
    path.write_bytes(b"SQLite format 3\0\x10\0\2\2")


def _other_tables(path):
    execute(path, "CREATE TABLE orders (id)")


def _utf_16(path):
    execute(path, "PRAGMA encoding = 'UTF-16'", "CREATE TABLE events (position)")


@pytest.mark.parametrize("make_file", [_text, _zip, _half_header, _other_tables, _utf_16])
async def test_a_file_that_is_something_else_is_refused_and_left_as_it_is(tmp_path, make_file):
    path = tmp_path / "a.db"
    make_file(path)
    before = path.read_bytes()
    with pytest.raises(NotAStore, match=r"a\.db"):
        await read(path)
    assert path.read_bytes() == before


async def test_an_empty_file_is_a_new_store(tmp_path):
    (tmp_path / "a.db").write_bytes(b"")
    await make(tmp_path / "a.db", 1)
    assert await read(tmp_path / "a.db") == [0]


async def test_a_store_whose_making_was_killed_is_a_new_store(tmp_path):
    execute(tmp_path / "a.db", "PRAGMA journal_mode = WAL", "PRAGMA page_size")
    await make(tmp_path / "a.db", 1)
    assert await read(tmp_path / "a.db") == [0]


async def test_a_database_of_another_application_is_told_by_its_number(tmp_path):
    await make(tmp_path / "a.db")
    execute(tmp_path / "a.db", "PRAGMA application_id = 1234567")
    with pytest.raises(NotAStore, match="1234567"):
        await read(tmp_path / "a.db")


async def test_a_newer_version_is_told(tmp_path):
    await make(tmp_path / "a.db")
    execute(tmp_path / "a.db", "PRAGMA user_version = 3")
    with pytest.raises(StoreTooNew, match=r"version 3.*update triobus"):
        await read(tmp_path / "a.db")


@pytest.mark.parametrize(
    "statements",
    [
        # eats half of the events, whose commits say that all is well
        [
            "CREATE TRIGGER eats BEFORE INSERT ON events WHEN NEW.position % 2 "
            "BEGIN SELECT raise(IGNORE); END"
        ],
        # never ends
        [
            "DROP TABLE attempts",
            "CREATE VIEW attempts AS WITH RECURSIVE more(n) AS "
            "(SELECT 1 UNION ALL SELECT n + 1 FROM more) SELECT n FROM more",
        ],
        ["DROP INDEX events_by_id"],
        ["ALTER TABLE events ADD COLUMN more TEXT"],
        ["CREATE INDEX more ON events (data)"],
    ],
)
async def test_a_schema_that_somebody_has_changed_is_refused_before_anything_is_read(
    tmp_path, statements
):
    await make(tmp_path / "a.db")
    execute(tmp_path / "a.db", *statements)
    with pytest.raises(NotAStore, match="schema"):
        await read(tmp_path / "a.db")


# Stores that are damaged


@pytest.mark.parametrize(
    ("statement", "position"),
    [
        ("UPDATE events SET data = replace(data, ':7', ':8') WHERE position = 8", 8),
        ("UPDATE events SET event_type = 'other' WHERE position = 3", 3),
        ("UPDATE events SET aggregate_id = NULL WHERE position = 3", 3),
        ("UPDATE events SET sequence = 1 WHERE position = 5", 5),
        ("UPDATE events SET sequence = -1 WHERE position = 5", 5),
        ("UPDATE events SET schema_version = 2 WHERE position = 1", 1),
        ("UPDATE events SET recorded_at = 'yesterday' WHERE position = 2", 2),
        ("UPDATE events SET data = CAST(x'ff' AS TEXT) WHERE position = 4", 4),
        ("UPDATE events SET checksum = checksum + 1 WHERE position = 6", 6),
        ("DELETE FROM events WHERE position = 9", 9),
        ("DELETE FROM events WHERE position > 15", 16),
        ("UPDATE events SET position = 9223372036854775807 WHERE position = 20", 20),
        (
            "UPDATE events SET position = -1 WHERE position = 4",
            4,
        ),
    ],
)
async def test_a_row_that_was_changed_is_told_with_its_position(tmp_path, statement, position):
    await make(tmp_path / "a.db")
    execute(tmp_path / "a.db", statement)
    found = []
    with pytest.raises(StoreCorrupt, match=f"position {position}:") as caught:
        async with SqliteEventStore(tmp_path / "a.db") as store:
            async for stored in store.read():
                found.append(stored.event.number)  # noqa: PERF401  # it ends with an error
    assert caught.value.position == position
    assert found == list(range(len(found)))


async def test_two_events_that_changed_places_are_noticed(tmp_path):
    await make(tmp_path / "a.db")
    execute(
        tmp_path / "a.db",
        "UPDATE events SET position = 100 WHERE position = 5",
        "UPDATE events SET position = 5 WHERE position = 6",
        "UPDATE events SET position = 6 WHERE position = 100",
    )
    with pytest.raises(StoreCorrupt):
        await read(tmp_path / "a.db")


async def test_a_damaged_row_ends_a_bus_that_comes_to_it_and_is_never_handled(tmp_path):
    await make(tmp_path / "a.db")
    execute(
        tmp_path / "a.db",
        "UPDATE events SET data = replace(data, ':7', ':8') WHERE position = 8",
    )
    handled = []
    bus = EventBus(SqliteEventStore(tmp_path / "a.db"))
    bus.group("all", start="beginning").subscribe(Noted, lambda event: handled.append(event.number))
    with pytest.raises(BaseExceptionGroup) as caught:
        async with bus:
            await bus.wait_idle()
    assert caught.group_contains(StoreCorrupt, depth=None)
    assert set(handled) <= set(range(7))


async def test_a_field_that_is_larger_than_the_limit_is_an_error_and_not_read(tmp_path):
    await make(tmp_path / "a.db")
    execute(
        tmp_path / "a.db",
        "UPDATE events SET data = CAST(zeroblob(50000000) AS TEXT) WHERE position = 3",
    )
    with pytest.raises(StoreCorrupt, match="too big"):
        await read(tmp_path / "a.db")


@pytest.mark.parametrize("table", ["progress", "finished", "attempts", "dead_letters"])
async def test_nonsense_in_the_tables_of_a_bus_is_an_error_of_the_store(tmp_path, table):
    await make(tmp_path / "a.db")
    insert = {
        "progress": "VALUES (CAST(x'ff' AS TEXT), 1, NULL, NULL)",
        "finished": "VALUES (CAST(x'ff' AS TEXT), 1, 1, NULL)",
        "attempts": "VALUES ('default', 3, 'x', 1, 0, 0, '[1', NULL)",
        "dead_letters": "VALUES (1, 99, 'g', 's', NULL, 1, 'never', 'never', '', '', '', NULL)",
    }[table]
    execute(
        tmp_path / "a.db",
        f"INSERT INTO {table} {insert}",
        *(
            ["INSERT INTO progress VALUES ('default', 1, NULL, NULL)"]
            if table != "progress"
            else []
        ),
    )
    bus = EventBus(SqliteEventStore(tmp_path / "a.db"))
    handled = []
    bus.subscribe(Noted, lambda event: handled.append(event.number))
    if table == "finished":
        async with bus:  # it belongs to no group that there is
            await bus.wait_idle()
        assert sorted(handled) == list(range(1, 20))
        return
    with pytest.raises(StoreError):
        async with bus:
            await bus.dead_letters.list()


def _truncated(data):
    return data[: len(data) // 2]


def _page_2_zeroed(data):
    return data[:4096] + bytes(4096) + data[8192:]


def _page_1_random(data):
    return random.Random(1).randbytes(4096) + data[4096:]


@pytest.mark.parametrize("harm", [_truncated, _page_2_zeroed, _page_1_random])
async def test_a_file_with_damaged_pages_is_an_error_and_gives_no_event_that_never_was(
    tmp_path, harm
):
    path = tmp_path / "a.db"
    await make(path, 500)
    path.write_bytes(harm(path.read_bytes()))
    found = []
    with pytest.raises(StoreError):
        async with SqliteEventStore(path) as store:
            async for stored in store.read():
                found.append(stored.event.number)  # noqa: PERF401  # it ends with an error
    assert found == list(range(len(found)))


def page_of(path, name):
    """Return the number of the first page of a table or an index."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)
        ).fetchone()[0]


def overwrite(path, page, new, at=0):
    data = bytearray(path.read_bytes())
    begin = (page - 1) * 4096 + at
    data[begin : begin + len(new)] = new
    path.write_bytes(data)


def _index_of_ids(path):
    overwrite(path, page_of(path, "events_by_id"), bytes(4096))


def _index_of_ids_with_a_cell_less(path):
    page = page_of(path, "events_by_id")
    overwrite(path, page, (19).to_bytes(2, "big"), at=3)


def _index_of_aggregates_with_a_cell_less(path):
    page = page_of(path, "events_by_aggregate")
    overwrite(path, page, (19).to_bytes(2, "big"), at=3)


def _last_but_three(path):
    execute(path, "UPDATE events SET data = replace(data, ':16', ':61') WHERE position = 17")


def _one_is_missing(path):
    execute(path, "DELETE FROM events WHERE position = 15")


@pytest.mark.parametrize(
    "harm",
    [
        _index_of_ids,
        _index_of_ids_with_a_cell_less,
        _index_of_aggregates_with_a_cell_less,
        _last_but_three,
        _one_is_missing,
    ],
)
async def test_after_an_unclean_end_nothing_is_written_where_the_killed_writer_has_left_damage(
    tmp_path, harm
):
    path = tmp_path / "a.db"
    await make(path)
    harm(path)
    before = path.read_bytes()
    (tmp_path / "a.db-wal").write_bytes(b"")  # as a killed program leaves it
    async with SqliteEventStore(path) as store:
        with pytest.raises(StoreCorrupt, match="damaged"):
            await store.append([Noted(1, "a")])
    assert path.read_bytes() == before


async def test_a_lock_that_was_left_tells_of_an_unclean_end_though_the_log_file_is_gone(tmp_path):
    path = tmp_path / "a.db"
    await make(path)
    _last_but_three(path)
    (tmp_path / "a.db-lock").write_text("4321\n")
    async with SqliteEventStore(path) as store:
        with pytest.raises(StoreCorrupt, match="position 17"):
            await store.append([Noted(1, "a")])
    assert not (tmp_path / "a.db-lock").exists()


async def test_damage_far_from_where_a_killed_writer_was_is_found_where_it_is_read(tmp_path):
    path = tmp_path / "a.db"
    await make(path, 5000)
    execute(path, "UPDATE events SET data = replace(data, ':6', ':7') WHERE position = 7")
    (tmp_path / "a.db-wal").write_bytes(b"")
    async with SqliteEventStore(path) as store:
        assert (await store._claim()).is_unclean
        await store.append([Noted(5000)])
        assert await store.check(after=0) == (1000, [7])
        with pytest.raises(StoreCorrupt, match="position 7"):
            [stored async for stored in store.read()]


async def test_a_start_after_an_unclean_end_looks_at_no_more_of_a_long_log_than_of_a_short_one(
    tmp_path,
):
    looked_at = {}
    for count in (2_000, 40_000):
        path = tmp_path / f"{count}.db"
        await make(path, count)
        path.with_name(f"{count}.db-wal").write_bytes(b"")
        async with SqliteEventStore(path) as store:
            statements = []
            store._database.connection.set_trace_callback(statements.append)
            work = 0

            def count_work():
                nonlocal work
                work += 1

            store._database.connection.set_progress_handler(count_work, 100)
            await store._claim()
            looked_at[count] = len(statements), work
    assert looked_at[2_000][0] == looked_at[40_000][0]
    assert looked_at[40_000][1] <= looked_at[2_000][1] * 1.1


async def test_the_log_file_of_another_store_is_noticed_before_anything_is_written(tmp_path):
    await make(tmp_path / "a.db", 50)
    await make(tmp_path / "b.db", 50)
    async with SqliteEventStore(tmp_path / "b.db") as other:
        await other.append([Noted(number + 1000, "z") for number in range(5)])
        shutil.copy(tmp_path / "b.db-wal", tmp_path / "a.db-wal")
    async with SqliteEventStore(tmp_path / "a.db") as store:
        with pytest.raises(StoreCorrupt, match="damaged"):
            await store.append([Noted(1)])


async def test_a_file_that_is_copied_without_what_is_beside_it_is_older_or_an_error(tmp_path):
    path = tmp_path / "a.db"
    async with SqliteEventStore(path) as store:
        for number in range(300):
            await store.append([Noted(number, "a")])
        shutil.copy(path, tmp_path / "b.db")
    try:
        numbers = await read(tmp_path / "b.db")
    except StoreError:
        return
    assert numbers == list(range(len(numbers)))


async def test_the_log_file_of_another_store_beside_it_is_noticed(tmp_path):
    await make(tmp_path / "a.db", 50)
    await make(tmp_path / "b.db", 50)
    async with SqliteEventStore(tmp_path / "b.db") as other:
        await other.append([Noted(number + 1000, "z") for number in range(5)])
        shutil.copy(tmp_path / "b.db-wal", tmp_path / "a.db-wal")
    found = []
    with pytest.raises(StoreCorrupt):
        async with SqliteEventStore(tmp_path / "a.db") as store:
            async for stored in store.read():
                found.append(stored.event.number)  # noqa: PERF401  # it ends with an error
    assert found == list(range(len(found)))


async def test_garbage_as_log_file_changes_nothing(tmp_path):
    await make(tmp_path / "a.db", 50)
    (tmp_path / "a.db-wal").write_bytes(random.Random(2).randbytes(20_000))
    assert await read(tmp_path / "a.db") == list(range(50))


async def test_no_bit_that_flips_in_a_store_at_rest_ever_changes_an_event(tmp_path):
    path = tmp_path / "a.db"
    await make(path, 60)
    whole = path.read_bytes()
    async with SqliteEventStore(path) as store:
        expected = [(s.position, s.event, s.sequence, s.recorded_at) async for s in store.read()]
    chance = random.Random(3)
    noticed = 0
    for _ in range(300):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        found = []
        try:
            async with SqliteEventStore(path) as store:
                async for s in store.read():
                    found.append((s.position, s.event, s.sequence, s.recorded_at))  # noqa: PERF401  # it may end with an error
        except StoreError:
            noticed += 1
            assert found == expected[: len(found)]
        else:
            assert found == expected
    assert noticed > 50


# What is set


async def test_what_keeps_a_hostile_file_harmless_is_set(tmp_path):
    async with SqliteEventStore(tmp_path / "a.db") as store:
        connection = store._database.connection
        found = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("trusted_schema", "cell_size_check", "synchronous", "wal_autocheckpoint")
        }
        limit = connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)
    assert found == {
        "trusted_schema": 0,
        "cell_size_check": 1,
        "synchronous": 2,
        "wal_autocheckpoint": 0,
    }
    assert limit == 16 * 2**20


async def test_with_normal_commits_do_not_wait_for_the_disk(tmp_path):
    async with SqliteEventStore(tmp_path / "a.db", synchronous="normal") as store:
        assert store._database.connection.execute("PRAGMA synchronous").fetchone() == (1,)
