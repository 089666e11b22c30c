"""Events that are published for later: when they come, in which order, and after a restart."""

import math
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import attrs
import pytest
import trio

from tests.events import Noted, Other
from triobus import (
    BusClosed,
    EventBus,
    EventIdConflict,
    EventNotEncodable,
    InvalidOption,
    MemoryEventStore,
    SqliteEventStore,
)
from triobus.testing import crash

DAY = 86_400


def listening(bus, clock):
    """Let the bus note what comes, and when."""
    seen = []

    @bus.subscribe((Noted, Other))
    async def see(event):
        seen.append((event.number, round(clock.current_time(), 6)))

    return seen


async def test_it_comes_when_it_is_due_and_not_before(new_bus, autojump_clock):
    bus = new_bus()
    seen = listening(bus, autojump_clock)
    async with bus:
        published = await bus.publish(Noted(1), delay=30 * DAY)
        assert (published.position, published.is_new) == (None, True)
        assert bus.statistics().scheduled == 1
        await bus.wait_idle()  # it is not waited for
        assert autojump_clock.current_time() == 0
        await trio.sleep(30 * DAY)
        await bus.wait_idle()
        assert bus.statistics().scheduled == 0
    assert seen == [(1, 30 * DAY)]


async def test_due_times_count_and_then_the_order_of_publication(new_bus, autojump_clock):
    bus = new_bus(workers=1)
    seen = listening(bus, autojump_clock)
    async with bus:
        for number, delay in enumerate([3, 1, 2, 1, 3, 0.5]):
            await bus.publish(Noted(number), delay=delay)
        await trio.sleep(5)
        await bus.wait_idle()
    assert seen == [(5, 0.5), (1, 1), (3, 1), (2, 2), (0, 3), (4, 3)]


async def test_at_is_a_moment_and_what_is_past_is_due_at_once(new_bus, autojump_clock):
    bus = new_bus()
    seen = listening(bus, autojump_clock)
    async with bus:
        await bus.publish(Noted(1), at=datetime.now(UTC) - timedelta(days=1))
        await bus.wait_idle()
        assert seen == [(1, 0)]
        await bus.publish(Noted(2), at=datetime.now(UTC) + timedelta(hours=1))
        await trio.sleep(3590)
        assert len(seen) == 1
        await trio.sleep(20)
        await bus.wait_idle()
    assert [number for number, _ in seen] == [1, 2]
    assert 3595 < seen[1][1] <= 3600


async def test_a_delay_of_nothing_is_no_delay(new_bus, autojump_clock):
    bus = new_bus()
    seen = listening(bus, autojump_clock)
    async with bus:
        await bus.publish(Noted(1), delay=0)
        await bus.wait_idle()
    assert seen == [(1, 0)]


async def test_what_is_taken_back_in_time_never_comes(new_bus, autojump_clock):
    bus = new_bus()
    seen = listening(bus, autojump_clock)
    first, second = Noted(1), Noted(2)
    async with bus:
        await bus.publish(first, delay=10)
        await bus.publish(second, delay=10)
        assert await bus.cancel_scheduled(first.event_id) is True
        assert await bus.cancel_scheduled(first.event_id) is False
        assert await bus.cancel_scheduled(uuid4()) is False
        assert bus.statistics().scheduled == 1
        await trio.sleep(10)
        await bus.wait_idle()
        assert await bus.cancel_scheduled(second.event_id) is False
    assert seen == [(2, 10)]


async def test_one_that_was_taken_back_can_be_published_anew(new_bus, autojump_clock):
    bus = new_bus()
    seen = listening(bus, autojump_clock)
    event = Noted(1)
    async with bus:
        await bus.publish(event, delay=10)
        await bus.cancel_scheduled(event.event_id)
        await bus.publish(event, delay=3)
        await trio.sleep(20)
        await bus.wait_idle()
    assert seen == [(1, 3)]


async def test_published_again_it_is_accepted_once(new_bus, autojump_clock):
    bus = new_bus()
    seen = listening(bus, autojump_clock)
    event = Noted(1)
    async with bus:
        await bus.publish(event, delay=10)
        again = await bus.publish(event, delay=5)
        assert (again.position, again.is_new) == (None, False)
        await trio.sleep(20)
        await bus.wait_idle()
    assert seen == [(1, 10)]


async def test_inside_a_handler_it_is_caused_by_the_handled_event(new_bus, autojump_clock):
    bus, seen = new_bus(), []
    first = Noted(1)

    @bus.subscribe(Noted)
    async def plan(event):
        await bus.publish(Other(2), delay=60)

    @bus.subscribe(Other)
    async def see(event):
        seen.append((event.causation_id, event.correlation_id))

    async with bus:
        await bus.publish(first)
        await trio.sleep(61)
        await bus.wait_idle()
    assert seen == [(first.event_id, first.event_id)]


