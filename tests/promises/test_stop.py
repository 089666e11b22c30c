"""A bus is stopped: drained or not, with a timeout, twice, by a handler, in a cancelled task."""

import pytest
import trio

from tests.events import Noted, Other
from tests.every_step import at_every_step
from tests.promises.lives import Gate, noting
from tests.settled import settled
from triobus import (
    BusClosed,
    EventBus,
    InvalidOption,
    MemoryEventStore,
    Retry,
    StopReport,
    WouldDeadlock,
)


async def never(event):
    raise OSError


async def sleepy(event):
    await trio.sleep(event.number)


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
