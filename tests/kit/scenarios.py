"""Small programs that the tests of the kit explore."""

import attrs
import trio

from triobus import DomainEvent, EventBus, Retry


@attrs.frozen
class Ordered(DomainEvent):
    customer: str
    number: int

    @property
    def aggregate_id(self):
        return self.customer


@attrs.frozen
class Confirmed(DomainEvent):
    number: int


NUMBERS = range(8)


async def in_memory():
    """Two publishers, handlers that wait, and what they publish."""
    seen = []
    bus = EventBus(workers=2)

    @bus.subscribe(Ordered, retry=Retry(delay=1))
    async def confirm(event):
        await trio.sleep(0.01)
        await bus.publish(Confirmed(event.number))

    @bus.subscribe(Confirmed)
    async def see(event):
        seen.append(event.number)

    async def publish(customer):
        for number in NUMBERS:
            await bus.publish(Ordered(customer, number))

    async with bus, trio.open_nursery() as nursery:
        nursery.start_soon(publish, "Ada")
        nursery.start_soon(publish, "Bob")
    assert sorted(seen) == sorted([*NUMBERS, *NUMBERS])


async def durable(world):
    """A program that may be killed, and publishes again what it is not sure of."""
    confirmed = world.outside.setdefault("confirmed", set())
    bus = EventBus(store=world.store(), workers=2)

    @bus.subscribe(Ordered, name="confirm", retry=Retry(delay=1))
    async def confirm(event):
        await trio.sleep(0.01)
        confirmed.add(event.number)

    async with bus:
        for number in NUMBERS:
            customer = "Ada" if number % 2 else "Bob"
            event_id = world.event_id(f"order {number}")
            await bus.publish(Ordered(customer, number, event_id=event_id))
    assert confirmed == set(NUMBERS)
