"""Event classes that many tests share."""

from typing import ClassVar

import attrs

from triobus import DomainEvent


@attrs.frozen
class Noted(DomainEvent):
    """A numbered note, of an aggregate if it has a key."""

    event_type: ClassVar[str] = "noted"

    number: int
    key: str | None = None

    @property
    def aggregate_id(self) -> str | None:
        return self.key


@attrs.frozen
class SpecialNoted(Noted):
    """A subclass, which subscribers of `Noted` receive too."""


@attrs.frozen
class Other(DomainEvent):
    """An event of another type, without order."""

    number: int = 0
