"""What a bus tells of itself: exact counters, and what they mean."""

import subprocess
import sys
import textwrap

import attrs
import psutil
import pytest
import trio

from tests.events import Noted, Other
from tests.settled import settled
from triobus import BusStatistics, EventBus, GroupStatistics, Health, MemoryEventStore, Retry
from triobus._groups.statistics import percentile


def group_statistics(**counters):
    """Return the statistics of a group in which nothing has happened but what is given."""
    nothing = dict.fromkeys((field.name for field in attrs.fields(GroupStatistics)), 0)
    return GroupStatistics(**{**nothing, "p50": None, "p99": None, **counters})


async def test_a_bus_that_was_not_started_counts_only_its_subscriptions(new_bus, autojump_clock):
    bus = new_bus(workers=2)
    bus.subscribe(Noted, print)
    bus.group("mail").subscribe((Noted, Other), print)
    assert bus.statistics() == BusStatistics(
        running=False,
        uptime_seconds=0.0,
        published=0,
        unhandled={},
        handled=0,
        failed_attempts=0,
        retries=0,
        dead_lettered=0,
        queued=0,
        in_flight=0,
        waiting_for_retry=0,
        worker_count=0,
        subscription_count=2,
        groups={
            "default": group_statistics(subscription_count=1),
            "mail": group_statistics(subscription_count=1),
        },
    )


async def test_every_counter_is_exact_at_every_moment(new_bus, autojump_clock):
    bus = new_bus(workers=2)
    bus.group("idle", workers=1)

    @bus.subscribe(Noted, retry=Retry(attempts=2, delay=10, jitter=0))
    async def sleep_so_long(event):
        if not event.number:
            raise OSError
        await trio.sleep(event.number)

    async with bus:
        await bus.publish_many([Noted(0), Noted(4), Noted(8), Noted(6), Other()])
        await trio.sleep(3)
        at_3 = bus.statistics()
        await trio.sleep(2)
        at_5 = bus.statistics()
        await bus.wait_idle()
        at_10 = bus.statistics()
    await trio.sleep(100)
    at_110 = bus.statistics()

    # 0 has failed and waits until 10; the workers have 4 and 8; 6 is queued.
    idle = group_statistics(worker_count=1)
    assert attrs.asdict(at_3.groups["default"], filter=attrs.filters.exclude("retries")) == {
        "published": 4,
        "handled": 0,
        "failed_attempts": 1,
        "dead_lettered": 0,
        "queued": 1,
        "in_flight": 2,
        "waiting_for_retry": 1,
        "worker_count": 2,
        "busy_workers": 2,
        "subscription_count": 1,
        "lag": 4,
        "p50": at_3.groups["default"].p50,
        "p99": at_3.groups["default"].p99,
    }
    assert at_3.groups["idle"] == idle
    assert (at_3.published, at_3.queued, at_3.in_flight, at_3.worker_count) == (5, 1, 2, 3)
    assert (at_3.running, at_3.uptime_seconds) == (True, 3)

    # 4 is done, and 6 has begun.
    now = at_5.groups["default"]
    assert (now.handled, now.queued, now.in_flight, now.waiting_for_retry) == (1, 0, 2, 1)
    assert (now.lag, now.busy_workers) == (3, 2)

    # All is done, and 0 is a dead letter.
    default = group_statistics(
        published=4,
        handled=4,
        failed_attempts=2,
        retries=1,
        dead_lettered=1,
        worker_count=2,
        subscription_count=1,
        p50=4.0,
        p99=8.0,
    )
    assert at_10 == BusStatistics(
        unhandled={"Other": 1},
        running=True,
        uptime_seconds=10,
        published=5,
        handled=4,
        failed_attempts=2,
        retries=1,
        dead_lettered=1,
        queued=0,
        in_flight=0,
        waiting_for_retry=0,
        worker_count=3,
        subscription_count=1,
        groups={"default": default, "idle": idle},
    )

    # Stopped, it keeps what it has counted.
    assert at_110 == attrs.evolve(
        at_10,
        running=False,
        worker_count=0,
        groups={
            "default": attrs.evolve(default, worker_count=0),
            "idle": attrs.evolve(idle, worker_count=0),
        },
    )


