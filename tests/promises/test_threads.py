"""Publishing from other threads."""

import threading

import outcome
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.events import Noted
from triobus import BusClosed, EventBus, InvalidOption, Published, TriobusError, WouldDeadlock


def gated(bus):
    """Subscribe a handler that notes events and waits for permits; return the notes and permits."""
    begun, permits = [], trio.Semaphore(0)

    async def handler(event):
        begun.append(event.number)
        await permits.acquire()

    bus.subscribe(Noted, handler)
    return begun, permits


async def in_foreign_thread(function, *args):
    """Call a function in a thread that Trio knows nothing of, and return what it returned."""
    results = []

    def call():
        results.append(outcome.capture(function, *args))

    thread = threading.Thread(target=call)
    thread.start()
    await trio.to_thread.run_sync(thread.join)
    (result,) = results
    return result.unwrap()


@pytest.mark.parametrize("in_thread", [in_foreign_thread, trio.to_thread.run_sync])
async def test_a_thread_can_publish_and_goes_on_once_the_event_is_accepted(in_thread):
    bus = EventBus()
    begun, permits = gated(bus)
    async with bus:
        event = Noted(1)
        published = await in_thread(bus.publish_from_thread, event)
        assert published == Published(event.event_id, None)
        assert (bus.statistics().published, bus.statistics().handled) == (1, 0)
        permits.release()
    assert begun == [1]


@pytest.mark.parametrize("in_thread", [in_foreign_thread, trio.to_thread.run_sync])
async def test_a_thread_waits_for_room_like_any_publisher(in_thread):
    bus = EventBus(workers=1, buffer=1)
    begun, permits = gated(bus)
    accepted = []

    async def publish():
        await in_thread(bus.publish_from_thread, Noted(3))
        accepted.append(3)

    async with bus, trio.open_nursery() as nursery:
        await bus.publish(Noted(1))
        await wait_all_tasks_blocked()
        await bus.publish(Noted(2))
        nursery.start_soon(publish)
        # Behind the thread; it is let in after it, so that seeing it accepted tells the order.
        while not bus.health().reasons:
            await trio.lowlevel.checkpoint()
        assert accepted == []
        permits.release()
        while not accepted:
            await trio.lowlevel.checkpoint()
        permits.release()
        permits.release()
    assert begun == [1, 2, 3]


async def test_many_threads_publish_every_event_once_and_each_in_its_order():
    seen = {key: [] for key in "abcd"}
    bus = EventBus(buffer=2)

    @bus.subscribe(Noted)
    async def note(event):
        seen[event.key].append(event.number)

    def publish_all(key):
        for number in range(25):
            bus.publish_from_thread(Noted(number, key))

    async with bus, trio.open_nursery() as nursery:
        for key in "ab":
            nursery.start_soon(in_foreign_thread, publish_all, key)
        for key in "cd":
            nursery.start_soon(trio.to_thread.run_sync, publish_all, key)
    assert seen == {key: list(range(25)) for key in "abcd"}


async def test_an_invalid_event_is_an_error_in_the_thread_that_published_it():
    async with EventBus() as bus:
        with pytest.raises(TriobusError, match="type 'str' is no event"):
            await in_foreign_thread(bus.publish_from_thread, "no event")


async def test_publish_from_thread_in_the_thread_of_the_bus_raises_would_deadlock():
    bus = EventBus()
    begun, _ = gated(bus)
    async with bus:
        with pytest.raises(WouldDeadlock, match=r"await bus\.publish\(event\)"):
            bus.publish_from_thread(Noted(1))
    assert begun == []


async def test_publish_from_thread_in_another_run_of_trio_raises_would_deadlock():
    bus = EventBus()

    async def elsewhere():
        bus.publish_from_thread(Noted(1))

    async with bus:
        with pytest.raises(WouldDeadlock, match=r"another run of Trio.*to_thread\.run_sync"):
            await trio.to_thread.run_sync(trio.run, elsewhere)
        assert bus.statistics().published == 0


async def test_another_run_of_trio_can_publish_in_a_thread_of_its_own():
    bus, seen = EventBus(), []

    @bus.subscribe(Noted)
    async def note(event):
        seen.append(event.number)

    async def elsewhere():
        await trio.to_thread.run_sync(bus.publish_from_thread, Noted(1))

    async with bus:
        await trio.to_thread.run_sync(trio.run, elsewhere)
    assert seen == [1]


