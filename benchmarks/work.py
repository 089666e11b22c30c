"""The work that is measured: one kind of event, and handlers that do nothing."""

from collections.abc import Iterator

import attrs

import triobus


@attrs.frozen
class Ticked(triobus.DomainEvent):
    """An event of one aggregate."""

    key: str

    @property
    def aggregate_id(self) -> str:
        """The aggregate."""
        return self.key


async def handler(event: Ticked) -> None:
    """Do nothing: what is measured is the way to here."""


BATCH = 1000


def events_of(count: int, aggregates: int = 100) -> list[Ticked]:
    """Make events, spread evenly over the aggregates."""
    return [Ticked(f"aggregate-{number % aggregates}") for number in range(count)]


def batches(events: list[Ticked]) -> Iterator[list[Ticked]]:
    """Cut a list into lists of `BATCH`."""
    for first in range(0, len(events), BATCH):
        yield events[first : first + BATCH]
