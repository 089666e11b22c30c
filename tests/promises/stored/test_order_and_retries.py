"""What a bus with a store promises of order and retries, across restarts too."""

import pytest
import trio
import trio.testing

from tests.events import Noted
from tests.promises.stored.buses import Handled, crashing, nothing, subscribed
from triobus import EventBus, MemoryEventStore, Retry, RetryAfter, current_delivery
from triobus.testing._scheduler import scheduled_by


async def test_an_aggregate_that_waits_for_a_retry_holds_up_no_other_however_long_its_queue(
    new_store, autojump_clock
):
    handled, failed = [], set()

    async def handler(event):
        if event.key == "bad" and event.number == 0 and not failed:
            failed.add(0)
            raise OSError
        handled.append((event.key, event.number, trio.current_time()))

    bus = EventBus(new_store(), buffer=10)
    bus.subscribe(Noted, handler, retry=Retry(delay=100, max_delay=100, jitter=0))
    async with bus:
        await bus.publish_many([Noted(n, "bad") for n in range(300)])
        for number in range(300):
            await bus.publish(Noted(number, "good"))
            await bus.publish(Noted(300 + number, "bad"))
    good = [(number, time) for key, number, time in handled if key == "good"]
    bad = [number for key, number, _ in handled if key == "bad"]
    assert [number for number, _ in good] == list(range(300))
    assert max(time for _, time in good) < 100
    assert bad == list(range(600))


@pytest.mark.parametrize(
    ("events", "last"),
    [
        ([("a", 10, 2), ("b", 0, 2), ("b", 0, 0), ("a", 0, 2)], 2),
        ([("b", 10, 3), (None, 0, 3), ("a", 0, 1), ("a", 0, 0), ("b", 0, 0), (None, 0, 1)], 5),
    ],
)
def test_a_slow_aggregate_whose_events_fill_the_buffer_holds_up_no_other_in_any_order_of_tasks(
    events, last
):
    for seed in range(50):
        started = {}

        async def handler(event, started=started):
            _, seconds, steps = events[event.number]
            started[event.number] = trio.current_time()
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            await trio.sleep(seconds)

        async def main(handler=handler):
            async with subscribed(MemoryEventStore(), handler, workers=3, buffer=1) as bus:
                await bus.publish_many([Noted(n, key) for n, (key, _, _) in enumerate(events)])

        with scheduled_by(seed):
            trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
        assert started[last] == 0, seed


async def test_attempts_are_counted_on_after_a_restart(new_store, autojump_clock):
    attempts = []

    async def failing(event):
        attempts.append((current_delivery().attempt, trio.current_time()))
        raise OSError("broken")

    def bus():
        bus = EventBus(new_store())
        bus.subscribe(
            Noted, failing, name="failing", retry=Retry(attempts=4, delay=10, factor=1, jitter=0)
        )
        return bus

    async with crashing(bus()) as first:
        await first.publish(Noted(1, "a"))
        await trio.sleep(15)
    assert attempts == [(1, 0), (2, 10)]
    async with crashing(bus()):
        await trio.sleep(2)
    assert len(attempts) == 2  # it was due after 10 s, not at once
    async with bus() as last:
        await last.wait_idle()
        (letter,) = await last.dead_letters.list()
    assert attempts == [(1, 0), (2, 10), (3, 20), (4, 30)]
    assert letter.attempts == 4


async def test_a_retry_goes_on_after_a_restart_whoever_has_subscribed_before_its_handler(
    new_store, autojump_clock
):
    calls = []

    async def failing(event):
        calls.append(("failing", current_delivery().attempt, trio.current_time()))
        raise OSError

    async def newcomer(event):
        calls.append(("newcomer", current_delivery().attempt, trio.current_time()))

    def bus():
        bus = EventBus(new_store())
        retry = Retry(attempts=2, delay=10, jitter=0)
        bus.subscribe(Noted, failing, name="failing", retry=retry)
        return bus

    async with crashing(bus()) as first:
        await first.publish(Noted(1, "a"))
        await trio.sleep(1)
    second = bus()
    second.subscribe(Noted, newcomer, name="newcomer", priority=1)
    async with second:
        pass
    assert calls == [("failing", 1, 0), ("failing", 2, 10), ("newcomer", 1, 10)]


async def test_later_events_of_an_aggregate_wait_for_a_retry_across_a_restart(
    new_store, autojump_clock
):
    handled = []

    async def handler(event):
        if event.number == 1 and trio.current_time() < 50:
            raise OSError
        handled.append((event.key, event.number))

    def bus():
        bus = EventBus(new_store())
        bus.subscribe(Noted, handler, name="it", retry=Retry(delay=30, factor=1, jitter=0))
        return bus

    async with crashing(bus()) as first:
        await first.publish_many([Noted(1, "a"), Noted(2, "a"), Noted(3, "b")])
        await trio.sleep(1)
    async with bus() as second:
        await second.publish_many([Noted(4, "a"), Noted(5, "b")])
        await trio.sleep(1)
        assert handled == [("b", 3), ("b", 5)]
    assert [number for key, number in handled if key == "a"] == [1, 2, 4]


async def test_handlers_that_were_done_are_not_called_again_when_another_is_retried_after_a_crash(
    new_store, autojump_clock
):
    calls = []

    async def first(event):
        calls.append("first")

    async def second(event):
        calls.append("second")
        if calls.count("second") < 3:
            raise OSError

    async def third(event):
        calls.append("third")

    def bus():
        bus = EventBus(new_store())
        retry = Retry(delay=10, factor=1, jitter=0)
        bus.subscribe(Noted, first, name="first", priority=3)
        bus.subscribe(Noted, second, name="second", priority=2, retry=retry)
        bus.subscribe(Noted, third, name="third", priority=1)
        return bus

    async with crashing(bus()) as crashed:
        await crashed.publish(Noted(1, "a"))
        await trio.sleep(1)
    async with bus():
        pass
    assert calls == ["first", "second", "second", "second", "third"]


async def test_no_virtual_time_passes_while_the_store_works(new_store, autojump_clock):
    async with subscribed(new_store(), Handled()) as bus:
        for number in range(20):
            await bus.publish(Noted(number))
        await bus.wait_idle()
        assert trio.current_time() == 0


async def test_retries_over_hours_are_tested_in_no_time(new_store, autojump_clock):
    times = []

    async def failing(event):
        times.append(trio.current_time())
        raise OSError

    bus = EventBus(new_store())
    bus.subscribe(Noted, failing, retry=Retry(delay=3600, factor=1, max_delay=3600, jitter=0))
    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
    assert times == [0, 3600, 7200, 10800]


@pytest.mark.parametrize("counts", [True, False])
async def test_the_time_that_a_handler_asked_for_is_waited_for_over_a_restart(
    new_store, autojump_clock, counts
):
    calls = []

    async def handler(event):
        calls.append((trio.current_time(), current_delivery().attempt))
        if len(calls) == 1:
            raise RetryAfter(5000, counts=counts)

    def made(**options):
        bus = EventBus(new_store(), workers=1)
        bus.subscribe(Noted, handler, name="handler", retry=Retry(attempts=2, delay=1, max_delay=1))
        if options:
            bus.subscribe(Noted, nothing, name="newcomer", **options)
        return bus

    async with crashing(made()) as bus:
        await bus.publish(Noted(1))
        await trio.sleep(1000)
    async with made(priority=1) as bus:
        await bus.wait_idle()
    assert calls == [(0, 1), (5000, 2 if counts else 1)]
