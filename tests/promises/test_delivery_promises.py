"""What a bus with a store promises beyond what every bus does, whichever store it is."""

import contextlib
import json
import math
from contextlib import asynccontextmanager
from typing import ClassVar
from uuid import UUID, uuid4

import attrs
import pytest
import trio
import trio.testing

from tests.events import Noted, Other, SpecialNoted
from triobus import (
    BusClosed,
    DomainEvent,
    EventBus,
    EventIdConflict,
    EventNotEncodable,
    InvalidOption,
    MemoryEventStore,
    Retry,
    RetryAfter,
    SequenceConflict,
    StoreClosed,
    StoreError,
    StoreInUse,
    StoreIOError,
    UnknownSubscription,
    current_delivery,
    upcaster,
)
from triobus._environment import replace
from triobus.stores._values import Append, Commit, NewRow, Snapshot
from triobus.testing._scheduler import scheduled_by


class Handled(list):
    """A handler that notes the numbers of what it gets."""

    async def __call__(self, event):
        self.append(event.number)


def subscribed(store, handler, types=Noted, **options):
    """Return a bus of total order."""
    retry, hold = options.pop("retry", Retry()), options.pop("hold", False)
    bus = EventBus(store, **{"workers": 1, **options})
    bus.subscribe(types, handler, name="handler", retry=retry, hold=hold)
    return bus


async def fails(event):
    raise OSError


async def nothing(event):
    """Succeed."""


@asynccontextmanager
async def crashing(bus):
    """Run a bus and end it as a crash does: everything is cancelled, and nothing drained."""
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        yield bus
        nursery.cancel_scope.cancel()


# Starting


async def in_three_turns(function, *args):
    """Make a call that would go to a thread, so that others come meanwhile, at known moments."""
    await trio.lowlevel.cancel_shielded_checkpoint()
    try:
        return function(*args)
    finally:
        await trio.lowlevel.cancel_shielded_checkpoint()
        await trio.lowlevel.cancel_shielded_checkpoint()


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
            for number in range(60):
                (stored,) = await store.append([Noted(number, "a")])
                appended.append((number, stored.position))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(append)
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            async with bus:
                while len(appended) < 60:
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


# Publishing


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


# Progress


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
        await store.append([Noted(n, "ab"[n % 2]) for n in range(2000)])
    handled = Handled()
    bus = EventBus(new_store())
    bus.group("all", start="beginning", buffer=buffer).subscribe(Noted, handled)
    async with bus:
        await bus.publish(Noted(2000, "a"))
        await bus.publish_many([Noted(n, "ab"[n % 2]) for n in range(2001, 2100)])
    for key in (0, 1):
        assert [n for n in handled if n % 2 == key] == list(range(key, 2100, 2))


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


# Order and retries


async def test_an_aggregate_that_waits_for_a_retry_holds_up_no_other_however_long_its_queue(
    new_store, autojump_clock
):
    handled, failed = [], set()

    async def handler(event):
        if event.key == "bad" and event.number == 0 and not failed:
            failed.add(0)
            raise OSError
        handled.append((event.key, event.number, trio.current_time()))

    bus = EventBus(new_store(), buffer=10)
    bus.subscribe(Noted, handler, retry=Retry(delay=100, max_delay=100, jitter=0))
    async with bus:
        await bus.publish_many([Noted(n, "bad") for n in range(300)])
        for number in range(300):
            await bus.publish(Noted(number, "good"))
            await bus.publish(Noted(300 + number, "bad"))
    good = [(number, time) for key, number, time in handled if key == "good"]
    bad = [number for key, number, _ in handled if key == "bad"]
    assert [number for number, _ in good] == list(range(300))
    assert max(time for _, time in good) < 100
    assert bad == list(range(600))


