"""The two ways in which a bus accepts events: straight to its groups, or through a store.

`Log` is what one life of a bus asks of either, so that nothing else has to know which it is.
"""

from collections.abc import Callable, Iterable, Sequence, Set
from datetime import datetime
from itertools import repeat
from typing import Any, Protocol
from uuid import UUID

import attrs
import trio
from trio.lowlevel import cancel_shielded_checkpoint, enable_ki_protection

from triobus._bus.routing import Routing, describe_full
from triobus._bus.schedule import MemorySchedule
from triobus._durability.listener import StoredInbox
from triobus._durability.recorder import Recorder
from triobus._durability.schedule import StoredSchedule
from triobus._durability.sharing.recorder import SharedRecorder
from triobus._errors import BusFull, InvalidOption
from triobus._events import DomainEvent, Published, published
from triobus._events.batch import Batch
from triobus._groups.bundling import BundlingLanes
from triobus._groups.dead_letters import DeadLetterKeeper, MemoryDeadLetters
from triobus._groups.delivery import Bundle, InFlight, Replayed
from triobus._groups.effects import Effect, Effected
from triobus._groups.listeners import Inbox, Listener
from triobus._groups.outcome import Outcome, PendingOutcome
from triobus._groups.subscriptions import Group, GroupOptions
from triobus._groups.workers import GroupLog, GroupShell
from triobus.stores import EventStore
from triobus.stores._shared import SharedEventStore


class Log(Protocol):
    """Where the events of one life of a bus go, and what is known of how far its groups are."""

    @property
    def where(self) -> str:
        """In words, where events are kept."""

    @property
    def letters(self) -> DeadLetterKeeper:
        """The dead letters."""

    @property
    def is_pending(self) -> bool:
        """Whether something that is finished has still to be recorded, and can be."""

    async def open(self) -> None:
        """Get ready. Raises `StoreError`, and then nothing is open."""

    async def close(self) -> None:
        """Record what is finished, and let go of everything. Raises `StoreError`."""

    async def run(self) -> None:
        """Do what has to be done beside all others, until it is closed."""

    @property
    def is_attended(self) -> bool:
        """Whether `attend` is to run beside it."""

    async def attend(self) -> None:
        """Hear of what other programs store. Raises `StoreError` if the log was lost to another."""

    def halt(self) -> None:
        """Record nothing from here on, as a killed process would."""

    def add(self, options: GroupOptions) -> GroupLog:
        """Return what brings the events to one more group."""

    def check_types(self, types: Iterable[type[DomainEvent]]) -> None:
        """Raise `EventNotEncodable` for a class whose events could not be kept."""

    def resubscribed(self, name: str) -> None:
        """A subscription of a group has come or gone."""

    def listen(self, inbox: Inbox) -> Listener[Any]:
        """Return a listener, whose inbox gets what is accepted from here on."""

    async def publish(self, event: DomainEvent, expected_sequence: int | None) -> Published:
        """Accept an event."""

    async def publish_later(self, event: DomainEvent, due_at: float) -> Published:
        """Accept an event that is due at a time of the schedule's clock."""

    async def cancel_scheduled(self, event_id: UUID) -> bool:
        """Take back an event that is not due yet; return whether it was there."""

    @property
    def schedule(self) -> MemorySchedule | StoredSchedule:
        """What is not due yet."""

    def left(self, group: Group) -> int:
        """Return how many events a group loses that are not due when the bus stops."""

    async def publish_many(
        self, events: Sequence[DomainEvent], expected_sequence: int | None
    ) -> list[Published]:
        """Accept events, all or none."""

    async def publish_and_wait(self, event: DomainEvent, completion: PendingOutcome) -> Outcome:
        """Accept an event, and wait for all its handlers."""

    def publish_nowait(self, event: DomainEvent) -> Published:
        """Accept an event at once."""

    async def cut(self) -> None:
        """Let what outsiders store from here on be the next life's; first wait for who does so."""

    async def flush(self) -> None:
        """Wait until what is finished is recorded. Raises `StoreError`."""

    def check_process(self) -> None:
        """Raise `StoreForked` in a forked child, if that is of importance."""

    def reasons(self) -> Iterable[str]:
        """Yield a sentence for everything about the log that is not as it should be."""