async def test_draining_does_not_wait_for_it(new_bus, autojump_clock):
    bus = new_bus()
    listening(bus, autojump_clock)
    async with bus:
        await bus.publish(Noted(1), delay=100)
        report = await bus.stop()
    assert autojump_clock.current_time() == 0
    kept = bus.store is not None
    assert report.left == {"default": 0 if kept else 1}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"delay": -1}, "delay=-1"),
        ({"delay": math.nan}, "delay=nan"),
        ({"delay": math.inf}, "delay=inf"),
        ({"delay": "1"}, "delay='1'"),
        ({"delay": True}, "delay=True"),
        ({"at": datetime(2030, 1, 1)}, "aware datetime"),  # it is what is refused
        ({"at": 7}, "aware datetime"),
        ({"at": datetime(2030, 1, 1, tzinfo=UTC), "delay": 1}, "give one of them"),
        ({"delay": 1, "expected_sequence": 0}, "leave it out"),
    ],
)
async def test_a_time_that_cannot_be_is_refused_and_nothing_is_scheduled(new_bus, options, said):
    bus = new_bus()
    async with bus:
        with pytest.raises(InvalidOption, match=said):
            await bus.publish(Noted(1), **options)
        with pytest.raises(InvalidOption, match="give a UUID"):
            await bus.cancel_scheduled("x")
        assert bus.statistics().scheduled == 0


async def test_a_bus_that_does_not_run_takes_none(new_bus):
    bus = new_bus()
    with pytest.raises(BusClosed):
        await bus.publish(Noted(1), delay=1)
    with pytest.raises(BusClosed):
        await bus.cancel_scheduled(uuid4())


# With a store


async def test_a_restart_changes_nothing_but_what_is_overdue_comes_at_once(
    new_store, autojump_clock
):
    seen = []
    for _ in range(4):
        bus = EventBus(new_store())
        seen.append(listening(bus, autojump_clock))
        async with bus:
            if len(seen) == 1:
                for delay in (1, 4, 5, 30):
                    await bus.publish(Noted(delay), delay=delay)
            await trio.sleep(2)
            await bus.wait_idle()
        await trio.sleep(2)
    assert seen == [[(1, 1)], [(4, 4), (5, 5)], [], []]
    bus = EventBus(new_store())
    assert bus.statistics().scheduled == 0
    async with bus:
        assert bus.statistics().scheduled == 1


async def test_a_crash_loses_none_and_repeats_none(new_store, autojump_clock):
    seen = []
    for round_ in range(5):
        bus = EventBus(new_store())
        seen += [[]]
        seen[-1] = listening(bus, autojump_clock)
        async with trio.open_nursery() as nursery:
            await nursery.start(bus.run)
            if not round_:
                for number in range(10):
                    await bus.publish(Noted(number), delay=number + 0.5)
            await trio.sleep(2)
            await bus.wait_idle()
            await crash(bus)
    assert sorted(number for some in seen for number, _ in some) == [*range(10)]


async def test_another_event_of_its_id_is_refused(new_store, autojump_clock):
    event = Noted(1)
    async with EventBus(new_store()) as bus:
        await bus.publish(event, delay=10)
        with pytest.raises(EventIdConflict, match="scheduled"):
            await bus.publish(attrs.evolve(event, number=2), delay=10)
        await bus.publish(Noted(3, event_id=uuid4()))
        known = Noted(4)
        await bus.publish(known)
        again = await bus.publish(known, delay=5)
        assert (again.position, again.is_new) == (2, False)
        with pytest.raises(EventIdConflict, match="position 2"):
            await bus.publish(attrs.evolve(known, number=5), delay=5)


async def test_published_at_once_it_does_not_come_a_second_time(new_store, autojump_clock):
    bus = EventBus(new_store())
    seen = listening(bus, autojump_clock)
    event = Noted(1)
    async with bus:
        await bus.publish(event, delay=10)
        await bus.publish(event)
        await trio.sleep(20)
        await bus.wait_idle()
        assert bus.statistics().scheduled == 0
    assert seen == [(1, 0)]


async def test_its_position_is_the_one_that_it_gets_when_it_is_due(new_store, autojump_clock):
    store = new_store()
    async with store, EventBus(store) as bus:
        await bus.publish(Noted(1, "a"), delay=10)
        await bus.publish(Noted(2, "a"))
        assert [s.event.number async for s in store.read()] == [2]
        await trio.sleep(11)
        await bus.wait_idle()
        found = [(s.event.number, s.position, s.sequence) async for s in store.read()]
    assert found == [(2, 1, 1), (1, 2, 2)]


