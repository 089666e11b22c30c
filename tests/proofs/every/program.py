"""What a scenario is given: buses, and a ledger of what was published and what handlers saw."""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import attrs
import trio

from tests.events import Noted
from triobus import EventBus, EventStore, MemoryEventStore, OutcomeUnknown, Subscription
from triobus.testing import World

_KEPT = ("_log", "_by_id", "_sequences", "_offsets", "_finished", "_attempts", "_kept")
"""What a `MemoryEventStore` would have on disk."""


Kind = Literal["none", "memory", "sqlite"]
"""Which store a program has."""


@attrs.frozen
class Call:
    """One call of a handler."""

    life: int
    group: str
    number: int


@attrs.define(eq=False)
class Program:
    """One run of a scenario, over all lives of its bus. Every number is published once."""

    kind: Kind = "none"
    world: World = attrs.field(init=False)
    store: EventStore | None = None
    """That of the current life."""
    tasks: int = 0
    """How many there were before it."""
    life: int = 0
    is_whole: bool = False
    """Whether the scenario came to its end by itself."""
    keys: dict[int, str | None] = attrs.field(factory=dict)
    """The aggregates of the numbers that somebody has tried to publish."""
    accepted: dict[int, int | None] = attrs.field(factory=dict)
    """Positions by number, in the order in which publishers came to know them."""
    refused: set[int] = attrs.field(factory=set)
    """The numbers for which publishing raised."""
    unsure: set[int] = attrs.field(factory=set)
    """Those for which it raised in a way that leaves it open."""
    gone: set[int] = attrs.field(factory=set)
    """Those that nobody has to handle any more, for their dead letters were discarded."""
    dead: list[int] = attrs.field(factory=list)
    """The numbers of the dead letters that the last life has left."""
    begun: list[Call] = attrs.field(factory=list)
    finished: list[Call] = attrs.field(factory=list)
    failed: list[Call] = attrs.field(factory=list)
    appended: dict[int, int] = attrs.field(factory=dict)
    """Positions of the numbers that were appended beside the bus."""
    subscriptions: dict[str, Subscription] = attrs.field(factory=dict)
    """Those of the last life that a scenario wants to end."""
    buses: list[EventBus] = attrs.field(factory=list)
    """One for each life, the last one last."""

    # Living

    def begin(self, world: World) -> None:
        """Begin in a world, or go on in another one as another process would."""
        self.world = world
        self.tasks = trio.lowlevel.current_statistics().tasks_living
        if isinstance(self.store, MemoryEventStore):
            before, self.store = self.store, MemoryEventStore()
            for name in _KEPT:
                setattr(self.store, name, getattr(before, name))

    def reopened(self) -> EventStore | None:
        """Return the store for another life."""
        if self.kind == "sqlite":
            self.store = self.world.store()
        elif self.kind == "memory" and self.store is None:
            self.store = MemoryEventStore()
        return self.store

    def bus(self, **options: Any) -> EventBus:
        """Return a new bus, with the store of the program if it has one."""
        bus = EventBus(self.reopened(), **options)
        self.buses.append(bus)
        self.life += 1
        return bus

    # Publishing

    def event(self, number: int, key: str | None = None) -> Noted:
        """Return the event of a number, with the same id each time."""
        self.keys[number] = key
        return Noted(number, key, event_id=self.world.event_id(str(number)))

    @contextmanager
    def publishing(self, numbers: Sequence[int], *, may_stay: bool = False) -> Iterator[None]:
        """Note what becomes of numbers that are published inside the block.

        `may_stay` is for a call that waits for more than acceptance.
        """
        try:
            yield
        except BaseException as error:
            is_open = may_stay or isinstance(error, OutcomeUnknown)
            (self.unsure if is_open else self.refused).update(numbers)
            raise
        for number in numbers:
            self.accepted.setdefault(number, None)

    async def publish(self, bus: EventBus, number: int, key: str | None = None) -> None:
        """Publish one number."""
        event = self.event(number, key)
        with self.publishing([number]):
            published = await bus.publish(event)
        self.accepted[number] = published.position

    async def publish_many(
        self, bus: EventBus, numbers: Sequence[int], key: str | None = None
    ) -> None:
        """Publish several numbers at once."""
        events = [self.event(number, key) for number in numbers]
        with self.publishing(numbers):
            await bus.publish_many(events)

    async def append(self, store: EventStore, number: int, key: str | None = None) -> None:
        """Append one number to the store, beside the bus."""
        (stored,) = await store.append([self.event(number, key)])
        self.appended[number] = stored.position

    # Handling

    def handler(
        self,
        group: str = "default",
        fails: Mapping[int, int] | None = None,
        then: Callable[[Noted], Awaitable[object]] | None = None,
        *,
        waits: bool = True,
    ) -> Callable[[Noted], Awaitable[int]]:
        """Return a handler that fails so often for a number, and does something more if given.

        It comes to a checkpoint, if it waits.
        """

        async def handle(event: Noted) -> int:
            call = Call(self.life, group, event.number)
            self.begun.append(call)
            if waits:
                await trio.lowlevel.checkpoint()
            before = sum((c.group, c.number) == (group, event.number) for c in self.failed)
            if before < (fails or {}).get(event.number, 0):
                self.failed.append(call)
                raise OSError(event.number)
            if then is not None:
                await then(event)
            self.finished.append(call)
            return event.number

        return handle

    def numbers_finished(self, group: str = "default") -> list[int]:
        """Return the numbers that a group has handled, in that order."""
        return [call.number for call in self.finished if call.group == group]