@attrs.define(eq=False)
class MemoryGroupLog:
    """What a group without a store has: nothing is to be read or recorded, and publishers wait."""

    lanes: BundlingLanes
    buffer: float
    _routing: Routing
    unread: int = attrs.field(default=0, init=False)
    runs: tuple[()] = attrs.field(default=(), init=False)
    advance: Callable[[InFlight], bool] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.advance = self.lanes.advance

    @property
    def lag(self) -> int:
        """Events that are not settled."""
        return self.lanes.unsettled

    def serve(self, shell: GroupShell) -> None:
        """Publishers bring the events."""

    def when_recorded(self, function: Callable[[], None]) -> None:
        """Nothing is recorded."""
        function()

    def record_attempts(self, delivery: InFlight, index: int, attempts: int, delay: float) -> None:
        """They are in memory already."""

    def on_room(self, shell: GroupShell) -> None:
        """Accept what waits for room, or for a free worker."""
        self._routing.admit(shell)

    def on_due(self) -> None:
        """Nothing is ever read back."""

    async def event_at(self, position: int | None) -> Any:
        """Every event is in memory."""
        raise AssertionError(position)

    async def withdraw(self, numbers: Set[int]) -> list[InFlight | Bundle]:
        """Return deliveries that wait for a retry, which all are in memory."""
        return self.lanes.withdraw(numbers)

    async def pause(self) -> None:
        """Nobody shares the group."""

    async def resume(self) -> None:
        """Nobody shares the group."""

    async def have(self, _: Sequence[Effect]) -> Sequence[Effected]:
        """Nothing is ever committed."""
        raise no_transactions()

    async def reset(self, _: int | datetime | None, __: Callable[[Any], object] | None) -> None:
        """Nothing is kept to which a group could go back."""
        raise InvalidOption(
            "reset(): a bus without a store keeps no log to go back in; give it one, such as "
            "EventBus(SqliteEventStore('orders.db'))"
        )

    def replay(self, given: Replayed) -> None:
        """Put a replay into its lane."""
        self.lanes.add(*given)


