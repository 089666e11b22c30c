"""A cluster in one program: buses that share a store in memory, and what happens to them."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Literal

import attrs
import trio

from triobus import _checks
from triobus._bus import EventBus
from triobus._errors import BusClosed, OutcomeUnknown, StoreError
from triobus._events import DomainEvent
from triobus.stores import MemoryEventStore
from triobus.testing._crash import crash
from triobus.testing._nodes import cut_off, hang, reconnect

MakeBus = Callable[[MemoryEventStore], EventBus]
Happening = Literal["join", "leave", "kill", "hang", "cut off"]
HAPPENINGS: tuple[Happening, ...] = ("join", "leave", "kill", "hang", "cut off")


@attrs.define(eq=False)
class Cluster:
    """Buses that share a store, and the world in which they do; made by `World.cluster`."""

    store: MemoryEventStore
    """What they share. It outlives all of them."""
    _make_bus: MakeBus
    _random: Random
    _note: Callable[[str], None]
    _nursery: trio.Nursery
    nodes: list[EventBus] = attrs.field(factory=list, init=False)
    """The buses that run and are reached by each other."""
    _away: list[EventBus] = attrs.field(factory=list, init=False)
    """Those that hang or are cut off."""

    @property
    def node(self) -> EventBus:
        """One of the nodes, chosen by chance."""
        return self._random.choice(self.nodes)

    async def join(self) -> EventBus:
        """Start one more node; it runs when this returns."""
        bus = self._make_bus(self.store)
        self._note("--- a node joins ---")
        await self._nursery.start(self._run, bus)
        self.nodes.append(bus)
        return bus

    async def _run(self, bus: EventBus, *, task_status: trio.TaskStatus[EventBus]) -> None:
        await bus.run(task_status=task_status)

    async def leave(self, bus: EventBus) -> None:
        """Stop a node as a program does that ends: what its handlers do is finished."""
        self._forget(bus)
        self._note("--- a node leaves ---")
        await bus.stop(drain="running")

    async def kill(self, bus: EventBus) -> None:
        """End a node as a killed process would."""
        self._forget(bus)
        self._note("--- a node is killed ---")
        await crash(bus)

    def hang(self, bus: EventBus) -> None:
        """Let a node hang, as `triobus.testing.hang` does."""
        self._forget(bus)
        self._away.append(bus)
        self._note("--- a node hangs ---")
        hang(bus)

    def cut_off(self, bus: EventBus) -> None:
        """Cut a node off from its store, as `triobus.testing.cut_off` does."""
        self._forget(bus)
        self._away.append(bus)
        self._note("--- a node is cut off ---")
        cut_off(bus)

    def reconnect(self, bus: EventBus) -> None:
        """Let a node go on that hangs or is cut off."""
        self._away.remove(bus)
        self.nodes.append(bus)
        self._note("--- a node comes back ---")
        reconnect(bus)

    def _forget(self, bus: EventBus) -> None:
        self.nodes.remove(bus)

    async def disturb(
        self,
        times: int,
        *,
        every: float = 3.0,
        happenings: tuple[Happening, ...] = HAPPENINGS,
    ) -> None:
        """Let so many things happen to the cluster, one after about `every` seconds.

        What, when and to which node is decided by chance. One node at least is always there; what
        hangs or is cut off comes back after up to four leases.
        """
        _checks.whole_number("times", times, least=0)
        async with trio.open_nursery() as nursery:
            for _ in range(times):
                await trio.sleep(self._random.uniform(0, 2 * every))
                await self._let_happen(self._random.choice(happenings), nursery)

    async def _let_happen(self, happening: Happening, nursery: trio.Nursery) -> None:
        if happening == "join" or len(self.nodes) < 2:
            await self.join()
        elif happening == "leave":
            nursery.start_soon(self.leave, self.node)
        elif happening == "kill":
            await self.kill(self.node)
        else:
            nursery.start_soon(self._away_for_some_time, self.node, happening)

    async def _away_for_some_time(self, bus: EventBus, happening: Happening) -> None:
        if bus not in self.nodes:
            return
        (self.hang if happening == "hang" else self.cut_off)(bus)
        assert self.store.lease is not None
        await trio.sleep(self._random.uniform(0, 4 * self.store.lease))
        if bus in self._away:
            self.reconnect(bus)

    async def publish(self, event: DomainEvent) -> None:
        """Publish an event through any node, and again through another one until it is accepted."""
        while True:
            try:
                await self.node.publish(event)
                return
            except (BusClosed, OutcomeUnknown, StoreError):
                await trio.sleep(0.1)

    async def settled(self) -> None:
        """Wait until every group has settled everything that is in the log.

        Raises `trio.TooSlowError` if that does not come within an hour of virtual time.
        """
        with trio.fail_after(3600):
            while await self._lag():  # noqa: ASYNC110  # there is no event that all nodes make
                await trio.sleep(0.1)

    async def _lag(self) -> int:
        async with self.store:
            groups = (await self.store.statistics()).groups.values()
            return sum(group.lag for group in groups)

    async def end(self) -> None:
        """Let what is away come back, and stop all nodes one after the other."""
        for bus in [*self._away]:
            self.reconnect(bus)
        for bus in [*self.nodes]:
            self._forget(bus)
            with suppress(BusClosed):
                await bus.stop()


@asynccontextmanager
async def cluster_of(
    make_bus: MakeBus,
    store: MemoryEventStore,
    nodes: int,
    random: Random,
    note: Callable[[str], None],
) -> AsyncIterator[Cluster]:
    """Run a cluster, whose nodes stop one after the other when the block is left."""
    async with trio.open_nursery() as nursery:
        cluster = Cluster(store, make_bus, random, note, nursery)
        try:
            for _ in range(nodes):
                await cluster.join()
            yield cluster
        finally:
            for bus in cluster._away:
                reconnect(bus)
        await cluster.end()
