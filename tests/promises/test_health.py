"""Health: what is a reason to look, and who waits for whom."""

import subprocess
import sys
import textwrap

import attrs
import psutil
import pytest
import trio

from tests.events import Noted
from tests.settled import settled
from triobus import EventBus, Health, MemoryEventStore, Retry


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
