"""Control-C at every moment of publishing and of handing over: nothing lost, nothing doubled.

A real SIGINT is raised after each bytecode of triobus at which CPython lets signals in, one run for
each of them.
"""

import contextlib
import itertools

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.events import Noted
from tests.proofs.every.interrupts import Interrupter, control_c
from triobus import BusClosed, EventBus, MemoryEventStore, Retry

# Interrupted between a call of a coroutine function and its 'await', Python says so in a warning.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


@attrs.define(eq=False)
class Record:
    bus: EventBus
    accepted: list[int] = attrs.field(factory=list)
    raised: list[int] = attrs.field(factory=list)
    begun: list[int] = attrs.field(factory=list)
    finished: list[int] = attrs.field(factory=list)
    release: trio.Event = attrs.field(factory=trio.Event)

    async def handle(self, event):
        self.begun.append(event.number)
        await self.release.wait()
        self.finished.append(event.number)

    async def release_when_blocked(self):
        await wait_all_tasks_blocked()
        self.release.set()

    async def publish(self, *numbers):
        events = [Noted(number) for number in numbers]
        try:
            if len(events) == 1:
                await self.bus.publish(events[0])
            else:
                await self.bus.publish_many(events)
        except BaseException:
            self.raised.extend(numbers)
            raise
        self.accepted.extend(numbers)

    def publish_nowait(self, number):
        try:
            self.bus.publish_nowait(Noted(number))
        except BaseException:
            self.raised.append(number)
            raise
        self.accepted.append(number)


def check_counts(record):
    """Whatever was accepted is counted, and nothing else."""
    statistics = record.bus.statistics()
    assert statistics.published == len(record.accepted)
    left = statistics.queued + statistics.in_flight + statistics.waiting_for_retry
    assert statistics.handled + left == statistics.published, "an accepted event is not counted"
    assert len(record.finished) - 1 <= statistics.handled <= len(record.finished)
    assert (statistics.running, statistics.worker_count) == (False, 0)


def check(record):
    """Nothing that was accepted is lost or doubled, and nothing else is delivered."""
    check_counts(record)
    begun = set(record.begun)
    assert len(record.begun) == len(begun), "an event was handled twice"
    assert not begun & set(record.raised), "publish raised, and the event was handled"
    assert begun <= set(record.accepted)


def interrupt_everywhere(make, scenario, check=check, stride=1):
    """Run a scenario once for every moment, or so manyeth; return how many there were."""
    for at in itertools.count(1, stride):
        interrupter, record = Interrupter(at), make()
        with contextlib.suppress(KeyboardInterrupt):
            try:
                trio.run(scenario, record, interrupter)
            except BaseExceptionGroup as group:
                _, others = group.split(KeyboardInterrupt)
                if others is not None:
                    raise others from None
            finally:
                interrupter.stop()
        check(record)
        if interrupter.seen < at:
            return at - stride
    raise AssertionError("itertools.count never ends")


@pytest.fixture(autouse=True)
def _control_c():
    with control_c():
        yield


def recording(**options):
    def make():
        record = Record(EventBus(**options))
        record.bus.subscribe(Noted, record.handle)
        return record

    return make


def test_control_c_anywhere_in_publish_and_in_a_worker_that_is_handed_the_event_loses_nothing():
    async def scenario(record, interrupter):
        record.release.set()
        async with record.bus:
            await record.publish(0)  # so that the next one takes the short cut
            await wait_all_tasks_blocked()  # and is handed to a parked worker
            interrupter.start()
            await record.publish(1)
            await wait_all_tasks_blocked()
            interrupter.stop()

    assert interrupt_everywhere(recording(workers=1, buffer=10), scenario) > 20


def test_control_c_anywhere_in_publish_many_loses_nothing():
    async def scenario(record, interrupter):
        record.release.set()
        async with record.bus:
            await wait_all_tasks_blocked()
            interrupter.start()
            await record.publish(1, 2)
            interrupter.stop()

    assert interrupt_everywhere(recording(workers=1, buffer=10), scenario) > 20


def test_control_c_anywhere_in_publish_nowait_loses_nothing():
    async def scenario(record, interrupter):
        record.release.set()
        async with record.bus:
            await wait_all_tasks_blocked()
            interrupter.start()
            record.publish_nowait(1)
            interrupter.stop()

    assert interrupt_everywhere(recording(workers=1, buffer=10), scenario) > 20


def test_control_c_anywhere_in_waiting_for_room_loses_nothing():
    async def scenario(record, interrupter):
        async with record.bus, trio.open_nursery() as nursery:
            await record.publish(1)
            await wait_all_tasks_blocked()
            await record.publish(2)
            nursery.start_soon(record.release_when_blocked)
            interrupter.start()
            await record.publish(3)  # waits until the worker has taken 2
            interrupter.stop()

    assert interrupt_everywhere(recording(workers=1, buffer=1), scenario) > 20


def test_control_c_anywhere_in_letting_other_publishers_in_loses_nothing():
    async def scenario(record, interrupter):
        async with record.bus, trio.open_nursery() as nursery:
            await record.publish(1)
            await wait_all_tasks_blocked()
            await record.publish(2)
            nursery.start_soon(record.publish, 3)
            await wait_all_tasks_blocked()
            interrupter.start()
            record.release.set()
            await wait_all_tasks_blocked()
            interrupter.stop()

    assert interrupt_everywhere(recording(workers=1, buffer=1), scenario) > 20


def test_control_c_anywhere_in_a_retry_loses_nothing():
    def make():
        record = Record(EventBus(workers=1))

        @record.bus.subscribe(Noted, retry=Retry(attempts=2, delay=0))
        async def second_time_right(event):
            record.begun.append(event.number)
            if len(record.begun) == 1:
                raise OSError
            record.finished.append(event.number)

        return record

    async def scenario(record, interrupter):
        async with record.bus:
            await wait_all_tasks_blocked()
            await record.publish(1)
            interrupter.start()
            while not record.finished:
                await wait_all_tasks_blocked()
            interrupter.stop()

    def check_attempts(record):
        check_counts(record)
        assert record.begun == [1] * len(record.begun)
        assert len(record.begun) <= 2

    assert interrupt_everywhere(make, scenario, check_attempts) > 20


@pytest.mark.parametrize(
    ("new_store", "stride"),
    [(lambda: None, 1), (MemoryEventStore, 7)],  # of ten times as many moments every seventh
    ids=["plain", "store"],
)
def test_control_c_anywhere_in_the_block_of_a_bus_leaves_it_stopped_and_trio_whole(
    new_store, stride
):
    def make():
        record = Record(EventBus(new_store(), workers=1))
        record.bus.subscribe(Noted, record.handle)
        return record

    async def scenario(record, interrupter):
        interrupter.start()
        async with record.bus:
            await wait_all_tasks_blocked()
        interrupter.stop()

    assert interrupt_everywhere(make, scenario, stride=stride) > 100


def test_control_c_anywhere_in_run_and_stop_leaves_the_bus_stopped_and_trio_whole():
    async def scenario(record, interrupter):
        interrupter.start()
        async with trio.open_nursery() as nursery:
            await nursery.start(record.bus.run)
            with contextlib.suppress(BusClosed):
                await record.bus.stop()
        interrupter.stop()

    assert interrupt_everywhere(recording(workers=1, buffer=10), scenario) > 100
