"""Effects, retries and dead letters over nodes and changes of owner."""

import trio
import trio.testing

from tests.promises.shared.cluster import LEASE, ORDERS, Booked, Books, Cluster, Ordered, cluster
from triobus import EventBus, Retry, current_delivery
from triobus.testing import hang, reconnect


def _bookkeeping(nodes: Cluster):
    def make(name: str) -> EventBus:
        bus = EventBus(nodes.store)

        @bus.subscribe(Ordered, name="wait", priority=1)
        async def wait(event: Ordered) -> None:
            await trio.sleep(nodes.seconds)

        bus.subscribe(Ordered, Books.note, name="books", transactional=True)
        return bus

    return make


async def _booked(nodes: Cluster) -> list[tuple[str, int]]:
    async with nodes.store:
        return [
            (stored.event.order, stored.event.number)
            async for stored in nodes.store.read(types=Booked)
        ]


async def test_transactional_effects_come_once_whoever_dies_or_hangs(autojump_clock):
    async with cluster(seconds=0.3) as nodes:
        await nodes.start("a", "b", "c", make=_bookkeeping(nodes))
        for _ in range(5):
            await nodes.publish(*ORDERS)
        await trio.sleep(1.0)
        await nodes.crash("a")
        hang(nodes.nodes["b"])
        await trio.sleep(2 * LEASE)
        reconnect(nodes.nodes["b"])
        await nodes.publish(*ORDERS)
        await nodes.settled()
        booked = await _booked(nodes)
        for order in ORDERS:
            assert [number for name, number in booked if name == order] == [1, 2, 3, 4, 5, 6]


async def test_a_transaction_of_a_zombie_rolls_back_whole(autojump_clock):
    async with cluster(seconds=2 * LEASE) as nodes:
        await nodes.start("a", make=_bookkeeping(nodes))
        await nodes.publish("x")
        await trio.sleep(0.1)
        hang(nodes.nodes["a"])
        await trio.sleep(0.1)
        await nodes.start("b", make=_bookkeeping(nodes))
        await trio.sleep(2.5 * LEASE)  # the zombie waits for its commit, and b has begun
        reconnect(nodes.nodes["a"])
        await trio.sleep(0.1)
        assert await _booked(nodes) == []
        await nodes.settled()
        assert await _booked(nodes) == [("x", 1)]


async def test_a_retry_goes_on_with_the_next_owner_and_keeps_its_attempts(autojump_clock):
    calls: list[tuple[str, int, float]] = []

    async with cluster() as nodes:

        def make(name: str) -> EventBus:
            bus = EventBus(nodes.store)

            @bus.subscribe(Ordered, name="fails", retry=Retry(attempts=4, delay=20, jitter=0))
            async def handle(event: Ordered) -> None:
                calls.append((name, current_delivery().attempt, trio.current_time()))
                raise ValueError("no")

            return bus

        await nodes.start("a", "b", make=make)
        await nodes.publish("x")
        await trio.sleep(1)
        ((first, _, _),) = calls
        await nodes.leave(first, drain=False)
        (other,) = nodes.nodes
        await trio.sleep(200)
        assert [(name, attempt) for name, attempt, _ in calls] == [
            (first, 1),
            (other, 2),
            (other, 3),
            (other, 4),
        ]
        await nodes.settled()
        (letter,) = await nodes.nodes[other].dead_letters.list()
        assert (letter.attempts, letter.id, letter.subscription) == (4, 1, "fails")


async def test_an_aggregate_is_held_back_by_its_dead_letter_on_every_owner(autojump_clock):
    handled: list[tuple[str, int]] = []

    async with cluster() as nodes:

        def make(name: str) -> EventBus:
            bus = EventBus(nodes.store)

            @bus.subscribe(Ordered, name="holds", hold=True, retry=Retry(attempts=1))
            async def handle(event: Ordered) -> None:
                if event.number == 1:
                    raise ValueError("no")
                handled.append((event.order, event.number))

            return bus

        await nodes.start("a", make=make)
        await nodes.publish("x", "y")
        await nodes.settled()
        await nodes.start("b", make=make)
        await nodes.publish("x", "y")
        await nodes.settled()
        await nodes.crash("a")
        await nodes.publish("x", "y")
        await nodes.settled()
        assert handled == []
        letters = await nodes.nodes["b"].dead_letters.list()
        assert [(letter.aggregate_id, letter.id) for letter in letters] == [
            ("x", 1),
            ("y", 2),
            *[(letter.aggregate_id, letter.id) for letter in letters[2:]],
        ]
        assert len(letters) == 6
        assert sorted(letter.id for letter in letters) == [1, 2, 3, 4, 5, 6]


