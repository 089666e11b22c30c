"""Reading on in the store that a bus has closed."""

import pytest

from tests.events import Noted
from triobus import EventBus, SqliteEventStore, StoreClosed, StoreNotFound, StoreReplaced


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
