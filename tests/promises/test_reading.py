"""What `store.read` gives: which events, from where to where, in which direction."""

import itertools
from uuid import UUID

import pytest

from tests.events import Noted, Other
from triobus import EventBus, InvalidOption

FIRST, SECOND = UUID(int=1), UUID(int=2)


async def positions(stream):
    return [stored.position async for stored in stream]


@pytest.fixture
async def store(new_store):
    """1 to 9: of a, b and none in turn; 2, 5 and 8 of the first correlation, 9 of the second."""
    async with new_store() as store:
        for number in range(1, 10):
            correlation = {2: FIRST, 5: FIRST, 8: FIRST, 9: SECOND}.get(number)
            key = ("a", "b", None)[number % 3]
            cls = Other if number in (3, 6) else Noted
            event = (
                Other(number, correlation_id=correlation)
                if cls is Other
                else Noted(number, key, correlation_id=correlation)
            )
            await store.append([event])
        yield store


async def test_backwards_the_last_event_comes_first(store):
    assert await positions(store.read(backwards=True)) == [9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert await positions(store.read(after=3, until=6, backwards=True)) == [6, 5, 4]
    assert await positions(store.read(limit=2, backwards=True)) == [9, 8]
    assert await positions(store.read(until=99, backwards=True, limit=1)) == [9]


async def test_until_is_the_last_position_that_is_read(store):
    assert await positions(store.read(until=3)) == [1, 2, 3]
    assert await positions(store.read(after=3, until=3)) == []
    assert await positions(store.read(until=0)) == []
    assert await positions(store.read(until=0, backwards=True)) == []


async def test_the_last_event_of_an_aggregate_is_the_first_one_backwards(store):
    (last,) = [s async for s in store.read(aggregate_id="b", backwards=True, limit=1)]
    assert (last.position, last.sequence) == (7, 3)


async def test_a_correlation_is_read_whole_in_both_directions(store):
    assert await positions(store.read(correlation_id=FIRST)) == [2, 5, 8]
    assert await positions(store.read(correlation_id=FIRST, backwards=True)) == [8, 5, 2]
    assert await positions(store.read(correlation_id=FIRST, after=2, until=7)) == [5]
    assert await positions(store.read(correlation_id=UUID(int=3))) == []


async def test_what_a_handler_publishes_is_read_by_the_correlation_that_it_inherits(new_store):
    store = new_store()
    bus = EventBus(store)

    @bus.subscribe(Noted)
    async def answer(event):
        if event.number < 3:
            await bus.publish(Noted(event.number + 1))

    first = Noted(1)
    async with store:
        async with bus:
            await bus.publish(first)
            await bus.wait_idle()
        found = [s.event.number async for s in store.read(correlation_id=first.event_id)]
    assert found == [2, 3]


async def test_behind_a_sequence_comes_the_rest_of_its_aggregate(store):
    whole = await positions(store.read(aggregate_id="b"))
    for sequence, backwards in itertools.product(range(5), (False, True)):
        found = await positions(
            store.read(aggregate_id="b", after_sequence=sequence, backwards=backwards)
        )
        assert found == (whole[sequence:][::-1] if backwards else whole[sequence:])
    assert await positions(store.read(aggregate_id="b", after_sequence=1, after=4)) == [7]
    assert await positions(store.read(aggregate_id="none", after_sequence=1)) == []


async def test_all_terms_hold_at_once(store):
    read = store.read
    assert await positions(read(types=Other, backwards=True)) == [6, 3]
    assert await positions(read(types=Noted, backwards=True, until=5)) == [5, 4, 2, 1]
    assert await positions(read(aggregate_id="b", types=Noted, correlation_id=FIRST)) == []
    assert await positions(read(types=Noted, correlation_id=FIRST, limit=2)) == [2, 5]


async def test_a_long_log_is_read_backwards_in_batches_without_a_gap(new_store):
    async with new_store() as store:
        await store.append([Noted(n, "a" if n % 2 else None) for n in range(1500)])
        assert await positions(store.read(backwards=True)) == [*range(1500, 0, -1)]
        lane = await positions(store.read(aggregate_id="a", backwards=True))
        assert lane == [*range(1500, 0, -2)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"after_sequence": 1}, "give aggregate_id too"),
        ({"after_sequence": -1, "aggregate_id": "a"}, "after_sequence=-1"),
        ({"after_sequence": 1.0, "aggregate_id": "a"}, "after_sequence=1.0"),
        ({"correlation_id": "no uuid"}, "give a UUID"),
        ({"correlation_id": str(FIRST)}, "give a UUID"),
        ({"until": -1}, "until=-1"),
        ({"until": "3"}, "until='3'"),
        ({"backwards": 1}, "backwards=1: give True or False"),
    ],
)
async def test_what_cannot_be_read_is_refused_at_the_call(store, options, said):
    with pytest.raises(InvalidOption, match=said):
        store.read(**options)