async def test_thousands_are_due_at_once_in_their_order(new_store, autojump_clock):
    bus = EventBus(new_store(), workers=1)
    seen = listening(bus, autojump_clock)

    def plan(transaction):
        for number in range(1200):
            transaction.publish(Noted(number), delay=7)

    async with bus:
        await bus.store.transact(plan)
        await trio.sleep(8)
        await bus.wait_idle()
    assert [number for number, _ in seen] == [*range(1200)]


async def test_an_event_that_cannot_be_kept_is_refused_when_it_is_published(new_store):
    async with EventBus(new_store()) as bus:
        with pytest.raises(EventNotEncodable):
            await bus.publish(Noted(1, "\ud800"), delay=5)
        assert bus.statistics().scheduled == 0


async def test_a_listener_gets_it_too(new_bus, autojump_clock):
    async with new_bus() as bus, bus.listen(Noted) as events:
        await bus.publish(Noted(1), delay=5)
        assert (await anext(events)).number == 1
        assert autojump_clock.current_time() == 5


async def test_a_transaction_schedules_what_it_publishes_with_a_delay(tmp_path, autojump_clock):
    bus, came = EventBus(SqliteEventStore(tmp_path / "a.db")), []

    @bus.subscribe(Noted, transactional=True)
    def plan(event, transaction):
        transaction.publish(Other(event.number), delay=60)
        if event.number == 2:
            raise ValueError("no")

    @bus.subscribe(Other)
    async def see(event):
        came.append((event.number, round(autojump_clock.current_time(), 3)))

    async with bus:
        await bus.publish(Noted(1, "a"))
        await bus.publish(Noted(2, "b"))
        await trio.sleep(59)
        assert came == []
        await trio.sleep(30)
        await bus.wait_idle()
    assert came == [(1, 60)]


async def test_without_a_store_it_waits_for_room_in_its_turn(autojump_clock):
    bus, seen = EventBus(buffer=1, workers=1), []

    @bus.subscribe(Noted)
    async def slow(event):
        await trio.sleep(10)
        seen.append((event.number, autojump_clock.current_time()))

    async with bus:
        for number in range(4):
            await bus.publish(Noted(number), delay=1)
        await trio.sleep(1)
        await bus.wait_idle()
    assert seen == [(n, 11 + 10 * n) for n in range(4)]


@pytest.mark.parametrize("drain", [True, "running"])
async def test_what_is_due_and_waits_for_room_is_drained_as_what_is_queued(autojump_clock, drain):
    bus = EventBus(workers=1, buffer=0, drain=drain)
    seen = []

    @bus.subscribe(Noted)
    async def see(event):
        await trio.sleep(1)
        seen.append(event.number)

    async with bus:
        await bus.publish(Noted(1))
        for number in (2, 3):
            await bus.publish(Noted(number), delay=0.5)
        await bus.publish(Noted(4), delay=2)
        await trio.sleep(0.75)
    assert seen == ([1, 2, 3] if drain is True else [1])
    assert bus.statistics().scheduled == (1 if drain is True else 3)


@pytest.mark.parametrize("turns", range(8))
async def test_what_gets_room_when_the_bus_stops_is_handled_once(autojump_clock, turns):
    bus = EventBus(workers=1, buffer=0)
    seen = []

    @bus.subscribe(Noted)
    async def see(event):
        await trio.sleep(1)
        seen.append(event.number)

    async with bus:
        await bus.publish(Noted(1))
        await bus.publish(Noted(2), delay=0.5)
        await bus.publish_and_wait(Noted(3))
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
    assert seen == [1, 3, 2]
    assert bus.statistics().scheduled == 0


async def test_a_hundred_thousand_that_wait_wake_nobody(autojump_clock):
    store = MemoryEventStore()
    async with EventBus(store) as bus:
        recorder = bus._life.log._recorder
        await bus.publish(Noted(1), delay=5)
        assert recorder.schedule.count == 1
        await trio.sleep(4)
        assert recorder.schedule._deadline.at == 5


# What readers and users found


