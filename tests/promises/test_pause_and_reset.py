"""Control of a group: pausing it, letting it go on, and sending it to another place in the log."""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
import trio

from tests.events import Noted, Other
from triobus import (
    BusClosed,
    EventBus,
    GroupNotPaused,
    InvalidHandler,
    InvalidOption,
    Retry,
    SqliteEventStore,
    WouldDeadlock,
)
from triobus.testing import crash

ONCE = Retry(attempts=1)


async def test_a_paused_group_begins_nothing_and_another_goes_on(new_bus, autojump_clock):
    bus, mailed, noted = new_bus(), [], []
    mail = bus.group("mail")
    mail.subscribe(Noted, mailed.append)
    bus.subscribe(Noted, noted.append)
    async with bus:
        await mail.pause()
        await bus.publish_many([Noted(n) for n in range(3)])
        await trio.sleep(10)
        assert (len(mailed), len(noted)) == (0, 3)
        statistics = bus.statistics().groups
        assert (statistics["mail"].paused, statistics["default"].paused) == (True, False)
        assert statistics["mail"].queued == 3
        health = bus.health()
        assert health.status == "degraded"
        assert "group 'mail' is paused" in health.reasons[0]
        await mail.resume()
        await bus.wait_idle()
        assert bus.health().status == "healthy"
    assert len(mailed) == 3


async def test_pausing_returns_when_no_handler_runs_any_more(new_bus, autojump_clock):
    bus, events = new_bus(workers=2), []

    @bus.subscribe(Noted)
    async def slow(event):
        events.append(("begun", event.number))
        await trio.sleep(5)
        events.append(("ended", event.number))

    group = bus._default
    async with bus:
        await bus.publish_many([Noted(n, str(n)) for n in range(4)])
        await trio.sleep(1)
        await group.pause()
        assert autojump_clock.current_time() == 5
        assert sorted(events) == [("begun", 0), ("begun", 1), ("ended", 0), ("ended", 1)]
        await trio.sleep(20)
        assert len(events) == 4
        await group.resume()
        await bus.wait_idle()
    assert len(events) == 8


async def test_a_retry_that_is_due_waits_until_the_group_goes_on(new_bus, autojump_clock):
    bus, attempts = new_bus(), []
    group = bus.group("mail")

    @group.subscribe(Noted, retry=Retry(attempts=2, delay=3, jitter=0))
    async def fail_once(event):
        attempts.append(autojump_clock.current_time())
        if len(attempts) == 1:
            raise ValueError("once")

    async with bus:
        await bus.publish(Noted(1))
        await trio.sleep(1)
        await group.pause()
        await trio.sleep(9)
        await group.resume()
        await bus.wait_idle()
    assert attempts == [0, 10]


async def test_pausing_twice_and_resuming_twice_does_no_harm(new_bus):
    bus, seen = new_bus(), []
    group = bus.group("mail")
    group.subscribe(Noted, seen.append)
    async with bus:
        await group.pause()
        await group.pause()
        await bus.publish(Noted(1))
        await group.resume()
        await group.resume()
        await bus.wait_idle()
    assert len(seen) == 1


async def test_a_bus_that_stops_leaves_what_a_paused_group_has(new_bus):
    bus, seen = new_bus(), []
    group = bus.group("mail")
    group.subscribe(Noted, seen.append)
    async with bus:
        await group.pause()
        await bus.publish(Noted(1))
        report = await bus.stop()
    assert report.left["mail"] == 1
    assert seen == []


async def test_a_group_stays_paused_over_a_restart_of_its_bus(new_bus):
    bus, seen = new_bus(), []
    group = bus.group("mail")
    group.subscribe(Noted, seen.append)
    await group.pause()
    async with bus:
        assert bus.statistics().groups["mail"].paused
        await bus.publish(Noted(1))
        for _ in range(10):
            await trio.testing.wait_all_tasks_blocked()
        assert seen == []
        await group.resume()
        await bus.wait_idle()
    assert len(seen) == 1


