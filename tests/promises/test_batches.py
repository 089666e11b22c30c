"""Groups whose handlers take several events at once."""

import itertools
import sqlite3
from collections import Counter
from contextlib import closing

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.events import Noted, Other, SpecialNoted
from triobus import (
    DomainEvent,
    EventBus,
    InvalidHandler,
    InvalidOption,
    Retry,
    SqliteEventStore,
    current_delivery,
)
from triobus.testing import crash

ONCE = Retry(attempts=1)


def numbers(events):
    return tuple(event.number for event in events)


async def test_a_handler_takes_what_is_ready_in_order_up_to_the_batch(new_bus):
    bus, calls = new_bus(), []
    bulk = bus.group("bulk", batch=4, workers=1)

    @bulk.subscribe(Noted)
    async def load(events):
        assert isinstance(events, tuple)
        calls.append(numbers(events))

    async with bus:
        await bus.publish_many([Noted(n, "ab"[n % 2]) for n in range(10)])
        await bus.wait_idle()
        assert bus.statistics().groups["bulk"].handled == 10
        await bus.publish(Noted(10))
        await bus.wait_idle()
    assert calls == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9), (10,)]


async def test_it_does_not_wait_for_a_full_batch(new_bus, autojump_clock):
    bus, calls = new_bus(), []
    bulk = bus.group("bulk", batch=500)
    bulk.subscribe(Noted, lambda events: calls.append(numbers(events)))
    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
    assert calls == [(1,)]
    assert autojump_clock.current_time() == 0


async def test_an_aggregate_is_handled_in_order_by_one_worker_at_a_time(new_bus, autojump_clock):
    bus, seen, running = new_bus(), {}, Counter()
    bulk = bus.group("bulk", batch=5, workers=4)

    @bulk.subscribe(Noted)
    async def load(events):
        keys = {event.key for event in events}
        running.update(keys)
        assert all(running[key] == 1 for key in keys)
        await trio.sleep(1)
        running.subtract(keys)
        for event in events:
            seen.setdefault(event.key, []).append(event.number)

    async with bus:
        for start in range(0, 200, 20):
            await bus.publish_many([Noted(n, str(n * n % 7)) for n in range(start, start + 20)])
            await trio.sleep(0.3)
        await bus.wait_idle()
    assert sum(map(len, seen.values())) == 200
    assert all(found == sorted(found) for found in seen.values())


@pytest.mark.parametrize("bad", [set(), {0}, {7}, {3, 4}, {0, 5, 7}, set(range(8))])
async def test_only_the_events_that_fail_alone_become_dead_letters(new_bus, autojump_clock, bad):
    bus, calls, handled = new_bus(), [], []
    bulk = bus.group("bulk", batch=8, workers=1)

    @bulk.subscribe(Noted, retry=Retry(attempts=3, delay=1, jitter=0))
    async def load(events):
        calls.append((autojump_clock.current_time(), numbers(events)))
        if found := bad.intersection(numbers(events)):
            raise ValueError(f"bad: {sorted(found)}")
        handled.extend(numbers(events))

    async with bus:
        await bus.publish_many([Noted(n) for n in range(8)])
        await bus.wait_idle()
        letters = await bus.dead_letters.list()
        assert bus.statistics().groups["bulk"].handled == 8
    assert {letter.event.number for letter in letters} == bad
    assert sorted(handled) == sorted(set(range(8)) - bad)
    whole = tuple(range(8))
    if bad:
        assert calls[:3] == [(0, whole), (1, whole), (3, whole)]
        assert all(time == 3 for time, _ in calls[3:])
        assert {letter.message for letter in letters} == {f"bad: [{n}]" for n in bad}


