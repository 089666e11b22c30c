"""Publishing while instruments look on: a bus without any publishes with its log itself."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import attrs

from triobus._events import DomainEvent, Published, with_cause
from triobus._events.batch import Batch
from triobus._events.causes import calling_cause
from triobus._groups.instruments import Instruments
from triobus._groups.outcome import Outcome, PendingOutcome


class Publishing(Protocol):
    """What accepts events: the log of a bus, or what stands before it."""

    async def publish(self, event: DomainEvent, expected_sequence: int | None) -> Published:
        """Accept an event."""

    async def publish_later(self, event: DomainEvent, due_at: float) -> Published:
        """Accept an event that is due at a time of the schedule's clock."""

    async def publish_many(
        self, events: Sequence[DomainEvent], expected_sequence: int | None
    ) -> list[Published]:
        """Accept events, all or none."""

    async def publish_and_wait(self, event: DomainEvent, completion: PendingOutcome) -> Outcome:
        """Accept an event, and wait for all its handlers."""

    def publish_nowait(self, event: DomainEvent) -> Published:
        """Accept an event at once."""


@attrs.define(eq=False)
class ObservedPublishing:
    """Lets instruments be around every call that publishes."""

    _log: Publishing
    _instruments: Instruments

    @contextmanager
    def _around(self, events: Sequence[DomainEvent]) -> Iterator[Sequence[DomainEvent]]:
        """Yield the events as they are to be published. Raises `InvalidEvent`."""
        cause = calling_cause()
        checked: Sequence[DomainEvent] = Batch(list(events)).events
        if cause is not None:
            checked = [with_cause(event, cause) for event in checked]
        with self._instruments.around_publishing(checked) as found:
            yield found

    async def publish(self, event: DomainEvent, expected_sequence: int | None) -> Published:
        """Accept an event."""
        with self._around([event]) as (found,):
            return await self._log.publish(found, expected_sequence)

    async def publish_later(self, event: DomainEvent, due_at: float) -> Published:
        """Accept an event that is due at a time of the schedule's clock."""
        with self._around([event]) as (found,):
            return await self._log.publish_later(found, due_at)

    async def publish_many(
        self, events: Sequence[DomainEvent], expected_sequence: int | None
    ) -> list[Published]:
        """Accept events, all or none."""
        with self._around(events) as found:
            return await self._log.publish_many(found, expected_sequence)

    async def publish_and_wait(self, event: DomainEvent, completion: PendingOutcome) -> Outcome:
        """Accept an event, and wait for all its handlers."""
        with self._around([event]) as (found,):
            return await self._log.publish_and_wait(found, completion)

    def publish_nowait(self, event: DomainEvent) -> Published:
        """Accept an event at once."""
        with self._around([event]) as (found,):
            return self._log.publish_nowait(found)