async def test_cancelled_while_it_waits_it_is_paused_all_the_same(new_bus, autojump_clock):
    bus, seen = new_bus(workers=1), []
    group = bus.group("mail", workers=1)

    @group.subscribe(Noted)
    async def slow(event):
        await trio.sleep(5)
        seen.append(event.number)

    async with bus:
        await bus.publish_many([Noted(1), Noted(2)])
        await trio.sleep(1)
        with trio.move_on_after(1) as scope:
            await group.pause()
        assert scope.cancelled_caught
        await trio.sleep(30)
        assert seen == [1]
        await group.resume()
        await bus.wait_idle()
    assert seen == [1, 2]


async def test_a_handler_cannot_wait_for_itself_to_end(new_bus):
    bus, caught = new_bus(), []
    group = bus.group("mail")

    @group.subscribe(Noted)
    async def stop_it(event):
        with pytest.raises(WouldDeadlock, match="stop_it"):
            await group.pause()
        caught.append(event)

    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
    assert len(caught) == 1


# Resetting


def started(new_store, **options):
    """A bus with a group that notes what it is given."""
    bus, seen = EventBus(new_store(), **options), []
    group = bus.group("books")

    @group.subscribe(Noted, name="note", retry=ONCE)
    async def note(event):
        seen.append(event.number)
        if event.number < 0:
            raise ValueError("negative")

    return bus, group, seen


async def test_from_the_beginning_everything_is_handled_again(new_store):
    bus, group, seen = started(new_store)
    async with bus:
        await bus.publish_many([Noted(n, "a") for n in range(5)])
        await bus.wait_idle()
        await group.pause()
        await group.reset("beginning")
        assert len(seen) == 5
        assert bus.statistics().groups["books"].lag == 5
        await group.resume()
        await bus.wait_idle()
        assert seen == [*range(5)] * 2
        assert bus.statistics().groups["books"].lag == 0
        await bus.publish(Noted(5, "a"))
        await bus.wait_idle()
    assert seen[-1] == 5
    bus, group, seen = started(new_store)
    async with bus:
        await bus.wait_idle()
    assert seen == []


@pytest.mark.parametrize(
    ("to", "again"),
    [(0, [0, 1, 2, 3]), (2, [2, 3]), (4, []), ("end", []), ("beginning", [0, 1, 2, 3])],
)
async def test_a_position_is_the_last_one_that_counts_as_settled(new_store, to, again):
    bus, group, seen = started(new_store)
    async with bus:
        await bus.publish_many([Noted(n, "a") for n in range(4)])
        await bus.wait_idle()
        seen.clear()
        await group.pause()
        await group.reset(to)
        await group.resume()
        await bus.wait_idle()
    assert seen == again


async def test_what_is_queued_is_passed_over_by_the_end(new_store):
    bus, group, seen = started(new_store)
    async with bus:
        await group.pause()
        await bus.publish_many([Noted(n, "a") for n in range(2000)])
        await group.reset("end")
        assert bus.statistics().groups["books"].queued == 0
        await group.resume()
        await bus.publish(Noted(7, "a"))
        await bus.wait_idle()
    assert seen == [7]


async def test_a_moment_is_the_first_one_that_is_handled_again(new_store, autojump_clock):
    bus, group, seen = started(new_store)
    async with bus:
        await bus.publish_many([Noted(0), Noted(1)])
        store = bus.store
        await bus.wait_idle()
        moment = [s.recorded_at async for s in store.read()][-1] + timedelta(microseconds=1)
        while datetime.now(UTC) <= moment:
            pass
        await bus.publish(Noted(2))
        await bus.wait_idle()
        seen.clear()
        await group.pause()
        await group.reset(moment)
        await group.resume()
        await bus.wait_idle()
        assert seen == [2]
        await group.pause()
        await group.reset(datetime.now(UTC) + timedelta(hours=1))
        await group.resume()
        await bus.wait_idle()
    assert seen == [2]


