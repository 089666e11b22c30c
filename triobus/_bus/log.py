"""The two ways in which a bus accepts events: straight to its groups, or through a store.

`Log` is what one life of a bus asks of either, so that nothing else has to know which it is.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol
from uuid import UUID

from triobus._bus.memory_log import MemoryLog
from triobus._bus.routing import Routing
from triobus._bus.schedule import MemorySchedule
from triobus._bus.stored_log import StoredLog
from triobus._durability.recorder import Recorder
from triobus._durability.schedule import StoredSchedule
from triobus._durability.sharing.recorder import SharedRecorder
from triobus._events import DomainEvent, Published
from triobus._groups.dead_letters import DeadLetterKeeper
from triobus._groups.listeners import Inbox, Listener
from triobus._groups.outcome import Outcome, PendingOutcome
from triobus._groups.subscriptions import Group, GroupOptions
from triobus._groups.workers import GroupLog
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
