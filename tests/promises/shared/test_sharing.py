"""Several buses over one store share the work of their groups."""

from itertools import pairwise

import pytest
import trio
import trio.testing

from tests.promises.shared.cluster import LEASE, ORDERS, Ordered, cluster, share_of
from triobus import EventBus, MemoryEventStore, SequenceConflict, StoreInUse, current_delivery
from triobus.testing import cut_off, hang, reconnect


async def test_every_event_is_handled_by_one_of_the_nodes_in_its_order(autojump_clock):
    async with cluster("a", "b", "c") as nodes:
        for _ in range(10):
            await nodes.publish(*ORDERS)
        await nodes.settled()
        nodes.check_all_in_order(is_once=True)
        assert nodes.overlaps == []
        assert {attempt.node for attempt in nodes.handled} == {"a", "b", "c"}
        for order in ORDERS:
            assert len({a.node for a in nodes.handled if a.order == order}) == 1


async def test_the_segments_are_shared_out_evenly_and_a_join_moves_no_more_than_it_has_to(
    autojump_clock,
):
    async with cluster("a") as nodes:
        assert nodes.segments() == {"a": 64}
        await nodes.start("b")
        await trio.sleep(0.001)
        assert nodes.segments() == {"a": 32, "b": 32}
        had = {name: set(share_of(bus).parts) for name, bus in nodes.nodes.items()}
        await nodes.start("c")
        await trio.sleep(0.001)
        assert nodes.segments() == {"a": 22, "b": 22, "c": 20}
        for name in ("a", "b"):
            assert set(share_of(nodes.nodes[name]).parts) < had[name]


async def test_a_clean_leave_hands_over_at_once(autojump_clock):
    async with cluster("a", "b") as nodes:
        await nodes.publish(*ORDERS)
        await nodes.settled()
        left_at = trio.current_time()
        await nodes.leave("a")
        await trio.testing.wait_all_tasks_blocked()
        assert trio.current_time() == left_at
        assert nodes.segments() == {"b": 64}
        await nodes.publish(*ORDERS)
        await nodes.settled()
        nodes.check_all_in_order(is_once=True)


async def test_a_join_waits_for_the_handlers_that_run_and_for_nothing_else(autojump_clock):
    async with cluster("a", seconds=2.0, options={"workers": 64}) as nodes:
        await nodes.publish(*ORDERS)
        await nodes.publish(*ORDERS)
        await trio.sleep(1)
        await nodes.start("b")
        await trio.sleep(0.5)
        busy = {attempt.order for attempt in nodes.began}
        assert busy == set(ORDERS)
        await trio.sleep(0.5)  # the first round is done
        await trio.testing.wait_all_tasks_blocked()
        assert nodes.segments() == {"a": 32, "b": 32}
        await nodes.settled()
        nodes.check_all_in_order(is_once=True)
        assert nodes.overlaps == []
        assert {a.node for a in nodes.handled if a.number == 2} == {"a", "b"}


async def test_a_node_that_dies_is_replaced_within_two_leases(autojump_clock):
    async with cluster("a", "b", seconds=0.5) as nodes:
        await nodes.publish(*ORDERS)
        await trio.sleep(0.25)
        await nodes.crash("a")
        died_at = trio.current_time()
        await trio.sleep_until(died_at + 2 * LEASE)
        assert nodes.segments() == {"b": 64}
        await nodes.publish(*ORDERS)
        await nodes.settled()
        nodes.check_all_in_order()
        assert nodes.overlaps == []


async def test_takeover_comes_when_another_node_looks_after_the_lease_is_over(autojump_clock):
    """The lease was renewed last at 5 / 3 s, and is over at 20 / 3; b looks every 5 / 3."""
    async with cluster("a", "b") as nodes:
        await trio.sleep(2)
        await nodes.crash("a")
        await trio.sleep_until(LEASE / 3 + LEASE - 0.01)
        assert nodes.segments() == {"b": 32}
        await trio.sleep_until(LEASE / 3 + LEASE + 0.02)
        assert nodes.segments() == {"b": 64}


async def test_a_node_that_is_cut_off_ends_its_handlers_before_others_begin(autojump_clock):
    async with cluster("a", "b", seconds=30) as nodes:
        await nodes.publish(*ORDERS)
        await trio.sleep(0.1)
        cut_off(nodes.nodes["a"])
        await trio.sleep(2 * LEASE)
        assert nodes.segments() == {"a": 0, "b": 64}
        assert nodes.overlaps == []
        assert not any("a" in names for names in nodes.running.values())
        reconnect(nodes.nodes["a"])
        await trio.sleep(31)  # b lets go when its handlers are done
        assert nodes.segments() == {"a": 32, "b": 32}
        await nodes.settled()
        nodes.check_all_in_order()
        assert nodes.overlaps == []