@attrs.define(eq=False)
class MemoryLog:
    """Gives events straight to groups and listeners; publishers wait until these have room."""

    _routing: Routing
    schedule: MemorySchedule = attrs.field(init=False)
    where: str = attrs.field(default="in memory", init=False)
    letters: DeadLetterKeeper = attrs.field(factory=MemoryDeadLetters, init=False)
    is_pending: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.schedule = MemorySchedule(self._accept)

    async def open(self) -> None:
        """Nothing is to be opened."""
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        """Nothing is to be closed."""
        await cancel_shielded_checkpoint()

    is_attended: bool = attrs.field(default=False, init=False)

    async def attend(self) -> None:
        """Nobody else stores anything."""

    async def run(self) -> None:
        """Nothing is to be done."""

    def halt(self) -> None:
        """Nothing is recorded anyway."""

    def add(self, options: GroupOptions) -> GroupLog:
        """Return what a group needs that gets what is published from here on."""
        return MemoryGroupLog(
            BundlingLanes(is_ordered=options.is_ordered, is_total=options.workers == 1),
            options.buffer,
            self._routing,
        )

    def check_types(self, types: Iterable[type[DomainEvent]]) -> None:
        """Every class will do: nothing is kept."""

    def resubscribed(self, name: str) -> None:
        """Let those go on who wait for room in a group that does not want their events any more."""
        self._routing.admit(self._routing.shells[name])

    def listen(self, inbox: Inbox) -> Listener[Any]:
        """Return a listener for which publishers wait."""
        self._routing.listen(inbox, inbox.offer)
        return Listener(inbox, inbox.receive)

    async def publish(self, event: DomainEvent, expected_sequence: int | None) -> Published:
        """Accept an event as soon as there is room. Cancelled while it waits, it is not."""
        if expected_sequence is not None:
            raise _no_sequences(expected_sequence)
        shells = self._routing.accept(event)
        if shells is None:
            await self._publish_batch(Batch([event]))
        else:
            await cancel_shielded_checkpoint()
            # For a worker that takes two events is woken half as often as for one each.
            for shell in shells:
                if shell.free and shell.lanes.held:
                    shell.wake()
        return Published(event.event_id, None)

    async def publish_many(
        self, events: Sequence[DomainEvent], expected_sequence: int | None
    ) -> list[Published]:
        """Accept events as soon as there is room for all of them."""
        if expected_sequence is not None:
            raise _no_sequences(expected_sequence)
        batch = Batch(list(events))
        await self._publish_batch(batch)
        return published(batch.events, repeat(None))

    async def publish_and_wait(self, event: DomainEvent, completion: PendingOutcome) -> Outcome:
        """Accept an event, and wait for all its handlers."""
        await self._publish_batch(Batch([event], completion))
        return await completion.wait()

    def publish_nowait(self, event: DomainEvent) -> Published:
        """Accept an event, or raise `BusFull`."""
        shells = self._routing.accept(event)
        if shells is None:
            batch = Batch([event])
            is_inside = self._routing.enter(batch)
            full = None if is_inside else self._routing.first_full(batch)
            if full is not None:
                raise BusFull(describe_full(full))
            self._routing.commit(batch)
        else:
            for shell in shells:
                shell.wake()
        return Published(event.event_id, None)

    async def publish_later(self, event: DomainEvent, due_at: float) -> Published:
        """Keep an event until it is due."""
        batch = Batch([event])
        self._routing.enter(batch)
        is_new = self.schedule.add(batch, due_at)
        await cancel_shielded_checkpoint()
        return Published(event.event_id, None, is_new)

    async def cancel_scheduled(self, event_id: UUID) -> bool:
        """Take back an event that is not due yet."""
        was_there = self.schedule.cancel(event_id)
        await cancel_shielded_checkpoint()
        return was_there

    def left(self, group: Group) -> int:
        """Return how many events that are not due would have gone to a group."""
        return sum(bool(group._plan_for(type(event))) for event in self.schedule.events)

    async def _publish_batch(self, batch: Batch) -> None:
        is_inside = self._routing.enter(batch)
        await self._accept(batch, is_inside=is_inside)

    async def _accept(self, batch: Batch, *, is_inside: bool = False) -> None:
        full = None if is_inside else self._routing.first_full(batch)
        if full is None:
            self._routing.commit(batch)
            await cancel_shielded_checkpoint()
            return
        self._routing.check_not_waiting_for_itself(full)
        await self._routing.wait_for_room(full, batch)

    async def cut(self) -> None:
        """No publisher from outside is let in any more, anyway."""

    async def flush(self) -> None:
        """Nothing is recorded."""

    def check_process(self) -> None:
        """Nothing but the bus itself is of no use in a forked child."""

    def reasons(self) -> Iterable[str]:
        """Nothing can be wrong with it."""
        return ()