async def test_the_same_moment_keeps_the_order_of_publication(new_bus, autojump_clock):
    bus = new_bus(workers=1)
    seen = listening(bus, autojump_clock)
    at = datetime.now(UTC) + timedelta(days=1)
    async with bus:
        for number in range(100):
            await bus.publish(Noted(number), at=at + timedelta(microseconds=number // 2))
        await trio.sleep(DAY + 10)
        await bus.wait_idle()
    assert [number for number, _ in seen] == [*range(100)]


async def test_published_at_once_with_other_content_it_conflicts(new_store, autojump_clock):
    bus = EventBus(new_store())
    seen = listening(bus, autojump_clock)
    event = Noted(5)
    async with bus:
        await bus.publish(event, delay=10)
        with pytest.raises(EventIdConflict, match="scheduled"):
            await bus.publish(attrs.evolve(event, number=6))
        with pytest.raises(EventIdConflict, match="scheduled"):
            await bus.store.append([Noted(1), attrs.evolve(event, number=6)])
        await trio.sleep(20)
        await bus.wait_idle()
    assert [number for number, _ in seen] == [5]


async def test_another_event_of_its_id_is_refused_without_a_store_too(autojump_clock):
    event = Noted(5)
    async with EventBus() as bus:
        await bus.publish(event, delay=10)
        with pytest.raises(EventIdConflict):
            await bus.publish(attrs.evolve(event, number=6), delay=10)


async def test_what_is_due_or_published_cannot_be_taken_back(new_store, autojump_clock):
    bus = EventBus(new_store())
    listening(bus, autojump_clock)
    first, second = Noted(1), Noted(2)
    async with bus:
        await bus.publish(first, delay=10)
        await bus.publish(first)
        assert await bus.cancel_scheduled(first.event_id) is False
        await bus.publish(second, delay=10)
        async with trio.open_nursery() as nursery:  # both in one moment: it is due
            await trio.sleep(10)
            nursery.start_soon(bus.cancel_scheduled, second.event_id)
        await bus.wait_idle()
        assert bus.statistics().scheduled == 0
        assert bus.statistics().handled == 2


async def test_a_handler_that_plans_while_the_bus_drains_is_drained_with_all_it_publishes(
    new_store, autojump_clock
):
    bus, seen = EventBus(new_store()), []

    @bus.subscribe(Noted)
    async def plan(event):
        await trio.sleep(1)
        await bus.publish(Other(1), delay=1000)
        await bus.publish(Other(2))

    @bus.subscribe(Other)
    async def hear(event):
        seen.append(event.number)

    async with bus:
        await bus.publish(Noted(1))
    assert seen == [2]


async def test_one_that_is_damaged_holds_up_no_other_and_is_told(tmp_path, autojump_clock):
    path = tmp_path / "a.db"
    async with EventBus(SqliteEventStore(path)) as bus:
        await bus.publish_many([Noted(0)])
        for number in (1, 2, 3):
            await bus.publish(Noted(number), delay=10 * number)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE scheduled SET data = '{}' WHERE number = 2")
    bus = EventBus(SqliteEventStore(path))
    seen = listening(bus, autojump_clock)
    async with bus:
        await trio.sleep(60)
        await bus.wait_idle()
        await bus.publish(Noted(4))
        await bus.wait_idle()
        assert "scheduled events that cannot be read: 1" in bus.health().reasons[0]
    assert [number for number, _ in seen] == [1, 3, 4]


async def test_a_listener_gets_what_comes_behind_one_that_cannot_be_read(tmp_path, autojump_clock):
    path = tmp_path / "a.db"
    async with EventBus(SqliteEventStore(path)) as bus:
        for number in (1, 2, 3):
            await bus.publish(Noted(number), delay=10)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(
            "UPDATE scheduled SET event_type = 'gone', checksum = NULL WHERE number = 2"
        )
    async with EventBus(SqliteEventStore(path)) as bus, bus.listen(Noted) as events:
        assert [(await anext(events)).number for _ in range(2)] == [1, 3]


@pytest.mark.parametrize("has_store", [False, True])
async def test_timeouts_that_are_taken_back_take_no_room_in_memory(has_store, autojump_clock):
    store = MemoryEventStore() if has_store else None
    async with EventBus(store) as bus:
        events = [Noted(number) for number in range(2000)]
        for event in events:
            await bus.publish(event, delay=30 * DAY)
        for event in events[10:]:
            assert await bus.cancel_scheduled(event.event_id)
        agenda = bus._life.log.schedule._agenda if store is None else store._later._agenda
        assert len(agenda._order) < 200
        assert bus.statistics().scheduled == 10


async def test_while_the_bus_starts_an_outsider_schedules_nothing(new_store):
    bus, refused = EventBus(new_store()), []

    async def publish():
        while bus._life.cycle.state == "new":
            await trio.lowlevel.checkpoint()
        try:
            await bus.publish(Noted(1), delay=5)
        except BusClosed:
            refused.append(bus._life.cycle.state)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        async with bus:
            await trio.lowlevel.checkpoint()
    assert bus.statistics().scheduled == (0 if refused else 1)
