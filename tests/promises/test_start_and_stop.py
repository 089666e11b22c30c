"""The life of a bus: start, drain, stop, cancellation, and which errors leave with it."""

import asyncio
import logging
from collections.abc import Callable, Coroutine

import pytest
import trio

from tests.events import Noted, Other
from tests.every_step import at_every_step
from tests.settled import settled
from triobus import (
    BusAlreadyStarted,
    BusClosed,
    EventBus,
    InvalidOption,
    MemoryEventStore,
    NotInTrio,
    Retry,
    SqliteEventStore,
    StopReport,
    StoreNotFound,
    WouldDeadlock,
)


def noting(bus, **options):
    """Subscribe a handler that notes the numbers of what it is given, and return the notes."""
    seen = []

    async def note(event):
        seen.append(event.number)

    bus.subscribe(Noted, note, **options)
    return seen


async def never(event):
    raise OSError


async def sleepy(event):
    await trio.sleep(event.number)


class Gate:
    """A handler that begins events and finishes none before it is opened."""

    def __init__(self):
        self.begun = []
        self.finished = []
        self.open = trio.Event()

    async def __call__(self, event):
        self.begun.append(event.number)
        await self.open.wait()
        self.finished.append(event.number)


def tasks_of(nursery):
    """Count the tasks in a nursery and in all that are inside them."""
    return sum(
        1 + sum(tasks_of(inner) for inner in task.child_nurseries) for task in nursery.child_tasks
    )


# Start


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


# Draining


async def test_leaving_the_block_handles_all_that_was_accepted(new_bus, autojump_clock):
    bus = new_bus(workers=2)
    seen = noting(bus)
    async with bus:
        await bus.publish_many([Noted(number, "one") for number in range(300)])
    assert seen == list(range(300))
    assert bus.statistics().handled == 300


async def test_leaving_the_block_waits_for_retries(new_bus, autojump_clock):
    attempts = []
    bus = new_bus()

    @bus.subscribe(Noted, retry=Retry(attempts=3, delay=10, factor=3, jitter=0))
    async def fails_twice(event):
        attempts.append(trio.current_time() - started)
        if len(attempts) < 3:
            raise OSError

    async with bus:
        started = trio.current_time()
        await bus.publish(Noted(1))
    assert attempts == [0, 10, 40]
    assert bus.statistics().handled == 1


async def test_handlers_may_publish_while_the_bus_drains_and_that_is_drained_too(
    new_bus, autojump_clock
):
    seen = []
    bus = new_bus(workers=1, buffer=1)

    @bus.subscribe(Noted)
    async def count_down(event):
        seen.append((event.number, bus.statistics().running))
        if event.number:
            await trio.lowlevel.checkpoint()
            await bus.publish(Noted(event.number - 1))

    async with bus:
        await bus.publish(Noted(20))
    assert seen[-1] == (0, False)
    assert [number for number, _ in seen] == list(range(20, -1, -1))


async def test_outsiders_get_bus_closed_while_the_bus_drains(autojump_clock):
    gate = Gate()
    bus = EventBus()
    bus.subscribe(Noted, gate)
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await bus.publish(Noted(1))
        nursery.start_soon(bus.stop)
        await settled()
        with pytest.raises(BusClosed, match="only its own handlers may still publish"):
            await bus.publish(Noted(2))
        with pytest.raises(BusClosed):
            bus.publish_nowait(Noted(2))
        with pytest.raises(BusClosed):
            await bus.publish_many([Noted(2)])
        gate.open.set()
    assert gate.finished == [1]
    assert bus.statistics().published == 1


async def test_publishers_that_wait_for_room_get_bus_closed_when_the_bus_stops(autojump_clock):
    gate = Gate()
    refused = []
    bus = EventBus(workers=1, buffer=1)
    bus.subscribe(Noted, gate)

    async def publish(publish, event):
        with pytest.raises(BusClosed, match="stop"):
            await publish(event)
        refused.append(publish)

    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await bus.publish(Noted(1))
        await settled()
        await bus.publish(Noted(2))
        ways = [bus.publish, bus.publish_and_wait]
        for way in ways:
            nursery.start_soon(publish, way, Noted(3))
        nursery.start_soon(publish, bus.publish_many, [Noted(4), Noted(5)])
        await settled()
        nursery.start_soon(bus.stop)
        await settled()
        assert len(refused) == 3
        gate.open.set()
    assert gate.finished == [1, 2]


