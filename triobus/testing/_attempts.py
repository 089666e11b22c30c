"""Watching the attempts of handlers, which is where both the recording and the promises look."""

from abc import ABC, abstractmethod

import attrs

from triobus._events import DomainEvent
from triobus._groups.handlers import Invoke
from triobus._groups.subscriptions import Group, Subscription

Key = tuple[str, str]
"""The names of a group and a subscription of it."""


@attrs.define(eq=False)
class AttemptInstrument(ABC):
    """The part of an instrument that stands around the handlers of every subscription."""

    _groups: dict[str, Group] = attrs.field(factory=dict, init=False)
    _attended: set[Subscription] = attrs.field(factory=set, init=False)

    def attend(self, group: Group) -> None:
        """Watch the attempts of a group."""
        self._groups[group.name] = group
        for subscription in group.subscriptions:
            if subscription not in self._attended:
                self._attended.add(subscription)
                subscription._invoke = self._watched(subscription, subscription._invoke)

    @abstractmethod
    def _watched(self, subscription: Subscription, invoke: Invoke) -> Invoke:
        """Return what is called in place of a subscription's handler, and calls it."""

    def _wanted_by(self, event: DomainEvent) -> set[Key]:
        """Return whom an event is for, as it is accepted."""
        return {
            (subscription.group, subscription.name)
            for group in self._groups.values()
            for subscription in group._plan_for(type(event))
        }