async def test_an_event_counts_as_published_once_and_as_handled_in_every_group(
    new_bus, autojump_clock
):
    bus = new_bus()
    for name in ("default", "one", "two"):
        subscribe = bus.subscribe if name == "default" else bus.group(name).subscribe

        @subscribe(Noted)
        async def note(event):
            pass

    async with bus:
        await bus.publish_many([Noted(1), Noted(2)])
    statistics = bus.statistics()
    assert (statistics.published, statistics.handled) == (2, 6)
    assert {name: group.handled for name, group in statistics.groups.items()} == {
        "default": 2,
        "one": 2,
        "two": 2,
    }


async def test_a_delivery_counts_once_however_many_handlers_it_has(new_bus, autojump_clock):
    bus = new_bus()
    for name in "abc":
        bus.subscribe(Noted, noop, name=name)
    async with bus:
        await bus.publish(Noted(1))
    assert (bus.statistics().handled, bus.statistics().subscription_count) == (1, 3)


async def noop(event):
    pass


async def test_a_retry_counts_when_its_call_is_made(new_bus, autojump_clock):
    bus = new_bus()

    @bus.subscribe(Noted, retry=Retry(attempts=3, delay=10, factor=1, jitter=0))
    async def fails(event):
        raise OSError

    async with bus:
        await bus.publish(Noted(1))
        counted = []
        for _ in range(3):
            await trio.sleep(5)
            counted.append((bus.statistics().failed_attempts, bus.statistics().retries))
            await trio.sleep(5)
            await settled()
    assert counted == [(1, 0), (2, 1), (3, 2)]


async def test_waiting_for_a_retry_occupies_no_worker(new_bus, autojump_clock):
    bus = new_bus(workers=1)

    @bus.subscribe(Noted, retry=Retry(delay=10, jitter=0))
    async def fails(event):
        raise OSError

    async with bus:
        await bus.publish_many([Noted(1), Noted(2), Noted(3)])
        await settled()
        group = bus.statistics().groups["default"]
        await bus.stop(drain=False)
    assert (group.waiting_for_retry, group.busy_workers, group.in_flight) == (3, 0, 0)
    assert (group.queued, group.lag) == (0, 3)


async def test_lag_is_left_after_a_stop_and_no_worker_is_busy(new_bus, autojump_clock):
    bus = new_bus(workers=1)

    @bus.subscribe(Noted)
    async def stuck(event):
        await trio.sleep_forever()

    async with bus:
        await bus.publish_many([Noted(1), Noted(2), Noted(3)])
        await settled()
        await bus.stop(drain=False)
    group = bus.statistics().groups["default"]
    assert (group.lag, group.busy_workers, group.worker_count) == (3, 0, 0)


async def test_a_subscription_counts_until_it_is_unsubscribed(new_bus, autojump_clock):
    bus = new_bus()
    subscription = bus.subscribe(Noted, noop)
    assert bus.statistics().subscription_count == 1
    subscription.unsubscribe()
    assert bus.statistics().subscription_count == 0


async def test_uptime_is_virtual_time_and_ends_with_the_stop(new_bus, autojump_clock):
    await trio.sleep(1000)
    bus = new_bus()
    async with bus:
        await trio.sleep(60)
        assert bus.statistics().uptime_seconds == 60
    await trio.sleep(1000)
    assert bus.statistics().uptime_seconds == 60


@pytest.mark.parametrize(
    ("durations", "fraction", "expected"),
    [
        ([], 0.5, None),
        ([7], 0.5, 7),
        ([7], 0.99, 7),
        ([3, 1, 2], 0.5, 2),
        ([4, 3, 2, 1], 0.5, 2),
        (list(range(1, 101)), 0.5, 50),
        (list(range(1, 101)), 0.99, 99),
        (list(range(1, 1001)), 0.99, 990),
        ([1] * 98 + [5] * 2, 0.99, 5),
    ],
)
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(
    durations, fraction, expected
):
    assert percentile(durations, fraction) == expected


