"""Lanes, and what the tests of them put in and take out."""

from tests.events import Noted
from triobus import DomainEvent, EventBus, Retry, Subscription
from triobus._groups.delivery import InFlight, Lanes

NO_JITTER = Retry(attempts=3, delay=1.0, factor=2.0, jitter=0)


async def handle(event: DomainEvent) -> None:
    """Never called: the core only passes subscriptions on."""


def subscription(name: str = "only", retry: Retry = NO_JITTER) -> Subscription:
    group = EventBus().group("core")
    return group.subscribe(DomainEvent, handle, name=name, retry=retry)


def lanes_with(
    *keys: str | None, plan: tuple[Subscription, ...] = (), is_ordered: bool = True
) -> Lanes:
    """Lanes with deliveries 0, 1, 2 ... of the given aggregates."""
    lanes = Lanes(is_ordered=is_ordered)
    for number, key in enumerate(keys):
        lanes.add(Noted(number, key), key, plan or (subscription(),))
    return lanes


def number_of(delivery: InFlight | None) -> int | None:
    if delivery is None:
        return None
    assert isinstance(delivery.event, Noted)
    return delivery.event.number
