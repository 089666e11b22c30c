"""The life of a bus begins: workers, groups, a second start."""

import pytest
import trio

from tests.events import Noted
from tests.every_step import at_every_step
from tests.promises.lives import noting
from tests.settled import settled
from triobus import BusAlreadyStarted, EventBus, SqliteEventStore, StoreNotFound


async def test_every_worker_runs_and_is_counted_when_the_block_begins(new_bus, autojump_clock):
    bus = new_bus(workers=3)
    bus.group("mail", workers=2)
    assert bus.statistics().worker_count == 0
    async with bus as entered:
        statistics = bus.statistics()
    assert entered is bus
    assert (statistics.running, statistics.worker_count) == (True, 5)
    assert {name: group.worker_count for name, group in statistics.groups.items()} == {
        "default": 3,
        "mail": 2,
    }
    assert (bus.statistics().running, bus.statistics().worker_count) == (False, 0)


async def test_every_worker_runs_and_is_counted_when_nursery_start_returns(new_bus, autojump_clock):
    bus = new_bus(workers=3)
    seen = noting(bus)
    async with trio.open_nursery() as nursery:
        assert await nursery.start(bus.run) is bus
        statistics = bus.statistics()
        await bus.publish(Noted(1))
        await bus.stop()
    assert (statistics.running, statistics.worker_count) == (True, 3)
    assert seen == [1]
    assert bus.statistics().worker_count == 0


async def test_a_second_start_raises_bus_already_started_while_it_runs(new_bus, autojump_clock):
    bus = new_bus()
    async with bus:
        with pytest.raises(BusAlreadyStarted, match="the bus is running") as caught:
            await bus.__aenter__()
        with pytest.raises(BusAlreadyStarted):
            await bus.run()
        assert bus.statistics().running
    assert isinstance(caught.value, trio.BusyResourceError)


async def test_a_bus_that_has_stopped_starts_again_with_a_life_of_its_own(new_bus, autojump_clock):
    bus = new_bus()
    seen = noting(bus)
    bus.group("mail")
    for number in (1, 2):
        async with bus:
            await trio.sleep(5)
            await bus.publish(Noted(number))
            await bus.wait_idle()
            statistics = bus.statistics()
            assert (statistics.published, statistics.handled) == (1, 1)
            assert (statistics.uptime_seconds, statistics.worker_count) == (5, 8)
    assert seen == [1, 2]


async def test_a_bus_that_was_stopped_inside_its_block_starts_again_there(new_bus, autojump_clock):
    bus = new_bus()
    seen = noting(bus)
    async with bus:
        await bus.publish(Noted(1))
        await bus.stop()
        async with bus:
            await bus.publish(Noted(2))
        assert bus.health().status == "stopped"
        async with bus:
            await bus.publish(Noted(3))
    assert seen == [1, 2, 3]
    assert (bus.statistics().running, bus.statistics().worker_count) == (False, 0)


async def test_a_block_that_is_left_ends_its_own_life_and_not_that_of_another_task(
    new_bus, autojump_clock
):
    bus = new_bus()
    seen = noting(bus)
    left = trio.Event()

    async def second_life():
        async with bus:
            await left.wait()
            await bus.publish(Noted(2))

    async with trio.open_nursery() as nursery:
        async with bus:
            await bus.publish(Noted(1))
            await bus.stop()
            nursery.start_soon(second_life)
            await settled()
        assert bus.statistics().running
        left.set()
    assert seen == [1, 2]


@pytest.mark.parametrize("steps", range(8))
async def test_a_bus_is_run_again_as_soon_as_its_stop_has_returned(new_bus, autojump_clock, steps):
    bus = new_bus()
    seen = noting(bus)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for number in range(3):
                await nursery.start(bus.run)
                await bus.publish(Noted(number))
                await bus.stop()
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
    assert seen == [0, 1, 2]


