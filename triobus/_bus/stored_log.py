"""How a bus with a store accepts events: they are stored, and come to its groups from there."""

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

import attrs
from trio.lowlevel import enable_ki_protection

from triobus._bus.routing import Routing
from triobus._durability.listener import StoredInbox
from triobus._durability.recorder import Recorder
from triobus._durability.schedule import StoredSchedule
from triobus._errors import InvalidOption
from triobus._events import DomainEvent, Published
from triobus._events.batch import Batch
from triobus._groups.dead_letters import DeadLetterKeeper
from triobus._groups.listeners import Inbox, Listener
from triobus._groups.outcome import Outcome, PendingOutcome
from triobus._groups.subscriptions import Group, GroupOptions
from triobus._groups.workers import GroupLog
from triobus.stores import EventStore


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
