"""Buses that share a store: what each of them handles, and by which token."""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import attrs
import trio

from triobus import DomainEvent, EventBus, Group, MemoryEventStore, Transaction, current_delivery
from triobus.testing import crash, reconnect

LEASE = 5.0


@attrs.frozen
class Ordered(DomainEvent):
    """What the buses of a cluster handle."""

    event_type: ClassVar[str] = "cluster.ordered"
    order: str
    number: int

    @property
    def aggregate_id(self) -> str:
        return self.order


@attrs.frozen
class Attempt:
    """One call of a handler."""

    node: str
    order: str
    number: int
    fence: int
    at: float


@attrs.define(eq=False)
class Cluster:
    """A store in memory, and the buses that share it."""

    nursery: trio.Nursery
    store: MemoryEventStore = attrs.field(factory=lambda: MemoryEventStore(lease=LEASE))
    seconds: float = 0.01
    """How long a handler takes."""
    options: dict[str, Any] = attrs.field(factory=dict)
    """Of every bus."""
    nodes: dict[str, EventBus] = attrs.field(factory=dict, init=False)
    began: list[Attempt] = attrs.field(factory=list, init=False)
    handled: list[Attempt] = attrs.field(factory=list, init=False)
    """Calls that came to their end."""
    running: dict[str, list[str]] = attrs.field(factory=lambda: defaultdict(list), init=False)
    """The nodes whose handlers work on each order."""
    overlaps: list[tuple[str, str]] = attrs.field(factory=list, init=False)
    """The nodes whose handlers worked on the same order at a time."""
    published: dict[str, int] = attrs.field(factory=lambda: defaultdict(int), init=False)
    """The last number of each order."""

    def bus(self, name: str) -> EventBus:
        """Return a bus that notes what it handles."""
        bus = EventBus(self.store, **self.options)

        @bus.subscribe(Ordered, name="handle")
        async def handle(event: Ordered) -> None:
            attempt = self.attempt(name, event)
            self.began.append(attempt)
            running = self.running[event.order]
            self.overlaps += [(other, name) for other in running]
            running.append(name)
            try:
                await trio.sleep(self.seconds)
                self.handled.append(attempt)
            finally:
                running.remove(name)

        return bus

    def attempt(self, name: str, event: Ordered) -> Attempt:
        delivery = current_delivery()
        assert delivery.fence is not None
        return Attempt(name, event.order, event.number, delivery.fence, trio.current_time())

    async def start(self, *names: str, make: Callable[[str], EventBus] | None = None) -> None:
        """Start buses."""
        for name in names:
            bus = self.nodes[name] = (make or self.bus)(name)
            await self.nursery.start(bus.run)

    async def crash(self, name: str) -> None:
        await crash(self.nodes.pop(name))

    async def leave(self, name: str, **options: Any) -> None:
        await self.nodes.pop(name).stop(**options)

    def segments(self, group: str = "default") -> dict[str, int]:
        """Return how many segments each node has."""
        return {name: len(share_of(bus, group).taking) for name, bus in self.nodes.items()}

    async def publish(self, *orders: str, through: str | None = None) -> None:
        """Publish the next event of each order, through one node or one after the other."""
        names = [*self.nodes] if through is None else [through]
        for index, order in enumerate(orders):
            self.published[order] += 1
            event = Ordered(order=order, number=self.published[order])
            await self.nodes[names[index % len(names)]].publish(event)

    async def settled(self) -> None:
        """Wait until everything is settled that was published."""
        async with self.store:
            while (await self.store.statistics()).groups["default"].lag:  # noqa: ASYNC110  # no event tells of all nodes
                await trio.sleep(0.05)

    def numbers(self) -> dict[str, list[int]]:
        """Return the numbers of each order in the order of the calls that came to their end."""
        found: dict[str, list[int]] = defaultdict(list)
        for attempt in self.handled:
            found[attempt.order].append(attempt.number)
        return dict(found)

    def check_all_in_order(self, *, is_once: bool = False) -> None:
        """Nothing is missing, and nothing was tried before what came before it was handled."""
        for order, last in self.published.items():
            numbers = [attempt.number for attempt in self.began if attempt.order == order]
            handled = [attempt.number for attempt in self.handled if attempt.order == order]
            assert sorted(set(handled)) == [*range(1, last + 1)], (order, handled)
            firsts = sorted(set(numbers), key=numbers.index)
            assert firsts == [*range(1, last + 1)], (order, numbers)
            if is_once:
                assert numbers == [*range(1, last + 1)], (order, numbers)


def share_of(bus: EventBus, group: str = "default") -> Any:
    """Return what a bus has of a group."""
    return bus._life.log._recorder.catch_ups[group].share  # type: ignore[union-attr]  # it is stored


def group_of(bus: EventBus) -> Group:
    """Return the group "default" of a bus."""
    return bus._default


@asynccontextmanager
async def cluster(*names: str, **options: Any) -> AsyncIterator[Cluster]:
    """Run a cluster of some nodes; those that are left leave one after the other at the end."""
    async with trio.open_nursery() as nursery:
        found = Cluster(nursery, **options)
        await found.start(*names)
        with trio.fail_after(3600):
            try:
                yield found
            finally:
                for bus in found.nodes.values():
                    reconnect(bus)
            for name in [*found.nodes]:
                await found.leave(name)


ORDERS = tuple(f"order-{number}" for number in range(40))


class Books:
    """What transactional handlers write, each with the commit that settles its delivery.

    A store in memory has no tables, so what is written is what is published.
    """

    @staticmethod
    def note(event: Ordered, transaction: Transaction) -> None:
        transaction.publish(Booked(order=event.order, number=event.number))


@attrs.frozen
class Booked(DomainEvent):
    """The effect of an order, once in the log for each."""

    event_type: ClassVar[str] = "cluster.booked"
    order: str
    number: int

    @property
    def aggregate_id(self) -> str:
        return f"booked {self.order}"
