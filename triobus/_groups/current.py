"""What a handler can know about the call that is being made."""

from triobus._errors import NoDelivery
from triobus._events.causes import Delivery, calling_delivery, snapshot_of


def current_delivery() -> Delivery:
    """Return the delivery that the calling handler is part of; raises `NoDelivery` outside one."""
    delivery = calling_delivery()
    if delivery is None:
        raise NoDelivery("current_delivery() was called outside a handler: there is no delivery")
    return snapshot_of(delivery)