async def test_a_failed_batch_is_tried_again_whole_while_others_go_on(new_bus, autojump_clock):
    bus, calls = new_bus(), []
    bulk = bus.group("bulk", batch=3, workers=1)

    @bulk.subscribe(Noted, retry=Retry(attempts=2, delay=10, jitter=0))
    async def load(events):
        calls.append((numbers(events), current_delivery().attempt))
        if len(calls) == 1:
            raise ValueError("once")

    async with bus:
        await bus.publish_many([Noted(n, "a") for n in range(3)])
        await trio.sleep(1)
        assert bus.statistics().waiting_for_retry == 3
        await bus.publish_many([Noted(3, "a"), Noted(4, "b")])
        await trio.sleep(1)
        await bus.wait_idle()
    assert calls == [((0, 1, 2), 1), ((4,), 1), ((0, 1, 2), 2), ((3,), 1)]


async def test_with_hold_the_later_events_of_an_aggregate_follow_its_dead_letter(
    new_bus, autojump_clock
):
    bus, handled = new_bus(), []
    bulk = bus.group("bulk", batch=10, workers=1)

    @bulk.subscribe(Noted, retry=ONCE, hold=True)
    async def load(events):
        if any(event.number == 2 for event in events):
            raise ValueError("two")
        handled.extend(numbers(events))

    async with bus:
        await bus.publish_many([Noted(n, "ab"[n % 2]) for n in range(8)])
        await bus.wait_idle()
        letters = await bus.dead_letters.list()
    assert [letter.event.number for letter in letters] == [2, 4, 6]
    assert [letter.attempts > 0 for letter in letters] == [True, False, False]
    assert sorted(handled) == [0, 1, 3, 5, 7]


async def test_several_handlers_come_one_after_the_other_with_what_each_wants(new_bus):
    bus, calls = new_bus(), []
    bulk = bus.group("bulk", batch=10, workers=1)
    bulk.subscribe(
        Noted, lambda events: calls.append(("even", numbers(events))), name="even", priority=1,
        where=lambda event: event.number % 2 == 0,
    )  # fmt: skip
    bulk.subscribe(Noted, lambda events: calls.append(("all", numbers(events))), name="all")
    async with bus:
        await bus.publish_many([Noted(n) for n in range(5)])
        await bus.wait_idle()
    assert calls == [("even", (0, 2, 4)), ("all", (0, 1, 2, 3, 4))]


async def test_events_of_different_handlers_go_apart_and_each_aggregate_in_order(new_bus):
    bus, calls = new_bus(), []
    bulk = bus.group("bulk", batch=10, workers=2)
    bulk.subscribe(Other, lambda events: calls.append(("other", numbers(events))), name="other")
    bulk.subscribe(Noted, lambda events: calls.append(("noted", numbers(events))), name="noted")
    async with bus:
        await bus.publish_many([Other(0), Noted(1), Other(2), Noted(3, "a"), Other(4)])
        await bus.wait_idle()
    assert sorted(calls) == [("noted", (1, 3)), ("other", (0, 2, 4))]


async def test_one_worker_keeps_the_total_order_and_ends_a_batch_where_other_handlers_are_next(
    new_bus,
):
    bus, calls = new_bus(), []
    bulk = bus.group("bulk", batch=10, workers=1)
    bulk.subscribe(Other, lambda events: calls.append(("other", numbers(events))), name="other")
    bulk.subscribe(Noted, lambda events: calls.append(("noted", numbers(events))), name="noted")
    async with bus:
        await bus.publish_many([Other(0), Other(1), Noted(2), Noted(3, "a"), Other(4)])
        await bus.wait_idle()
    assert calls == [("other", (0, 1)), ("noted", (2, 3)), ("other", (4,))]


async def test_a_base_class_brings_all_types_in_one_batch(new_bus):
    bus, calls = new_bus(), []
    bulk = bus.group("bulk", batch=10, workers=1)
    bulk.subscribe(DomainEvent, lambda events: calls.append(numbers(events)))
    async with bus:
        await bus.publish_many([Other(0), Noted(1), Other(2), Noted(3)])
        await bus.wait_idle()
    assert calls == [(0, 1, 2, 3)]