@pytest.mark.parametrize(
    ("events", "last"),
    [
        ([("a", 10, 2), ("b", 0, 2), ("b", 0, 0), ("a", 0, 2)], 2),
        ([("b", 10, 3), (None, 0, 3), ("a", 0, 1), ("a", 0, 0), ("b", 0, 0), (None, 0, 1)], 5),
    ],
)
def test_a_slow_aggregate_whose_events_fill_the_buffer_holds_up_no_other_in_any_order_of_tasks(
    events, last
):
    for seed in range(50):
        started = {}

        async def handler(event, started=started):
            _, seconds, steps = events[event.number]
            started[event.number] = trio.current_time()
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            await trio.sleep(seconds)

        async def main(handler=handler):
            async with subscribed(MemoryEventStore(), handler, workers=3, buffer=1) as bus:
                await bus.publish_many([Noted(n, key) for n, (key, _, _) in enumerate(events)])

        with scheduled_by(seed):
            trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
        assert started[last] == 0, seed


async def test_attempts_are_counted_on_after_a_restart(new_store, autojump_clock):
    attempts = []

    async def failing(event):
        attempts.append((current_delivery().attempt, trio.current_time()))
        raise OSError("broken")

    def bus():
        bus = EventBus(new_store())
        bus.subscribe(
            Noted, failing, name="failing", retry=Retry(attempts=4, delay=10, factor=1, jitter=0)
        )
        return bus

    async with crashing(bus()) as first:
        await first.publish(Noted(1, "a"))
        await trio.sleep(15)
    assert attempts == [(1, 0), (2, 10)]
    async with crashing(bus()):
        await trio.sleep(2)
    assert len(attempts) == 2  # it was due after 10 s, not at once
    async with bus() as last:
        await last.wait_idle()
        (letter,) = await last.dead_letters.list()
    assert attempts == [(1, 0), (2, 10), (3, 20), (4, 30)]
    assert letter.attempts == 4


async def test_a_retry_goes_on_after_a_restart_whoever_has_subscribed_before_its_handler(
    new_store, autojump_clock
):
    calls = []

    async def failing(event):
        calls.append(("failing", current_delivery().attempt, trio.current_time()))
        raise OSError

    async def newcomer(event):
        calls.append(("newcomer", current_delivery().attempt, trio.current_time()))

    def bus():
        bus = EventBus(new_store())
        retry = Retry(attempts=2, delay=10, jitter=0)
        bus.subscribe(Noted, failing, name="failing", retry=retry)
        return bus

    async with crashing(bus()) as first:
        await first.publish(Noted(1, "a"))
        await trio.sleep(1)
    second = bus()
    second.subscribe(Noted, newcomer, name="newcomer", priority=1)
    async with second:
        pass
    assert calls == [("failing", 1, 0), ("failing", 2, 10), ("newcomer", 1, 10)]


async def test_later_events_of_an_aggregate_wait_for_a_retry_across_a_restart(
    new_store, autojump_clock
):
    handled = []

    async def handler(event):
        if event.number == 1 and trio.current_time() < 50:
            raise OSError
        handled.append((event.key, event.number))

    def bus():
        bus = EventBus(new_store())
        bus.subscribe(Noted, handler, name="it", retry=Retry(delay=30, factor=1, jitter=0))
        return bus

    async with crashing(bus()) as first:
        await first.publish_many([Noted(1, "a"), Noted(2, "a"), Noted(3, "b")])
        await trio.sleep(1)
    async with bus() as second:
        await second.publish_many([Noted(4, "a"), Noted(5, "b")])
        await trio.sleep(1)
        assert handled == [("b", 3), ("b", 5)]
    assert [number for key, number in handled if key == "a"] == [1, 2, 4]


