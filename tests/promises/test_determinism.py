"""Virtual time: an autojump clock runs fast past an idle bus, and stands still during threads."""

import threading

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.events import Noted
from triobus import EventBus, Retry

ROUND_TRIPS = 20
"""How often a thread looks at the clock. Between two looks Trio is idle, and would jump."""


def look_at_the_clock():
    """In a thread: return all the times that the clock has shown meanwhile."""
    return {trio.from_thread.run_sync(trio.current_time) for _ in range(ROUND_TRIPS)}


async def test_an_idle_bus_does_not_keep_the_clock_from_jumping(autojump_clock):
    async with EventBus() as bus:
        bus.group("mail")
        await trio.sleep(3600)
        assert trio.current_time() == 3600
        await bus.publish(Noted(1))
        await trio.sleep(3600)
        assert trio.current_time() == 7200


class Waits(trio.abc.Instrument):
    """How many real seconds Trio has set out to wait, each time when it had nothing to do."""

    def __init__(self):
        self.seconds = []

    def before_io_wait(self, timeout):
        self.seconds.append(timeout)


async def test_a_minute_of_retries_takes_no_time(autojump_clock):
    attempts = []
    bus = EventBus()

    @bus.subscribe(Noted, retry=Retry(attempts=7, delay=10, factor=1, jitter=0))
    async def fails(event):
        attempts.append(trio.current_time())
        raise OSError

    waits = Waits()
    trio.lowlevel.add_instrument(waits)
    async with bus:
        await bus.publish(Noted(1))
    assert attempts == [0, 10, 20, 30, 40, 50, 60]
    assert sum(waits.seconds) == 0


async def test_no_virtual_time_passes_in_a_plain_handler(autojump_clock):
    bus = EventBus(workers=1)
    seen = []

    @bus.subscribe(Noted)
    def look(event):
        seen.append(look_at_the_clock())

    async with bus, trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep, 1000)
        for _ in range(3):
            await bus.publish_and_wait(Noted(1))
            await trio.sleep(5)
    assert seen == [{0}, {5}, {10}]
    assert trio.current_time() == 1000


async def test_no_virtual_time_passes_while_several_plain_handlers_are_at_work(autojump_clock):
    bus = EventBus(workers=3)
    together = threading.Barrier(3)
    seen = []

    @bus.subscribe(Noted)
    def look(event):
        together.wait(5)
        # They finish one after the other.
        seen.extend(look_at_the_clock() for _ in range(event.number))

    async with bus, trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep, 1000)
        await trio.sleep(7)
        await bus.publish_many([Noted(1), Noted(2), Noted(3)])
        await bus.wait_idle()
        assert trio.current_time() == 7
    assert seen == [{7}] * 6
    assert trio.current_time() == 1000


async def test_no_virtual_time_passes_in_a_plain_handler_that_publishes_to_another(autojump_clock):
    bus = EventBus(workers=2)
    seen = []

    @bus.subscribe(Noted)
    def look(event):
        if event.number:
            bus.publish_from_thread(Noted(event.number - 1))
        seen.append(look_at_the_clock())

    async with bus, trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep, 1000)
        await trio.sleep(7)
        await bus.publish(Noted(4))
        await bus.wait_idle()
        assert trio.current_time() == 7
    assert seen == [{7}] * 5


async def test_no_virtual_time_passes_while_a_cancelled_plain_handler_finishes(autojump_clock):
    bus = EventBus()
    seen = set()
    cancelled = threading.Event()

    @bus.subscribe(Noted)
    def look(event):
        cancelled.wait(5)
        # Its own call is cancelled, so the thread goes the way of a foreign one.
        token = tokens[0]
        for _ in range(ROUND_TRIPS):
            now = trio.from_thread.run_sync(trio.current_time, trio_token=token)
            seen.add(now)

    tokens = [trio.lowlevel.current_trio_token()]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep, 1000)
        await nursery.start(bus.run)
        await bus.publish(Noted(1))
        await wait_all_tasks_blocked()
        nursery.start_soon(set_when_blocked, cancelled)
        await bus.stop(drain=False)
        assert trio.current_time() == 0
    assert seen == {0}
    assert trio.current_time() == 1000


async def set_when_blocked(event):
    await wait_all_tasks_blocked()
    event.set()


async def test_a_timeout_of_a_plain_handler_is_virtual_and_does_not_come_during_it(autojump_clock):
    bus = EventBus()
    seen = []

    @bus.subscribe(Noted, timeout=0.001)
    def look(event):
        seen.append(look_at_the_clock())

    async with bus:
        await bus.publish_and_wait(Noted(1))
    assert seen == [{0}]
    assert bus.statistics().failed_attempts == 0


async def test_who_waits_until_all_tasks_are_blocked_is_not_disturbed_by_a_thread(autojump_clock):
    bus = EventBus()
    finish = threading.Event()
    finished = []

    @bus.subscribe(Noted)
    def wait(event):
        finished.append(finish.wait(5))

    async with bus:
        await bus.publish(Noted(1))
        for cushion in (0.0, 0.001, 0.01):
            await wait_all_tasks_blocked(cushion)
        assert finished == []
        finish.set()
    assert finished == [True]


@attrs.define(eq=False)
class Steps(trio.abc.Instrument):
    """Counts what the scheduler does."""

    tasks: list[str] = attrs.field(factory=list)
    io_waits: int = 0

    def before_task_step(self, task):
        self.tasks.append(task.name)

    def before_io_wait(self, timeout):
        self.io_waits += 1


@pytest.mark.parametrize("workers", [1, 16])
def test_an_idle_bus_takes_no_step_and_causes_no_wake_up(workers):
    async def rest(steps):
        await wait_all_tasks_blocked()
        steps.tasks.clear()
        steps.io_waits = 0
        for _ in range(10):
            await trio.sleep(3600)
        return steps.tasks.copy(), steps.io_waits

    async def with_a_bus(steps):
        bus = EventBus(workers=workers)
        bus.group("mail", workers=workers)

        @bus.subscribe(Noted, retry=Retry(attempts=2))
        async def fails(event):
            raise OSError

        async with bus, bus.listen(Noted):
            await bus.publish(Noted(1))  # it has been at work, and has had a retry
            await bus.wait_idle()
            return await rest(steps)

    def run(main):
        steps = Steps()
        clock = MockClock(autojump_threshold=0)
        tasks, io_waits = trio.run(main, steps, clock=clock, instruments=[steps])
        return [name.rpartition(".")[2] for name in tasks], io_waits

    without, io_waits_without = run(rest)
    assert len(without) == 10
    assert run(with_a_bus) == (["with_a_bus"] * 10, io_waits_without)