# What leaves the block


async def test_an_error_of_the_body_leaves_as_itself_after_what_was_accepted_is_handled(
    new_bus, autojump_clock
):
    bus = new_bus()
    seen = noting(bus)
    broken = ValueError("broken")
    with pytest.raises(ValueError, match="broken") as caught:
        async with bus:
            await bus.publish(Noted(1))
            raise broken
    assert caught.value is broken
    assert seen == [1]


async def test_a_group_of_errors_of_the_body_leaves_as_itself(new_bus, autojump_clock):
    broken = ExceptionGroup("several", [ValueError("one"), OSError("two")])
    with pytest.raises(ExceptionGroup) as caught:
        async with new_bus():
            raise broken
    assert caught.value is broken


async def test_a_finally_in_the_body_can_still_publish(new_bus, autojump_clock):
    bus = new_bus()
    seen = noting(bus)
    with pytest.raises(ValueError, match="broken"):
        async with bus:
            try:
                raise ValueError("broken")
            finally:
                await bus.publish(Noted(1))
    assert seen == [1]


async def test_a_finally_can_publish_when_the_bodys_own_nursery_is_cancelled(autojump_clock):
    bus = EventBus()
    seen = noting(bus)
    async with bus:
        with trio.CancelScope() as scope:
            try:
                scope.cancel()
                await trio.sleep_forever()
            finally:
                bus.publish_nowait(Noted(1))
    assert seen == [1]


async def test_on_failure_raise_lets_the_error_cancel_the_body_and_leave_like_from_a_nursery(
    new_bus,
    autojump_clock,
):
    bus = new_bus(on_failure="raise")
    broken = ValueError("broken")

    @bus.subscribe(Noted, retry=Retry(attempts=1))
    async def fails(event):
        raise broken

    with pytest.raises(ExceptionGroup) as caught:
        async with bus:
            await bus.publish(Noted(1))
            await trio.sleep_forever()
    assert caught.value.exceptions == (broken,)
    assert (bus.statistics().running, bus.statistics().worker_count) == (False, 0)


async def test_an_error_of_the_body_and_one_of_the_bus_leave_together(new_bus, autojump_clock):
    bus = new_bus(on_failure="raise")
    ours, theirs = ValueError("of the body"), OSError("of the bus")

    @bus.subscribe(Noted, retry=Retry(attempts=1))
    async def fails(event):
        raise theirs

    with pytest.raises(ExceptionGroup) as caught:
        async with bus:
            await bus.publish(Noted(1))
            raise ours
    body, from_bus = caught.value.exceptions
    assert body is ours
    assert isinstance(from_bus, ExceptionGroup)
    assert from_bus.exceptions == (theirs,)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_keyboard_interrupt_and_system_exit_in_a_handler_are_not_swallowed(
    new_bus, autojump_clock, error
):
    bus = new_bus()

    @bus.subscribe(Noted)
    async def leaves(event):
        raise error

    # Control-C leaves by itself where nothing else has failed, as at a program without a bus.
    leaving = KeyboardInterrupt if error is KeyboardInterrupt else BaseExceptionGroup
    with pytest.raises(leaving) as caught:
        async with bus:
            await bus.publish(Noted(1))
            await trio.sleep_forever()
    if error is SystemExit:
        assert [type(e) for e in caught.value.exceptions] == [error]
    assert bus.statistics().failed_attempts == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_a_body_that_is_interrupted_cancels_the_handlers_and_leaves_as_itself(
    new_bus, autojump_clock, error
):
    gate = Gate()
    bus = new_bus()
    bus.subscribe(Noted, gate)
    with pytest.raises(error):
        async with bus:
            await bus.publish(Noted(1))
            await settled()
            raise error
    assert (gate.begun, gate.finished) == ([1], [])


# Cancellation


