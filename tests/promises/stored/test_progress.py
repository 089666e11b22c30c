"""What a bus with a store promises of progress: all is handled, and nothing again."""

import math

import pytest
import trio
import trio.testing

from tests.events import Noted, Other, SpecialNoted
from tests.promises.stored.buses import Handled, crashing, subscribed
from triobus import EventBus


async def test_what_was_handled_is_not_delivered_again_and_what_was_not_is(new_store):
    handled = Handled()
    blocked = trio.Event()

    async def handler(event):
        if event.number == 3:
            await blocked.wait()
        handled.append(event.number)

    async with crashing(subscribed(new_store(), handler, workers=2)) as bus:
        await bus.publish_many([Noted(n, str(n)) for n in range(6)])
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert sorted(handled) == [0, 1, 2, 4, 5]
    again = Handled()
    async with subscribed(new_store(), again):
        pass
    assert again == [3]
    async with subscribed(new_store(), again):
        pass
    assert again == [3]


async def test_a_clean_exit_never_causes_a_redelivery(new_store):
    handled = Handled()
    for start in range(0, 30, 10):
        async with subscribed(new_store(), handled) as bus:
            await bus.publish_many([Noted(n) for n in range(start, start + 10)])
    assert handled == list(range(30))


async def test_wait_idle_waits_until_what_was_handled_is_recorded(new_store):
    store = new_store()
    async with store, subscribed(store, Handled()) as bus:
        await bus.publish_many([Noted(n, "a") for n in range(10)])
        await bus.wait_idle()
        (group,) = (await store.statistics()).groups.values()
        assert (group.offset, group.lag, group.dead_letters) == (10, 0, 0)


async def test_the_offset_passes_over_events_that_nobody_wants(new_store):
    store, handled = new_store(), Handled()
    async with store:
        async with subscribed(store, handled, Other) as bus:
            await bus.publish_many([Noted(n) for n in range(5)])
            await bus.publish(Other(number=5))
            await bus.publish(Noted(6))
            await bus.wait_idle()
            assert bus.statistics().groups["default"].lag == 0
        assert (await store.statistics()).groups["default"].offset == 7
    assert handled == [5]


async def test_a_new_group_begins_now_or_at_the_beginning(new_store):
    now, beginning = Handled(), Handled()
    async with subscribed(new_store(), Handled()) as bus:
        await bus.publish_many([Noted(n) for n in range(3)])
    for numbers in ([3, 4], [5]):
        bus = EventBus(new_store())
        bus.group("now", workers=1).subscribe(Noted, now)
        bus.group("all", start="beginning", workers=1).subscribe(Noted, beginning)
        async with bus:
            await bus.publish_many([Noted(n) for n in numbers])
    assert now == [3, 4, 5]
    assert beginning == [0, 1, 2, 3, 4, 5]


async def test_a_group_that_is_known_goes_on_where_it_ended_whatever_start_says(new_store):
    handled = Handled()
    async with subscribed(new_store(), handled) as bus:
        await bus.publish(Noted(1))
    async with EventBus(new_store()) as bus:
        await bus.publish(Noted(2))  # nobody has subscribed in this run
    async with subscribed(new_store(), handled) as bus:
        await bus.publish(Noted(3))
    assert handled == [1, 2, 3]


async def test_a_group_without_subscriptions_has_no_progress_and_holds_up_nothing(new_store):
    store = new_store()
    async with store:
        bus = EventBus(store)
        bus.group("unused")
        async with bus:
            await bus.publish(Noted(1))
            await bus.wait_idle()
        assert dict((await store.statistics()).groups) == {}


async def test_who_subscribes_while_the_bus_runs_gets_what_comes_then(new_store):
    early, late = Handled(), Handled()
    async with EventBus(new_store(), workers=1) as bus:
        await bus.publish(Noted(1))
        bus.subscribe(Noted, early, name="early")
        await bus.publish(Noted(2))
        bus.group("late", start="beginning", workers=1).subscribe(Noted, late)
        await bus.publish(Noted(3))
        await bus.wait_idle()
        assert early == [2, 3]
        assert late == [1, 2, 3]


