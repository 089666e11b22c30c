"""Statistics: every counter is exact at every moment."""

import attrs
import pytest
import trio

from tests.events import Noted, Other
from tests.settled import settled
from triobus import BusStatistics, GroupStatistics, Retry
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
    assert attrs.asdict(
        at_3.groups["default"], filter=attrs.filters.exclude("retries", "paused")
    ) == {
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