async def test_handlers_that_were_done_are_not_called_again_when_another_is_retried_after_a_crash(
    new_store, autojump_clock
):
    calls = []

    async def first(event):
        calls.append("first")

    async def second(event):
        calls.append("second")
        if calls.count("second") < 3:
            raise OSError

    async def third(event):
        calls.append("third")

    def bus():
        bus = EventBus(new_store())
        retry = Retry(delay=10, factor=1, jitter=0)
        bus.subscribe(Noted, first, name="first", priority=3)
        bus.subscribe(Noted, second, name="second", priority=2, retry=retry)
        bus.subscribe(Noted, third, name="third", priority=1)
        return bus

    async with crashing(bus()) as crashed:
        await crashed.publish(Noted(1, "a"))
        await trio.sleep(1)
    async with bus():
        pass
    assert calls == ["first", "second", "second", "second", "third"]


async def test_no_virtual_time_passes_while_the_store_works(new_store, autojump_clock):
    async with subscribed(new_store(), Handled()) as bus:
        for number in range(20):
            await bus.publish(Noted(number))
        await bus.wait_idle()
        assert trio.current_time() == 0


async def test_retries_over_hours_are_tested_in_no_time(new_store, autojump_clock):
    times = []

    async def failing(event):
        times.append(trio.current_time())
        raise OSError

    bus = EventBus(new_store())
    bus.subscribe(Noted, failing, retry=Retry(delay=3600, factor=1, max_delay=3600, jitter=0))
    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
    assert times == [0, 3600, 7200, 10800]


@pytest.mark.parametrize("counts", [True, False])
async def test_the_time_that_a_handler_asked_for_is_waited_for_over_a_restart(
    new_store, autojump_clock, counts
):
    calls = []

    async def handler(event):
        calls.append((trio.current_time(), current_delivery().attempt))
        if len(calls) == 1:
            raise RetryAfter(5000, counts=counts)

    def made(**options):
        bus = EventBus(new_store(), workers=1)
        bus.subscribe(Noted, handler, name="handler", retry=Retry(attempts=2, delay=1, max_delay=1))
        if options:
            bus.subscribe(Noted, nothing, name="newcomer", **options)
        return bus

    async with crashing(made()) as bus:
        await bus.publish(Noted(1))
        await trio.sleep(1000)
    async with made(priority=1) as bus:
        await bus.wait_idle()
    assert calls == [(0, 1), (5000, 2 if counts else 1)]


# Dead letters


def failing_bus(store, fail, handled, **options):
    async def handler(event):
        if event.number in fail:
            raise ValueError(f"number {event.number}\ud800")
        handled.append(event.number)

    bus = EventBus(store)
    bus.subscribe(Noted, handler, name="handler", retry=Retry(attempts=1), **options)
    return bus


async def test_dead_letters_last_with_all_that_is_known_of_them(new_store):
    async with failing_bus(new_store(), {1, 2}, []) as bus:
        await bus.publish_many([Noted(n, "a") for n in range(4)])
    async with failing_bus(new_store(), set(), []) as bus:
        first, second = await bus.dead_letters.list()
        assert first.event == Noted(1, "a", **_base(first.event))
        assert (first.position, second.position) == (2, 3)
        assert (first.group, first.subscription) == ("default", "handler")
        assert (first.attempts, first.error_type) == (1, "ValueError")
        assert first.message == "number 1\\ud800"
        assert "in handler" in first.traceback
        assert first.first_failed_at == first.last_failed_at
        assert first.aggregate_id == "a"
        assert [letter.id for letter in await bus.dead_letters.list(limit=1)] == [first.id]
        assert await bus.dead_letters.list(group="other") == []
        assert len(await bus.dead_letters.list(aggregate_id="a")) == 2
        assert bus.health().status == "healthy"


def _base(event):
    names = [field.name for field in attrs.fields(DomainEvent)]
    return {name: getattr(event, name) for name in names}


