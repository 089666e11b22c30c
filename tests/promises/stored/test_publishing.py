"""What a bus with a store promises of publishing: positions, ids, causes, expected sequences."""

from uuid import UUID

import attrs
import pytest
import trio
import trio.testing

from tests.events import Noted, Other
from tests.promises.stored.buses import Handled, subscribed
from triobus import (
    EventBus,
    EventIdConflict,
    EventNotEncodable,
    InvalidOption,
    Retry,
    SequenceConflict,
    StoreError,
    current_delivery,
)


async def test_published_events_have_positions_and_are_in_the_store(new_store):
    store = new_store()
    handled = Handled()
    async with store, subscribed(store, handled) as bus:
        first = await bus.publish(Noted(1, "a"))
        more = await bus.publish_many([Noted(2, "a"), Other(number=3)])
        outcome = await bus.publish_and_wait(Noted(4, "a"))
        assert [first.position, *[p.position for p in more], outcome.position] == [1, 2, 3, 4]
        assert [s.event.number async for s in store.read()] == [1, 2, 3, 4]
        assert await bus.publish_many([]) == []
    assert handled == [1, 2, 4]


async def test_handlers_know_the_position(new_store):
    positions = []

    async def handler(event):
        positions.append((event.number, current_delivery().position))

    async with subscribed(new_store(), handler) as bus:
        await bus.publish_many([Noted(n) for n in (5, 6)])
    async with subscribed(new_store(), handler) as bus:
        await bus.publish(Noted(7))
    assert positions == [(5, 1), (6, 2), (7, 3)]


async def test_the_same_event_is_delivered_once_however_often_it_is_published(new_store):
    handled = Handled()
    event = Noted(1, "a")
    async with subscribed(new_store(), handled) as bus:
        positions = [(await bus.publish(event)).position for _ in range(3)]
        many = await bus.publish_many([Noted(2, "a"), event, Noted(3, "a")])
    assert positions == [1, 1, 1]
    assert [p.position for p in many] == [2, 1, 3]
    assert handled == [1, 2, 3]


async def test_another_event_under_a_known_id_is_refused_and_delivered_to_nobody(new_store):
    handled = Handled()
    event = Noted(1, "a")
    async with subscribed(new_store(), handled) as bus:
        await bus.publish(event)
        other = attrs.evolve(event, number=2)
        for call in (bus.publish, bus.publish_and_wait):
            with pytest.raises(EventIdConflict, match="'number'"):
                await call(other)
        with pytest.raises(EventIdConflict, match="'number'"):
            await bus.publish_many([Noted(3), other])
    assert handled == [1]


async def test_what_a_handler_appends_has_the_handled_event_as_its_cause(new_store):
    store = new_store()

    async def handler(event):
        await store.append([Other(number=2)])

    async with store:
        async with subscribed(store, handler) as bus:
            await bus.publish(Noted(1, correlation_id=UUID(int=5)))
        first, second = [s.event async for s in store.read()]
    assert (second.causation_id, second.correlation_id) == (first.event_id, UUID(int=5))


async def test_waiting_for_an_event_that_was_published_before_does_not_wait_for_handlers(
    new_store,
):
    event = Noted(1)
    async with subscribed(new_store(), Handled()) as bus:
        await bus.publish(event)
        outcome = await bus.publish_and_wait(event)
    assert (outcome.position, dict(outcome.results)) == (1, {})


async def test_who_waits_for_an_event_is_not_told_by_a_group_that_nobody_is_in(
    new_store, autojump_clock
):
    async def slow(event):
        await trio.sleep(1)
        return event.number

    bus = EventBus(new_store(), workers=1, buffer=1)
    left = bus.subscribe(Noted, slow, name="left")
    bus.group("mail").subscribe(Noted, slow, name="mail")
    async with bus:
        await bus.publish_many([Noted(n, "a") for n in range(3)])
        left.unsubscribe()
        outcome = await bus.publish_and_wait(Noted(3, "a"))
        assert (dict(outcome.results), trio.current_time()) == ({"mail": 3}, 4)


def answering(answer, gate=None):
    """Return a handler that has an answer, or fails with it, once the gate is open."""

    async def answers(event):
        if gate is not None:
            await gate.wait()
        if isinstance(answer, Exception):
            raise answer
        return answer

    return answers


