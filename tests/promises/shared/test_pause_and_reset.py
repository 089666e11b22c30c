"""Pausing, resuming and resetting are of the whole group, on all nodes."""

import trio
import trio.testing

from tests.promises.shared.cluster import LEASE, ORDERS, cluster, group_of


async def test_a_pause_waits_for_the_handlers_of_all_nodes_and_none_begins(autojump_clock):
    async with cluster("a", "b", seconds=2) as nodes:
        await nodes.publish(*ORDERS)
        await trio.sleep(0.5)
        group = group_of(nodes.nodes["a"])
        await group.pause()
        assert trio.current_time() == 2.0
        began = len(nodes.began)
        assert began == len(nodes.handled) == 8
        await nodes.publish(*ORDERS)
        await trio.sleep(10)
        assert len(nodes.began) == began
        await nodes.start("c")
        await trio.sleep(10)
        assert nodes.segments() == {"a": 0, "b": 0, "c": 0}
        await group.resume()
        await nodes.settled()
        assert {attempt.node for attempt in nodes.handled} == {"a", "b", "c"}
        nodes.check_all_in_order(is_once=True)


async def test_any_node_resumes_what_another_has_paused(autojump_clock):
    async with cluster("a", "b") as nodes:
        await group_of(nodes.nodes["a"]).pause()
        await nodes.publish(*ORDERS)
        await trio.sleep(1)
        assert nodes.handled == []
        await group_of(nodes.nodes["b"]).resume()
        await nodes.settled()
        assert {attempt.node for attempt in nodes.handled} == {"a", "b"}
        assert not nodes.nodes["a"].statistics().groups["default"].paused


async def test_a_pause_ends_with_the_node_that_has_made_it(autojump_clock):
    async with cluster("a", "b") as nodes:
        await group_of(nodes.nodes["a"]).pause()
        await nodes.publish(*ORDERS)
        await nodes.crash("a")
        await trio.sleep(LEASE / 2)
        assert nodes.handled == []
        await trio.sleep(2 * LEASE)
        await nodes.settled()
        nodes.check_all_in_order(is_once=True)


async def test_a_pause_waits_for_the_lease_of_a_node_that_has_died(autojump_clock):
    async with cluster("a", "b", seconds=60) as nodes:
        await nodes.publish(*ORDERS, through="b")
        await trio.sleep(0.1)
        cancelled = nodes.nodes["b"]
        await nodes.crash("b")
        assert cancelled is not None
        with trio.move_on_after(1) as scope:
            await group_of(nodes.nodes["a"]).pause()
        assert scope.cancelled_caught
        await group_of(nodes.nodes["a"]).resume()


async def test_a_reset_is_of_all_segments(autojump_clock):
    async with cluster("a", "b") as nodes:
        await nodes.publish(*ORDERS)
        await nodes.publish(*ORDERS)
        await nodes.settled()
        group = group_of(nodes.nodes["b"])
        await group.pause()
        await group.reset("beginning")
        nodes.handled.clear()
        await group.resume()
        await nodes.settled()
        assert nodes.numbers() == {order: [1, 2] for order in ORDERS}
        await group.pause()
        await nodes.publish(*ORDERS)
        await group.reset("end")
        nodes.handled.clear()
        await group.resume()
        await trio.sleep(1)
        assert nodes.handled == []
        nodes.published = dict.fromkeys(ORDERS, 3)
        await nodes.publish(*ORDERS)
        await nodes.settled()
        assert nodes.numbers() == {order: [4] for order in ORDERS}
