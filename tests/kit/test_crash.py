"""`crash`: a bus ends as in a killed process, and a new one on the same file recovers."""

import os
from contextlib import suppress

import pytest
import trio

from tests.kit.scenarios import Ordered
from triobus import BusClosed, EventBus, MemoryEventStore, OutcomeUnknown, Retry, SqliteEventStore
from triobus.testing import SlowHandler, cancel_at_every_step, crash, record


def new_bus(path, handler, **options):
    bus = EventBus(store=SqliteEventStore(path), **options)
    bus.subscribe(Ordered, handler, name="handler")
    return bus


async def test_what_was_accepted_is_handled_by_the_next_bus(autojump_clock, store_path):
    first, second = SlowHandler(5), SlowHandler(5)
    async with new_bus(store_path, first) as bus:
        await bus.publish_many([Ordered("Ada", 1), Ordered("Ada", 2)])
        await trio.sleep(6)
        await crash(bus)
    assert [call.event.number for call in first.calls if call.error is None] == [1]
    async with new_bus(store_path, second) as bus:
        await bus.wait_idle()
    assert [event.number for event in second.events] == [2]


async def test_the_file_lies_there_as_a_killed_process_leaves_it(autojump_clock, store_path):
    async with new_bus(store_path, SlowHandler(5)) as bus:
        await bus.publish(Ordered("Ada", 1))
        written = (store_path.with_name("events.db-wal")).stat().st_size
        await crash(bus)
        assert sorted(os.listdir(store_path.parent)) == [
            "events.db",
            "events.db-lock",
            "events.db-shm",
            "events.db-wal",
        ]
        assert store_path.with_name("events.db-wal").stat().st_size == written > 0
    async with SqliteEventStore(store_path) as store:
        assert [stored.event.number async for stored in store.read()] == [1]


async def test_a_finished_delivery_that_was_not_recorded_is_made_again(autojump_clock, store_path):
    calls = []

    async def handler(event):
        calls.append(event.number)
        await crash(bus)

    async with new_bus(store_path, handler) as bus:
        await bus.publish(Ordered("Ada", 1))
        await trio.sleep(1)
        with pytest.raises(BusClosed):
            await bus.publish(Ordered("Ada", 2))
    async with new_bus(store_path, SlowHandler(1, then=lambda e: calls.append(e.number))):
        pass
    assert calls == [1, 1]


async def test_a_handler_may_crash_a_bus_that_runs_in_a_nursery(autojump_clock):
    bus = EventBus()

    @bus.subscribe(Ordered)
    async def handler(event):
        await crash(bus)

    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await bus.publish(Ordered("Ada", 1))
    assert bus.statistics().handled == 0


@pytest.mark.parametrize("store", [None, MemoryEventStore()])
async def test_a_crash_ends_the_run_of_a_bus_with_several_groups_and_nothing_to_do(
    autojump_clock, store
):
    bus = EventBus(store, workers=1)
    bus.group("mail", workers=1)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(bus.run)
            await crash(bus)
            assert bus.health().status == "stopped"


@pytest.mark.parametrize("is_cancelled", [False, True])
@pytest.mark.parametrize("make_store", [lambda: None, MemoryEventStore], ids=["none", "memory"])
@pytest.mark.parametrize("steps", range(16))
async def test_a_crash_at_any_step_of_the_start_ends_it_and_the_next_start_works(
    autojump_clock, make_store, steps, is_cancelled
):
    bus = EventBus(make_store(), workers=2)
    bus.group("mail", workers=2)
    handler = SlowHandler(1)
    bus.subscribe(Ordered, handler)

    async def crash_it():
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        with suppress(BusClosed):
            await crash(bus)
        assert bus.statistics().worker_count == 0

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crash_it)
            with trio.CancelScope() as scope, suppress(BusClosed):
                if is_cancelled:
                    nursery.start_soon(cancel_soon, steps, scope)
                async with bus:
                    await trio.lowlevel.checkpoint()
        assert bus.health().status == "stopped"
        async with bus:
            assert bus.statistics().worker_count == 4
            await bus.publish(Ordered("Ada", 1))
    assert [event.number for event in handler.events] == [1]


