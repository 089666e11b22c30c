"""The work that is measured: one kind of event, and handlers that do nothing."""

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from itertools import count
from pathlib import Path

import attrs
import trio

import triobus


@attrs.frozen
class Ticked(triobus.DomainEvent):
    """An event of one aggregate."""

    key: str

    @property
    def aggregate_id(self) -> str:
        """The aggregate."""
        return self.key


async def handler(event: Ticked) -> None:
    """Do nothing: what is measured is the way to here."""


BATCH = 1000


def events_of(count: int, aggregates: int = 100) -> list[Ticked]:
    """Make events, spread evenly over the aggregates."""
    return [Ticked(f"aggregate-{number % aggregates}") for number in range(count)]


def batches(events: list[Ticked]) -> Iterator[list[Ticked]]:
    """Cut a list into lists of `BATCH`."""
    for first in range(0, len(events), BATCH):
        yield events[first : first + BATCH]


Send = Callable[[Ticked], Awaitable[object]]


@asynccontextmanager
async def through_channel(handler: Callable[[Ticked], Awaitable[None]]) -> AsyncIterator[Send]:
    """Send through a memory channel to a task that calls the handler: the raw limit."""
    send, receive = trio.open_memory_channel[Ticked](BATCH)

    async def consume() -> None:
        async for event in receive:
            await handler(event)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume)
        async with send:
            yield send.send


async def run_in_batches(bus: triobus.EventBus, events: list[Ticked]) -> None:
    """Start a bus, publish the events to it in batches, and stop it."""
    async with bus:
        for batch in batches(events):
            await bus.publish_many(batch)


def new_paths(stack: ExitStack) -> Iterator[Path]:
    """Return paths of new files, in a directory that is there as long as the stack."""
    directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="triobus-"))
    return (Path(directory, f"{number}.db") for number in count())
