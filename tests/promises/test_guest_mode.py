"""The bus as the guest of another loop, as a desktop application runs it: asyncio is the host here.

Trio runs in the host's thread, piece by piece, as callbacks of its loop. The host has the last word
on when to stop; the bus drains or is cancelled, and nothing of it outlives its run.
"""

import asyncio
import os
import signal
import threading

import outcome
import pytest
import trio
import trio.lowlevel

from tests.events import Noted
from tests.proofs.every.interrupts import control_c
from triobus import BusClosed, EventBus, Retry, SqliteEventStore, WouldDeadlock

PATIENCE = 20
"""Real seconds after which a guest hangs; none of these tests takes a tenth of one."""


class Host:
    """An asyncio program with a guest."""

    def __init__(self):
        self.loop = asyncio.get_running_loop()
        self.done = self.loop.create_future()
        self.scope = None
        self.beats = 0

    async def guest(self, main):
        """Start `main(self)` in Trio, and wait until it has ended; return or raise what it did."""

        async def in_trio():
            with trio.CancelScope() as self.scope:
                return await main(self)

        trio.lowlevel.start_guest_run(
            in_trio,
            run_sync_soon_threadsafe=self.loop.call_soon_threadsafe,
            run_sync_soon_not_threadsafe=self.loop.call_soon,
            done_callback=self._end,
        )
        beating = asyncio.create_task(self._beat())
        try:
            return (await asyncio.wait_for(self.done, PATIENCE)).unwrap()
        finally:
            beating.cancel()

    def _end(self, result):
        self.done.set_result(result)

    async def _beat(self):
        """Count how often the host's own tasks have their turn."""
        while True:
            await asyncio.sleep(0)
            self.beats += 1


def hosted(main):
    """Run a guest from beginning to end in a host of its own; return what it returned."""

    async def host():
        return await Host().guest(main)

    return asyncio.run(host())


@pytest.fixture(params=["memory", "sqlite"])
def new_bus(request, tmp_path):
    """Makes buses without a store, or with the same file."""

    def make(**options):
        path = tmp_path / "events.db"
        return EventBus(SqliteEventStore(path) if request.param == "sqlite" else None, **options)

    return make


def left_beside(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir() if path.name != "events.db")


def test_a_guest_runs_from_start_to_drain_while_its_host_goes_on(new_bus, tmp_path):
    handled = []

    async def main(host):
        bus = new_bus(workers=2)

        @bus.subscribe(Noted, name="handle", retry=Retry(delay=0.001))
        async def handle(event):
            before = host.beats
            while host.beats < before + 3:  # the host has its turns while a handler waits
                await trio.lowlevel.checkpoint()
            if event.number == 2 and not handled:
                handled.append("failed")
                raise OSError
            handled.append(event.number)

        async with bus:
            assert bus.statistics().worker_count == 2
            for number in range(5):
                await bus.publish(Noted(number, "a"))
            outcome_of_5 = await bus.publish_and_wait(Noted(5, "a"))
            assert outcome_of_5.errors == {}
        return bus.statistics()

    statistics = hosted(main)
    assert [number for number in handled if number != "failed"] == [0, 1, 2, 3, 4, 5]
    assert (statistics.running, statistics.handled, statistics.worker_count) == (False, 6, 0)
    assert left_beside(tmp_path) == []


def test_a_plain_handler_runs_in_a_thread_and_the_host_goes_on_meanwhile(new_bus):
    threads = []

    async def main(host):
        bus = new_bus()
        has_beaten = threading.Event()

        @bus.subscribe(Noted, name="handle")
        def handle(event):
            threads.append(threading.current_thread())
            # Only the host's own thread can set it, so that it cannot be the one that waits here.
            host.loop.call_soon_threadsafe(has_beaten.set)
            assert has_beaten.wait(PATIENCE)

        async with bus:
            await bus.publish(Noted(1))
        return bus.statistics()

    statistics = hosted(main)
    assert (statistics.handled, statistics.dead_lettered) == (1, 0)
    assert threads != [threading.main_thread()]