@pytest.mark.parametrize("buffer", [1, 7, 1000, math.inf])
async def test_recovered_events_go_before_new_ones_of_their_aggregate(new_store, buffer):
    async with new_store() as store:
        await store.append([Noted(n, "ab"[n % 2]) for n in range(1100)])
    handled = Handled()
    bus = EventBus(new_store())
    bus.group("all", start="beginning", buffer=buffer).subscribe(Noted, handled)
    async with bus:
        await bus.publish(Noted(1100, "a"))
        await bus.publish_many([Noted(n, "ab"[n % 2]) for n in range(1101, 1200)])
    for key in (0, 1):
        assert [n for n in handled if n % 2 == key] == list(range(key, 1200, 2))


async def test_a_backlog_is_worked_off_in_order_with_no_more_than_the_buffer_in_memory(new_store):
    async with new_store() as store:
        await store.append([Noted(n, str(n % 7)) for n in range(3000)])
    most, handled = 0, {}
    bus = EventBus(new_store())

    async def handler(event):
        nonlocal most
        handled.setdefault(event.key, []).append(event.number)
        most = max(most, bus.statistics().groups["all"].queued)
        await trio.lowlevel.checkpoint()

    bus.group("all", start="beginning", buffer=50).subscribe(Noted, handler)
    async with bus:
        pass
    assert handled == {str(key): list(range(key, 3000, 7)) for key in range(7)}
    assert most <= 50


@pytest.mark.parametrize("buffer", [1, 2, 3, 5])
async def test_a_batch_of_several_types_that_finds_too_little_room_loses_nothing(new_store, buffer):
    handled = Handled()
    async with subscribed(new_store(), handled, buffer=buffer) as bus:
        await bus.publish_many(
            [
                *[Noted(n, "a") for n in range(4)],
                Other(number=4),
                SpecialNoted(5, "a"),
                Other(number=6),
                Noted(7, "a"),
            ]
        )
    assert handled == [0, 1, 2, 3, 5, 7]


async def test_publishers_never_wait_for_a_slow_group(new_store, autojump_clock):
    gate, handled = trio.Event(), Handled()

    async def slow(event):
        await gate.wait()
        handled.append(event.number)

    async with subscribed(new_store(), slow, buffer=3) as bus:
        for number in range(100):
            await bus.publish(Noted(number, "a"))
        assert trio.current_time() < 1
        found = bus.statistics().groups["default"]
        assert (found.lag, found.in_flight) == (100, 1)
        assert found.queued <= 3
        gate.set()
    assert handled == list(range(100))


@pytest.mark.parametrize("types", [Noted, (Noted, Other)])
@pytest.mark.parametrize("buffer", [1, 2, 4])
async def test_a_batch_of_two_types_that_finds_too_little_room_is_handled_whole_and_in_order(
    new_store, types, buffer
):
    gate, handled = trio.Event(), []

    async def handler(event):
        await gate.wait()
        handled.append((type(event).__name__, event.number))

    async with subscribed(new_store(), handler, types, buffer=buffer) as bus:
        batch = [Noted(0), Noted(1), Noted(2), Other(number=3), Other(number=4), Noted(5)]
        await bus.publish_many(batch)
        gate.set()
    wanted = [(type(e).__name__, e.number) for e in batch if isinstance(e, types)]
    assert handled == wanted


async def test_lag_counts_what_is_not_settled(new_store):
    gate = trio.Event()

    async def slow(event):
        await gate.wait()

    async with subscribed(new_store(), slow, buffer=2) as bus:
        await bus.publish_many([Noted(n, str(n)) for n in range(10)])
        assert bus.statistics().groups["default"].lag == 10
        gate.set()
        await bus.wait_idle()
        assert bus.statistics().groups["default"].lag == 0
