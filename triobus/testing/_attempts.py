"""Watching the attempts of handlers, where the recording and the promises look."""

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence

import attrs

from triobus._events import DomainEvent
from triobus._events.causes import calling_bundle
from triobus._groups.delivery import InFlight
from triobus._groups.handlers import Invoke
from triobus._groups.instruments import Watcher
from triobus._groups.subscriptions import Group, Subscription

Key = tuple[str, str]
"""The names of a group and a subscription of it."""


def key_of(subscription: Subscription) -> Key:
    """Return the names that a subscription goes by."""
    return subscription.group, subscription.name


@attrs.define(eq=False)
class AttemptInstrument(Watcher):
    """The part of an instrument that stands around the handlers of every subscription."""

    _groups: dict[str, Group] = attrs.field(factory=dict, init=False)

    def attend(self, group: Group) -> None:
        """Know a group."""
        self._groups[group.name] = group

    def around(self, _: Subscription, invoke: Invoke) -> Invoke:
        """Watch the attempts of a subscription."""

        async def watched(given: DomainEvent | tuple[DomainEvent, ...]) -> object:
            async def call() -> object:
                return await invoke(given)

            events = given if isinstance(given, tuple) else (given,)
            return await self._attempt(calling_bundle(), events, call)

        return watched

    @abstractmethod
    async def _attempt(
        self,
        deliveries: Sequence[InFlight],
        events: Sequence[DomainEvent],
        call: Callable[[], Awaitable[object]],
    ) -> object:
        """Make an attempt at some events, one but in a group with batches, and see how it ends."""

    def _wanted_by(self, event: DomainEvent) -> set[Key]:
        """Return the subscriptions that an event is for, as it is accepted."""
        return {
            key_of(subscription)
            for group in self._groups.values()
            for subscription in group._plan_for(type(event))
        }
