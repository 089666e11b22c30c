"""The order that is promised, with exact virtual times."""

import random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.events import Noted
from triobus import Retry, current_delivery
from triobus.testing._scheduler import scheduled_by

Calls = list[tuple[float, Any]]


def now() -> float:
    return round(trio.current_time(), 6)


async def test_events_of_an_aggregate_are_handled_one_at_a_time_in_order(
    new_bus,
    autojump_clock,
) -> None:
    calls: Calls = []
    bus = new_bus(workers=4)

    async def handle(event: Noted) -> None:
        calls.append((now(), event.number))
        await trio.sleep(1)

    bus.subscribe(Noted, handle)
    async with bus:
        await bus.publish_many([Noted(n, "a") for n in range(4)])
    assert calls == [(0, 0), (1, 1), (2, 2), (3, 3)]


async def test_different_aggregates_run_at_the_same_time(new_bus, autojump_clock) -> None:
    calls: Calls = []
    bus = new_bus(workers=3)

    async def handle(event: Noted) -> None:
        await trio.sleep(1)
        calls.append((now(), event.key))

    bus.subscribe(Noted, handle)
    async with bus:
        await bus.publish_many([Noted(0, key) for key in "abcd"])
    assert sorted(calls) == [(1, "a"), (1, "b"), (1, "c"), (2, "d")]


async def test_events_without_an_aggregate_run_at_the_same_time(new_bus, autojump_clock) -> None:
    bus = new_bus(workers=5)

    async def handle(event: Noted) -> None:
        await trio.sleep(1)

    bus.subscribe(Noted, handle)
    async with bus:
        await bus.publish_many([Noted(n) for n in range(10)])
    assert now() == 2


async def test_a_retry_keeps_its_place_in_its_aggregate(new_bus, autojump_clock) -> None:
    calls: Calls = []
    bus = new_bus(workers=4)

    async def handle(event: Noted) -> None:
        calls.append((now(), event.number))
        if event.number == 1 and current_delivery().attempt < 3:
            raise ValueError

    bus.subscribe(Noted, handle, retry=Retry(attempts=3, delay=1, factor=2, jitter=0))
    async with bus:
        await bus.publish_many([Noted(n, "a") for n in range(3)])
    assert calls == [(0, 0), (0, 1), (1, 1), (3, 1), (3, 2)]


@pytest.mark.parametrize("workers", [1, 2, 4])
async def test_a_retry_does_not_hold_up_another_aggregate(
    new_bus, autojump_clock, workers: int
) -> None:
    calls: Calls = []
    bus = new_bus(workers=workers)

    async def handle(event: Noted) -> None:
        calls.append((now(), (event.key, event.number)))
        if event.key == "bad" and current_delivery().attempt == 1:
            raise ValueError

    bus.subscribe(Noted, handle, retry=Retry(attempts=2, delay=60, max_delay=60, jitter=0))
    async with bus:
        await bus.publish_many([Noted(1, "bad"), Noted(2, "bad"), Noted(3, "good")])
        await trio.sleep(10)
        await bus.publish(Noted(4, "good"))
    assert sorted(calls) == [
        (0, ("bad", 1)),
        (0, ("good", 3)),
        (10, ("good", 4)),
        (60, ("bad", 1)),
        (60, ("bad", 2)),
        (120, ("bad", 2)),
    ]


@pytest.mark.parametrize("workers", [1, 3])
async def test_retries_that_wait_occupy_no_worker(new_bus, autojump_clock, workers: int) -> None:
    calls: Calls = []
    bus = new_bus(workers=workers)

    async def handle(event: Noted) -> None:
        if event.number and current_delivery().attempt == 1:
            raise ValueError
        calls.append((now(), event.key))

    bus.subscribe(Noted, handle, retry=Retry(attempts=2, delay=60, max_delay=60, jitter=0))
    async with bus:
        await bus.publish_many([Noted(1, f"bad {n}") for n in range(20)])
        await trio.sleep(1)
        statistics = bus.statistics()
        assert (statistics.waiting_for_retry, statistics.in_flight, statistics.queued) == (20, 0, 0)
        assert statistics.groups["default"].busy_workers == 0
        await bus.publish(Noted(0, "good"))
    assert sorted(calls) == [(1, "good"), *sorted((60, f"bad {n}") for n in range(20))]


