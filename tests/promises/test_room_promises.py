"""What a group with a store does with little room: who waits for whom, and what is counted."""

import attrs
import pytest
import trio
import trio.testing

from tests.events import Noted, Other
from tests.promises.stored.buses import in_three_turns
from triobus import EventBus, Retry, StoreIOError
from triobus._durability.lanes import KEPT_AWAKE
from triobus._environment import replace

LATER = Retry(attempts=3, delay=3600, max_delay=3600, jitter=0)


@pytest.fixture(autouse=True)
async def _turns():
    replace(instead_of_thread=in_three_turns)


class Broker:
    """A handler that fails for some aggregates while it is down, and notes what it has done."""

    def __init__(self, prefix="down"):
        self.prefix = prefix
        self.is_down = True
        self.calls = []
        self.done = []

    async def __call__(self, event):
        self.calls.append((event.key, event.number))
        if self.is_down and event.key is not None and event.key.startswith(self.prefix):
            raise ConnectionError
        self.done.append((event.key, event.number))


def bus_of(store, handler, *, retry=LATER, **options):
    bus = EventBus(store, **options)
    bus.subscribe((Noted, Other), handler, name="handler", retry=retry)
    return bus


# Retries


@pytest.mark.parametrize("aggregates", [5, KEPT_AWAKE + 700])
async def test_aggregates_that_wait_for_a_retry_take_no_room_of_the_others(
    new_store, autojump_clock, aggregates
):
    broker = Broker()
    async with bus_of(new_store(), broker, buffer=3) as bus:
        await bus.publish_many([Noted(0, f"down{n}") for n in range(aggregates)])
        while bus.statistics().waiting_for_retry < aggregates:
            await trio.lowlevel.checkpoint()
        await bus.publish_many([Noted(1, f"down{n}") for n in range(5)])
        for number in range(20):
            await bus.publish(Noted(number, "up"))
        while len(broker.done) < 20:
            await trio.lowlevel.checkpoint()
        assert broker.done == [("up", number) for number in range(20)]
        statistics = bus.statistics()
        assert statistics.waiting_for_retry == aggregates
        assert statistics.published == aggregates + 5 + 20
        assert (statistics.queued, statistics.in_flight) == (5, 0)
        assert bus.health().status == "healthy"
        broker.is_down = False
    assert sorted(broker.done[20:]) == sorted(
        [(f"down{n}", 0) for n in range(aggregates)] + [(f"down{n}", 1) for n in range(5)]
    )
    assert bus.statistics().uptime_seconds == 3600
    for n in range(5):
        assert broker.done.index((f"down{n}", 0)) < broker.done.index((f"down{n}", 1))


async def test_they_take_none_after_a_restart_either_and_wait_for_the_rest_of_their_time(
    new_store, autojump_clock
):
    broker, aggregates = Broker(), KEPT_AWAKE + 50
    store = new_store()
    bus = bus_of(store, broker, buffer=3)
    async with bus:
        await bus.publish_many([Noted(0, f"down{n}") for n in range(aggregates)])
        while bus.statistics().waiting_for_retry < aggregates:
            await trio.lowlevel.checkpoint()
        await trio.sleep(600)
        await bus.stop(drain=False)
    broker.calls.clear()
    async with bus:
        for number in range(20):
            await bus.publish(Noted(number, "up"))
        while len(broker.done) < 20 or bus.statistics().waiting_for_retry < aggregates:
            await trio.lowlevel.checkpoint()
        assert broker.calls == [("up", number) for number in range(20)]
        broker.is_down = False
    assert bus.statistics().uptime_seconds == 3000
    assert sorted(broker.done[20:]) == sorted((f"down{n}", 0) for n in range(aggregates))