async def test_every_publisher_gets_the_outcome_of_its_own_event(new_bus):
    bus, outcomes = new_bus(), {}
    bulk = bus.group("bulk", batch=10, workers=1)

    @bulk.subscribe(Noted, name="load", retry=ONCE)
    async def load(events):
        if any(event.number == 3 for event in events):
            raise ValueError("three")
        return len(events)

    async def publish(number):
        outcomes[number] = await bus.publish_and_wait(Noted(number))

    async with bus, trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(publish, number)
    assert [number for number in range(6) if outcomes[number].errors] == [3]
    assert all(outcomes[n].results["load"] >= 1 for n in range(6) if n != 3)


async def test_what_a_batch_publishes_has_a_cause_only_if_it_is_of_one_event(new_bus):
    bus, heard = new_bus(), []
    bulk = bus.group("bulk", batch=10, workers=1)

    @bulk.subscribe(Noted)
    async def load(events):
        await bus.publish(Other(len(events)))

    @bus.subscribe(Other)
    async def hear(event):
        heard.append((event.number, event.causation_id))

    only = Noted(0)
    async with bus:
        await bus.publish(only)
        await bus.wait_idle()
        await bus.publish_many([Noted(1), Noted(2)])
        await bus.wait_idle()
    assert heard == [(1, only.event_id), (2, None)]


async def test_cancelled_in_the_middle_nothing_is_lost(new_store, autojump_clock):
    handled = Counter()

    def start():
        bus = EventBus(new_store())
        bulk = bus.group("bulk", batch=4, workers=2)

        @bulk.subscribe(Noted, name="load", retry=Retry(attempts=2, delay=1))
        async def load(events):
            await trio.sleep(1)
            if any(event.number % 5 == 0 for event in events):
                raise ValueError("five")
            handled.update(numbers(events))

        return bus

    for round_ in itertools.count():
        bus = start()
        async with trio.open_nursery() as nursery:
            await nursery.start(bus.run)
            if not round_:
                await bus.publish_many([Noted(n, str(n % 3)) for n in range(24)])
            await trio.sleep(3.5)
            if not bus.statistics().groups["bulk"].lag:
                await bus.wait_idle()
                letters = await bus.dead_letters.list()
                await bus.stop()
                break
            await (bus.stop(drain=False) if round_ % 2 else crash(bus))
        assert round_ < 40
    assert sorted({letter.event.number for letter in letters}) == [0, 5, 10, 15, 20]
    assert sorted(handled) == [n for n in range(24) if n % 5]


async def test_a_transactional_batch_is_one_effect_exactly_once(tmp_path):
    path = tmp_path / "a.db"
    bus, calls = EventBus(SqliteEventStore(path)), []
    bulk = bus.group("bulk", batch=100, workers=2)

    @bulk.subscribe(Noted, transactional=True, retry=ONCE)
    def load(events, transaction):
        calls.append(len(events))
        transaction.executemany("INSERT INTO rows VALUES (?)", [(e.number,) for e in events])
        if any(event.number == 77 for event in events):
            raise ValueError("no")

    async with bus:
        await bus.store.transact(lambda t: t.execute("CREATE TABLE rows (number INTEGER)"))
        await bus.publish_many([Noted(n, str(n % 9)) for n in range(300)])
        await bus.wait_idle()
        (letter,) = await bus.dead_letters.list()
    assert letter.event.number == 77
    with closing(sqlite3.connect(path)) as connection:
        found = [n for (n,) in connection.execute("SELECT number FROM rows ORDER BY number")]
    assert found == [n for n in range(300) if n != 77]
    assert max(calls) > 10
    async with SqliteEventStore(path) as store:
        assert await store.problems() == []