def test_a_thread_of_the_host_publishes_to_the_guest(new_bus):
    handled = []

    async def main(host):
        bus = new_bus()

        @bus.subscribe(Noted, name="handle")
        async def handle(event):
            handled.append(event.number)

        async with bus:
            in_thread = host.loop.run_in_executor(None, bus.publish_from_thread, Noted(1))
            heard = await bus.wait_for(Noted)
            assert heard.number == 1
            while not in_thread.done():
                await trio.lowlevel.checkpoint()
            assert in_thread.result().event_id == heard.event_id
            with pytest.raises(WouldDeadlock):  # this thread is the host's too
                bus.publish_from_thread(Noted(2))
        with pytest.raises(BusClosed):
            await trio.to_thread.run_sync(bus.publish_from_thread, Noted(2))

    hosted(main)
    assert handled == [1]


def test_a_callback_of_the_host_publishes_without_waiting():
    handled = []

    async def main(host):
        bus = EventBus()

        @bus.subscribe(Noted)
        async def handle(event):
            handled.append(event.number)
            if event.number == 2:
                host.scope.cancel()

        async with bus:
            # As a click does: in the thread of the loop, between two pieces of Trio's run.
            host.loop.call_soon(bus.publish_nowait, Noted(1, "a"))
            host.loop.call_soon(bus.publish_nowait, Noted(2, "a"))
            await trio.sleep_forever()

    hosted(main)
    assert handled == [1, 2]


def test_a_host_that_cancels_its_guest_loses_nothing_that_a_store_has(tmp_path):
    begun, handled = [], []

    def new_bus(life):
        bus = EventBus(SqliteEventStore(tmp_path / "events.db"), workers=1)

        @bus.subscribe(Noted, name="handle")
        async def handle(event):
            begun.append((life, event.number))
            if (life, event.number) == (1, 2):
                await trio.sleep_forever()
            handled.append((life, event.number))

        return bus

    async def closed_in_the_middle(host):
        async with new_bus(1) as bus:
            for number in (1, 2, 3):
                await bus.publish(Noted(number, "a"))
            while (1, 2) not in begun:
                await trio.lowlevel.checkpoint()
            # As closing the window does: from the host's side.
            host.loop.call_soon(host.scope.cancel)
            await trio.sleep_forever()

    async def again(host):
        async with new_bus(2):
            pass

    hosted(closed_in_the_middle)
    assert left_beside(tmp_path) == []
    hosted(again)
    assert handled == [(1, 1), (2, 2), (2, 3)]
    assert left_beside(tmp_path) == []


def test_a_host_that_stops_its_guest_drains_it(new_bus):
    handled = []

    async def main(host):
        bus = new_bus()
        gate, has_begun = trio.Event(), trio.Event()

        @bus.subscribe(Noted, name="handle")
        async def handle(event):
            has_begun.set()
            await gate.wait()
            handled.append(event.number)

        async with trio.open_nursery() as nursery:
            await nursery.start(bus.run)
            await bus.publish(Noted(1))
            await has_begun.wait()
            host.loop.call_soon(gate.set)
            return await bus.stop()

    report = hosted(main)
    assert handled == [1]
    assert (report.settled, report.left) == ({"default": 1}, {"default": 0})


def test_control_c_leaves_the_guest_as_keyboard_interrupt_and_the_store_whole(tmp_path):
    async def main(host):
        bus = EventBus(SqliteEventStore(tmp_path / "events.db"))
        begun = trio.Event()

        @bus.subscribe(Noted, name="handle")
        async def handle(event):
            begun.set()
            await trio.sleep_forever()

        async with bus:
            await bus.publish(Noted(1))
            await begun.wait()
            os.kill(os.getpid(), signal.SIGINT)
            await trio.sleep_forever()

    async def look(host):
        async with SqliteEventStore(tmp_path / "events.db") as store:
            return [stored.event.number async for stored in store.read()]

    async def host():
        # Trio takes SIGINT over from Python's own handler; asyncio.run would take it for itself.
        with control_c():
            return await outcome.acapture(Host().guest, main)

    with asyncio.Runner() as runner:
        interrupted = runner.run(host())
    with pytest.raises(BaseException) as caught:  # noqa: PT011  # it may be in a group
        interrupted.unwrap()
    assert only_keyboard_interrupt(caught.value), caught.value
    assert left_beside(tmp_path) == []
    assert hosted(look) == [1]


def only_keyboard_interrupt(error):
    if isinstance(error, BaseExceptionGroup):
        return all(map(only_keyboard_interrupt, error.exceptions))
    return isinstance(error, KeyboardInterrupt)
