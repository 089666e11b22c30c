"""What every store promises of an event under an id that the log has."""

from datetime import timedelta
from typing import ClassVar
from uuid import UUID, uuid4

import attrs
import pytest
import trio
import trio.testing

from tests.events import Noted
from triobus import DomainEvent, EventIdConflict, StoreError, upcaster
from triobus.stores._duplicates import Differs
from triobus.stores._values import Append, Commit, NewRow


@attrs.frozen
class Priced(DomainEvent):
    price: float
    tags: frozenset[str] = frozenset()
    name: str = ""


ID = UUID(int=77)


async def test_another_event_under_a_known_id_is_refused_and_named(new_store):
    async with new_store() as store:
        await store.append([Noted(0), Priced(1.0, name="a", event_id=ID)])
        with pytest.raises(EventIdConflict, match=r"'Priced'.* position 2, .* 'price'") as caught:
            await store.append([Noted(1), Priced(2.0, name="a", event_id=ID)])
        found = caught.value
        assert isinstance(found, StoreError)
        assert isinstance(found, ValueError)
        assert (found.event_id, found.position, found.field) == (ID, 2, "price")
        with pytest.raises(EventIdConflict, match=r"'noted'.* 'Priced'.* another type") as caught:
            await store.append([Noted(1, event_id=ID)])
        assert (caught.value.position, caught.value.field) == (2, "event_type")
        assert [(s.position, s.event.event_type) async for s in store.read()] == [
            (1, "noted"),
            (2, "Priced"),
        ]


async def test_another_event_under_one_id_in_a_batch_is_refused_with_all_of_it(new_store):
    async with new_store() as store:
        batch = [Noted(0), Priced(1.0, event_id=ID), Priced(1.0, name="x", event_id=ID)]
        with pytest.raises(EventIdConflict, match=r"before it in the same call.* 'name'") as caught:
            await store.append(batch)
        assert (caught.value.position, caught.value.field) == (None, "name")
        assert await store._last_position() == 0
        stored = await store.append([batch[1], Noted(2), batch[1]])
        assert [s.position for s in stored] == [1, 2, 1]


async def test_time_causes_and_metadata_are_not_what_makes_an_event_another(new_store):
    first = Priced(1.0, event_id=ID)
    again = Priced(
        1.0,
        event_id=ID,
        occurred_at=first.occurred_at + timedelta(days=1),
        correlation_id=uuid4(),
        causation_id=uuid4(),
        metadata={"who": "me"},
    )
    async with new_store() as store:
        await store.append([first])
        (stored,) = await store.append([again])
        assert stored.position == 1
        assert [s.event async for s in store.read()] == [first]


async def test_a_set_in_another_order_makes_no_other_event(new_store):
    tags = [str(n) for n in range(9)]
    one, other = set(tags), set()
    for tag in reversed([*tags, *map(str, range(100, 200))]):
        other.add(tag)
    other -= set(map(str, range(100, 200)))
    assert one == other
    assert list(one) != list(other)
    async with new_store() as store:
        await store.append([Priced(1.0, frozenset(one), event_id=ID)])
        again = Priced(1.0, frozenset(other), event_id=ID)
        assert store._codec.encode(again) != (await store._fetch(0, 1))[0].data
        (stored,) = await store.append([again])
        assert stored.position == 1
        batch = [Priced(1.0, frozenset(tags), event_id=UUID(int=n)) for n in (1, 1, 77, 77)]
        assert [s.position for s in await store.append(batch)] == [2, 2, 1, 1]
        with pytest.raises(EventIdConflict, match="'tags'"):
            await store.append([Priced(1.0, frozenset(["0"]), event_id=ID)])


@attrs.frozen
class Retold(DomainEvent):
    event_type: ClassVar[str] = "log.retold"
    schema_version: ClassVar[int] = 2
    number: int


@upcaster(Retold, from_version=1)
def _retell(data):
    return {"number": data["count"]}


async def test_an_event_that_the_log_has_in_an_older_version_is_the_same_event(new_store):
    async with new_store() as store:
        data = f'{{"event_id":"{ID}","occurred_at":"2020-01-01T00:00:00Z","count":5}}'
        await store._claim()
        record = NewRow(ID, "log.retold", 1, None, data.encode())
        await store._commit(Commit([Append([record])]))
        (stored,) = await store.append([Retold(5, event_id=ID)])
        assert stored.position == 1
        with pytest.raises(EventIdConflict):
            await store.append([Retold(6, event_id=ID)])


@pytest.mark.parametrize("expects", [False, True])
async def test_of_those_who_store_at_once_only_who_has_another_event_is_refused(new_store, expects):
    outcomes = {}

    async def append(name, events):
        try:
            stored = await store.append(events, expected_sequence=0 if expects else None)
            outcomes[name] = [s.position for s in stored]
        except EventIdConflict as error:
            outcomes[name] = error.position

    async with new_store() as store:
        await append("first", [Noted(0, "first")])
        async with trio.open_nursery() as nursery:
            for name, events in {
                "leads": [Noted(0, "b")],
                "same": [Noted(1, "a", event_id=ID)],
                "again": [Noted(1, "a", event_id=ID)],
                "other": [Noted(2, "a", event_id=ID), Noted(3, "a")],
                "last": [Noted(4, "c"), Noted(5, "c")],
            }.items():
                nursery.start_soon(append, name, events)
                await trio.lowlevel.checkpoint()
        assert outcomes["other"] == outcomes["same"][0]
        assert outcomes["same"] == outcomes["again"]
        found = sorted([(s.event.number, s.sequence) async for s in store.read(after=1)])
        assert found == [(0, 1), (1, 1), (4, 1), (5, 2)]


async def test_one_commit_accepts_the_same_event_once_whatever_sequence_is_expected(new_store):
    async with new_store() as store:
        await store._claim()
        event = Noted(1, "a")
        data = store._codec.encode(event)
        record = NewRow(event.event_id, event.event_type, 1, "a", data)
        results = await store._commit(
            Commit([Append([record], 0), Append([record], 0), Append([record], 7)])
        )
        assert [(place.position, place.is_new) for (place,) in results] == [
            (1, True),
            (1, False),
            (1, False),
        ]
        assert [s.sequence async for s in store.read()] == [1]


async def test_a_commit_leaves_out_the_append_with_another_event_and_nothing_else(new_store):
    async with new_store() as store:
        await store._claim()

        def record(number, key, event_id=None):
            event = Noted(number, key)
            event_id = event_id or event.event_id
            data = store._codec.encode(attrs.evolve(event, event_id=event_id))
            return NewRow(event_id, "noted", 1, key, data)

        results = await store._commit(
            Commit(
                [
                    Append([record(1, "a", ID)]),
                    Append([record(2, "a"), record(3, "a", ID)]),
                    Append([record(4, "a")], 1),
                ]
            )
        )
        assert [type(result) for result in results] == [list, Differs, list]
        assert results[1].position == 1
        assert [(s.event.number, s.position, s.sequence) async for s in store.read()] == [
            (1, 1, 1),
            (4, 2, 2),
        ]