async def cancel_soon(steps, scope):
    for _ in range(steps + 1):
        await trio.lowlevel.checkpoint()
    scope.cancel()


@pytest.mark.parametrize("steps", range(12))
async def test_a_crash_while_something_is_being_recorded_raises_nothing(autojump_clock, steps):
    async with EventBus(MemoryEventStore()) as bus:
        bus.subscribe(Ordered, SlowHandler(1))
        await bus.publish(Ordered("Ada", 1))
        await trio.sleep(1)
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        await crash(bus)


async def test_the_attempts_that_a_killed_bus_had_recorded_count(autojump_clock, store_path):
    async def fail(event):
        raise ConnectionError

    def flaky_bus():
        bus = EventBus(store=SqliteEventStore(store_path))
        bus.subscribe(Ordered, fail, name="handler", retry=Retry(attempts=2, delay=10, jitter=0))
        return bus

    async with flaky_bus() as bus:
        await bus.publish(Ordered("Ada", 1))
        await trio.sleep(5)
        await crash(bus)
    bus = flaky_bus()
    recording = record(bus)
    async with bus:
        await bus.wait_idle()
    assert [(attempt.attempt, attempt.time) for attempt in recording.attempts] == [
        (2, pytest.approx(15, abs=10))
    ]


async def test_a_store_in_memory_keeps_what_was_committed(autojump_clock):
    store, second = MemoryEventStore(), SlowHandler(1)
    async with EventBus(store=store) as bus:
        bus.subscribe(Ordered, SlowHandler(5), name="handler")
        await bus.publish(Ordered("Ada", 1))
        await crash(bus)
    bus = EventBus(store=store)
    bus.subscribe(Ordered, second, name="handler")
    async with bus:
        pass
    assert [event.number for event in second.events] == [1]


async def test_publishers_learn_that_it_has_crashed(autojump_clock, store_path):
    errors = []

    async def publish(bus, number):
        try:
            await bus.publish(Ordered("Ada", number))
        except (BusClosed, OutcomeUnknown) as error:
            errors.append(type(error))

    async with new_bus(store_path, SlowHandler(1)) as bus, trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(publish, bus, number)
        await trio.testing.wait_all_tasks_blocked()
        await crash(bus)
    async with SqliteEventStore(store_path) as store:
        stored = (await store.statistics()).events
    assert len(errors) + stored >= 10
    assert set(errors) <= {BusClosed, OutcomeUnknown}


@pytest.mark.parametrize("steps", range(8))
async def test_a_crash_while_what_is_finished_is_being_recorded_ends_the_bus_without_an_error(
    steps,
):
    handled = trio.Event()

    async def handler(event):
        handled.set()

    bus = EventBus(MemoryEventStore())
    bus.subscribe(Ordered, handler)
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await bus.publish(Ordered("Ada", 1))
        await handled.wait()
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        await crash(bus)


async def test_a_bus_that_does_not_run_cannot_crash():
    with pytest.raises(BusClosed, match="has not been started"):
        await crash(EventBus())


def test_crashed_at_any_step_nothing_accepted_is_lost():
    async def scenario(world):
        accepted = world.outside["accepted"] = set()
        handled = world.outside["handled"] = set()
        async with new_bus(world.directory / "events.db", lambda e: handled.add(e.number)) as bus:
            try:
                for number in range(3):
                    await bus.publish(Ordered("Ada", number))
                    accepted.add(number)
            except trio.Cancelled:
                with trio.CancelScope(shield=True):
                    await crash(bus)
                raise

    async def check(world):
        handled = world.outside.get("handled", set())
        if "accepted" not in world.outside:
            return
        async with new_bus(world.directory / "events.db", lambda e: handled.add(e.number)):
            pass
        assert world.outside["accepted"] <= handled

    assert cancel_at_every_step(scenario, check) > 50


async def test_crashed_while_its_first_progress_is_being_recorded_the_block_ends_quietly():
    for steps in [*range(8)] * 10:  # the order of tasks is left to chance
        bus = EventBus(store=MemoryEventStore())
        bus.subscribe(Ordered, SlowHandler(1), name="handler")
        async with bus:
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            await crash(bus)
