"""Dead letters are listed, replayed and discarded from any node; their owner executes."""

from collections.abc import Callable

import attrs
import pytest
import trio
import trio.testing

from tests.promises.shared.cluster import LEASE, ORDERS, Cluster, Ordered, cluster
from triobus import EventBus, Retry, UnknownDeadLetter


@attrs.define(eq=False)
class Broker:
    """What the handlers call, which is down at first."""

    nodes: Cluster
    is_down: bool = True
    called: list[tuple[str, str, int]] = attrs.field(factory=list)

    def bus(self, name: str) -> EventBus:
        bus = EventBus(self.nodes.store)

        @bus.subscribe(Ordered, name="send", hold=True, retry=Retry(attempts=1))
        async def send(event: Ordered) -> None:
            await trio.sleep(0.1)
            if self.is_down:
                raise ConnectionError("down")
            self.called.append((name, event.order, event.number))

        return bus

    async def start(self, *names: str) -> None:
        make: Callable[[str], EventBus] = self.bus
        await self.nodes.start(*names, make=make)


async def test_any_node_lists_all_dead_letters(autojump_clock):
    async with cluster() as nodes:
        await Broker(nodes).start("a", "b")
        await nodes.publish(*ORDERS)
        await nodes.settled()
        for bus in nodes.nodes.values():
            letters = await bus.dead_letters.list()
            assert [letter.id for letter in letters] == [*range(1, len(ORDERS) + 1)]
            assert {letter.aggregate_id for letter in letters} == set(ORDERS)


async def test_any_node_has_them_replayed_where_their_aggregates_are_handled(autojump_clock):
    async with cluster() as nodes:
        broker = Broker(nodes)
        await broker.start("a", "b")
        await nodes.publish(*ORDERS)
        await nodes.publish(*ORDERS)  # held back
        await nodes.settled()
        broker.is_down = False
        await nodes.publish(*ORDERS)  # held back too
        await nodes.settled()
        assert broker.called == []
        assert await nodes.nodes["a"].dead_letters.replay() == 3 * len(ORDERS)
        for order in ORDERS:
            calls = [(name, number) for name, of, number in broker.called if of == order]
            assert [number for _, number in calls] == [1, 2, 3]
            assert len({name for name, _ in calls}) == 1
        assert {name for name, _, _ in broker.called} == {"a", "b"}
        for bus in nodes.nodes.values():
            assert await bus.dead_letters.list() == []
        await nodes.publish(*ORDERS)
        await nodes.settled()
        assert len(broker.called) == 4 * len(ORDERS)


async def test_what_fails_again_stays_and_is_counted_by_none(autojump_clock):
    async with cluster() as nodes:
        await Broker(nodes).start("a", "b")
        await nodes.publish(*ORDERS)
        await nodes.settled()
        assert await nodes.nodes["b"].dead_letters.replay() == 0
        letters = await nodes.nodes["a"].dead_letters.list()
        assert [letter.attempts for letter in letters] == [2] * len(ORDERS)


async def test_what_is_discarded_anywhere_holds_back_nothing_any_more(autojump_clock):
    async with cluster() as nodes:
        broker = Broker(nodes)
        await broker.start("a", "b")
        await nodes.publish(*ORDERS)
        await nodes.settled()
        broker.is_down = False
        letters = await nodes.nodes["a"].dead_letters.list()
        assert await nodes.nodes["a"].dead_letters.discard(letters) == len(ORDERS)
        await trio.testing.wait_all_tasks_blocked()
        await nodes.publish(*ORDERS)
        await nodes.settled()
        with pytest.raises(UnknownDeadLetter):
            await nodes.nodes["b"].dead_letters.discard(letters[0])
        assert sorted(number for _, _, number in broker.called) == [2] * len(ORDERS)
        assert await nodes.nodes["b"].dead_letters.list() == []


async def test_a_replay_goes_on_with_the_next_owner(autojump_clock):
    async with cluster() as nodes:
        broker = Broker(nodes)
        await broker.start("a", "b")
        await nodes.publish(*ORDERS)
        await nodes.settled()
        broker.is_down = False
        counts: list[int] = []

        async def replay() -> None:
            counts.append(await nodes.nodes["a"].dead_letters.replay())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(replay)
            await trio.sleep(0.05)
            await nodes.crash("b")
        assert counts == [len(ORDERS)]
        assert trio.current_time() > LEASE / 2
        assert {(order, number) for _, order, number in broker.called} == {(o, 1) for o in ORDERS}
        assert {name for name, _, _ in broker.called} == {"a"}