async def test_a_slow_aggregate_holds_up_no_other(new_bus, autojump_clock) -> None:
    calls: Calls = []
    bus = new_bus(workers=2)

    async def handle(event: Noted) -> None:
        await trio.sleep(100 if event.key == "slow" else 1)
        calls.append((now(), event.key))

    bus.subscribe(Noted, handle)
    async with bus:
        await bus.publish_many([Noted(n, "slow") for n in range(2)])
        await bus.publish_many([Noted(n, f"quick {n}") for n in range(3)])
    assert calls == [(1, "quick 0"), (2, "quick 1"), (3, "quick 2"), (100, "slow"), (200, "slow")]


async def test_a_hot_aggregate_does_not_starve_the_rest(new_bus, autojump_clock) -> None:
    calls: Calls = []
    bus = new_bus(workers=2, buffer=10_000)

    async def handle(event: Noted) -> None:
        await trio.sleep(1)
        calls.append((now(), event.key))

    bus.subscribe(Noted, handle)
    async with bus:
        await bus.publish_many([Noted(n, "hot") for n in range(1000)])
        await bus.publish_many([Noted(n, f"cold {n}") for n in range(3)])
    cold = [call for call in calls if call[1] != "hot"]
    assert cold == [(1, "cold 0"), (2, "cold 1"), (3, "cold 2")]
    assert calls[-1] == (1000, "hot")


async def test_a_hot_aggregate_that_feeds_itself_does_not_starve_the_rest(
    new_bus,
    autojump_clock,
) -> None:
    calls: list[Any] = []
    bus = new_bus(workers=1)

    async def handle(event: Noted) -> None:
        calls.append((event.key, event.number))
        if event.key == "hot" and event.number < 1000:
            await bus.publish(Noted(event.number + 1, "hot"))

    bus.subscribe(Noted, handle)
    async with bus:
        await bus.publish_many([Noted(0, "hot"), Noted(0, "cold")])
    assert calls.index(("cold", 0)) == 1
    assert len(calls) == 1002


async def test_one_worker_gives_total_order(new_bus, autojump_clock) -> None:
    calls: Calls = []
    bus = new_bus(workers=1)
    chance = random.Random(1)

    async def handle(event: Noted) -> None:
        await trio.sleep(chance.random())
        calls.append((0, event.number))

    bus.subscribe(Noted, handle)
    keys = [chance.choice(["a", "b", "c", None]) for _ in range(200)]
    async with bus:
        for number, key in enumerate(keys):
            await bus.publish(Noted(number, key))
    assert calls == [(0, number) for number in range(200)]


async def test_ordering_none_handles_an_aggregate_at_the_same_time(
    new_bus,
    autojump_clock,
) -> None:
    calls: Calls = []
    bus = new_bus()
    group = bus.group("unordered", workers=3, ordering="none")

    @group.subscribe(Noted)
    async def handle(event: Noted) -> None:
        await trio.sleep(10 - event.number)
        calls.append((now(), event.number))

    async with bus:
        await bus.publish_many([Noted(n, "a") for n in range(3)])
    assert calls == [(8, 2), (9, 1), (10, 0)]


async def test_the_handlers_of_a_delivery_run_one_after_the_other(
    new_bus,
    autojump_clock,
) -> None:
    calls: Calls = []
    bus = new_bus(workers=4)

    def handler(name: str) -> Any:
        async def handle(event: Noted) -> None:
            calls.append((now(), name))
            await trio.sleep(1)

        return handle

    bus.subscribe(Noted, handler("low"), name="low", priority=-1)
    bus.subscribe(Noted, handler("first"), name="first")
    bus.subscribe(Noted, handler("second"), name="second")
    bus.subscribe(Noted, handler("high"), name="high", priority=1)
    async with bus:
        await bus.publish(Noted(1))
    assert calls == [(0, "high"), (1, "first"), (2, "second"), (3, "low")]


