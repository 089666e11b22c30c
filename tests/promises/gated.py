"""A handler that finishes what it is permitted to, and a bus that it fills."""

import attrs
import trio

from tests.events import Noted
from tests.settled import settled


@attrs.define(eq=False)
class Gated:
    """A handler that notes every event it begins, and finishes as many as it has permits for."""

    begun: list[int] = attrs.field(factory=list)
    permits: trio.Semaphore = attrs.field(factory=lambda: trio.Semaphore(0))

    async def __call__(self, event):
        self.begun.append(event.number)
        await self.permits.acquire()

    def let_through(self, count):
        for _ in range(count):
            self.permits.release()


async def fill(bus, count):
    """Publish 1 to `count` so that the only worker has 1 and the others are held."""
    for number in range(1, count + 1):
        await bus.publish(Noted(number))
        await settled()


async def publish_and_note(bus, number, accepted):
    await bus.publish(Noted(number))
    accepted.append(number)
