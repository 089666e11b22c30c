"""Which errors leave the block of a bus, and what cancellation around it does."""

import logging

import pytest
import trio

from tests.events import Noted
from tests.promises.lives import Gate, noting
from tests.settled import settled
from triobus import BusClosed, EventBus, Retry


def tasks_of(nursery):
    """Count the tasks in a nursery and in all that are inside them."""
    return sum(
        1 + sum(tasks_of(inner) for inner in task.child_nurseries) for task in nursery.child_tasks
    )


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
