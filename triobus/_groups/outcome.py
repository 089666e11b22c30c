"""What became of a published event in all groups."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import attrs
import trio

from triobus._errors import BusClosed
from triobus._events import DomainEvent
from triobus._groups.subscriptions import Subscription


@attrs.frozen(kw_only=True)
class Outcome:
    """What every handler made of one event, by the name of its subscription.

    Those are told of that were subscribed when it was accepted, and not who has come since. Where
    two groups have a subscription of the same name, the later group's is "group/name".
    """

    event_id: UUID
    """The event's own id."""
    position: int | None
    """Its place in the store's log; None without a store."""
    results: Mapping[str, Any]
    """What the handlers returned that succeeded."""
    errors: Mapping[str, Exception]
    """The last errors of the handlers that failed for good."""


@attrs.define(eq=False)
class PendingOutcome:
    """Collects the outcome of one event over all its deliveries."""

    _event: DomainEvent
    _pending: int | None = None
    """Deliveries that are not finished; None while it is not known which there are."""
    _names: dict[Subscription, str] = attrs.field(factory=dict)
    """What the outcome calls those that were there when the event was accepted."""
    _results: dict[str, Any] = attrs.field(factory=dict)
    _errors: dict[str, Exception] = attrs.field(factory=dict)
    _done: trio.Event = attrs.field(factory=trio.Event)
    _is_cut_off: bool = False

    def expect(self, plans: Sequence[Sequence[Subscription]]) -> None:
        """Wait for a delivery of each plan."""
        self._pending = len(plans)
        for subscription in (subscription for plan in plans for subscription in plan):
            name = subscription.name
            is_taken = name in self._names.values()
            self._names[subscription] = f"{subscription.group}/{name}" if is_taken else name

    def handled(self, subscription: Subscription, result: object) -> None:
        """Note a result."""
        # An event that is read back goes to those who are there then.
        if (name := self._names.get(subscription)) is not None:
            self._results[name] = result

    def failed(self, subscription: Subscription, error: Exception) -> None:
        """Note an error."""
        if (name := self._names.get(subscription)) is not None:
            self._errors[name] = error

    def finished(self) -> None:
        """Count a finished delivery."""
        assert self._pending is not None
        self._pending -= 1
        if not self._pending:
            self._done.set()

    def cut_off(self) -> None:
        """End the wait, for the bus has ended."""
        self._is_cut_off = True
        self._done.set()

    async def wait(self, position: int | None = None) -> Outcome:
        """Wait for all deliveries and return the outcome of the event at `position`."""
        if self._pending is None or self._pending:
            await self._done.wait()
            if self._is_cut_off:
                raise BusClosed(
                    f"event {self._event.event_id} was accepted, and the bus stopped before all of "
                    "its handlers had finished"
                )
        return Outcome(
            event_id=self._event.event_id,
            position=position,
            results=self._results,
            errors=self._errors,
        )