async def test_the_attempts_of_what_slept_are_counted_on(new_store, autojump_clock):
    aggregates = KEPT_AWAKE + 5
    broker = Broker()
    retry = Retry(attempts=3, delay=60, factor=1, max_delay=60, jitter=0)
    async with bus_of(new_store(), broker, retry=retry) as bus:
        await bus.publish_many([Noted(0, f"down{n}") for n in range(aggregates)])
        outcome = await bus.publish_and_wait(Noted(1, "down-last"))
        await bus.wait_idle()
        letters = await bus.dead_letters.list(limit=1000)
    assert isinstance(outcome.errors["handler"], ConnectionError)
    assert len(letters) == aggregates + 1
    assert {letter.attempts for letter in letters} == {3}
    assert bus.statistics().uptime_seconds == 120


async def test_what_slept_goes_on_at_once_when_its_subscription_goes(new_store, autojump_clock):
    aggregates, others = KEPT_AWAKE + 5, []
    broker = Broker()

    async def note(event):
        others.append(event.number)

    bus = EventBus(new_store())
    subscription = bus.subscribe(Noted, broker, name="broker", retry=LATER, priority=1)
    bus.subscribe(Noted, note, name="note")
    async with bus:
        await bus.publish_many([Noted(n, f"down{n}") for n in range(aggregates)])
        while bus.statistics().waiting_for_retry < aggregates:
            await trio.lowlevel.checkpoint()
        subscription.unsubscribe()
        await bus.wait_idle()
        assert sorted(others) == list(range(aggregates))
    assert bus.statistics().uptime_seconds == 0


@pytest.mark.parametrize("ordering", ["aggregate", "none"])
async def test_replays_that_line_up_behind_one_that_waits_take_no_room_of_the_others(
    new_store, autojump_clock, ordering
):
    broker, again, buffer = Broker(), 2 if ordering == "aggregate" else 30, 20
    bus = EventBus(new_store())
    group = bus.group("group", buffer=buffer, ordering=ordering)
    group.subscribe(Noted, broker, name="handler", retry=attrs.evolve(LATER, attempts=2))
    async with bus:
        await bus.publish_many([Noted(n, "down") for n in range(again)])
        await bus.wait_idle()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.dead_letters.replay)
            await trio.sleep(1)
            await bus.publish_many([Noted(n, "down") for n in range(again, 60)])
            await bus.publish_many([Noted(n, "up") for n in range(30)])
            await trio.sleep(1)
            assert sorted(broker.done) == [("up", n) for n in range(30)]
            assert bus.statistics().in_flight == 0
            assert bus.statistics().handled == again + 30
            broker.is_down = False
        assert await bus.dead_letters.list() == []
        assert bus.statistics().published == 60 + 30
    done = [number for key, number in broker.done if key == "down"]
    assert sorted(done) == list(range(60))
    assert [n for n in done if n < again] == list(range(again))
    if ordering == "aggregate":
        assert done == list(range(60))
    groups = bus.statistics().groups["group"]
    assert (groups.published, groups.handled, groups.queued) == (90 + again, 90 + again, 0)


async def test_without_a_store_they_take_room_and_health_says_so(autojump_clock):
    broker = Broker()
    async with bus_of(None, broker, buffer=3) as bus, trio.open_nursery() as nursery:
        for n in range(4):
            nursery.start_soon(bus.publish, Noted(0, f"down{n}"))
            await trio.testing.wait_all_tasks_blocked()
        (reason,) = bus.health().reasons
        assert "holds 3 events, 3 of which wait for a retry, and its buffer is 3" in reason
        broker.is_down = False


# Hot aggregates


async def test_hot_aggregates_do_not_starve_one_that_comes_behind_their_backlog(new_store):
    order = []

    async def handler(event):
        order.append(event.key)
        await trio.lowlevel.checkpoint()

    async with new_store() as store:
        await store.append([Noted(n, f"hot{n % 3}") for n in range(1500)])
        await store.append([Noted(0, "cold")])
        bus = EventBus(store, buffer=50, start="beginning")
        bus.subscribe(Noted, handler, name="handler")
        async with bus:
            while "cold" not in order:
                await trio.lowlevel.checkpoint()
            assert order.index("cold") < 500
        assert len(order) == 1501


