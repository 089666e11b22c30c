"""What those get who wait for a bus that ends."""

import asyncio
from collections.abc import Callable, Coroutine

import pytest
import trio

from tests.events import Noted
from tests.promises.lives import Gate
from tests.settled import settled
from triobus import BusClosed, EventBus, MemoryEventStore, NotInTrio, Retry


async def raises_bus_closed(reason, call, *args):
    with pytest.raises(BusClosed, match=reason):
        await call(*args)


async def test_publish_and_wait_raises_bus_closed_when_the_bus_ends_before_the_handlers(
    new_bus, autojump_clock
):
    gate = Gate()
    bus = new_bus()
    bus.subscribe(Noted, gate)
    reason = "was accepted, and the bus stopped before"
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        nursery.start_soon(raises_bus_closed, reason, bus.publish_and_wait, Noted(1))
        await settled()
        await bus.stop(drain=False)


async def test_publish_and_wait_gets_its_outcome_when_the_bus_drains(new_bus, autojump_clock):
    bus = new_bus()
    gate = Gate()
    bus.subscribe(Noted, gate, name="gate")
    outcomes = []

    async def wait():
        outcomes.append(await bus.publish_and_wait(Noted(1)))

    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        nursery.start_soon(wait)
        await settled()
        nursery.start_soon(bus.stop)
        await settled()
        gate.open.set()
    assert [outcome.results for outcome in outcomes] == [{"gate": None}]


async def test_wait_idle_raises_bus_closed_when_the_bus_stops_and_leaves_something(
    new_bus, autojump_clock
):
    gate = Gate()
    bus = new_bus()
    bus.subscribe(Noted, gate)
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await bus.publish(Noted(1))
        nursery.start_soon(raises_bus_closed, "1 deliveries left", bus.wait_idle)
        await settled()
        await bus.stop(drain=False)


async def test_wait_idle_returns_when_nothing_is_queued_running_or_waiting(new_bus, autojump_clock):
    bus = new_bus(workers=2)
    finished = []

    @bus.subscribe(Noted, retry=Retry(attempts=2, delay=5, jitter=0))
    async def second_time_right(event):
        if trio.current_time() < 5:
            raise OSError
        await trio.sleep(2)
        finished.append(event.number)

    async with bus:
        await bus.wait_idle()
        assert trio.current_time() == 0
        await bus.publish_many([Noted(1), Noted(2), Noted(3)])
        async with trio.open_nursery() as nursery:  # any number may wait
            for _ in range(3):
                nursery.start_soon(bus.wait_idle)
        assert trio.current_time() == 5 + 2 + 2
        assert sorted(finished) == [1, 2, 3]
        await bus.publish(Noted(4))
        await bus.wait_idle()
        assert sorted(finished) == [1, 2, 3, 4]
    await bus.wait_idle()  # after the stop nothing is left to wait for


async def test_a_stop_in_a_program_that_is_cancelled_is_cancelled_though_the_bus_has_ended(
    new_bus,
    autojump_clock,
):
    bus = new_bus()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(bus.run)
            scope.cancel()
            with trio.CancelScope(shield=True):
                await settled()
            assert not bus.statistics().running
            await bus.stop()
    assert scope.cancelled_caught


async def use_a_bus() -> None:
    async with EventBus():
        raise AssertionError


async def run_a_bus() -> None:
    await EventBus().run()


async def use_a_store() -> None:
    async with MemoryEventStore():
        raise AssertionError


@pytest.mark.parametrize(
    ("main", "what"),
    [
        (use_a_bus, "async with bus"),
        (run_a_bus, "async with bus"),
        (use_a_store, "async with store"),
    ],
)
def test_a_bus_or_a_store_in_an_asyncio_program_says_that_it_needs_trio(
    main: Callable[[], Coroutine[None, None, None]], what: str
) -> None:
    with pytest.raises(NotInTrio) as caught:
        asyncio.run(main())
    assert str(caught.value) == (
        f"{what} needs Trio, and no Trio task is running here: triobus lives inside a Trio "
        "program, so start it with trio.run(main), not with asyncio.run(main)"
    )