async def test_dead_letters_are_replayed_in_order_and_then_gone_for_good(new_store):
    async with failing_bus(new_store(), {1, 2, 3}, []) as bus:
        await bus.publish_many([Noted(n, "a") for n in range(5)])
    handled = []
    async with failing_bus(new_store(), {2}, handled) as bus:
        letters = await bus.dead_letters.list()
        assert await bus.dead_letters.replay(group="default") == 2
        assert handled == [1, 3]
        (left,) = await bus.dead_letters.list()
        assert (left.event.number, left.attempts, left.id) == (2, 2, letters[1].id)
        assert left.first_failed_at <= left.last_failed_at
    async with failing_bus(new_store(), set(), handled) as bus:
        (left,) = await bus.dead_letters.list()
        assert left.attempts == 2
        assert await bus.dead_letters.replay(left.id) == 1
    async with failing_bus(new_store(), set(), handled) as bus:
        assert await bus.dead_letters.list() == []
    assert handled == [1, 3, 2]


async def test_more_letters_than_are_read_at_once_are_replayed_in_order(new_store):
    handled = []
    async with failing_bus(new_store(), set(range(250)), []) as bus:
        await bus.publish_many([Noted(n, "a") for n in range(250)])
        await bus.wait_idle()
    async with failing_bus(new_store(), set(), handled) as bus:
        assert await bus.dead_letters.replay(group="default") == 250
    assert handled == list(range(250))


async def test_several_replays_at_once_keep_the_order_of_an_aggregate(new_store, autojump_clock):
    handled = []

    async def slow(event):
        handled.append(event.number)
        await trio.sleep(1)

    async with failing_bus(new_store(), set(range(250)), []) as bus:
        await bus.publish_many([Noted(n, "a") for n in range(250)])
        await bus.wait_idle()
        ids = [letter.id for letter in await bus.dead_letters.list(limit=250)]
    bus = subscribed(new_store(), slow, hold=True)
    async with bus:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.dead_letters.replay, ids[:150])
            await trio.sleep(0.5)
            nursery.start_soon(bus.dead_letters.replay, ids[150:])
        assert await bus.dead_letters.list() == []
    assert handled == list(range(250))


async def test_dead_letters_can_be_listed_when_the_bus_has_stopped_and_before_it_starts(new_store):
    bus = subscribed(new_store(), fails, retry=Retry(attempts=1))
    async with bus:
        await bus.publish_many([Noted(1, "a"), Noted(2, "b")])
        await bus.wait_idle()
        letters = await bus.dead_letters.list()
    assert [letter.event.number for letter in letters] == [1, 2]
    assert await bus.dead_letters.list() == letters
    assert await bus.dead_letters.list(aggregate_id="b") == letters[1:]
    further = subscribed(new_store(), fails)
    assert await further.dead_letters.list(limit=1) == letters[:1]
    async with further:
        assert await further.dead_letters.list() == letters
        await further.dead_letters.discard(letters[0])
    assert await bus.dead_letters.list() == await further.dead_letters.list() == letters[1:]


async def test_dead_letters_are_dealt_with_under_load_after_at_most_two_commits(new_store):
    published = 0

    async def go_on():
        nonlocal published
        for number in range(3, 1000):
            await bus.publish(Noted(number))
            published += 1

    async def fails_at_first(event):
        if event.number < 3:
            raise OSError

    replace(instead_of_thread=in_three_turns)
    bus = subscribed(new_store(), fails_at_first, retry=Retry(attempts=1))
    async with bus:
        await bus.publish_many([Noted(1), Noted(2)])
        await bus.wait_idle()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(go_on)
            for call in (
                bus.dead_letters.list,
                lambda: bus.dead_letters.discard(1),
                lambda: bus.dead_letters.replay(2),
            ):
                while not published:
                    await trio.lowlevel.checkpoint()
                published = 0
                await call()
                assert published <= 10
            nursery.cancel_scope.cancel()