async def test_what_a_zombie_finishes_is_not_recorded(autojump_clock):
    async with cluster("a", "b", seconds=3 * LEASE, options={"workers": 64}) as nodes:
        await nodes.publish(*ORDERS)
        await trio.sleep(0.1)
        old = {attempt.order: attempt for attempt in nodes.began if attempt.node == "a"}
        hang(nodes.nodes["a"])
        await trio.sleep(2 * LEASE)
        again = {attempt.order: attempt for attempt in nodes.began if attempt.node == "b"}
        taken_over = old.keys() & again.keys()
        assert taken_over
        assert all(again[order].fence > old[order].fence for order in taken_over)
        await trio.sleep(LEASE + 0.1)  # the handlers of the zombie have ended
        assert {a.order for a in nodes.handled if a.node == "a"} >= taken_over
        async with nodes.store:
            before = (await nodes.store.statistics()).groups["default"].lag
            reconnect(nodes.nodes["a"])
            await trio.testing.wait_all_tasks_blocked()
            assert (await nodes.store.statistics()).groups["default"].lag == before
        await nodes.settled()
        nodes.check_all_in_order()
        await trio.sleep(0.1)
        assert sum(nodes.segments().values()) == 64


async def test_the_fence_of_an_aggregate_rises_with_every_owner(autojump_clock):
    async with cluster("a", "b") as nodes:
        for _ in range(3):
            await nodes.publish(*ORDERS)
            await nodes.settled()
            await nodes.crash("a")
            await trio.sleep(2 * LEASE)
            await nodes.publish(*ORDERS)
            await nodes.settled()
            await nodes.start("a")
            await trio.sleep(1)
        for order in ORDERS:
            attempts = [a for a in nodes.handled if a.order == order]
            for earlier, later in pairwise(attempts):
                is_same_owner = later.node == earlier.node and later.fence == earlier.fence
                assert is_same_owner or earlier.fence < later.fence
        nodes.check_all_in_order(is_once=True)


async def test_a_group_of_total_order_has_one_node_at_a_time(autojump_clock):
    async with cluster("a", "b", options={"workers": 1}) as nodes:
        await nodes.publish(*ORDERS)
        await nodes.settled()
        assert nodes.segments() == {"a": 1, "b": 0}
        assert [a.order for a in nodes.handled] == list(ORDERS)
        await nodes.crash("a")
        await trio.sleep(2 * LEASE)
        await nodes.publish(*ORDERS)
        await nodes.settled()
        assert nodes.segments() == {"b": 1}
        assert [a.order for a in nodes.handled] == list(ORDERS) * 2


async def test_expected_sequences_hold_against_all_nodes(autojump_clock):
    async with cluster("a", "b") as nodes:
        first, second = nodes.nodes.values()
        await first.publish(Ordered(order="x", number=1), expected_sequence=0)
        with pytest.raises(SequenceConflict):
            await second.publish(Ordered(order="x", number=2), expected_sequence=0)
        won: list[str] = []

        async def try_to(name, bus):
            try:
                await bus.publish(Ordered(order="x", number=2), expected_sequence=1)
            except SequenceConflict:
                return
            won.append(name)

        async with trio.open_nursery() as nursery:
            for name, bus in nodes.nodes.items():
                nursery.start_soon(try_to, name, bus)
        assert len(won) == 1


async def test_an_event_that_several_nodes_publish_is_accepted_once(autojump_clock):
    async with cluster("a", "b") as nodes:
        event = Ordered(order="x", number=1)
        found = [await bus.publish(event) for bus in nodes.nodes.values()]
        assert [(each.position, each.is_new) for each in found] == [(1, True), (1, False)]
        await nodes.settled()
        assert len(nodes.handled) == 1


async def test_without_a_lease_a_store_in_memory_has_one_bus(autojump_clock):
    store = MemoryEventStore()
    assert not store.is_shared
    async with EventBus(store):
        with pytest.raises(StoreInUse):
            async with EventBus(store):
                pass


async def test_no_handler_has_a_fence_without_other_buses(autojump_clock):
    fences = []
    bus = EventBus(MemoryEventStore())

    @bus.subscribe(Ordered)
    async def handle(event: Ordered) -> None:
        fences.append(current_delivery().fence)

    async with bus:
        await bus.publish(Ordered(order="x", number=1))
    assert fences == [None]