async def test_dead_letters_attempts_and_delays_of_the_group_are_forgotten(
    new_store, autojump_clock
):
    bus = EventBus(new_store())
    group, tries = bus.group("books"), []

    @group.subscribe(Noted, name="note", retry=Retry(attempts=2, delay=1000, max_delay=1000))
    async def note(event):
        tries.append(event.number)
        if event.number == 1:
            raise ValueError("later")

    other = bus.group("other")

    @other.subscribe(Noted, name="fail", retry=ONCE)
    @group.subscribe(Noted, name="fail", retry=ONCE)
    async def fail(event):
        raise ValueError("never")

    async with bus:
        await bus.publish_many([Noted(1, "a"), Noted(2, "b")])
        await trio.sleep(1)
        assert len(await bus.dead_letters.list(group="books")) == 1
        await group.pause()
        await group.reset("end")
        assert await bus.dead_letters.list(group="books") == []
        assert len(await bus.dead_letters.list(group="other")) == 2
        await group.resume()
        await trio.sleep(5000)
        await bus.wait_idle()
    assert sorted(tries) == [1, 2]


async def test_a_publisher_that_waits_for_the_outcome_gets_it_after_a_reset(new_store):
    bus, group, seen = started(new_store)
    outcomes = []

    async def publish(number):
        outcomes.append(await bus.publish_and_wait(Noted(number, "a")))

    async with bus:
        await group.pause()
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(publish, number)
            while bus.statistics().published < 3:
                await trio.testing.wait_all_tasks_blocked(0.01)
            await group.reset(1)
            await group.resume()
        await bus.wait_idle()
    assert len(outcomes) == 3
    assert len(seen) == 2


async def test_the_read_model_is_emptied_in_the_same_commit(tmp_path):
    path = tmp_path / "a.db"
    bus = EventBus(SqliteEventStore(path))
    books = bus.group("books")

    @books.subscribe(Noted, transactional=True)
    def keep(event, transaction):
        transaction.execute("INSERT INTO totals VALUES (?)", (event.number,))

    def empty(transaction):
        transaction.execute("DELETE FROM totals")
        transaction.publish(Other(1))

    def fail(transaction):
        transaction.execute("DELETE FROM totals")
        raise ValueError("not now")

    async with bus:
        await bus.store.transact(lambda t: t.execute("CREATE TABLE totals (number INTEGER)"))
        await bus.publish_many([Noted(n, "a") for n in range(10)])
        await bus.wait_idle()
        await books.pause()
        with pytest.raises(ValueError, match="not now"):
            await books.reset("beginning", transaction=fail)
        assert bus.statistics().groups["books"].lag == 0
        await books.reset("beginning", transaction=empty)
        await books.resume()
        await bus.wait_idle()
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT count(*), sum(number) FROM totals").fetchall()
        assert found == [(10, 45)]
        assert connection.execute("SELECT count(*) FROM finished").fetchall() == [(0,)]
    async with SqliteEventStore(path) as store:
        assert await store.problems() == []


async def test_a_rebuild_under_load_and_over_a_crash_comes_to_the_same(tmp_path):
    path = tmp_path / "a.db"

    def bus_of():
        bus = EventBus(SqliteEventStore(path))
        books = bus.group("books")

        @books.subscribe(Noted, name="keep", transactional=True)
        def keep(event, transaction):
            transaction.execute("INSERT INTO totals VALUES (?)", (event.number,))

        return bus, books

    bus, books = bus_of()
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await bus.store.transact(lambda t: t.execute("CREATE TABLE totals (number INTEGER)"))
        await bus.publish_many([Noted(n, str(n % 5)) for n in range(100)])
        await books.pause()
        await bus.publish_many([Noted(n, str(n % 5)) for n in range(100, 150)])
        await books.reset("beginning", transaction=lambda t: t.execute("DELETE FROM totals"))
        await books.resume()
        while bus.statistics().groups["books"].handled < 20:
            await trio.lowlevel.checkpoint()
        await crash(bus)
    bus, books = bus_of()
    async with bus:
        await bus.wait_idle()
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT count(*), sum(number) FROM totals").fetchall()
    assert found == [(150, sum(range(150)))]