async def test_discarded_letters_are_gone_for_good(new_store):
    async with failing_bus(new_store(), {1, 2}, []) as bus:
        await bus.publish_many([Noted(n, "a") for n in range(4)])
        await bus.wait_idle()
        first, _ = await bus.dead_letters.list()
        assert await bus.dead_letters.discard(first.id) == 1
    async with failing_bus(new_store(), set(), []) as bus:
        (left,) = await bus.dead_letters.list()
        assert left.event.number == 2


@pytest.mark.parametrize("is_new", [True, False])
async def test_a_bus_that_does_not_run_discards_no_letter_of_its_store(new_store, is_new):
    bus = failing_bus(new_store(), {1}, [])
    async with bus:
        await bus.publish_many([Noted(n, "a") for n in range(4)])
        await bus.stop()
    if is_new:
        bus = failing_bus(new_store(), {1}, [])
    before = repr(bus.dead_letters)
    with pytest.raises(BusClosed, match="do it while the bus runs"):
        await bus.dead_letters.discard(1)
    assert repr(bus.dead_letters) == before
    (left,) = await bus.dead_letters.list()
    assert left.event.number == 1


class NeverForgetting(MemoryEventStore):
    """A store whose commits fail if a dead letter is to go in them."""

    async def _commit(self, transaction):
        await instead_of_a_disk()
        if None in transaction.changes.letters.values():
            raise StoreIOError("the disk is full")
        return await super()._commit(transaction)


async def instead_of_a_disk():
    for _ in range(4):
        await trio.lowlevel.cancel_shielded_checkpoint()


@pytest.mark.parametrize("turns", range(20))
async def test_discarding_never_says_that_it_is_stored_when_it_is_not_while_the_bus_stops(turns):
    bus = failing_bus(NeverForgetting(), {1}, [])
    said = []

    async def discard():
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        with pytest.raises((StoreError, BusClosed)):
            await bus.dead_letters.discard(1)
        said.append(turns)

    with contextlib.suppress(StoreError):
        async with bus:
            await bus.publish(Noted(1, "a"))
            await bus.wait_idle()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(discard)
                with contextlib.suppress(StoreError):
                    await bus.publish(Noted(2, "a"))
                with contextlib.suppress(StoreError):
                    await bus.stop(drain=False)
    assert said == [turns]
    (left,) = await bus.dead_letters.list()
    assert left.event.number == 1


@attrs.frozen
class Empty(DomainEvent):
    """An event that is false, as an empty basket may be."""

    def __bool__(self):
        return False


async def test_an_event_that_is_false_is_replayed_as_itself(new_store):
    handled = []

    async def fails_once(event):
        handled.append(event)
        if len(handled) == 1:
            raise OSError

    bus = subscribed(new_store(), fails_once, Empty, retry=Retry(attempts=1))
    event = Empty()
    async with bus:
        await bus.publish(event)
        await bus.wait_idle()
        assert await bus.dead_letters.replay() == 1
    assert handled == [event, event]


async def test_letters_are_listed_at_every_moment_of_a_stop(new_store):
    replace(instead_of_thread=in_three_turns)
    listed = []

    async def look_after(turns):
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        listed.append([letter.event.number for letter in await bus.dead_letters.list()])

    bus = failing_bus(new_store(), {1, 2}, [])
    async with bus:
        await bus.publish_many([Noted(n, "a") for n in (1, 2)])
        await bus.wait_idle()
        async with trio.open_nursery() as nursery:
            for turns in range(60):
                nursery.start_soon(look_after, turns)
            await bus.publish(Noted(3, "a"))
            await bus.stop()
    assert listed == [[1, 2]] * 60


async def test_ids_of_dead_letters_go_on_after_a_restart(new_store):
    ids = []
    for number in range(3):
        async with failing_bus(new_store(), {number}, []) as bus:
            await bus.publish(Noted(number, "a"))
            await bus.wait_idle()
            ids.append([letter.id for letter in await bus.dead_letters.list()][-1])
    assert ids == sorted(set(ids))