async def test_a_handler_waits_until_the_one_before_has_succeeded_or_given_up(
    new_bus,
    autojump_clock,
) -> None:
    calls: Calls = []
    bus = new_bus(workers=4)

    async def fails(event: Noted) -> None:
        calls.append((now(), "fails"))
        raise ValueError

    async def follows(event: Noted) -> None:
        calls.append((now(), "follows"))

    bus.subscribe(Noted, fails, retry=Retry(attempts=3, delay=1, factor=2, jitter=0))
    bus.subscribe(Noted, follows)
    async with bus:
        await bus.publish_many([Noted(1, "a"), Noted(2, "a")])
    assert calls == [
        (0, "fails"),
        (1, "fails"),
        (3, "fails"),
        (3, "follows"),
        (3, "fails"),
        (4, "fails"),
        (6, "fails"),
        (6, "follows"),
    ]


async def test_groups_do_not_wait_for_each_other(new_bus, autojump_clock) -> None:
    calls: Calls = []
    bus = new_bus(workers=1)

    async def slow(event: Noted) -> None:
        await trio.sleep(100)

    async def quick(event: Noted) -> None:
        calls.append((now(), event.number))
        await trio.sleep(1)

    async def fails(event: Noted) -> None:
        raise ValueError

    bus.subscribe(Noted, slow)
    bus.group("quick", workers=1).subscribe(Noted, quick)
    bus.group("failing", workers=1).subscribe(Noted, fails, retry=Retry(delay=50))
    async with bus:
        await bus.publish_many([Noted(n, "a") for n in range(3)])
    assert calls == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize("seed", range(4))
async def test_every_aggregate_stays_in_order_whatever_fails(
    new_bus, autojump_clock, seed: int
) -> None:
    chance = random.Random(seed)
    attempts = {n: chance.choice([1, 1, 1, 2, 3, 5]) for n in range(300)}
    busy: set[str] = set()
    finished: dict[str | None, list[int]] = {}
    workers = chance.randint(1, 6)
    bus = new_bus(workers=workers, buffer=chance.choice([1, 10, 1000]))
    running = 0

    async def handle(event: Noted) -> None:
        nonlocal running
        running += 1
        assert running <= workers
        if event.key is not None:
            assert event.key not in busy
            busy.add(event.key)
        await trio.sleep(chance.choice([0, 0, 0.1, 1]))
        running -= 1
        busy.discard(event.key or "")
        attempt = current_delivery().attempt
        assert event.number not in finished.get(event.key, [])
        if attempt < attempts[event.number]:
            raise ValueError
        finished.setdefault(event.key, []).append(event.number)

    bus.subscribe(Noted, handle, retry=Retry(attempts=5, delay=0.5, jitter=0.5))
    keys = [chance.choice([None, *"abcdefgh"[: chance.randint(1, 8)]]) for _ in range(300)]
    async with bus:
        for number, key in enumerate(keys):
            await bus.publish(Noted(number, key))
        await bus.wait_idle()
        assert await bus.dead_letters.list() == []
        assert bus.statistics().retries == sum(attempts.values()) - 300
    for key in set(keys):
        expected = [number for number, other in enumerate(keys) if other == key]
        if key is None:
            assert sorted(finished[key]) == expected
        else:
            assert finished[key] == expected


def test_what_is_published_right_behind_an_event_whose_handler_waits_is_handled_meanwhile(new_bus):
    async def scenario(lead):
        bus = new_bus(workers=2)
        is_slow, seen = trio.Event(), trio.Event()

        @bus.subscribe(Noted)
        async def note(event):
            if event.key == "slow":
                await is_slow.wait()
            elif event.key == "other":
                seen.set()

        async with bus:
            for number in range(lead):  # so that workers and the publisher have found their rhythm
                await bus.publish(Noted(number, str(number)))
            await bus.publish(Noted(0, "slow"))
            await bus.publish(Noted(0, "other"))
            try:
                with trio.fail_after(1):
                    await seen.wait()
            finally:
                is_slow.set()

    for seed in range(64):
        with scheduled_by(seed):
            trio.run(scenario, seed % 7, clock=MockClock(autojump_threshold=0))
