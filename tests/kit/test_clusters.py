"""Clusters in worlds: users' tests of programs on several machines, in virtual time, by seed."""

from collections import defaultdict
from typing import ClassVar

import attrs
import trio

from triobus import DomainEvent, EventBus, MemoryEventStore, Transaction
from triobus.testing import Faults, World, explore


@attrs.frozen
class Ordered(DomainEvent):
    event_type: ClassVar[str] = "shop.ordered"
    order: str
    number: int

    @property
    def aggregate_id(self) -> str:
        return self.order


@attrs.frozen
class Booked(DomainEvent):
    event_type: ClassVar[str] = "shop.booked"
    order: str
    number: int


_ORDERS, _NUMBERS = 6, 8


async def shop(world: World) -> None:
    """Orders are published through a cluster that is disturbed, and booked with effects once."""
    handled: dict[str, list[int]] = world.outside.setdefault("handled", defaultdict(list))

    def make_bus(store: MemoryEventStore) -> EventBus:
        bus = EventBus(store)

        @bus.subscribe(Ordered, name="handle", priority=1)
        async def handle(event: Ordered) -> None:
            await trio.sleep(world.random.random())
            handled[event.order].append(event.number)

        @bus.subscribe(Ordered, name="book", transactional=True)
        def book(event: Ordered, transaction: Transaction) -> None:
            transaction.publish(Booked(order=event.order, number=event.number))

        return bus

    async with world.cluster(make_bus, nodes=2) as cluster:

        async def publish(order: str) -> None:
            for number in range(1, _NUMBERS + 1):
                event_id = world.event_id(f"{order} {number}")
                await cluster.publish(Ordered(order=order, number=number, event_id=event_id))
                await trio.sleep(world.random.random())

        async with trio.open_nursery() as nursery:
            for number in range(_ORDERS):
                nursery.start_soon(publish, f"order-{number}")
            nursery.start_soon(cluster.disturb, 6)
        await cluster.settled()
        async with cluster.store:
            log = [stored.event async for stored in cluster.store.read()]
        for order in {event.order for event in log}:
            wanted = [*range(1, _NUMBERS + 1)]
            assert [e.number for e in log if isinstance(e, Ordered) and e.order == order] == wanted
            assert [e.number for e in log if isinstance(e, Booked) and e.order == order] == wanted
            assert sorted(set(handled[order]), key=handled[order].index) == wanted


def test_a_disturbed_cluster_loses_nothing_and_has_every_effect_once():
    found = explore(shop, seeds=30, faults=Faults(crashes=0))
    assert found.published >= 30 * _ORDERS * _NUMBERS


def test_a_whole_cluster_that_is_killed_goes_on_where_it_was():
    found = explore(shop, seeds=20)
    assert found.crashes > 10
