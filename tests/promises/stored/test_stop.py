"""What a bus with a store promises where it stops, and of the store that it has meanwhile."""

import contextlib

import pytest
import trio
import trio.testing

from tests.events import Noted
from tests.promises.stored.buses import Handled, subscribed
from triobus import BusClosed, EventBus, Retry, StoreClosed, StoreInUse


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
        await trio.sleep(1)  # what a server says of it may come later
        await trio.testing.wait_all_tasks_blocked()
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        await trio.sleep(24 * 3600)
        trio.lowlevel.remove_instrument(steps)
        assert steps.count <= 1  # this task's own
