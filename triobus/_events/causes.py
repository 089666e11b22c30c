"""The event whose handler is calling: it is the cause of the events that it publishes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import attrs
import trio

from triobus._events.event import DomainEvent


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
    batch: tuple["Delivery", ...] = attrs.field(default=(), repr=False)
    """What an instrument is told of a handler that takes a batch: all its deliveries, this one
    first. Else there are none."""
    fence: int | None = None
    """With a store that several buses share, a number that rises with every change of the bus that
    handles the events of this aggregate. Give it to systems outside, which refuse a lower one than
    they have seen: what a bus still does that was thought dead has no effect there either."""


def snapshot_of(delivery: Any) -> Delivery:
    """Return what a handler can know of a delivery in flight."""
    return Delivery(
        event=delivery.event,
        position=delivery.position,
        group=delivery.subscription.group,
        subscription=delivery.subscription.name,
        attempt=delivery.attempt,
        fence=delivery.fence,
    )


@attrs.define(eq=False)
class Handling:
    """What a worker handles. The context of its task has it, and so all that its handlers start."""

    worker: trio.lowlevel.Task
    outer: "Handling | None"
    """The worker of another bus inside whose handler the bus of this one runs, if it does so."""
    delivery: Any = None
    """The delivery in flight whose handler runs, if one does; of several the first."""
    deliveries: Sequence[Any] = ()
    """All of them, if it is a handler of several events at once."""


handling: ContextVar[Handling | None] = ContextVar("triobus worker", default=None)
"""What the worker handles that has called, in its task and all that its handlers start."""


def calling_delivery() -> Any:
    """Return the delivery whose handler is calling: itself, or by a task or thread of its own.

    A task that a handler has started in the nursery of another task may outlive it, and is no part
    of the delivery. None outside a handler.
    """
    return next(calling_deliveries(), None)


def calling_bundle() -> Sequence[Any]:
    """Return the deliveries whose handler is calling; none outside a handler."""
    own = _innermost()
    if own is None:
        return ()
    return own.deliveries or (own.delivery,)


def calling_cause() -> DomainEvent | None:
    """Return the event that causes what is published now.

    None outside a handler, and in one of several events at once: no one of them is the cause.
    """
    bundle = calling_bundle()
    event: DomainEvent | None = bundle[0].event if len(bundle) == 1 else None
    return event


@contextmanager
def publishing_inside(event: DomainEvent) -> Iterator[DomainEvent]:
    """Let the instruments of the bus whose handler is calling look on while it publishes an event.

    Yields what is to be published.
    """
    bundle = calling_bundle()
    instruments = bundle[0].subscription._owner._instruments if bundle else None
    if instruments is None or not instruments.publishing:
        yield event
        return
    with instruments.around_publishing([event]) as (found,):
        yield found


def _innermost() -> Handling | None:
    own = handling.get()
    while own is not None and (own.delivery is None or not _is_within(own.worker)):
        own = own.outer
    return own


def calling_deliveries() -> Iterator[Any]:
    """Yield the deliveries that wait for the caller: that of its handler, and those around it.

    There are several where a handler runs a bus of its own.
    """
    own = handling.get()
    while own is not None:
        if own.delivery is not None and _is_within(own.worker):
            yield own.delivery
        own = own.outer


def _is_within(worker: trio.lowlevel.Task) -> bool:
    """Whether a worker would wait for the calling task, or it is called in a thread."""
    if trio.lowlevel.in_trio_task():
        task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
        while task is not worker:
            if task is None or task.parent_nursery is None:
                return False
            task = task.parent_nursery.parent_task
    return True