async def test_cancelling_around_the_block_cancels_handlers_and_counts_and_logs_what_is_left(
    new_bus,
    autojump_clock,
    caplog,
):
    caplog.set_level(logging.WARNING, logger="triobus")
    gate = Gate()
    bus = new_bus(workers=1)
    bus.subscribe(Noted, gate)
    bus.group("mail").subscribe(Noted, gate, where=lambda event: False)
    with trio.CancelScope() as scope:
        async with bus:
            await bus.publish_many([Noted(1), Noted(2), Noted(3)])
            await settled()
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert (gate.begun, gate.finished) == ([1], [])
    statistics = bus.statistics()
    assert (statistics.handled, statistics.failed_attempts) == (3, 0)
    assert {name: group.lag for name, group in statistics.groups.items()} == {
        "default": 3,
        "mail": 0,
    }
    assert [record.getMessage() for record in caplog.records] == [
        "the bus stopped and left deliveries: 3 in group 'default'"
    ]


async def test_cancelling_the_nursery_that_runs_the_bus_ends_it(new_bus, autojump_clock):
    gate = Gate()
    bus = new_bus()
    bus.subscribe(Noted, gate)
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await bus.publish(Noted(1))
        await settled()
        nursery.cancel_scope.cancel()
    assert gate.finished == []
    assert (bus.statistics().running, bus.statistics().worker_count) == (False, 0)
    with pytest.raises(BusClosed):
        await bus.publish(Noted(2))


async def test_cancelling_while_the_block_drains_stops_the_draining(new_bus, autojump_clock):
    gate = Gate()
    bus = new_bus()
    bus.subscribe(Noted, gate)
    with trio.move_on_after(5) as scope:
        async with bus:
            await bus.publish(Noted(1))
    assert scope.cancelled_caught
    assert trio.current_time() == 5
    assert (gate.begun, gate.finished) == ([1], [])
    assert bus.statistics().groups["default"].lag == 1


async def test_no_task_of_the_bus_outlives_its_block(autojump_clock):
    bus = EventBus(workers=7)
    bus.group("mail", workers=5)
    noting(bus)
    before = trio.lowlevel.current_statistics().tasks_living
    async with bus:
        await bus.publish(Noted(1))
        bus.group("more", workers=3)
        assert trio.lowlevel.current_statistics().tasks_living > before
    assert trio.lowlevel.current_statistics().tasks_living == before


async def test_every_task_of_the_bus_is_in_the_nursery_that_runs_it(autojump_clock):
    bus = EventBus(workers=7)
    before = trio.lowlevel.current_statistics().tasks_living
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        assert trio.lowlevel.current_statistics().tasks_living - before == tasks_of(nursery)
        nursery.cancel_scope.cancel()


# Stop


async def test_stop_drains_and_reports_what_was_settled_by_group(new_bus, autojump_clock):
    bus = new_bus()
    seen = noting(bus)
    noting(bus.group("mail"), where=lambda event: event.number == 2)
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await bus.publish_many([Noted(1), Noted(2), Other(3)])
        report = await bus.stop()
    assert report == StopReport(settled={"default": 2, "mail": 2}, left={"default": 0, "mail": 0})
    assert sorted(seen) == [1, 2]


async def test_run_returns_once_the_bus_was_stopped(new_bus, autojump_clock):
    bus = new_bus()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(bus.run)
            await bus.stop()
            assert (bus.statistics().running, bus.statistics().worker_count) == (False, 0)


async def test_stop_without_draining_cancels_handlers_and_reports_what_they_left(
    new_bus, autojump_clock, caplog
):
    gate = Gate()
    bus = new_bus(workers=1)
    bus.subscribe(Noted, gate)
    async with bus:
        await bus.publish_many([Noted(1), Noted(2), Noted(3)])
        await settled()
        report = await bus.stop(drain=False)
    assert report == StopReport(settled={"default": 0}, left={"default": 3})
    assert (gate.begun, gate.finished) == ([1], [])
    assert "3 in group 'default'" in caplog.text


async def test_stop_with_a_timeout_cancels_what_is_not_finished_by_then(new_bus, autojump_clock):
    finished = []
    bus = new_bus(workers=1)

    @bus.subscribe(Noted)
    async def slow(event):
        await trio.sleep(4)
        finished.append(event.number)

    async with bus:
        await bus.publish_many([Noted(1), Noted(2), Noted(3)])
        report = await bus.stop(timeout=10)
        assert trio.current_time() == 10
    assert report == StopReport(settled={"default": 2}, left={"default": 1})
    assert finished == [1, 2]