async def test_a_group_that_works_is_not_reset(new_store):
    bus, group, _ = started(new_store)
    async with bus:
        with pytest.raises(GroupNotPaused, match="pause it before"):
            await group.reset("beginning")


@pytest.mark.parametrize("to", [-1, 1.5, "start", None, True, datetime(2026, 1, 1), b"end"])
async def test_a_place_that_is_none_is_refused(new_store, to):
    bus, group, _ = started(new_store)
    async with bus:
        await group.pause()
        with pytest.raises(InvalidOption, match="to="):
            await group.reset(to)


async def test_a_position_beyond_the_log_is_refused_and_nothing_is_changed(new_store):
    bus, group, seen = started(new_store)
    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        await group.pause()
        with pytest.raises(InvalidOption, match="the log ends at position 1"):
            await group.reset(2)
        with pytest.raises(InvalidHandler):
            await group.reset(0, transaction=group.pause)
        await group.resume()
        await bus.wait_idle()
    assert seen == [1]


async def test_without_a_store_or_a_running_bus_there_is_nothing_to_reset(new_store):
    bus = EventBus()
    group = bus.group("mail")
    async with bus:
        await group.pause()
        with pytest.raises(InvalidOption, match="without a store"):
            await group.reset("beginning")
    bus, group, _ = started(new_store)
    await group.pause()
    with pytest.raises(BusClosed, match="does not run"):
        await group.reset("beginning")


# What readers and users found


async def test_resuming_waits_for_a_reset_that_is_under_way(new_store):
    bus, group, seen = started(new_store)
    async with bus:
        await bus.publish_many([Noted(n, "a") for n in range(3)])
        await bus.wait_idle()
        await group.pause()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(group.reset, "beginning")
            while not group._resetting.locked():
                await trio.lowlevel.checkpoint()
            await group.resume()
        await bus.wait_idle()
    assert seen == [0, 1, 2] * 2


async def test_a_reset_waits_until_the_last_handler_has_ended(new_store, autojump_clock):
    bus = EventBus(new_store())
    group, seen = bus.group("books", workers=1), []

    @group.subscribe(Noted)
    async def slow(event):
        await trio.sleep(10)
        seen.append(event.number)

    async with bus:
        await bus.publish(Noted(1, "a"))
        await trio.sleep(1)
        with trio.move_on_after(1):
            await group.pause()
        await group.reset("beginning")
        assert seen == [1]
        await group.resume()
        await bus.wait_idle()
    assert seen == [1, 1]


async def test_while_it_is_paused_a_full_group_keeps_its_order(new_store, autojump_clock):
    bus = EventBus(new_store())
    group, seen = bus.group("books", workers=2, buffer=4), []

    @group.subscribe(Noted)
    async def note(event):
        seen.append(event.number)

    async with bus:
        for round_ in range(20):
            await bus.publish_many([Noted(10 * round_ + n, "a") for n in range(10)])
            await group.pause()
            await trio.sleep(1)
            await group.resume()
            await trio.sleep(0.1)
        await bus.wait_idle()
        assert bus.statistics().groups["books"].queued == 0
    assert seen == [*range(200)]


async def test_a_bus_that_drains_stops_when_the_group_it_waits_for_is_paused(
    new_bus, autojump_clock
):
    bus = new_bus()
    group = bus.group("books")

    @group.subscribe(Noted, retry=Retry(attempts=2, delay=1000, max_delay=1000))
    async def fail(event):
        raise ValueError("later")

    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await bus.publish(Noted(1))
        await trio.sleep(1)
        nursery.start_soon(bus.stop)
        await trio.sleep(5)
        await group.pause()
    assert autojump_clock.current_time() == 6


async def test_the_outcome_of_an_event_that_is_passed_over_in_its_own_commit_comes(new_store):
    bus, group, _ = started(new_store)
    async with bus:
        await group.pause()
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bus.publish_and_wait, Noted(1, "a"))
                nursery.start_soon(group.reset, "end")
                await trio.sleep(0.1)
                await group.resume()
