"""A shop whose store has something of everything that an operator may have to look at."""

import logging
from typing import ClassVar
from uuid import UUID

import attrs
import trio
import trio.testing

from tests.settled import settled
from triobus import DomainEvent, EventBus, EventStore, Retry

CONTROL = "\x1b[2J\u202e"
"""The name of an order that a terminal would obey."""
YEAR_2100 = 4102444800
ONE, TWO, THREE, EVIL = (UUID(int=number) for number in (1, 2, 3, 4))


@attrs.frozen
class Ordered(DomainEvent):
    event_type: ClassVar[str] = "operated.ordered"
    order: str
    quantity: int = 1

    @property
    def aggregate_id(self) -> str:
        return self.order


@attrs.frozen
class Paid(DomainEvent):
    event_type: ClassVar[str] = "operated.paid"
    order: str

    @property
    def aggregate_id(self) -> str:
        return self.order


def shop() -> EventBus:
    """Return a bus that pays every order, fails to mail some, and cannot ship one yet."""
    bus = EventBus(workers=1)
    mail = bus.group("mail", workers=1, start="beginning")
    post = bus.group("post", workers=1, start="beginning")

    @bus.subscribe(Ordered, name="pay")
    async def pay(event: Ordered) -> None:
        await bus.publish(Paid(event.order, event_id=UUID(int=event.event_id.int + 100)))

    @mail.subscribe(Paid, name="thank", retry=Retry(attempts=2, delay=0))
    async def thank(event: Paid) -> None:
        if event.order != "A-1":
            raise ValueError(f"no address of {event.order}")

    @post.subscribe(Paid, name="ship", retry=Retry(attempts=3, delay=7200, jitter=0))
    async def ship(event: Paid) -> None:
        if event.order == "A-2":
            raise ConnectionError("the carrier does not answer")

    return bus


async def _operate(store: EventStore) -> None:
    bus = shop()
    bus.store = store
    async with bus, bus.listen(Paid) as paid:
        for event_id, order in ((ONE, "A-1"), (TWO, "A-2"), (THREE, "A-3"), (EVIL, CONTROL)):
            await bus.publish(Ordered(order, event_id=event_id))
            await anext(paid)
            await settled()
        await bus.publish(Ordered("A-9", event_id=UUID(int=9)), delay=10**6)
        await bus.stop(drain="running")


def operate(store: EventStore) -> None:
    """Let the shop work until nothing moves any more."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    clock.jump(YEAR_2100)
    logger = logging.getLogger("triobus")
    logger.setLevel(logging.CRITICAL)  # its errors are meant
    try:
        trio.run(_operate, store, clock=clock)
    finally:
        logger.setLevel(logging.NOTSET)