async def test_stop_of_what_runs_waits_for_no_retry_and_begins_nothing_more(
    new_bus, autojump_clock
):
    bus = new_bus(workers=1)
    finished, calls = [], []

    @bus.subscribe(Noted, retry=Retry(attempts=2, delay=7200))
    async def handle(event):
        calls.append(event.number)
        if event.number == 1:
            raise OSError
        await trio.sleep(5)
        finished.append(event.number)

    async with bus:
        await bus.publish_many([Noted(1, "a"), Noted(2, "b"), Noted(3, "c"), Noted(4, "d")])
        await settled()
        report = await bus.stop(drain="running")
    assert (calls, finished) == ([1, 2], [2])
    assert report == StopReport(settled={"default": 1}, left={"default": 3})
    assert bus.statistics().uptime_seconds == 5


async def test_leaving_the_block_of_a_bus_that_drains_what_runs_does_the_same(
    new_bus, autojump_clock
):
    bus = new_bus(drain="running")
    seen = noting(bus, retry=Retry(attempts=2, delay=7200))
    bus.subscribe(Other, never, retry=Retry(attempts=2, delay=7200))
    async with bus:
        await bus.publish(Other(1))
        await settled()
        await bus.publish(Noted(2))
        await settled()
    assert seen == [2]
    assert bus.statistics().uptime_seconds == 0
    assert bus.statistics().waiting_for_retry + bus.statistics().queued == 1


async def test_what_a_running_handler_publishes_while_only_what_runs_is_waited_for_is_left(
    new_bus,
    autojump_clock,
):
    bus = new_bus(workers=1)

    @bus.subscribe(Noted)
    async def handle(event):
        await trio.sleep(1)
        await bus.publish(Other(event.number))

    bus.subscribe(Other, never)
    async with bus:
        await bus.publish(Noted(1))
        await settled()
        report = await bus.stop(drain="running")
    assert report == StopReport(settled={"default": 1}, left={"default": 1})


@pytest.mark.parametrize("drain", ["all", None, 1.0, "Running"])
async def test_what_is_no_way_to_drain_is_refused_and_the_bus_runs_on(
    new_bus, autojump_clock, drain
):
    with pytest.raises(InvalidOption, match="drain="):
        new_bus(drain=drain)
    bus = new_bus()
    async with bus:
        with pytest.raises(InvalidOption, match="drain="):
            await bus.stop(drain=drain)
        await bus.publish(Noted(1))


async def test_a_drain_of_more_than_a_second_says_once_what_it_waits_for(
    new_bus, autojump_clock, caplog
):
    bus = new_bus()
    bus.group("mails").subscribe(Noted, sleepy, name="send")
    async with bus:
        await bus.publish(Noted(60))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "the bus is stopping and waits for" in record.getMessage()
    assert "'mails'" in record.getMessage()
    assert "'send'" in record.getMessage()


async def test_a_drain_of_less_than_a_second_says_nothing(autojump_clock, caplog):
    bus = EventBus()
    bus.subscribe(Noted, sleepy)
    async with bus:
        await bus.publish(Noted(0.9))
    assert caplog.records == []


async def test_stop_with_a_timeout_ends_a_handler_that_would_never_return(new_bus, autojump_clock):
    cancelled = []
    bus = new_bus()

    @bus.subscribe(Noted)
    async def stuck(event):
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(trio.current_time())

    async with bus:
        await bus.publish(Noted(1))
        report = await bus.stop(timeout=3)
    assert report == StopReport(settled={"default": 0}, left={"default": 1})
    assert cancelled == [3]


async def test_a_timeout_leaves_deliveries_that_wait_for_a_retry(new_bus, autojump_clock):
    bus = new_bus()

    @bus.subscribe(Noted, retry=Retry(delay=100, max_delay=100))
    async def fails(event):
        raise OSError

    async with bus:
        await bus.publish(Noted(1))
        report = await bus.stop(timeout=3)
    assert report == StopReport(settled={"default": 0}, left={"default": 1})
    assert trio.current_time() == 3
    assert bus.statistics().waiting_for_retry == 1


