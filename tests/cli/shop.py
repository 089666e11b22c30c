"""A module as `triobus run` is given one."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, ClassVar, Literal

import attrs

from triobus import DomainEvent, EventBus, Retry


@attrs.frozen
class Ordered(DomainEvent):
    """An order, with a field of each kind that JSON can have."""

    event_type: ClassVar[str] = "hostile.ordered"

    order: str
    number: int = 1
    price: Decimal = Decimal(1)
    share: float = 0.5
    more: Any = None
    parts: Mapping[str, Decimal] = attrs.field(factory=dict)

    @property
    def aggregate_id(self) -> str:
        return self.order


handled: list[Ordered] = []
bus = EventBus()


def begin(on_failure: Literal["dead-letter", "raise"] = "dead-letter") -> None:
    """Make a new bus, for a bus runs once."""
    global bus
    handled.clear()
    bus = EventBus(workers=1, on_failure=on_failure)

    @bus.subscribe(Ordered, name="ship", retry=Retry(attempts=1))
    async def ship(event: Ordered) -> None:
        handled.append(event)
        if event.order == "fail":
            raise ValueError(event.more)


def triobus_report() -> list[dict[str, object]]:
    """Show what was handled, as it is."""
    return [{"order": event.order, "source": event.metadata.get("source")} for event in handled]
