"""A store of an older version becomes one of this version when it is opened, or stays as it is."""

import sqlite3
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest

from tests.events import Noted
from triobus import EventBus, Retry, SqliteEventStore, StoreError
from triobus.stores.sqlite import _schema

OLD = (Path(__file__).parent / "version_1.sql").read_text()


@pytest.fixture
def path(tmp_path):
    """A file of version 1: retries in one group, a dead letter in another."""
    found = tmp_path / "old.db"
    with closing(sqlite3.connect(found)) as connection:
        connection.executescript(OLD)
        connection.execute(f"PRAGMA application_id = {_schema.APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
        connection.execute("PRAGMA journal_mode = WAL")
    return found


def rows(path, query):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


async def test_an_old_store_is_whole_and_of_this_version_once_it_was_opened(path):
    async with SqliteEventStore(path) as store:
        assert [stored.event.number async for stored in store.read()] == [*range(1, 9)]
        assert await store.problems() == []
        assert await store.check() == (8, [])
        found = [s.position async for s in store.read(correlation_id=UUID(int=1))]
    assert found == [7, 8]
    assert rows(path, "PRAGMA user_version") == [(2,)]
    for table in ("finished", "attempts", "dead_letters"):
        assert rows(path, f"SELECT count(*) FROM {table} WHERE checksum IS NULL") == [(0,)]


async def test_a_bus_goes_on_in_an_old_store_where_it_was(path, autojump_clock):
    bus, handled, sent = EventBus(SqliteEventStore(path)), [], []
    bus.subscribe(Noted, name="late", retry=Retry(attempts=3, max_delay=1000))(handled.append)
    mail = bus.group("mail")
    mail.subscribe(Noted, sent.append, name="send")
    async with bus:
        await bus.wait_idle()
        (letter,) = await bus.dead_letters.list()
        assert (letter.position, letter.error_type) == (3, "KeyError")
        assert await bus.dead_letters.replay() == 1
    assert sorted(event.number for event in handled) == [2, 4]
    assert [event.number for event in sent] == [3]


async def test_an_old_store_that_is_only_looked_at_is_refused_with_what_to_do(path):
    with pytest.raises(StoreError, match=r"version 1.*open it once without read_only"):
        async with SqliteEventStore(path, read_only=True):
            pass
    assert rows(path, "PRAGMA user_version") == [(1,)]


@pytest.mark.parametrize("step", range(len(_schema.statements(_schema.MIGRATIONS[1])) + 1))
async def test_a_migration_that_fails_at_any_statement_leaves_the_old_store(
    path, monkeypatch, step
):
    before = list(rows(path, "SELECT sql FROM sqlite_schema ORDER BY name"))
    statements = _schema.statements(_schema.MIGRATIONS[1])
    broken = ";\n".join([*statements[:step], "SELECT * FROM nowhere"])
    with monkeypatch.context() as patch:
        patch.setattr(_schema, "MIGRATIONS", (_schema.MIGRATIONS[0], broken))
        with pytest.raises(StoreError, match="nowhere"):
            async with SqliteEventStore(path):
                pass
    assert rows(path, "PRAGMA user_version") == [(1,)]
    assert list(rows(path, "SELECT sql FROM sqlite_schema ORDER BY name")) == before
    _schema.expected.cache_clear()
    async with SqliteEventStore(path) as store:
        assert await store.problems() == []