async def test_a_timeout_of_0_handles_nothing_that_has_to_wait(new_bus, autojump_clock):
    gate = Gate()
    bus = new_bus()
    bus.subscribe(Noted, gate)
    async with bus:
        await bus.publish(Noted(1))
        await settled()
        report = await bus.stop(timeout=0)
    assert report == StopReport(settled={"default": 0}, left={"default": 1})


@pytest.mark.parametrize("timeout", [-1, float("nan"), "soon"])
async def test_a_timeout_that_cannot_be_is_refused_and_the_bus_runs_on(
    new_bus, autojump_clock, timeout
):
    bus = new_bus()
    async with bus:
        with pytest.raises(InvalidOption, match="timeout="):
            await bus.stop(timeout=timeout)
        assert bus.statistics().running


async def test_a_stop_that_is_cancelled_cancels_the_handlers(new_bus, autojump_clock):
    gate = Gate()
    bus = new_bus()
    bus.subscribe(Noted, gate)
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await bus.publish(Noted(1))
        with trio.move_on_after(2) as scope:
            await bus.stop()
        assert scope.cancelled_caught
    assert trio.current_time() == 2
    assert (gate.begun, gate.finished) == ([1], [])
    assert bus.statistics().groups["default"].lag == 1


async def test_run_ends_though_the_stop_was_cancelled_with_a_store_too(autojump_clock):
    gate = Gate()
    bus = EventBus(MemoryEventStore())
    bus.subscribe(Noted, gate, name="gate")
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            await nursery.start(bus.run)
            await bus.publish(Noted(1))
            with trio.move_on_after(2) as scope:
                await bus.stop()
            assert scope.cancelled_caught
    assert trio.current_time() == 2
    assert not bus.statistics().running


def test_run_ends_at_whatever_step_the_stop_of_several_groups_is_cancelled(new_bus):
    async def scenario(record, scope):
        bus = record["bus"] = new_bus()
        bus.group("mail", workers=1)
        async with trio.open_nursery() as nursery:
            await nursery.start(bus.run)
            with scope:
                await bus.stop()
            if bus.statistics().running:  # cancelled before it had begun
                await bus.stop()

    def check(record):
        assert not record["bus"].statistics().running

    for _ in range(10):  # the order of tasks is left to chance
        assert at_every_step(dict, scenario, check) > 5


async def test_a_stop_that_was_cancelled_before_it_began_has_stopped_nothing(
    new_bus, autojump_clock
):
    bus = new_bus()
    seen = noting(bus)
    async with bus:
        with trio.CancelScope() as scope:
            scope.cancel()
            await bus.stop()
        assert scope.cancelled_caught
        await bus.publish(Noted(1))
    assert seen == [1]


async def test_stop_before_the_start_and_a_second_stop_raise_bus_closed(new_bus, autojump_clock):
    bus = new_bus()
    with pytest.raises(BusClosed, match="has not been started"):
        await bus.stop()
    async with bus:
        await bus.stop()
        with pytest.raises(BusClosed, match="has stopped"):
            await bus.stop()
    with pytest.raises(BusClosed, match="has stopped"):
        await bus.stop()


async def test_a_second_stop_while_the_first_one_drains_raises_bus_closed(new_bus, autojump_clock):
    gate = Gate()
    bus = new_bus()
    bus.subscribe(Noted, gate)
    async with bus, trio.open_nursery() as nursery:
        await bus.publish(Noted(1))
        nursery.start_soon(bus.stop)
        await settled()
        with pytest.raises(BusClosed, match="is stopping"):
            await bus.stop()
        gate.open.set()
    assert gate.finished == [1]


async def test_a_stop_inside_a_handler_raises_would_deadlock_and_the_bus_runs_on(
    new_bus, autojump_clock
):
    caught = []
    bus = new_bus()

    @bus.subscribe(Noted)
    async def stop(event):
        with pytest.raises(WouldDeadlock) as error:
            await bus.stop()
        caught.append(type(error.value))

    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        assert bus.statistics().running
    assert caught == [WouldDeadlock]


async def test_a_handler_may_have_another_task_stop_the_bus(new_bus, autojump_clock):
    bus = new_bus()
    reports = []

    async def stop():
        reports.append(await bus.stop())

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:

            @bus.subscribe(Noted)
            async def ask_for_a_stop(event):
                nursery.start_soon(stop)

            await nursery.start(bus.run)
            await bus.publish(Noted(1))
    assert reports == [StopReport(settled={"default": 1}, left={"default": 0})]


