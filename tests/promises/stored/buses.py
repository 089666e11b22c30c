"""Buses over a store, and handlers, that tests of a bus with a store begin with."""

from contextlib import asynccontextmanager

import trio
import trio.testing

from tests.events import Noted
from triobus import EventBus, Retry


class Handled(list):
    """A handler that notes the numbers of what it gets."""

    async def __call__(self, event):
        self.append(event.number)


def subscribed(store, handler, types=Noted, **options):
    """Return a bus of total order."""
    retry, hold = options.pop("retry", Retry()), options.pop("hold", False)
    bus = EventBus(store, **{"workers": 1, **options})
    bus.subscribe(types, handler, name="handler", retry=retry, hold=hold)
    return bus


async def fails(event):
    raise OSError


async def nothing(event):
    """Succeed."""


@asynccontextmanager
async def crashing(bus):
    """Run a bus and end it as a crash does: everything is cancelled, and nothing drained."""
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        yield bus
        nursery.cancel_scope.cancel()


async def in_three_turns(function, *args):
    """Make a call that would go to a thread, so that others come meanwhile, at known moments."""
    await trio.lowlevel.cancel_shielded_checkpoint()
    try:
        return function(*args)
    finally:
        await trio.lowlevel.cancel_shielded_checkpoint()
        await trio.lowlevel.cancel_shielded_checkpoint()