@pytest.mark.parametrize("answer", ["new", OSError("new")], ids=["result", "error"])
@pytest.mark.parametrize("place", ["another group", "the same group"])
async def test_who_publishes_and_waits_is_told_of_those_that_were_there_when_it_was_accepted(
    new_store, place, answer, autojump_clock
):
    gate, outcomes = trio.Event(), []
    bus = EventBus(new_store())
    first = bus.subscribe(Noted, answering("old"), name="audit")
    other = bus.group("other", workers=1, buffer=1)
    other.subscribe(Noted, answering("other", gate), name="other")

    async def publish():
        outcomes.append(await bus.publish_and_wait(Noted(9)))

    async with bus, trio.open_nursery() as nursery:
        await bus.publish_many([Noted(number) for number in range(5)])
        nursery.start_soon(publish)
        await trio.sleep(1)
        if place == "the same group":
            first.unsubscribe()
            bus.subscribe(Noted, answering(answer), name="audit", retry=Retry(attempts=1))
        late = answering(answer)
        other.subscribe(Noted, late, name="audit", priority=1, retry=Retry(attempts=1))
        gate.set()
    (outcome,) = outcomes
    assert (outcome.results, outcome.errors) == ({"audit": "old", "other": "other"}, {})


@pytest.mark.parametrize("answer", ["new", OSError("new")], ids=["result", "error"])
async def test_a_subscription_that_went_and_came_back_has_no_part_in_an_older_outcome(
    new_store, answer, autojump_clock
):
    gate, outcomes = trio.Event(), []
    bus = EventBus(new_store(), workers=1, buffer=1)
    first = bus.subscribe(Noted, answering("old", gate), name="audit")
    bus.subscribe(Noted, answering("steady"), name="steady")

    async def publish():
        outcomes.append(await bus.publish_and_wait(Noted(9)))

    async with bus, trio.open_nursery() as nursery:
        await bus.publish_many([Noted(number) for number in range(5)])
        nursery.start_soon(publish)
        await trio.sleep(1)
        first.unsubscribe()
        bus.subscribe(Noted, answering(answer), name="audit", retry=Retry(attempts=1))
        gate.set()
    (outcome,) = outcomes
    assert (outcome.results, outcome.errors) == ({"steady": "steady"}, {})


async def test_publishing_with_a_wrong_expected_sequence_delivers_nothing(new_store):
    handled = Handled()
    async with subscribed(new_store(), handled) as bus:
        await bus.publish(Noted(1, "a"), expected_sequence=0)
        with pytest.raises(SequenceConflict):
            await bus.publish(Noted(2, "a"), expected_sequence=0)
        await bus.publish(Noted(3, "a"), expected_sequence=1)
    assert handled == [1, 3]


async def test_expected_sequence_needs_a_store():
    async with EventBus() as bus:
        with pytest.raises(InvalidOption, match="store"):
            await bus.publish(Noted(1, "a"), expected_sequence=0)


async def test_publish_nowait_says_that_a_store_has_to_be_waited_for(new_store):
    async with subscribed(new_store(), Handled()) as bus:
        with pytest.raises(InvalidOption, match="await bus"):
            bus.publish_nowait(Noted(1))


async def test_events_appended_to_the_store_of_a_running_bus_are_delivered_too(new_store):
    store, handled = new_store(), Handled()
    async with subscribed(store, handled) as bus:
        await store.append([Noted(1), Noted(2)])
        await bus.publish(Noted(3))
        await store.append([Noted(4)])
    assert handled == [1, 2, 3, 4]


async def test_a_failing_commit_fails_its_publishes_none_is_delivered_and_the_bus_goes_on(
    new_store,
):
    store, handled, failures = new_store(), Handled(), []
    async with subscribed(store, handled) as bus:
        commit = store._commits._commit
        is_broken = True

        async def breakable(transaction):
            if is_broken:
                raise StoreError("no disk")
            return await commit(transaction)

        store._commits._commit = breakable

        async def publish(number):
            with pytest.raises(StoreError, match="no disk"):
                await bus.publish(Noted(number))
            failures.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(publish, number)
        assert bus.health().status == "degraded"
        is_broken = False
        await bus.publish(Noted(9))
        assert bus.health().status == "healthy"
    assert sorted(failures) == list(range(5))
    assert handled == [9]


@pytest.mark.parametrize("key", ["nul \0", "half \ud800", "x" * 2_000_000])
async def test_an_event_that_would_not_come_back_is_refused_where_it_is_published(new_store, key):
    store, handled = new_store(), Handled()
    async with subscribed(store, handled) as bus:
        with pytest.raises(EventNotEncodable):
            await bus.publish(Noted(1, key))
        with pytest.raises(EventNotEncodable):
            await bus.publish_many([Noted(2), Noted(3, key)])
        await bus.publish(Noted(4))
        assert [stored.event.number async for stored in store.read()] == [4]
    assert handled == [4]


async def test_handlers_publish_with_cause_and_without_deadlock(new_store):
    caused = []
    bus = EventBus(new_store(), buffer=1)

    async def relay(event):
        await bus.publish_many([Other(number=event.number) for _ in range(20)])

    async def note(event):
        caused.append((event.number, event.correlation_id == event.causation_id))

    bus.subscribe(Noted, relay)
    bus.subscribe(Other, note)
    async with bus:
        for number in range(5):
            await bus.publish(Noted(number))
    assert sorted(caused) == sorted((n, True) for n in range(5) for _ in range(20))
