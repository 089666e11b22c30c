"""Calls that overlap as chance has it: which, in which task, when, and cancelled when.

The author of a scenario overlaps only the calls that come to mind. Here every public call of a bus
and of its store meets every other.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Literal
from uuid import UUID

import attrs
import trio

from triobus._bus import EventBus
from triobus._errors import (
    BusClosed,
    BusFull,
    GroupNotPaused,
    OutcomeUnknown,
    StoreClosed,
    UnknownDeadLetter,
    UnknownSubscription,
)
from triobus._events import DomainEvent
from triobus._groups.retry import Retry
from triobus._groups.subscriptions import BatchGroup, Group, Subscription
from triobus.stores import EventStore

Operation = Callable[[], Awaitable[object]]

_REFUSALS = (
    BusClosed,
    BusFull,
    GroupNotPaused,
    OutcomeUnknown,
    StoreClosed,
    UnknownDeadLetter,
    UnknownSubscription,
)
"""What a call may be answered with because of another one."""
_INEXACT = 1e-6
"""Seconds by which a due time may be missed: sums of floats are not exact."""
_MOST_GROUPS = 3
_MOST_SUBSCRIPTIONS = 6


async def mix(
    operations: Mapping[str, Operation],
    *,
    tasks: int,
    steps: int,
    random: Random,
    note: Callable[[str], None],
) -> None:
    """Let several tasks make calls one after the other, each chosen by chance.

    A quarter of them is cancelled after some checkpoints; between two of them there are some
    checkpoints, or some time. `note` is told what begins and how it ends.
    """
    names = sorted(operations)

    async def work(number: int) -> None:
        for step in range(1, steps + 1):
            await _pause(random)
            name = random.choice(names)
            call = f"task {number}, call {step}: {name}"
            note(f"{call} begins")
            note(f"{call} {await _end_of(operations[name], random)}")

    async with trio.open_nursery() as nursery:
        for number in range(1, tasks + 1):
            nursery.start_soon(work, number)


async def _pause(random: Random) -> None:
    await _checkpoints(random.randrange(4))
    if random.random() < 0.2:
        await trio.sleep(random.random())


async def _end_of(operation: Operation, random: Random) -> str:
    """Make a call, perhaps cancelled, and return how it has ended."""
    after = random.randrange(16) if random.random() < 0.25 else None
    end = "was cancelled"
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            if after is not None:
                nursery.start_soon(_cancel_after, after, scope)
            try:
                await operation()
                end = "has ended"
            except _REFUSALS as error:
                end = f"was refused: {type(error).__name__}"
        nursery.cancel_scope.cancel()
    return end


async def _cancel_after(count: int, scope: trio.CancelScope) -> None:
    await _checkpoints(count)
    scope.cancel()


async def _checkpoints(count: int) -> None:
    for _ in range(count):
        await trio.lowlevel.checkpoint()


def calls_of(
    bus: EventBus, make_event: Callable[[int], DomainEvent], random: Random
) -> dict[str, Operation]:
    """Return every public call of a bus, and of its store if it has one, under its name.

    `stop` is not among them: it would end the mixing.
    """
    calls = _Calls(bus, make_event, random)
    found: dict[str, Operation] = {
        "publish": calls.publish,
        "publish again": calls.publish_again,
        "publish_many": calls.publish_many,
        "publish_and_wait": calls.publish_and_wait,
        "publish later": calls.publish_later,
        "cancel_scheduled": calls.cancel_scheduled,
        "wait_idle": bus.wait_idle,
        "listen": calls.listen,
        "wait_for": calls.wait_for,
        "subscribe": calls.subscribe,
        "unsubscribe": calls.unsubscribe,
        "group": calls.group,
        "group.pause": calls.pause,
        "dead_letters.list": bus.dead_letters.list,
        "dead_letters.replay": calls.replay,
        "dead_letters.discard": calls.discard,
        "statistics": calls.look,
    }
    if bus.store is not None:
        found |= {
            "group.reset": calls.reset,
            "store.append": calls.append,
            "store.read": calls.read,
            "store.get": calls.get,
            "store.statistics": bus.store.statistics,
        }
    return {name: partial(calls.checked, operation) for name, operation in found.items()}


@attrs.define(eq=False)
class _Calls:
    """The calls on one bus, with arguments that chance chooses."""

    _bus: EventBus
    _make_event: Callable[[int], DomainEvent]
    _random: Random
    _events: list[DomainEvent] = attrs.field(factory=list)
    _dues: dict[UUID, float] = attrs.field(factory=dict)
    """When events are due that are scheduled, and were not published at once besides."""
    _scheduled: set[UUID] = attrs.field(factory=set)
    """Events that may be taken back, for nobody was told yet that they were."""
    _early: str = ""
    """What was handled before it was due."""
    _running: Counter[str] = attrs.field(factory=Counter)
    """How many handlers run of each group that was made here."""
    _groups: list[Group] = attrs.field(factory=list)
    _subscriptions: list[Subscription] = attrs.field(factory=list)
    _names: int = 0

    @property
    def _store(self) -> EventStore:
        assert self._bus.store is not None
        return self._bus.store

    async def checked(self, operation: Operation) -> None:
        """Make a call, and see that no event has come early meanwhile."""
        await operation()
        assert not self._early, self._early

    def _event(self) -> DomainEvent:
        event = self._make_event(len(self._events) + 1)
        self._events.append(event)
        return event

    def _several(self, most: int) -> list[DomainEvent]:
        return [self._event() for _ in range(self._random.randint(1, most))]

    async def publish(self) -> None:
        await self._publish(self._event())

    async def publish_again(self) -> None:
        event = self._random.choice(self._events) if self._events else self._event()
        self._dues.pop(event.event_id, None)
        await self._publish(event)

    async def publish_later(self) -> None:
        event, delay = self._event(), self._random.choice([0.1, 1, 5])
        self._dues[event.event_id] = trio.current_time() + delay
        self._scheduled.add(event.event_id)
        published = await self._bus.publish(event, delay=delay)
        is_early = published.position is not None and event.event_id in self._dues
        assert not is_early, f"{event.event_id} is at {published.position}, and it is not due"

    async def cancel_scheduled(self) -> None:
        if not self._events:
            await trio.lowlevel.checkpoint()
            return
        chosen = self._random.choice(self._events).event_id
        if await self._bus.cancel_scheduled(chosen):
            assert chosen in self._scheduled, f"{chosen} was taken back, and was not scheduled"
            self._scheduled.remove(chosen)

    async def _publish(self, event: DomainEvent) -> None:
        published = await self._bus.publish(event)
        await self._check_position(event, published.position)

    async def publish_many(self) -> None:
        events = self._several(4)
        for event, published in zip(events, await self._bus.publish_many(events), strict=True):
            await self._check_position(event, published.position)

    async def publish_and_wait(self) -> None:
        event = self._event()
        outcome = await self._bus.publish_and_wait(event)
        await self._check_position(event, outcome.position)

    async def _check_position(self, event: DomainEvent, position: int | None) -> None:
        """Assert that a position that was told is that of the log."""
        if self._bus.store is None:
            return
        stored = await self._store.get(event.event_id)
        found = None if stored is None else stored.position
        assert found == position, (
            f"{event.event_id} was said to be at {position}, and is at {found}"
        )

    async def listen(self) -> None:
        buffer = self._random.choice([1, 100])
        with trio.move_on_after(1):
            async with self._bus.listen(DomainEvent, buffer=buffer) as events:
                async for _ in events:
                    await trio.sleep(self._random.random())

    async def wait_for(self) -> None:
        with trio.move_on_after(1):
            await self._bus.wait_for(DomainEvent)

    async def look(self) -> None:
        await trio.lowlevel.checkpoint()
        found = self._bus.statistics()
        counters = (found.queued, found.in_flight, found.waiting_for_retry, found.handled)
        assert min(counters) >= 0, f"a counter is negative: {found}"
        self._bus.health()

    async def group(self) -> None:
        await trio.lowlevel.checkpoint()
        if len(self._groups) < _MOST_GROUPS:
            is_durable = self._bus.store is not None
            group = self._bus.group(
                f"mixed {len(self._groups) + 1}",
                workers=self._random.choice([1, 2]),
                buffer=3,
                ordering="none" if self._random.random() < 0.3 else "aggregate",
                start="beginning" if is_durable and self._random.random() < 0.5 else "now",
                batch=self._random.choice([None, None, 2, 5]),
            )
            self._groups.append(group)
            self._subscribe(group)

    async def subscribe(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._groups and len(self._subscriptions) < _MOST_SUBSCRIPTIONS:
            self._subscribe(self._random.choice(self._groups))

    def _subscribe(self, group: Group) -> None:
        self._names += 1
        name, failures = f"mixed {self._names}", self._random.choice([0, 0.3, 0.7])

        async def handle_all(events: Sequence[DomainEvent]) -> None:
            for event in events:
                if trio.current_time() < self._dues.get(event.event_id, 0) - _INEXACT:
                    self._early = f"{event.event_id} was handled before it was due"
            self._running[group.name] += 1
            try:
                await _pause(self._random)
                if self._random.random() < failures:
                    raise OSError("chosen by chance")
            finally:
                self._running[group.name] -= 1

        async def handle(event: DomainEvent) -> None:
            await handle_all([event])

        retry = self._random.choice([Retry(attempts=1), Retry(attempts=3, delay=0.5), Retry()])
        if isinstance(group, BatchGroup):
            made = group.subscribe(DomainEvent, handle_all, name=name, retry=retry)
        else:
            made = group.subscribe(DomainEvent, handle, name=name, retry=retry)
        self._subscriptions.append(made)

    async def pause(self) -> None:
        await self._in_pause(lambda _: _pause(self._random))

    async def reset(self) -> None:
        to: Literal["beginning", "end"] = self._random.choice(["beginning", "end"])
        await self._in_pause(lambda group: group.reset(to))

    async def _in_pause(self, call: Callable[[Group], Awaitable[object]]) -> None:
        """Make a call while a group is paused. Another task may let it go on meanwhile."""
        if not self._groups:
            await trio.lowlevel.checkpoint()
            return
        group = self._random.choice(self._groups)
        try:
            await group.pause()
            is_paused = self._bus.statistics().groups[group.name].paused
            running = self._running[group.name]
            assert not (is_paused and running), (
                f"group {group.name!r} is paused, and {running} of its handlers run"
            )
            await call(group)
        finally:
            with trio.CancelScope(shield=True):
                await group.resume()

    async def unsubscribe(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._subscriptions:
            chosen = self._random.randrange(len(self._subscriptions))
            self._subscriptions.pop(chosen).unsubscribe()

    async def replay(self) -> None:
        letters = await self._bus.dead_letters.list()
        chosen = [letter.id for letter in letters if self._random.random() < 0.5]
        await self._bus.dead_letters.replay(chosen)

    async def discard(self) -> None:
        letters = await self._bus.dead_letters.list()
        if letters:
            await self._bus.dead_letters.discard(self._random.choice(letters).id)

    async def append(self) -> None:
        for stored in await self._store.append(self._several(2)):
            await self._check_position(stored.event, stored.position)

    async def read(self) -> None:
        before = 0
        async for stored in self._store.read():
            assert stored.position > before, f"position {stored.position} came after {before}"
            before = stored.position

    async def get(self) -> None:
        if self._events:
            await self._store.get(self._random.choice(self._events).event_id)