async def test_a_batch_is_of_one_owner_and_all_is_handled_once(autojump_clock):
    async with cluster() as nodes:
        taken: list[tuple[str, list[tuple[str, int]]]] = []

        def make(name: str) -> EventBus:
            bus = EventBus(nodes.store)
            bulk = bus.group("bulk", batch=50)

            @bulk.subscribe(Ordered, name="bulk")
            async def handle(events: tuple[Ordered, ...]) -> None:
                taken.append((name, [(event.order, event.number) for event in events]))
                await trio.sleep(0.1)

            return bus

        await nodes.start("a", "b", make=make)
        for _ in range(5):
            await nodes.publish(*ORDERS)
        await trio.sleep(20)
        events = [event for _, batch in taken for event in batch]
        assert sorted(events) == sorted((order, n) for order in ORDERS for n in range(1, 6))
        assert {name for name, _ in taken} == {"a", "b"}
        for order in ORDERS:
            assert [n for name, n in events if name == order] == [1, 2, 3, 4, 5]


async def test_the_handlers_of_all_nodes_are_answered_to_their_own_share(autojump_clock):
    async with cluster("a", "b", seconds=0.1) as nodes:
        answered = 0
        for order in ORDERS:
            event = Ordered(order=order, number=1)
            outcome = await nodes.nodes["a"].publish_and_wait(event)
            answered += outcome.results == {"handle": None}
        own = {attempt.order for attempt in nodes.handled if attempt.node == "a"}
        assert answered == len(own)
        assert 0 < answered < len(ORDERS)
        await nodes.settled()


async def test_listeners_of_every_node_hear_all_nodes_in_the_order_of_the_log(autojump_clock):
    async with cluster("a", "b") as nodes:
        heard: dict[str, list[tuple[str, int]]] = {"a": [], "b": []}

        async def listen(name: str, *, task_status) -> None:
            async with nodes.nodes[name].listen(Ordered) as events:
                task_status.started()
                async for event in events:
                    heard[name].append((event.order, event.number))

        async with trio.open_nursery() as nursery:
            for name in heard:
                await nursery.start(listen, name)
            for _ in range(3):
                await nodes.publish(*ORDERS)
            await nodes.settled()
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        async with nodes.store:
            log = [(s.event.order, s.event.number) async for s in nodes.store.read()]
        assert heard == {"a": log, "b": log}


async def test_a_scheduled_event_comes_once_though_its_publisher_dies(autojump_clock):
    async with cluster("a", "b") as nodes:
        nodes.published["x"] = 1
        await nodes.nodes["a"].publish(Ordered(order="x", number=1), delay=60)
        await nodes.crash("a")
        await trio.sleep(59)
        assert nodes.handled == []
        await trio.sleep(2)
        assert [(a.node, a.at) for a in nodes.handled] == [("b", 60.0)]
        nodes.check_all_in_order(is_once=True)


async def test_a_node_that_stops_finishes_its_share_and_leaves_the_rest_to_others(autojump_clock):
    async with cluster("a", "b", seconds=1) as nodes:
        for _ in range(3):
            await nodes.publish(*ORDERS)
        await nodes.leave("a")
        stopped_at = trio.current_time()
        assert not any(attempt.node == "a" and attempt.at > stopped_at for attempt in nodes.began)
        await nodes.publish(*ORDERS)
        await nodes.settled()
        nodes.check_all_in_order(is_once=True)
        assert nodes.overlaps == []


async def test_an_older_revision_takes_nothing_and_passes_nothing_over(autojump_clock):
    async with cluster("old") as nodes:
        heard: list[tuple[str, int]] = []

        def make(name: str) -> EventBus:
            bus = nodes.bus(name)

            @bus.subscribe(Booked, name="new")
            async def new(event: Booked) -> None:
                heard.append((event.order, event.number))

            return bus

        await nodes.publish(*ORDERS)
        await nodes.start("new", make=make)
        for order in ORDERS:  # published where nobody subscribes to it
            await nodes.nodes["old"].publish(Booked(order=order, number=1))
        await nodes.settled()
        assert sorted(heard) == sorted((order, 1) for order in ORDERS)
        assert nodes.segments() == {"old": 0, "new": 64}
        await nodes.crash("new")
        await trio.sleep(2 * LEASE)
        assert nodes.segments() == {"old": 0}
        nodes.check_all_in_order(is_once=True)
        await nodes.start("newer", make=make)
        await trio.testing.wait_all_tasks_blocked()
        assert nodes.segments() == {"old": 0, "newer": 64}