async def test_a_dead_letter_of_a_batch_is_replayed_as_a_batch_of_one(new_bus):
    bus, calls, bad = new_bus(), [], {1, 2}
    bulk = bus.group("bulk", batch=5, workers=1)

    @bulk.subscribe(Noted, retry=ONCE)
    async def load(events):
        if bad.intersection(numbers(events)):
            raise ValueError("bad")
        calls.append(numbers(events))

    async with bus:
        await bus.publish_many([Noted(n) for n in range(4)])
        await bus.wait_idle()
        bad.clear()
        assert await bus.dead_letters.replay() == 2
    assert calls[-2:] == [(1,), (2,)]


async def test_what_waits_for_its_retry_over_a_restart_goes_with_no_batch_before_it(
    new_store, autojump_clock
):
    calls, is_first_life = [], True

    async def load(events):
        calls.append((numbers(events), current_delivery().attempt, trio.current_time()))
        if is_first_life:
            if events[0].number == 1:
                raise OSError("not now")
            await trio.sleep_forever()

    def new_bus(**options):
        bus = EventBus(new_store())
        bulk = bus.group("bulk", **options)
        bulk.subscribe(Noted, load, name="load", retry=Retry(attempts=2, delay=60, jitter=0))
        return bus

    async with new_bus(batch=1, workers=3) as bus:
        await bus.publish_many([Noted(n) for n in range(3)])
        await wait_all_tasks_blocked()
        await bus.stop(timeout=0)
    calls.clear()
    is_first_life, started = False, trio.current_time()
    async with new_bus(batch=10, workers=1) as bus:
        await bus.wait_idle()
    assert calls == [((0,), 1, started), ((2,), 1, started), ((1,), 2, 60.0)]


async def test_a_group_without_order_takes_whatever_is_there(new_bus):
    bus, calls = new_bus(), []
    bulk = bus.group("bulk", batch=6, workers=1, ordering="none")
    bulk.subscribe(Noted, lambda events: calls.append(numbers(events)))
    async with bus:
        await bus.publish_many([Noted(n, "a") for n in range(9)])
        await bus.wait_idle()
    assert calls == [(0, 1, 2, 3, 4, 5), (6, 7, 8)]


async def test_pausing_and_resetting_work_as_in_any_group(new_store):
    bus, calls = EventBus(new_store()), []
    bulk = bus.group("bulk", batch=5, workers=1)
    bulk.subscribe(Noted, lambda events: calls.append(numbers(events)), name="load")
    async with bus:
        await bus.publish_many([Noted(n, "a") for n in range(5)])
        await bus.wait_idle()
        await bulk.pause()
        await bus.publish(Noted(5, "a"))
        await bulk.reset("beginning")
        await bulk.resume()
        await bus.wait_idle()
    assert calls == [(0, 1, 2, 3, 4), (0, 1, 2, 3, 4), (5,)]


@pytest.mark.parametrize("batch", [0, -1, 1.5, "many", True])
def test_a_batch_of_nothing_is_refused(batch):
    with pytest.raises(InvalidOption, match="batch="):
        EventBus().group("bulk", batch=batch)


def test_a_handler_of_two_arguments_is_refused():
    bulk = EventBus().group("bulk", batch=2)
    with pytest.raises(InvalidHandler):
        bulk.subscribe(Noted, lambda events, more: None)


async def test_what_a_batch_makes_ready_is_handled_by_all_workers(new_bus, autojump_clock):
    bus, gate, ended = new_bus(), trio.Event(), []
    group = bus.group("bulk", workers=2, batch=10)

    @group.subscribe(Noted)
    async def note(events):
        if events[0].number == 0:  # the other worker has nothing to do meanwhile
            gate.set()
            await trio.sleep(1)

    @group.subscribe(Other)
    async def keep_a_worker_busy(_):
        await gate.wait()

    @group.subscribe(SpecialNoted)
    async def slow(_):
        await trio.sleep(1)
        ended.append(autojump_clock.current_time())

    async with bus:
        events = [Noted(0, "0"), Other(0), *(Noted(n, f"{n}") for n in range(1, 3))]
        await bus.publish_many([*events, *(SpecialNoted(n, f"{n}") for n in range(1, 3))])
        await bus.wait_idle()
    assert set(ended) == {2}