async def test_a_block_whose_bus_was_stopped_inside_leaves_at_once(new_bus, autojump_clock):
    bus = new_bus()
    seen = noting(bus)
    with trio.fail_after(60):
        async with bus:
            await bus.publish(Noted(1))
            await bus.stop()
    assert seen == [1]


# Those who wait


async def test_publish_and_wait_raises_bus_closed_when_the_bus_ends_before_the_handlers(
    new_bus, autojump_clock
):
    gate = Gate()
    bus = new_bus()
    bus.subscribe(Noted, gate)
    caught = []

    async def wait():
        with pytest.raises(BusClosed, match="was accepted, and the bus stopped before") as error:
            await bus.publish_and_wait(Noted(1))
        caught.append(error)

    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        nursery.start_soon(wait)
        await settled()
        await bus.stop(drain=False)
    assert len(caught) == 1


async def test_publish_and_wait_gets_its_outcome_when_the_bus_drains(new_bus, autojump_clock):
    bus = new_bus()
    gate = Gate()
    bus.subscribe(Noted, gate, name="gate")
    outcomes = []

    async def wait():
        outcomes.append(await bus.publish_and_wait(Noted(1)))

    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        nursery.start_soon(wait)
        await settled()
        nursery.start_soon(bus.stop)
        await settled()
        gate.open.set()
    assert [outcome.results for outcome in outcomes] == [{"gate": None}]


async def test_wait_idle_raises_bus_closed_when_the_bus_stops_and_leaves_something(
    new_bus, autojump_clock
):
    gate = Gate()
    bus = new_bus()
    bus.subscribe(Noted, gate)
    caught = []

    async def wait():
        with pytest.raises(BusClosed, match="1 deliveries left") as error:
            await bus.wait_idle()
        caught.append(error)

    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await bus.publish(Noted(1))
        nursery.start_soon(wait)
        await settled()
        await bus.stop(drain=False)
    assert len(caught) == 1


async def test_wait_idle_returns_when_nothing_is_queued_running_or_waiting(new_bus, autojump_clock):
    bus = new_bus(workers=2)
    finished = []

    @bus.subscribe(Noted, retry=Retry(attempts=2, delay=5, jitter=0))
    async def second_time_right(event):
        if trio.current_time() < 5:
            raise OSError
        await trio.sleep(2)
        finished.append(event.number)

    async with bus:
        await bus.wait_idle()
        assert trio.current_time() == 0
        await bus.publish_many([Noted(1), Noted(2), Noted(3)])
        async with trio.open_nursery() as nursery:  # any number may wait
            for _ in range(3):
                nursery.start_soon(bus.wait_idle)
        assert trio.current_time() == 5 + 2 + 2
        assert sorted(finished) == [1, 2, 3]
        await bus.publish(Noted(4))
        await bus.wait_idle()
        assert sorted(finished) == [1, 2, 3, 4]
    await bus.wait_idle()  # after the stop nothing is left to wait for


async def test_a_stop_in_a_program_that_is_cancelled_is_cancelled_though_the_bus_has_ended(
    new_bus,
    autojump_clock,
):
    bus = new_bus()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(bus.run)
            scope.cancel()
            with trio.CancelScope(shield=True):
                await settled()
            assert not bus.statistics().running
            await bus.stop()
    assert scope.cancelled_caught


async def use_a_bus() -> None:
    async with EventBus():
        raise AssertionError


async def run_a_bus() -> None:
    await EventBus().run()


async def use_a_store() -> None:
    async with MemoryEventStore():
        raise AssertionError


@pytest.mark.parametrize(
    ("main", "what"),
    [
        (use_a_bus, "async with bus"),
        (run_a_bus, "async with bus"),
        (use_a_store, "async with store"),
    ],
)
def test_a_bus_or_a_store_in_an_asyncio_program_says_that_it_needs_trio(
    main: Callable[[], Coroutine[None, None, None]], what: str
) -> None:
    with pytest.raises(NotInTrio) as caught:
        asyncio.run(main())
    assert str(caught.value) == (
        f"{what} needs Trio, and no Trio task is running here: triobus lives inside a Trio "
        "program, so start it with trio.run(main), not with asyncio.run(main)"
    )