def test_a_bus_that_is_left_and_cancelled_at_any_step_while_another_task_starts_it_again(new_bus):
    async def live(record, scope):
        bus, _ = record

        async def second_life():
            async with bus:
                await bus.publish(Noted(2))
                await bus.wait_idle()

        async with trio.open_nursery() as nursery:
            with scope:
                async with bus:
                    await bus.publish(Noted(1))
                    await bus.stop()
                    nursery.start_soon(second_life)
                    await trio.lowlevel.checkpoint()

    def make():
        bus = new_bus()
        return bus, noting(bus)

    def check(record):
        bus, seen = record
        assert seen in ([1, 2], [1], [])
        assert bus.health().status == "stopped"
        assert bus.statistics().worker_count == 0

    assert at_every_step(make, live, check) > 10


def test_a_bus_starts_again_in_another_run_of_trio(new_bus):
    bus = new_bus()
    seen = noting(bus)

    async def main(number):
        async with bus:
            await bus.publish(Noted(number))

    trio.run(main, 1)
    trio.run(main, 2)
    assert seen == [1, 2]


async def test_a_start_that_failed_can_be_made_again(tmp_path):
    bus = EventBus(SqliteEventStore(tmp_path / "later" / "events.db"))
    seen = noting(bus)
    with pytest.raises(StoreNotFound):
        await bus.__aenter__()
    (tmp_path / "later").mkdir()
    async with bus:
        await bus.publish(Noted(1))
    assert seen == [1]


async def test_a_start_that_is_cancelled_leaves_no_task_behind(autojump_clock):
    bus = EventBus()
    before = trio.lowlevel.current_statistics().tasks_living
    with trio.CancelScope() as scope:
        scope.cancel()
        async with bus:
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert trio.lowlevel.current_statistics().tasks_living == before
    assert (bus.statistics().running, bus.statistics().worker_count) == (False, 0)


async def test_a_group_made_while_the_bus_runs_works_and_is_drained(new_bus, autojump_clock):
    bus = new_bus()
    async with bus:
        mail = bus.group("mail", workers=2)
        seen = noting(mail)
        await bus.publish(Noted(1))
        await settled()
        assert bus.statistics().groups["mail"].worker_count == 2
        assert seen == [1]
        await bus.publish(Noted(2))
    assert seen == [1, 2]


async def test_a_group_made_by_the_last_line_of_the_block_is_drained_too(autojump_clock):
    bus = EventBus()
    async with bus:
        seen = noting(bus.group("mail"))
        bus.publish_nowait(Noted(1))
    assert seen == [1]


async def test_a_group_made_just_before_an_idle_bus_stops_ends_with_it(new_bus, autojump_clock):
    bus = new_bus()
    with trio.fail_after(60):
        async with bus:
            await settled()
            bus.group("mail")
    assert bus.statistics().worker_count == 0


async def test_a_group_made_by_a_handler_that_is_being_cancelled_does_not_keep_the_bus_alive(
    new_bus,
    autojump_clock,
):
    bus = new_bus()

    @bus.subscribe(Noted)
    async def makes_a_group(event):
        try:
            await trio.sleep_forever()
        finally:
            bus.group("late")

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(bus.run)
            await bus.publish(Noted(1))
            await settled()
            await bus.stop(drain=False)
    assert bus.statistics().worker_count == 0


async def test_a_group_that_is_made_after_the_stop_is_there_at_the_next_start(
    new_bus, autojump_clock
):
    bus = new_bus()
    async with bus:
        pass
    seen = []

    @bus.group("mail").subscribe(Noted)
    async def mail(event):
        seen.append(event.number)

    async with bus:
        await bus.publish(Noted(1))
    assert seen == [1]


async def test_two_buses_live_side_by_side_and_do_not_see_each_others_events(
    new_bus, autojump_clock
):
    near, far = new_bus(), new_bus()
    near_seen, far_seen = noting(near), noting(far)
    async with near, far:
        await near.publish(Noted(1))
        await far.publish(Noted(2))
    assert (near_seen, far_seen) == ([1], [2])