async def test_statistics_do_not_change_after_they_were_taken(new_bus, autojump_clock):
    bus = new_bus()
    bus.subscribe(Noted, noop)
    async with bus:
        before = bus.statistics()
        await bus.publish_and_wait(Noted(1))
        assert (before.published, before.groups["default"].published) == (0, 0)
    for value, name in ((before, "published"), (before.groups["default"], "lag")):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(value, name, 5)


async def test_statistics_and_health_can_be_asked_for_in_another_thread(new_bus, autojump_clock):
    async with new_bus(workers=3) as bus:
        statistics = await trio.to_thread.run_sync(bus.statistics)
        health = await trio.to_thread.run_sync(bus.health)
    assert (statistics.running, statistics.worker_count) == (True, 3)
    assert health.status == "healthy"


def test_statistics_and_health_can_be_asked_for_when_trio_has_ended(new_bus):
    bus = new_bus()

    async def main():
        async with bus:
            await bus.publish(Noted(1))

    trio.run(main)
    assert (bus.statistics().published, bus.statistics().running) == (1, False)
    assert bus.health().status == "stopped"


# Health


def without_memory(health):
    return attrs.evolve(health, memory_mb=None)


async def test_a_bus_that_runs_and_has_no_trouble_is_healthy(new_bus, autojump_clock):
    bus = new_bus(workers=1)

    @bus.subscribe(Noted)
    async def wait(event):
        await release.wait()

    release = trio.Event()
    async with bus:
        await bus.publish_many([Noted(1), Noted(2), Noted(3)])
        await settled()
        assert without_memory(bus.health()) == Health(
            status="healthy", reasons=(), queue_size=2, worker_count=1, memory_mb=None
        )
        release.set()


async def test_a_bus_is_stopped_before_its_start_and_after_its_stop(new_bus, autojump_clock):
    bus = new_bus()
    before = bus.health()
    async with bus:
        pass
    after = bus.health()
    assert (before.status, after.status) == ("stopped", "stopped")
    (before_reason,) = before.reasons
    (after_reason,) = after.reasons
    assert "has not been started" in before_reason
    assert "has stopped" in after_reason
    assert after.worker_count == 0


async def test_a_publisher_that_waits_for_room_degrades_the_bus_while_it_waits(autojump_clock):
    bus = EventBus(workers=1, buffer=1)

    @bus.subscribe(Noted)
    async def wait(event):
        await release.wait()

    release = trio.Event()
    async with bus, trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(bus.publish, Noted(number))
            await settled()
        health = bus.health()
        release.set()
        await bus.wait_idle()
        assert bus.health().status == "healthy"
    assert health.status == "degraded"
    (reason,) = health.reasons
    assert reason == (
        "task 'triobus._bus.bus.EventBus.publish' waits for room: group 'default' holds 1 event "
        "and its buffer is 1. Give it a larger buffer or faster handlers"
    )


async def test_two_buses_that_wait_for_each_other_say_who_waits_for_whom(autojump_clock):
    first, second = EventBus(workers=1, buffer=0), EventBus(workers=1, buffer=0)

    @first.subscribe(Noted)
    async def forth(event):
        await second.publish(Noted(event.number + 1))
        await second.publish(Noted(event.number + 1))

    @second.subscribe(Noted)
    async def back(event):
        await first.publish(Noted(event.number + 1))

    with trio.CancelScope() as scope:
        async with first, second:
            await first.publish(Noted(1))
            await settled()
            reasons = [*first.health().reasons, *second.health().reasons]
            scope.cancel()
            await trio.sleep_forever()
    for reason, handler, name in zip(reasons, ("back", "forth"), (back, forth), strict=True):
        assert (
            f"the handler {name.__qualname__!r} in group 'default' of another bus waits" in reason
        )
        assert handler in reason


