"""What a bus with a store promises of rows that no event can be made of, and of older versions."""

import json
from typing import ClassVar
from uuid import UUID, uuid4

import attrs
import pytest

from tests.events import Noted
from tests.promises.stored.buses import Handled, subscribed
from triobus import (
    DomainEvent,
    EventBus,
    EventNotEncodable,
    InvalidOption,
    MemoryEventStore,
    Retry,
    upcaster,
)
from triobus.stores._values import Append, Commit, NewRow


async def test_an_unknown_type_is_a_dead_letter_of_whoever_subscribed_to_everything(new_store):
    handled = Handled()
    store = new_store()
    async with store:
        await store.append([Noted(1)])
        await _store_foreign(store, "gone.type", '{"x": 1}')
        await store.append([Noted(3)])
    bus = EventBus(new_store())
    bus.group("all", start="beginning", workers=1).subscribe(
        DomainEvent, handled, name="all", where=lambda event: True
    )
    bus.group("notes", start="beginning").subscribe(Noted, Handled())
    async with bus:
        await bus.wait_idle()
        (letter,) = await bus.dead_letters.list()
        assert (letter.event, letter.position, letter.event_type) == (None, 2, "gone.type")
        assert letter.error_type == "EventNotDecodable"
        assert "'gone.type'" in letter.message
        assert (letter.group, letter.attempts) == ("all", 1)
        assert await bus.dead_letters.replay(letter.id) == 0
        (letter,) = await bus.dead_letters.list()
        assert letter.attempts == 2
    assert handled == [1, 3]


async def test_a_row_that_cannot_be_decoded_is_a_dead_letter_and_the_group_goes_on(new_store):
    handled = Handled()
    store = new_store()
    async with store:
        await store.append([Noted(1, "a")])
        await _store_foreign(store, "noted", '{"number": "many"}', "a")
        await store.append([Noted(3, "a")])
    bus = EventBus(new_store())
    bus.group("all", start="beginning").subscribe(Noted, handled, name="handler")
    async with bus:
        await bus.wait_idle()
        (letter,) = await bus.dead_letters.list(aggregate_id="a")
        assert (letter.position, letter.subscription) == (2, "handler")
    assert handled == [1, 3]


async def test_two_classes_of_one_type_are_a_dead_letter_that_names_both(new_store):
    @attrs.frozen
    class One(DomainEvent):
        event_type: ClassVar[str] = "delivery.twice"
        number: int = 0

    async with new_store() as store:
        await store.append([One(1), Noted(2)])

    @attrs.frozen
    class Two(DomainEvent):
        event_type: ClassVar[str] = "delivery.twice"
        number: int = 0

    handled = Handled()
    bus = EventBus(new_store())
    bus.group("all", start="beginning").subscribe((One, Noted), handled, name="handler")
    async with bus:
        await bus.wait_idle()
        (letter,) = await bus.dead_letters.list()
        assert "One and" in letter.message
        assert "Two" in letter.message
        with pytest.raises(EventNotEncodable, match="One could not be read back"):
            await bus.publish(One(3))
    assert handled == [2]


@attrs.frozen
class Renamed(DomainEvent):
    event_type: ClassVar[str] = "delivery.renamed"
    schema_version: ClassVar[int] = 2
    number: int


@upcaster(Renamed, from_version=1)
def _rename(data):
    return {"number": data["count"]}


async def test_an_event_of_an_older_version_is_handled_as_one_of_today(new_store):
    store, handled = new_store(), Handled()
    async with store:
        base = {"event_id": str(UUID(int=7)), "occurred_at": "2020-01-01T00:00:00Z"}
        data = json.dumps(base | {"count": 5})
        await _store_foreign(store, "delivery.renamed", data, event_id=UUID(int=7))
        (found,) = [stored.event async for stored in store.read()]
        assert (found.number, found.event_id) == (5, UUID(int=7))
    bus = EventBus(new_store())
    bus.group("all", start="beginning").subscribe(Renamed, handled)
    async with bus:
        pass
    assert handled == [5]


async def _store_foreign(store, event_type, data, aggregate_id=None, event_id=None):
    record = NewRow(event_id or uuid4(), event_type, 1, aggregate_id, data.encode())
    await store._claim()
    await store._commit(Commit([Append([record])]))


async def test_a_store_is_no_store_unless_it_is_one():
    with pytest.raises(InvalidOption, match="EventStore"):
        EventBus("orders.db")
    assert EventBus(MemoryEventStore()).health().status == "stopped"


async def test_no_dead_letter_gets_the_id_of_one_that_is_gone(new_store):
    def failing(event):
        raise ValueError(event.number)

    ids = []
    for life in range(3):
        async with subscribed(new_store(), failing, retry=Retry(attempts=1)) as bus:
            await bus.publish_many([Noted(life, "a"), Noted(life, "b")])
            await bus.wait_idle()
            found = [letter.id for letter in await bus.dead_letters.list()]
            ids += found
            await bus.dead_letters.discard(found)
    assert len(ids) == 6
    assert ids == sorted(set(ids))
