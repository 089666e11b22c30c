"""One of two nodes is cancelled before every step of the scheduler, and the other goes on.

And both are: then a third one comes later. Schedules are taken at random besides, by seed.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable

import pytest
import trio

from tests.promises.shared.cluster import Booked, Ordered
from triobus import EventBus, MemoryEventStore, Retry, Transaction
from triobus.testing import World, cancel_at_every_step, crash, cut_off, reconnect

_ORDERS = ("x", "y")


def _make_bus(world: World) -> EventBus:
    """Return a bus that fails once with one event, books each order once and notes all of it."""
    store = world.outside.setdefault("store", MemoryEventStore(lease=5.0))
    handled = world.outside.setdefault("handled", defaultdict(list))
    failing = world.outside.setdefault("failing", {("y", 1)})
    bus = EventBus(store, workers=2, buffer=2)

    @bus.subscribe(Ordered, name="handle", priority=1, retry=Retry(delay=1, jitter=0))
    async def handle(event: Ordered) -> None:
        await trio.lowlevel.checkpoint()
        if (event.order, event.number) in failing:
            failing.discard((event.order, event.number))
            raise OSError
        handled[event.order].append(event.number)

    @bus.subscribe(Ordered, name="book", transactional=True)
    def book(event: Ordered, transaction: Transaction) -> None:
        transaction.publish(Booked(order=event.order, number=event.number))

    return bus


async def _publish(bus: EventBus, *numbers: int) -> None:
    for number in numbers or (1, 2):
        await bus.publish_many([Ordered(order=order, number=number) for order in _ORDERS])


async def _settled(store: MemoryEventStore) -> None:
    async with store:
        while any(group.lag for group in (await store.statistics()).groups.values()):  # noqa: ASYNC110  # no event tells of it
            await trio.sleep(0.1)


async def _check(world: World) -> None:
    store = world.outside["store"]
    async with store:
        log = [stored.event async for stored in store.read()]
    for order in _ORDERS:
        numbers = [e.number for e in log if isinstance(e, Ordered) and e.order == order]
        booked = [e.number for e in log if isinstance(e, Booked) and e.order == order]
        handled = world.outside["handled"][order]
        assert booked == numbers
        assert sorted(set(handled), key=handled.index) == numbers


async def _lives(bus: EventBus) -> None:
    async with bus:
        await _publish(bus)
        await bus.wait_idle()


async def _is_cut_off(bus: EventBus) -> None:
    async with bus:
        await _publish(bus)
        cut_off(bus)
        try:
            await trio.sleep(7)
        finally:
            reconnect(bus)
        await trio.sleep(1)


async def _is_killed(bus: EventBus) -> None:
    async with bus:
        await _publish(bus)
        await crash(bus)


@pytest.mark.parametrize("lives", [_lives, _is_cut_off, _is_killed])
def test_the_other_node_goes_on_wherever_one_is_cancelled(
    lives: Callable[[EventBus], Awaitable[None]],
) -> None:
    async def scenario(world: World) -> None:
        has_begun, is_over = trio.Event(), trio.Event()

        async def other() -> None:
            with trio.CancelScope(shield=True):
                async with _make_bus(world) as bus:
                    has_begun.set()
                    await is_over.wait()
                    await _settled(world.outside["store"])
                    assert bus.statistics().running

        one = _make_bus(world)
        async with trio.open_nursery() as nursery:
            try:
                nursery.start_soon(other)
                await has_begun.wait()
                await lives(one)
            finally:
                is_over.set()

    assert cancel_at_every_step(scenario, _check) > 100


def test_a_node_that_comes_later_goes_on_wherever_both_are_cancelled() -> None:
    async def scenario(world: World) -> None:
        async with _make_bus(world) as one, _make_bus(world) as other:
            await _publish(one, 1)
            await _publish(other, 2)

    async def check(world: World) -> None:
        async with _make_bus(world):
            await _settled(world.outside["store"])
        await _check(world)

    assert cancel_at_every_step(scenario, check) > 100