@attrs.define(eq=False)
class StoredLog:
    """Stores events, and gives them to groups and listeners from there; no publisher waits."""

    _routing: Routing
    _recorder: Recorder

    @property
    def store(self) -> EventStore:
        """The store, as this life of the bus has it."""
        return self._recorder.store

    @property
    def where(self) -> str:
        """The store."""
        return f"with {self._recorder.store!r}"

    @property
    def letters(self) -> DeadLetterKeeper:
        """The dead letters in the store."""
        return self._recorder.letters

    @property
    def is_pending(self) -> bool:
        """Whether something has still to be recorded, and can be."""
        return self._recorder.is_pending

    async def open(self) -> None:
        """Open the store, become its only writer and take up what is in it."""
        await self._recorder.attach()

    async def close(self) -> None:
        """Record what is finished, and close the store."""
        try:
            await self._recorder.detach()
        finally:
            self._recorder.forget()

    @enable_ki_protection
    async def run(self) -> None:
        """Run the writer."""
        await self._recorder.run()

    @property
    def is_attended(self) -> bool:
        """Whether other programs may store something, too."""
        return self._recorder.is_attended

    async def attend(self) -> None:
        """Hear of what they store."""
        await self._recorder.attend()

    def halt(self) -> None:
        """Record nothing from here on."""
        self._recorder.halt()

    def add(self, options: GroupOptions) -> GroupLog:
        """Return what brings the store's log to one more group."""
        return self._recorder.add(options)

    def check_types(self, types: Iterable[type[DomainEvent]]) -> None:
        """Raise `EventNotEncodable` for a class whose events could not be kept."""
        for cls in types:
            self._recorder.store._codec.check_class(cls)

    def resubscribed(self, name: str) -> None:
        """A subscription of a group has come or gone."""
        self._recorder.on_subscriptions(self._recorder.catch_ups[name])

    def listen(self, inbox: Inbox) -> Listener[Any]:
        """Return a listener that reads back what there was no room for."""
        stored = StoredInbox(inbox, self._recorder.store)
        self._routing.listen(inbox, stored.offer)
        return Listener(inbox, stored.receive)

    async def publish(self, event: DomainEvent, expected_sequence: int | None) -> Published:
        """Accept an event when it is stored."""
        (found,) = await self.publish_many([event], expected_sequence)
        return found

    async def publish_many(
        self, events: Sequence[DomainEvent], expected_sequence: int | None
    ) -> list[Published]:
        """Accept events when they are stored, all or none."""
        batch = Batch(list(events))
        self._routing.enter(batch)
        places = await self._recorder.store._submit(batch, expected_sequence)
        return [
            Published(event.event_id, place.position, place.is_new)
            for event, place in zip(batch.events, places, strict=True)
        ]

    async def publish_later(self, event: DomainEvent, due_at: float) -> Published:
        """Accept an event when it is stored; it goes into the log when it is due."""
        batch = Batch([event])
        self._routing.enter(batch)
        found = await self._recorder.store._schedule(batch, due_at)
        return Published(event.event_id, found.position, found.is_new)

    async def cancel_scheduled(self, event_id: UUID) -> bool:
        """Take back an event that is not due yet, and return when that is stored."""
        return await self.schedule.cancel(event_id)

    @property
    def schedule(self) -> StoredSchedule:
        """What is not due yet."""
        return self._recorder.schedule

    def left(self, _: Group) -> int:
        """Nothing is lost: the store has what is not due."""
        return 0

    async def publish_and_wait(self, event: DomainEvent, completion: PendingOutcome) -> Outcome:
        """Accept an event, and wait for all its handlers."""
        batch = Batch([event], completion)
        self._routing.enter(batch)
        (place,) = await self._recorder.store._submit(batch)
        return await completion.wait(place.position)

    def publish_nowait(self, event: DomainEvent) -> Published:  # noqa: ARG002  # whatever it is
        """Refuse it: the store has to be waited for."""
        raise InvalidOption(
            "publish_nowait() cannot wait for the store that this bus has: use "
            "'await bus.publish(event)'"
        )

    async def cut(self) -> None:
        """Wait for those who are storing; what others store after that is the next life's."""
        await self._recorder.cut()

    async def flush(self) -> None:
        """Wait until what is finished is recorded."""
        await self._recorder.flush()

    def check_process(self) -> None:
        """Raise `StoreForked` in a forked child."""
        self._recorder.store._check_process()

    def reasons(self) -> Iterable[str]:
        """Tell of commits that failed, and of what the store itself warns of."""
        return self._recorder.reasons()


def no_transactions() -> InvalidOption:
    """Return the error of a transactional handler of a bus that has no store."""
    return InvalidOption(
        "transactional=True: a bus without a store commits nothing; give it one, such as "
        "EventBus(SqliteEventStore('orders.db'))"
    )


def _no_sequences(expected_sequence: int) -> InvalidOption:
    return InvalidOption(
        f"expected_sequence={expected_sequence!r}: a bus without a store knows no "
        "sequences; give it one: EventBus(store=...)"
    )


def log_of(store: EventStore | None, routing: Routing) -> Log:
    """Return the log of a bus that has this store, or none."""
    if store is None:
        return MemoryLog(routing)
    used = store._for_bus()
    if not isinstance(used, SharedEventStore):
        return StoredLog(routing, Recorder(used, routing.tell, routing.instruments))
    recorder = SharedRecorder(
        used,
        routing.tell,
        routing.instruments,
        shared=used,
        count=routing.count,
        offer=routing.offer,
        has_listeners=routing.has_listeners,
    )
    return StoredLog(routing, recorder)
