"""What is reported to an object that watches a bus, as the test kit does. Otherwise it is free.

An instrument comes before a bus starts or while it runs; one of an environment sees every bus
that starts in it.
"""

from collections.abc import Sequence
from typing import Protocol

from triobus._events import DomainEvent
from triobus._groups.delivery import InFlight
from triobus._groups.subscriptions import Group, Subscription

Range = tuple[int, int | None]
"""First and last position of what is finished; a last of None where the range is no more."""


class Instrument(Protocol):
    """Watches one bus. None of its methods waits, and none may raise."""

    def attend(self, group: Group, /) -> None:
        """A group is there, or a subscription of it is new; its attempts can be watched."""

    def accepted(self, event: DomainEvent, position: int | None, /) -> None:
        """An event was accepted, in this order, and no handler has seen it yet."""

    def retry_planned(self, delivery: InFlight, due: float, /) -> None:
        """An attempt has failed, and the next one is due at that time."""

    def given_up(
        self, event: DomainEvent, subscription: Subscription, attempts: int, error: Exception, /
    ) -> None:
        """An event has become a dead letter of a subscription, or has remained one."""

    def recorded(self, group: str, offset: int, ranges: Sequence[Range], /) -> None:
        """A store has the progress of a group: an offset, and the finished ranges that changed."""

    def reset(self, group: str, offset: int, /) -> None:
        """A group goes on behind another position, and has forgotten what it had come to."""

    def drained(self) -> None:
        """The bus has stopped because nothing was left to do."""
