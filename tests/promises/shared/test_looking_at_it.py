"""Who shares a store and who has how much, and what is said when something is wrong."""

import pytest
import trio
import trio.testing

from tests.promises.shared.cluster import LEASE, ORDERS, Booked, cluster, group_of
from triobus import EventBus, InvalidOption, StoredNode
from triobus.testing import cut_off, reconnect


async def test_the_statistics_of_the_store_tell_the_nodes_and_their_segments(autojump_clock):
    async with cluster("a", "b", "c") as nodes, nodes.store:
        await trio.sleep(0.01)
        found = (await nodes.store.statistics()).nodes
        assert [*found] == [1, 2, 3]
        assert [node.segments["default"] for node in found.values()] == [22, 22, 20]
        assert all(isinstance(node, StoredNode) and node.name for node in found.values())
        await nodes.crash("b")
        await trio.sleep(2 * LEASE)
        found = (await nodes.store.statistics()).nodes
        assert {number: node.segments for number, node in found.items()} == {
            1: {"default": 32},
            3: {"default": 32},
        }
        await nodes.publish(*ORDERS)
        await nodes.settled()
        assert (await nodes.store.statistics()).groups["default"].lag == 0


async def test_a_node_says_when_it_is_cut_off_or_outdated_or_its_group_paused(autojump_clock):
    async with cluster("a", "b") as nodes:
        a, b = nodes.nodes.values()
        assert a.health().reasons == ()
        cut_off(a)
        await trio.sleep(LEASE)
        assert "the bus is no node of its store now" in a.health().reasons[0]
        reconnect(a)
        await trio.sleep(LEASE)
        assert a.health().status == "healthy"
        await group_of(a).pause()
        await trio.testing.wait_all_tasks_blocked()
        assert "is paused by another bus of its store" in b.health().reasons[0]
        await group_of(b).resume()
        await trio.sleep(1)
        assert b.health().reasons == ()

        def newer(name: str) -> EventBus:
            bus = nodes.bus(name)

            @bus.subscribe(Booked, name="further")
            async def further(event: Booked) -> None: ...

            return bus

        await nodes.start("c", make=newer)
        await trio.sleep(1)
        assert "has other subscriptions on newer buses" in a.health().reasons[0]


async def test_a_bus_that_would_share_a_group_otherwise_does_not_start(autojump_clock):
    async with cluster("a") as nodes:
        bus = EventBus(nodes.store, workers=1)
        bus.subscribe(Booked, lambda _: None, name="handle")
        with pytest.raises(InvalidOption, match="give it on all nodes the same workers"):
            async with bus:
                pass
        await trio.sleep(0.01)
        assert nodes.segments() == {"a": 64}
        await nodes.publish(*ORDERS)
        await nodes.settled()
