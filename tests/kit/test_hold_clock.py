"""`hold_clock`: no virtual time passes in it, although every task is blocked."""

import threading
import time

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from triobus.testing import hold_clock


class UntilBlocked(trio.abc.Instrument):
    """Lets a thread wait until Trio has nothing left to do but to wait for it."""

    def __init__(self):
        self.blocked = threading.Event()

    def before_io_wait(self, timeout):
        if timeout > 0:
            self.blocked.set()


async def in_thread(instrument):
    """Wait for a thread that ends only when the run is blocked, as a long one does."""
    await trio.to_thread.run_sync(instrument.blocked.wait)


@pytest.fixture
def instrument():
    return UntilBlocked()


def run(main, instrument, clock=None):
    clock = clock or MockClock(autojump_threshold=0)
    return trio.run(main, clock=clock, instruments=[instrument])


def test_an_autojump_clock_stands_still_inside(instrument):
    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 3600)
            async with hold_clock():
                await in_thread(instrument)
                inside = trio.current_time()
        return inside, trio.current_time()

    assert run(main, instrument) == (0, 3600)


def test_it_goes_on_when_the_last_of_several_tasks_has_left(instrument):
    async def hold(moments):
        async with hold_clock(), hold_clock():
            await in_thread(instrument)
        moments.append(trio.current_time())

    async def main():
        moments = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold, moments)
            nursery.start_soon(hold, moments)
            async with hold_clock():
                await in_thread(instrument)
            moments.append(trio.current_time())
        await trio.sleep(60)
        return moments, trio.current_time()

    assert run(main, instrument) == ([0, 0, 0], 60)


def test_cancelled_it_lets_go(instrument):
    async def main():
        with trio.CancelScope() as scope:
            async with hold_clock():
                scope.cancel()
                await trio.sleep_forever()
        await trio.sleep(60)
        return trio.current_time()

    assert run(main, instrument) == 60


def test_a_cancelled_task_does_not_enter_it(instrument):
    async def main():
        entered = False
        with trio.CancelScope() as scope:
            scope.cancel()
            async with hold_clock():
                entered = True
        return entered

    assert run(main, instrument) is False


def test_others_who_wait_until_all_is_blocked_are_woken(instrument):
    async def main():
        async with hold_clock():
            await wait_all_tasks_blocked()
            await wait_all_tasks_blocked(0.001)
        return trio.current_time()

    assert run(main, instrument) == 0


def test_on_a_real_clock_it_starts_no_task(instrument):
    async def main():
        before = trio.lowlevel.current_statistics().tasks_living
        async with hold_clock():
            return trio.lowlevel.current_statistics().tasks_living - before

    assert trio.run(main) == 0


def test_it_works_in_guest_mode(instrument):
    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 3600)
            async with hold_clock():
                await in_thread(instrument)
                inside = trio.current_time()
        return inside, trio.current_time()

    todo, wake, done = [], threading.Condition(), []

    def run_soon(function):
        with wake:
            todo.append(function)
            wake.notify()

    trio.lowlevel.start_guest_run(
        main,
        run_sync_soon_threadsafe=run_soon,
        done_callback=done.append,
        clock=MockClock(autojump_threshold=0),
        instruments=[instrument],
    )
    ends = time.monotonic() + 30
    while not done and time.monotonic() < ends:
        with wake:
            wake.wait_for(lambda: todo, timeout=30)
            functions, todo[:] = list(todo), []
        for function in functions:
            function()
    assert done[0].unwrap() == (0, 3600)
