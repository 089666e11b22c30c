"""What a bus with a store promises where it starts: what was stored before is its own."""

import attrs
import pytest
import trio
import trio.testing

from tests.events import Noted, Other, SpecialNoted
from tests.promises.stored.buses import Handled, in_three_turns, nothing, subscribed
from triobus import (
    DomainEvent,
    EventBus,
    EventNotEncodable,
    InvalidOption,
    Retry,
    SequenceConflict,
    current_delivery,
)
from triobus._environment import replace
from triobus.stores._values import Snapshot


@pytest.mark.parametrize("turns", range(40))
async def test_what_is_appended_while_a_bus_starts_is_handled_once_at_its_own_position(
    new_store, turns
):
    told, appended = [], []

    async def handler(event):
        told.append((event.number, current_delivery().position))

    replace(instead_of_thread=in_three_turns)
    async with new_store() as store:
        bus = EventBus(store, workers=1)
        bus.group("all", start="beginning").subscribe(Noted, handler)

        async def append():
            for number in range(30):
                (stored,) = await store.append([Noted(number, "a")])
                appended.append((number, stored.position))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(append)
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            async with bus:
                while len(appended) < 30:
                    await trio.lowlevel.checkpoint()
        assert [(s.event.number, s.position) async for s in store.read()] == appended
    assert told == appended


async def test_the_group_default_can_begin_with_what_was_stored_before_the_first_bus(new_store):
    async with new_store() as store:
        await store.append([Noted(1), Noted(2)])
    handled = Handled()
    async with subscribed(new_store(), handled, start="beginning") as bus:
        await bus.publish(Noted(3))
    assert handled == [1, 2, 3]
    async with subscribed(new_store(), handled, start="beginning"):
        pass
    assert handled == [1, 2, 3]


@attrs.frozen
class Unkept(DomainEvent):
    wrong: object


async def test_a_class_that_cannot_be_kept_is_refused_at_the_start(new_store):
    bus = subscribed(new_store(), nothing, (Noted, Unkept))
    with pytest.raises(EventNotEncodable, match=r"Unkept\.wrong"):
        async with bus:
            pass
    assert bus.health().status == "stopped"
    async with new_store() as store:
        await store.append([Noted(1)])


async def test_a_class_that_cannot_be_kept_is_refused_where_it_is_subscribed_to(new_store):
    async with subscribed(new_store(), nothing) as bus:
        with pytest.raises(EventNotEncodable, match=r"Unkept\.wrong"):
            bus.subscribe(Unkept, nothing, name="unkept")
        assert bus.statistics().subscription_count == 1
        bus.subscribe(DomainEvent, nothing, name="everything")


async def test_a_class_may_be_subscribed_to_before_those_it_refers_to_are_defined(new_store):
    @attrs.frozen
    class Order(DomainEvent):
        size: "Size"  # noqa: F821  # it is defined later

    bus = EventBus(new_store())
    bus.subscribe(Order, nothing)
    globals()["Size"] = int
    try:
        async with bus:
            await bus.publish(Order(1))
    finally:
        del globals()["Size"]
    assert bus.statistics().handled == 1


async def test_an_event_that_was_there_before_is_told_to_be_so(new_store):
    event = Noted(1)
    async with subscribed(new_store(), handled := Handled()) as bus:
        first = await bus.publish(event)
        again, further = await bus.publish_many([event, Noted(2)])
    assert (first.position, first.is_new) == (1, True)
    assert (again.position, again.is_new) == (1, False)
    assert (further.position, further.is_new) == (2, True)
    assert handled == [1, 2]