async def test_what_is_published_all_the_time_does_not_starve_what_has_to_be_read_back(
    new_store, autojump_clock
):
    order, left, gate = [], 3000, trio.Event()

    async def handler(event):
        nonlocal left
        if event.key == "hot" and event.number == 0:
            await gate.wait()
        order.append(event.key)
        if event.key != "hot" and left:
            left -= 1
            await bus.publish(Noted(0, event.key))

    async with bus_of(new_store(), handler, buffer=10, workers=3) as bus:
        await bus.publish_many([Noted(n, "hot") for n in range(30)])
        await trio.sleep(1)
        assert bus.statistics().queued == 29
        await bus.publish_many([Noted(0, f"chain{n}") for n in range(9)])
        gate.set()
    found = [index for index, key in enumerate(order) if key == "hot"]
    assert (len(found), len(order)) == (30, 3039)
    # Each time at least one is read back, and beside that no more of the others than fit.
    assert found[-1] < 30 * 10


async def test_every_aggregate_keeps_its_order_whatever_is_read_back(new_store, autojump_clock):
    broker = Broker()
    retry = Retry(attempts=2, delay=5, max_delay=5, jitter=0)
    async with bus_of(new_store(), broker, retry=retry, buffer=7, workers=3) as bus:
        for number in range(120):
            await bus.publish(Noted(number, ("down", "a", "b", "c")[number % 4]))
        await trio.sleep(1)
        broker.is_down = False
    for key in ("down", "a", "b", "c"):
        numbers = [number for found, number in broker.done if found == key]
        assert numbers == sorted(numbers)
        assert len(numbers) == 30


# Total order


async def test_one_worker_keeps_the_total_order_of_what_had_to_be_read_back(
    new_store, autojump_clock
):
    broker = Broker()
    retry = Retry(attempts=2, delay=5, max_delay=5, jitter=0)
    async with bus_of(new_store(), broker, retry=retry, buffer=4, workers=1) as bus:
        await bus.publish_many([Noted(n, "down" if n % 2 == 0 else f"{n}") for n in range(40)])
        await trio.testing.wait_all_tasks_blocked()
        while len(broker.done) < 20:
            await trio.lowlevel.checkpoint()
        broker.is_down = False
        await bus.publish_many([Noted(n, "later") for n in range(40, 60)])
        await trio.sleep(5)
        await bus.publish_many([Noted(n, "down" if n % 2 == 0 else "x") for n in range(60, 80)])
    numbers = [number for _, number in broker.done]
    first = numbers.index(0)
    # The retry is overtaken, and what lined up behind it; from then on all is in order.
    assert numbers[:first] == sorted(numbers[:first])
    assert numbers[first:] == sorted(numbers[first:])
    assert sorted(numbers) == list(range(80))


