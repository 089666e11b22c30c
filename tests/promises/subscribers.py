"""Handlers that the tests of subscriptions subscribe."""

from tests.events import Noted
from triobus import DomainEvent


async def handle(event: DomainEvent) -> None:
    """Does nothing."""


class Mailer:
    """Something with methods, that can also be called."""

    async def send(self, event: Noted) -> None: ...

    async def __call__(self, event: Noted) -> None: ...