async def test_a_full_listener_is_named_with_the_task_that_reads_it_and_those_that_wait(
    autojump_clock,
):
    async def read(events):
        async for _ in events:
            await trio.sleep_forever()

    async with (
        EventBus() as bus,
        bus.listen(buffer=1) as events,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(read, events, name="the reader")
        await settled()
        for number in range(4):
            nursery.start_soon(bus.publish, Noted(number), name=f"publisher {number}")
            await settled()
        (reason,) = bus.health().reasons
        nursery.cancel_scope.cancel()
    assert reason == (
        "task 'publisher 2' and 1 more publishers wait for room: a listener holds 1 event and its "
        "buffer is 1, and is read by task 'the reader'. Give it a larger buffer or faster handlers"
    )


async def test_a_dead_letter_is_a_reason_to_look_and_hinders_nothing(new_bus, autojump_clock):
    bus = new_bus()

    @bus.subscribe(Noted, retry=Retry(attempts=1))
    async def fails(event):
        raise OSError

    async with bus:
        await bus.publish_many([Noted(1), Noted(2)])
        await bus.wait_idle()
        health = bus.health()
        letters = await bus.dead_letters.list()
        await bus.dead_letters.discard([letter.id for letter in letters])
        assert bus.health().reasons == ()
    assert health.status == "healthy"
    assert health.reasons == ("dead letters wait to be replayed or discarded: 2.",)


async def test_a_bus_that_drains_is_degraded(new_bus, autojump_clock):
    bus = new_bus()
    seen = []

    @bus.subscribe(Noted)
    async def look(event):
        await begun.wait()
        seen.append(bus.health())

    begun = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await bus.publish(Noted(1))
        nursery.start_soon(bus.stop)
        await settled()
        begun.set()
    (health,) = seen
    assert health.status == "degraded"
    (reason,) = health.reasons
    assert "is stopping" in reason


async def test_memory_is_that_of_the_process(new_bus, autojump_clock):
    expected = psutil.Process().memory_info().rss / 2**20
    assert new_bus().health().memory_mb == pytest.approx(expected, rel=0.2)


def test_without_psutil_memory_is_none_and_one_debug_line_says_why():
    script = """
        import sys
        sys.modules["psutil"] = None  # as if it were not installed
        import logging
        logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="%(levelname)s %(name)s")
        import trio
        from triobus import EventBus

        async def main():
            async with EventBus() as bus:
                health = bus.health()
            print(health.status, health.memory_mb)

        trio.run(main)
    """
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.stdout, finished.stderr) == ("DEBUG triobus\nhealthy None\n", "")


async def test_health_cannot_be_changed(new_bus, autojump_clock):
    health = new_bus().health()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        health.status = "healthy"


@pytest.mark.parametrize("make_store", [lambda: None, MemoryEventStore], ids=["none", "memory"])
@pytest.mark.parametrize("workers", [1, 2, 4])
async def test_what_a_stop_has_cancelled_is_left_and_in_nobodys_hands(
    make_store, workers, autojump_clock
):
    bus = EventBus(make_store(), workers=workers)

    async def handle(event):
        await trio.sleep(100)

    bus.subscribe(Noted, handle)
    async with bus:
        await bus.publish_many([Noted(number) for number in range(3)])
        await trio.sleep(1)
        running = min(workers, 3)
        before = bus.statistics().groups["default"]
        assert (before.in_flight, before.busy_workers, before.queued) == (
            running,
            running,
            3 - running,
        )
        report = await bus.stop(drain=False)
        for found in (bus.statistics(), bus.statistics().groups["default"]):
            assert (found.in_flight, found.queued, found.waiting_for_retry) == (0, 3, 0)
            assert (found.handled, found.worker_count) == (0, 0)
        assert bus.statistics().groups["default"].busy_workers == 0
    assert (report.settled, report.left) == ({"default": 0}, {"default": 3})