async def test_hold_works_through_a_restart(new_store):
    handled = []
    async with failing_bus(new_store(), {1}, handled, hold=True) as bus:
        await bus.publish_many([Noted(n, "a") for n in (0, 1, 2)])
        await bus.publish(Noted(10, "b"))
    async with failing_bus(new_store(), set(), handled, hold=True) as bus:
        await bus.publish_many([Noted(3, "a"), Noted(11, "b")])
        await bus.wait_idle()
        assert sorted(handled) == [0, 10, 11]
        letters = await bus.dead_letters.list()
        assert [(x.event.number, x.attempts) for x in letters] == [(1, 1), (2, 0), (3, 0)]
        await bus.dead_letters.replay(group="default")
        await bus.publish(Noted(4, "a"))
    assert [n for n in handled if n < 10] == [0, 1, 2, 3, 4]


async def test_a_letter_whose_subscription_is_gone_stays_listed_and_replay_names_those_there_are(
    new_store,
):
    async with failing_bus(new_store(), {1}, []) as bus:
        await bus.publish(Noted(1, "a"))
    async with EventBus(new_store()) as bus:
        bus.subscribe(Noted, Handled(), name="another")
        (letter,) = await bus.dead_letters.list()
        with pytest.raises(UnknownSubscription, match=r"'handler'.*it has: 'another'"):
            await bus.dead_letters.replay(letter.id)
        assert len(await bus.dead_letters.list()) == 1


async def test_a_letter_whose_group_is_gone_stays_listed_too(new_store):
    bus = EventBus(new_store())

    async def fails(event):
        raise ValueError

    bus.group("mail").subscribe(Noted, fails, retry=Retry(attempts=1))
    async with bus:
        await bus.publish(Noted(1, "a"))
    async with EventBus(new_store()) as bus:
        (letter,) = await bus.dead_letters.list(group="mail")
        with pytest.raises(UnknownSubscription, match=r"no such group.*'default'"):
            await bus.dead_letters.replay(letter.id)
        await bus.dead_letters.discard(letter.id)


async def test_dead_letters_and_what_is_left_of_their_delivery_are_recorded_together(
    new_store, autojump_clock
):
    calls = []

    async def bad(event):
        calls.append("bad")
        raise ValueError

    async def hanging(event):
        calls.append("hanging")
        await trio.sleep_forever()

    async def good(event):
        calls.append("good")

    def bus(second):
        bus = EventBus(new_store())
        bus.subscribe(Noted, bad, name="bad", retry=Retry(attempts=1), priority=2)
        bus.subscribe(Noted, second, name="second", priority=1)
        return bus

    async with crashing(bus(hanging)) as first:
        await first.publish(Noted(1, "a"))
        await trio.sleep(1)
    async with bus(good) as second:
        await second.wait_idle()
        assert len(await second.dead_letters.list()) == 1
    assert calls == ["bad", "hanging", "good"]


# Starting and stopping


async def test_one_bus_at_a_time_has_a_store(new_store):
    store = new_store()
    async with EventBus(store):
        with pytest.raises(StoreInUse) as caught:
            async with EventBus(store):
                pass
        assert isinstance(caught.value, trio.BusyResourceError)
    async with EventBus(store):
        pass


async def test_a_bus_whose_store_could_not_be_had_can_be_started_later(new_store):
    store, handled = new_store(), Handled()
    waiting = subscribed(store, handled)
    async with EventBus(store):
        with pytest.raises(StoreInUse):
            async with waiting:
                pass
    async with waiting:
        await waiting.publish(Noted(1))
    assert handled == [1]


async def test_a_bus_closes_the_store_that_it_opened_and_no_other(new_store):
    store = new_store()
    async with EventBus(store):
        pass
    with pytest.raises(StoreClosed):
        await store.statistics()
    async with store:
        async with EventBus(store) as bus:
            await bus.stop()
        await store.statistics()


