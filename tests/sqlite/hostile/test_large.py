"""Fields and batches that would fill the memory."""

import attrs
import pytest
import trio

from tests.sqlite.hostile.forging import event_id, forge
from tests.sqlite.hostile.probing import FINE, carry, memory_peak, outcome, read_all
from triobus import DomainEvent, SqliteEventStore


async def _get(path):
    async with SqliteEventStore(path, read_only=True) as store:
        return [repr(await store.get(event_id(3)))]


def get(path):
    """Read the event that is large, once."""
    return outcome(_get, path)


LARGE = {
    # id: a statement, who comes to it first, and what becomes of it
    "a million subscriptions": (
        "UPDATE attempts SET done = "
        """'[' || replace(hex(zeroblob(500000)), '0', '"",') || '""]'""",
        carry,
        FINE,
    ),
    "a traceback of 15 MiB": (
        "UPDATE dead_letters SET traceback = CAST(zeroblob(15728640) AS TEXT)",
        carry,
        FINE,
    ),
    "a million keys of metadata": (
        "UPDATE events SET data = replace(data, '\"metadata\":{}', '\"metadata\":{' || "
        "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000) "
        "SELECT group_concat('\"' || i || '\":\"\"') FROM n) || '}') WHERE position = 4",
        get,
        "EventNotDecodable",
    ),
    "data of 100 MiB": (
        "UPDATE events SET data = CAST(zeroblob(104857600) AS TEXT) WHERE position = 4",
        read_all,
        "StoreCorrupt",
    ),
    "a name of 100 MiB": (
        "UPDATE attempts SET subscription = CAST(zeroblob(104857600) AS TEXT)",
        carry,
        "StoreCorrupt",
    ),
}


@pytest.mark.parametrize(("statement", "use", "expected"), LARGE.values(), ids=LARGE)
def test_a_field_that_is_too_large_fills_no_memory(path, statement, use, expected):
    forge(path, statement, is_chained=expected != "StoreCorrupt")
    assert path.stat().st_size > 2 * 2**20
    memory_peak()
    before = memory_peak()
    found, said = use(path)
    assert found == expected
    assert memory_peak() - before < 500 * 2**20  # a dict of a million keys is a fifth of that
    assert len(said) < 200_000


@attrs.frozen
class Wide(DomainEvent):
    """An event with a little data, of an aggregate with a long name."""

    number: int

    @property
    def aggregate_id(self):
        return f"{self.number}" * 3_000_000


async def test_long_names_end_a_batch_as_much_data_does(path):
    async with SqliteEventStore(path, synchronous="normal") as store:
        await store.append([Wide(number) for number in range(6)])
        assert len(await store._fetch(0, 512)) == 2
        assert [found.event.number async for found in store.read()] == [0, 1, 2, 3, 4, 5]


def test_events_without_any_data_are_read_on_after_a_batch_of_them(path):
    forge(path, "UPDATE events SET data = '' WHERE position < 6")

    async def fetch():
        async with SqliteEventStore(path, read_only=True) as store:
            return [record.position for record in await store._fetch(0, 3)]

    assert trio.run(fetch) == [1, 2, 3]
