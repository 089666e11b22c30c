"""What a bus with a store promises its listeners."""

import pytest
import trio
import trio.testing

from tests.events import Noted, Other, SpecialNoted
from tests.promises.stored.buses import in_three_turns
from triobus import EventBus, MemoryEventStore
from triobus._durability.hand_over import HandOver
from triobus._environment import replace
from triobus._events.batch import Batch
from triobus.stores._commits import Submission
from triobus.stores._values import LogPosition


async def test_a_listener_that_is_slow_misses_nothing_and_holds_up_no_publisher(new_store):
    async with EventBus(new_store()) as bus, bus.listen(Noted, buffer=3) as events:
        for number in range(1000):
            await bus.publish(Noted(number))
            await bus.publish(Other(number=number))
        found = []
        async for event in events:
            found.append(event.number)
            if len(found) == 500:
                await bus.publish(SpecialNoted(1000))
            if len(found) == 1001:
                break
        assert found == list(range(1001))


async def test_a_listener_gets_what_was_published_before_the_bus_stopped(new_store):
    async with EventBus(new_store()) as bus, bus.listen(buffer=2) as events:
        await bus.publish_many([Noted(n) for n in range(10)])
        await bus.stop()
        found = [event.number async for event in events]
    assert found == list(range(10))


async def test_a_listener_that_is_behind_keeps_no_store_from_the_next_bus(new_store):
    store, found = new_store(), []
    async with EventBus(store) as bus, bus.listen(buffer=1) as events:
        await bus.publish_many([Noted(n) for n in range(1200)])
        await bus.stop()
        async for event in events:
            found.append(event.number)
            if len(found) in (1, 600):
                async with EventBus(new_store()) as following:
                    await following.publish(Noted(-1))
    assert found == list(range(1200))
    async with new_store() as store:
        assert await store._last_position() == 1202


async def test_a_predicate_that_leaves_the_program_leaves_every_publisher_to_go_on(new_store):
    accepted = set()

    def leave(event):
        raise SystemExit(3)

    async def wait():
        with pytest.raises(SystemExit):
            await bus.wait_for(Noted, where=leave)

    async def publish(number):
        await bus.publish(Noted(number))
        accepted.add(number)

    replace(instead_of_thread=in_three_turns)
    async with EventBus(new_store()) as bus:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                for number in range(9):
                    nursery.start_soon(publish, number)
    assert accepted == set(range(9))


async def test_wait_for_gets_an_event_from_the_store_too(new_store):
    async with EventBus(new_store()) as bus, trio.open_nursery() as nursery:
        nursery.start_soon(bus.publish, Noted(3))
        with trio.fail_after(60):
            assert (await bus.wait_for(Noted)).number == 3


class SharedLog(MemoryEventStore):
    """A log in which other programs store something too."""

    _is_attended = True


async def test_what_others_store_behind_an_own_event_is_told_though_it_was_heard_of_before(
    autojump_clock,
):
    told = []
    async with SharedLog() as store:
        events = [Noted(n) for n in range(3)]
        await store.append(events)
        hand_over = HandOver(store, lambda some, first, _: told.append((first, len(some))), {})
        hand_over.begin(0)
        hand_over.on_news(3)  # before the answer to the own commit, which was the first of them
        place = LogPosition(1, None, events[0].occurred_at, True)
        hand_over.all([Submission(Batch(events[:1]), None, positions=[place])])
        with trio.move_on_after(1):
            await hand_over.run()
    assert told == [(1, 1), (2, 1), (3, 1)]