async def test_after_stop_everything_is_recorded_and_nothing_published(new_store):
    store, handled = new_store(), Handled()
    async with subscribed(store, handled) as bus:
        await bus.publish_many([Noted(n) for n in range(10)])
        report = await bus.stop()
        assert (dict(report.settled), dict(report.left)) == ({"default": 10}, {"default": 0})
        with pytest.raises(BusClosed):
            await bus.publish(Noted(11))
    async with store:
        assert (await store.statistics()).groups["default"].offset == 10


async def test_what_is_left_when_a_bus_is_stopped_is_delivered_on_the_next_start(
    new_store, autojump_clock
):
    async def slow(event):
        await trio.sleep(10)

    async with subscribed(new_store(), slow, workers=1) as bus:
        await bus.publish_many([Noted(n, "a") for n in range(5)])
        report = await bus.stop(timeout=25)
    assert (dict(report.settled), dict(report.left)) == ({"default": 2}, {"default": 3})
    handled = Handled()
    async with subscribed(new_store(), handled):
        pass
    assert handled == [2, 3, 4]


@pytest.mark.parametrize("steps", range(8))
async def test_what_is_accepted_while_the_bus_begins_to_stop_is_handled_before_it_has(
    new_store, autojump_clock, steps
):
    handled, accepted = Handled(), []

    async def publish(number):
        with contextlib.suppress(BusClosed):
            await bus.publish(Noted(number))
            accepted.append(number)

    async with subscribed(new_store(), handled) as bus, trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(publish, number)
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        report = await bus.stop()
    assert sorted(handled) == sorted(accepted)
    assert dict(report.left) == {"default": 0}


async def test_a_stop_that_is_cancelled_ends_the_run_of_the_bus_and_records_what_was_handled(
    new_store, autojump_clock
):
    handled = Handled()

    async def handler(event):
        if event.number == 2:
            await trio.sleep_forever()
        await handled(event)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            bus = await nursery.start(subscribed(new_store(), handler, workers=2).run)
            await bus.publish_many([Noted(n) for n in (1, 2, 3)])
            with trio.move_on_after(5):
                await bus.stop()
    assert trio.current_time() == 5
    assert bus.health().status == "stopped"
    async with subscribed(new_store(), handled):
        pass
    assert handled == [1, 3, 2]


async def test_the_bodys_own_exception_leaves_as_itself_and_what_was_handled_is_recorded(
    new_store,
):
    handled = Handled()
    with pytest.raises(KeyError, match="mine"):
        async with subscribed(new_store(), handled) as bus:
            await bus.publish(Noted(1))
            raise KeyError("mine")
    async with subscribed(new_store(), handled):
        pass
    assert handled == [1]


async def test_with_raise_the_error_ends_the_bus_and_the_event_is_delivered_on_the_next_start(
    new_store,
):
    async def fails(event):
        raise ValueError("for good")

    with pytest.raises(BaseExceptionGroup):
        bus = EventBus(new_store(), on_failure="raise")
        bus.subscribe(Noted, fails, name="handler", retry=Retry(attempts=1))
        async with bus:
            await bus.publish(Noted(1))
            await trio.sleep_forever()
    handled = Handled()
    async with subscribed(new_store(), handled):
        pass
    assert handled == [1]


class Steps(trio.abc.Instrument):
    count = 0

    def before_task_step(self, task):
        self.count += 1


async def test_a_durable_bus_with_nothing_to_do_takes_no_step(new_store, autojump_clock):
    async with subscribed(new_store(), Handled()) as bus:
        await bus.publish_many([Noted(n) for n in range(10)])
        await bus.wait_idle()
        await trio.testing.wait_all_tasks_blocked()
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        await trio.sleep(24 * 3600)
        trio.lowlevel.remove_instrument(steps)
        assert steps.count <= 1  # this task's own


# Listening


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


# Events that cannot be made


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