async def test_several_events_can_expect_a_sequence_of_their_aggregate(new_store):
    async with subscribed(new_store(), handled := Handled()) as bus:
        await bus.publish_many([Noted(1, "a"), Noted(2, "a")], expected_sequence=0)
        with pytest.raises(SequenceConflict):
            await bus.publish_many([Noted(3, "a"), Noted(4, "a")], expected_sequence=1)
        await bus.publish_many([Noted(3, "a"), Noted(4, "a")], expected_sequence=2)
        with pytest.raises(InvalidOption, match="aggregate"):
            await bus.publish_many([Noted(5, "a"), Noted(6, "b")], expected_sequence=4)
    assert handled == [1, 2, 3, 4]


async def test_what_nobody_subscribes_to_is_counted_by_its_type(new_store):
    async with subscribed(new_store(), nothing) as bus:
        await bus.publish_many([Other(1), Noted(2), Other(3), SpecialNoted(4)])
        assert bus.statistics().unhandled == {Other.event_type: 2}


async def test_a_bus_starts_again_with_the_same_store_and_goes_on_where_it_was(new_store):
    store, handled = new_store(), Handled()
    bus = subscribed(store, handled)
    for life in range(3):
        async with bus:
            await bus.publish(Noted(life))
        assert (bus.statistics().published, bus.statistics().handled) == (1, 1)
    assert handled == [0, 1, 2]


async def test_what_was_left_to_the_store_when_only_what_runs_was_waited_for_comes_next_time(
    new_store, autojump_clock
):
    begun, finished = [], []

    async def handler(event):
        begun.append(event.number)
        await trio.sleep(5)
        if event.number == 1 and len(begun) == 1:
            raise OSError
        finished.append(event.number)

    retry = Retry(attempts=2, delay=7200, max_delay=7200, jitter=0)
    bus = subscribed(new_store(), handler, retry=retry, drain="running")
    async with bus:
        await bus.publish_many([Noted(n, str(n)) for n in (1, 2, 3)])
        await trio.sleep(6)
    assert (begun, finished) == ([1, 2], [2])
    assert bus.statistics().uptime_seconds == 10
    async with subscribed(new_store(), handler, retry=retry):
        pass
    assert (begun, finished) == ([1, 2, 3, 1], [2, 3, 1])


async def test_leaving_the_block_does_not_wait_for_what_others_go_on_to_store(new_store):
    stored, handled = [], Handled()

    async def go_on(store):
        while True:
            await store.append([Noted(len(stored) + 1)])
            stored.append(len(stored) + 1)

    async with new_store() as store, trio.open_nursery() as nursery:
        with trio.fail_after(60):
            async with subscribed(store, handled) as bus:
                nursery.start_soon(go_on, store)
                while len(handled) < 20:
                    await trio.lowlevel.checkpoint()
        first = len(handled)
        assert handled == stored[:first]
        nursery.cancel_scope.cancel()
    assert bus.statistics().queued == 0
    async with subscribed(new_store(), handled):
        pass
    assert handled == stored


async def test_a_start_that_is_cancelled_while_it_waits_for_its_turn_lets_others_store(new_store):
    for turns in range(12):
        async with new_store() as store:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.append, [Noted(1)])
                nursery.start_soon(store.append, [Noted(2)])
                with trio.CancelScope() as scope:

                    async def cancel(scope=scope, turns=turns):
                        for _ in range(turns):
                            await trio.lowlevel.checkpoint()
                        scope.cancel()

                    nursery.start_soon(cancel)
                    async with EventBus(store):
                        await trio.sleep_forever()
            with trio.fail_after(60):
                await store.append([Noted(3)])


async def test_a_claim_says_what_is_in_the_store_and_how_its_last_writer_has_ended(new_store):
    async with new_store() as store:
        found = await store._claim()
        assert found == Snapshot(0, (), (), False)
        await store.append([Noted(1), Noted(2)])
        assert (await store._claim()).last == 2
        await store._vanish()
    async with new_store() as reader:
        assert await reader._last_position() == 2
    async with new_store() as store:
        await store.append([Noted(3)])
        found = await store._claim()
        assert (found.last, found.is_unclean) == (3, True)
    async with new_store() as store:
        assert (await store._claim()).is_unclean is False
