"""Other event buses on the same work, each used as its README recommends. None of them is durable.

An adapter subscribes handlers for one type of event, and yields how to make an event, how to
publish some, and how to wait until all of them were handled.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import attrs

from benchmarks.work import Ticked

Handler = Callable[..., Awaitable[None]]


@attrs.frozen
class Ready:
    """A bus with its handlers subscribed."""

    make: Callable[[str], Any]
    """Make an event of an aggregate."""
    publish: Callable[[Sequence[Any]], Awaitable[None]]
    settle: Callable[[], Awaitable[None]]
    """Wait until everything was handled."""


Adapter = Callable[[Sequence[Handler]], AbstractAsyncContextManager[Ready]]


async def _nothing() -> None:
    """Wait for nothing: `publish` has waited already."""


@asynccontextmanager
async def bubus(handlers: Sequence[Handler]) -> AsyncIterator[Ready]:
    """Dispatch each event; the bus holds a hundred, and so every fifty are awaited."""
    from bubus import BaseEvent, EventBus

    class Happened(BaseEvent[None]):  # type: ignore[misc]  # its types are not looked at
        key: str

    bus = EventBus()
    for handler in handlers:
        bus.on(Happened, handler)

    async def publish(events: Sequence[Any]) -> None:
        for first in range(0, len(events), 50):
            for event in events[first : first + 50]:
                bus.dispatch(event)
            for event in events[first : first + 50]:
                await event

    yield Ready(lambda key: Happened(key=key), publish, _nothing)
    await bus.stop()


@asynccontextmanager
async def abxbus(handlers: Sequence[Handler]) -> AsyncIterator[Ready]:
    """Emit each event; the bus keeps a hundred, and so every fifty are awaited."""
    from abxbus import BaseEvent, EventBus

    class Happened(BaseEvent[None]):  # type: ignore[misc]  # its types are not looked at
        key: str

    bus = EventBus(max_history_drop=True)  # without, it refuses the hundred and first
    for handler in handlers:
        bus.on(Happened, handler)

    async def publish(events: Sequence[Any]) -> None:
        for first in range(0, len(events), 50):
            emitted = [bus.emit(event) for event in events[first : first + 50]]
            for event in emitted:
                await event

    yield Ready(lambda key: Happened(key=key), publish, _nothing)


@asynccontextmanager
async def pyventus(handlers: Sequence[Handler]) -> AsyncIterator[Ready]:
    """Emit each event, and wait for the tasks of a batch."""
    from pyventus.core.processing.asyncio import AsyncIOProcessingService
    from pyventus.events import EventEmitter, EventLinker

    @dataclass(frozen=True)
    class Happened:
        key: str

    for handler in handlers:
        EventLinker.on(Happened)(handler)
    processing = AsyncIOProcessingService()
    emitter = EventEmitter(event_processor=processing)

    async def publish(events: Sequence[Any]) -> None:
        for event in events:
            emitter.emit(event)

    yield Ready(Happened, publish, processing.wait_for_tasks)
    EventLinker.remove_all()


@asynccontextmanager
async def pyee(handlers: Sequence[Handler]) -> AsyncIterator[Ready]:
    """Emit each event, and wait for the tasks of a batch."""
    from pyee.asyncio import AsyncIOEventEmitter

    emitter = AsyncIOEventEmitter()
    for handler in handlers:
        emitter.on("ticked", handler)

    async def publish(events: Sequence[Any]) -> None:
        for event in events:
            emitter.emit("ticked", event)

    yield Ready(Ticked, publish, emitter.wait_for_complete)


@asynccontextmanager
async def blinker(handlers: Sequence[Handler]) -> AsyncIterator[Ready]:
    """Send each event; the sender calls and awaits the handlers itself."""
    from blinker import signal

    ticked = signal("ticked")
    for handler in handlers:
        ticked.connect(handler)

    async def publish(events: Sequence[Any]) -> None:
        for event in events:
            await ticked.send_async(event)

    yield Ready(Ticked, publish, _nothing)
    for handler in handlers:
        ticked.disconnect(handler)


@asynccontextmanager
async def aiopubsub(handlers: Sequence[Handler]) -> AsyncIterator[Ready]:
    """Publish each event; a loop's callback starts a task for each handler."""
    import asyncio

    from aiopubsub import Hub, Key, Publisher, Subscriber

    hub = Hub()
    subscriber = Subscriber(hub, "handlers")
    called = owed = 0
    is_done = asyncio.Event()

    def counted(handler: Handler) -> Callable[[Any, Any], Awaitable[None]]:
        async def handle(key: Any, event: Any) -> None:  # noqa: ARG001  # the peer passes it
            nonlocal called
            await handler(event)
            called += 1
            if called == owed:
                is_done.set()

        return handle

    for handler in handlers:
        subscriber.add_async_listener(Key("*", "ticked"), counted(handler))
    publisher = Publisher(hub, prefix=Key("benchmark"))
    key = Key("ticked")

    async def publish(events: Sequence[Any]) -> None:
        nonlocal owed
        owed += len(events) * len(handlers)
        is_done.clear()
        for event in events:
            publisher.publish(key, event)

    async def settle() -> None:
        await is_done.wait()

    yield Ready(Ticked, publish, settle)
    await subscriber.remove_all_listeners()


def no_op_handlers(count: int) -> list[Handler]:
    """Return handlers that do nothing, no two the same."""

    def make(number: int) -> Handler:
        async def handler(event: Any) -> None:
            pass

        handler.__name__ = handler.__qualname__ = f"handler_{number}"
        return handler

    return [make(number) for number in range(count)]


NO_STORE = "no order while a handler waits, no retries, no acknowledgement"

IN_MEMORY: dict[str, tuple[Adapter, str]] = {
    "bubus": (bubus, "no retries, no bound"),
    "abxbus": (abxbus, "no retries by default"),
    "pyventus": (pyventus, f"{NO_STORE}, no bound"),
    "pyee": (pyee, f"{NO_STORE}, no bound"),
    "blinker": (blinker, "no queue: the sender calls the handlers; no retries"),
    "aiopubsub": (aiopubsub, f"{NO_STORE}, no bound"),
}
"""The adapters, and what each does not promise that triobus does, by the name of the package."""