@pytest.mark.parametrize("in_thread", [in_foreign_thread, trio.to_thread.run_sync])
async def test_publish_from_thread_before_the_start_and_after_the_stop_raises_bus_closed(in_thread):
    bus = EventBus()
    begun, _ = gated(bus)
    with pytest.raises(BusClosed, match="has not been started"):
        await in_thread(bus.publish_from_thread, Noted(1))
    async with bus:
        pass
    with pytest.raises(BusClosed, match="has stopped"):
        await in_thread(bus.publish_from_thread, Noted(1))
    assert begun == []


def test_publish_from_thread_after_trio_has_ended_raises_bus_closed():
    bus = EventBus()

    async def main():
        async with bus:
            pass

    trio.run(main)
    caught = []

    def publish():
        with pytest.raises(BusClosed, match="has stopped"):
            bus.publish_from_thread(Noted(1))
        caught.append(True)

    thread = threading.Thread(target=publish)
    thread.start()
    thread.join()
    assert caught == [True]


@pytest.mark.parametrize("in_thread", [in_foreign_thread, trio.to_thread.run_sync])
async def test_a_thread_that_waits_for_room_gets_bus_closed_when_the_bus_stops(in_thread):
    bus = EventBus(workers=1, buffer=1)
    begun, _ = gated(bus)
    refused = []

    async def publish():
        with pytest.raises(BusClosed):
            await in_thread(bus.publish_from_thread, Noted(3))
        refused.append(3)

    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await bus.publish(Noted(1))
        await wait_all_tasks_blocked()
        await bus.publish(Noted(2))
        nursery.start_soon(publish)
        while not bus.health().reasons:
            await trio.lowlevel.checkpoint()
        await bus.stop(drain=False)
    assert refused == [3]
    assert begun == [1]


async def test_publishing_in_a_thread_of_trio_is_cancelled_with_its_call():
    bus = EventBus(workers=1, buffer=1)
    begun, permits = gated(bus)
    async with bus:
        await bus.publish(Noted(1))
        await wait_all_tasks_blocked()
        await bus.publish(Noted(2))
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, bus.publish_from_thread, Noted(3))
                while not bus.health().reasons:
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        assert scope.cancelled_caught
        assert bus.statistics().published == 2
        permits.release()
        permits.release()
    assert begun == [1, 2]


async def test_a_thread_of_trio_that_was_cancelled_before_publishes_nothing():
    bus = EventBus()
    begun, _ = gated(bus)
    entered, cancelled = threading.Event(), threading.Event()

    def publish_late():
        entered.set()
        cancelled.wait(5)
        bus.publish_from_thread(Noted(1))

    async with bus:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, publish_late)
                while not entered.is_set():
                    await trio.lowlevel.checkpoint()
                scope.cancel()
                cancelled.set()
        assert scope.cancelled_caught
    assert begun == []
    assert bus.statistics().published == 0


async def test_publish_nowait_in_another_thread_says_what_to_call_there():
    bus = EventBus()
    begun, _ = gated(bus)
    async with bus:
        for in_thread in (in_foreign_thread, trio.to_thread.run_sync):
            with pytest.raises(InvalidOption, match=r"call publish_from_thread\(\) there"):
                await in_thread(bus.publish_nowait, Noted(1))
    assert begun == []


async def test_publish_nowait_in_a_plain_handler_says_what_to_call_there():
    bus = EventBus()
    caught = []

    @bus.subscribe(Noted)
    def plain(event):
        with pytest.raises(InvalidOption, match=r"call publish_from_thread\(\) there"):
            bus.publish_nowait(Noted(2))
        caught.append(event.number)

    async with bus:
        await bus.publish(Noted(1))
    assert caught == [1]


async def test_a_plain_handler_of_one_bus_may_publish_to_another_bus():
    seen = []
    near, far = EventBus(), EventBus()

    @near.subscribe(Noted)
    def forward(event):
        far.publish_from_thread(Noted(event.number + 1))

    @far.subscribe(Noted)
    async def note(event):
        seen.append((event.number, event.causation_id))

    async with far, near:
        root = Noted(1)
        await near.publish(root)
    assert seen == [(2, root.event_id)]


async def test_a_foreign_thread_that_a_handler_starts_is_an_outsider():
    bus = EventBus()
    seen = []

    @bus.subscribe(Noted)
    async def start_a_thread(event):
        seen.append((event.number, event.causation_id))
        if event.number == 1:
            await in_foreign_thread(bus.publish_from_thread, Noted(2))

    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
    assert seen == [(1, None), (2, None)]
