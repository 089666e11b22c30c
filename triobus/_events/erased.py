"""What stands in the log for an event whose data were erased."""

from typing import ClassVar

import attrs

from triobus._events.event import DomainEvent


@attrs.frozen
class Erased(DomainEvent):
    """What is left of an event when the data of its aggregate have been erased from a store.

    Position, id and time are those of the event. It belongs to no aggregate, and what it was about
    is nowhere any more. `triobus erase` makes it; no handler of the event gets it.
    """

    event_type: ClassVar[str] = "triobus.erased"

    was: str
    """The type of the event."""
