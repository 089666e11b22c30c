"""An event that kills whoever handles it goes from node to node, and then ends as a dead letter."""

import trio

from tests.promises.shared.cluster import LEASE, ORDERS, Ordered, cluster
from triobus import EventBus, Retry


async def test_an_event_that_kills_its_nodes_becomes_a_dead_letter(autojump_clock):
    deaths: list[str] = []

    async with cluster() as nodes:

        def make(name: str) -> EventBus:
            bus = EventBus(nodes.store)

            @bus.subscribe(Ordered, name="handle", retry=Retry(attempts=2))
            async def handle(event: Ordered) -> None:
                await trio.sleep(0.1)
                if event.order == "poison":
                    deaths.append(name)
                    nodes.nursery.start_soon(nodes.crash, name)
                    await trio.sleep_forever()

            return bus

        await nodes.start("watcher", make=make)
        await nodes.publish("poison", *ORDERS)
        for number in range(8):  # each is replaced by a new one
            if not nodes.nodes:
                await nodes.start(f"next-{number}", make=make)
            await trio.sleep(2 * LEASE)
        (last,) = nodes.nodes.values()
        (letter,) = await last.dead_letters.list()
        assert (letter.aggregate_id, letter.error_type) == ("poison", "ProcessDied")
        assert 2 <= len(deaths) <= 5
        await nodes.settled()