async def test_a_replay_does_not_overtake_what_has_still_to_be_read_back(new_store, autojump_clock):
    seen = []

    async def fails_at_first(event):
        seen.append(event.number)
        if seen.count(event.number) == 1 and event.number in (0, 1):
            raise ConnectionError

    bus = EventBus(new_store(), buffer=3)
    once = Retry(attempts=1)
    bus.subscribe(Noted, fails_at_first, name="a", where=lambda e: e.number == 0, retry=once)
    bus.subscribe(Noted, fails_at_first, name="b", where=lambda e: e.number > 0, retry=LATER)
    async with bus:
        await bus.publish(Noted(0, "a"))
        await bus.wait_idle()
        await bus.publish_many([Noted(n, "a") for n in range(1, 20)])
        while bus.statistics().queued < 18 or not bus.statistics().waiting_for_retry:
            await trio.lowlevel.checkpoint()
        for number in range(50, 55):
            await bus.publish(Noted(number, f"{number}"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.dead_letters.replay)
            await trio.sleep(1)
            await bus.publish(Noted(20, "a"))
    assert [n for n in seen if n < 50] == [0, 1, *range(1, 20), 0, 20]


async def fail(event):
    raise ConnectionError


# What is counted


async def test_what_has_to_be_read_back_is_counted_in_statistics_and_at_the_stop(
    new_store, autojump_clock
):
    broker = Broker()
    async with bus_of(new_store(), broker, buffer=2) as bus:
        await bus.publish_many([Noted(n, "down") for n in range(50)])
        while bus.statistics().waiting_for_retry < 1 or bus.statistics().queued < 49:
            await trio.lowlevel.checkpoint()
        statistics = bus.statistics()
        assert (statistics.published, statistics.groups["default"].published) == (50, 50)
        assert (statistics.queued, statistics.in_flight, statistics.handled) == (49, 0, 0)
        report = await bus.stop(drain=False)
    assert report.left == {"default": 50}
    assert bus.statistics().queued == 49


# A group that is new


async def test_what_a_new_group_has_begun_is_delivered_again_after_a_crash(
    new_store, autojump_clock
):
    begun = []
    stored = came = trio.Event()

    async def handler(event):
        begun.append(event.number)
        came.set()
        await trio.sleep_forever()

    async def publish(bus):
        await bus.publish(Noted(1))
        stored.set()

    for turns in range(12):
        store = new_store()
        bus = EventBus(store)
        bus.subscribe(Other, fail)
        late = bus.group(f"late {turns}")
        begun.clear()
        stored = trio.Event()
        async with trio.open_nursery() as nursery:
            await nursery.start(bus.run)
            nursery.start_soon(publish, bus)
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            late.subscribe(Noted, handler, name="handler")
            while not (begun or stored.is_set()):
                await trio.lowlevel.checkpoint()
            was_begun = bool(begun)
            await bus._crash()
        came = trio.Event()
        bus = EventBus(new_store())
        bus.group(f"late {turns}").subscribe(Noted, handler, name="handler")
        async with trio.open_nursery() as nursery:
            await nursery.start(bus.run)
            if was_begun:
                with trio.fail_after(60):  # its attempt is recorded before
                    await came.wait()
            await bus._crash()


# Reads that fail


async def test_a_read_that_fails_is_made_again_and_health_says_so(
    new_store, autojump_clock, monkeypatch
):
    broker = Broker()
    async with new_store() as store:
        await store.append([Noted(n, "a") for n in range(10)])
        bus = bus_of(store, broker, start="beginning")
        fetch, failures = store._fetch, 3

        async def fail_at_first(*args, **options):
            nonlocal failures
            await trio.lowlevel.checkpoint()
            if failures:
                failures -= 1
                raise StoreIOError("the disk does not answer")
            return await fetch(*args, **options)

        monkeypatch.setattr(store, "_fetch", fail_at_first)
        async with bus:
            await trio.sleep(0.5)
            health = bus.health()
            assert health.status == "degraded"
            (reason,) = health.reasons
            assert reason == (
                "group 'default' could not read on, and tries again: the disk does not answer."
            )
            await trio.sleep(10)
            assert bus.health().status == "healthy"
            assert broker.done == [("a", n) for n in range(10)]


async def test_a_read_that_failed_is_made_again_when_something_was_stored(
    new_store, autojump_clock, monkeypatch
):
    broker = Broker()
    async with new_store() as store:
        await store.append([Noted(0, "a")])
        bus = bus_of(store, broker, start="beginning")
        fetch, is_down = store._fetch, True

        async def fail_while_down(*args, **options):
            await trio.lowlevel.checkpoint()
            if is_down:
                raise StoreIOError("the disk does not answer")
            return await fetch(*args, **options)

        monkeypatch.setattr(store, "_fetch", fail_while_down)
        async with bus:
            await trio.sleep(0.5)
            is_down = False
            await bus.publish(Noted(1, "a"))
            while len(broker.done) < 2:
                await trio.lowlevel.checkpoint()
            assert bus.statistics().uptime_seconds == 0.5
    assert broker.done == [("a", 0), ("a", 1)]
