"""What a handler can know about the call that is being made."""

import attrs

from triobus._errors import NoDelivery
from triobus._events import DomainEvent
from triobus._events.causes import calling_delivery


@attrs.frozen(kw_only=True)
class Delivery:
    """What a handler can know about the call that is being made."""

    event: DomainEvent
    """The event as it was published."""
    position: int | None
    """Its place in the store's log; None without a store."""
    group: str
    """The name of the group."""
    subscription: str
    """The name of the subscription."""
    attempt: int
    """Which attempt this is, from 1."""


def current_delivery() -> Delivery:
    """Return the delivery that the calling handler is part of; raises `NoDelivery` outside one."""
    delivery = calling_delivery()
    if delivery is None:
        raise NoDelivery("current_delivery() was called outside a handler: there is no delivery")
    return Delivery(
        event=delivery.event,
        position=delivery.position,
        group=delivery.subscription.group,
        subscription=delivery.subscription.name,
        attempt=delivery.attempt,
    )
