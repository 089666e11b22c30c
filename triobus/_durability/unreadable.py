"""Events that cannot be made from their JSON: they go the way of all events, and then fail."""

from uuid import UUID

import attrs
import trio

from triobus._errors import EventNotDecodable, StoreCorrupt
from triobus._groups.retry import Retry
from triobus._groups.subscriptions import Subscription
from triobus._text import shown
from triobus.stores._values import Row


@attrs.frozen(eq=False)
class Unreadable:
    """Stands for such an event on its way."""

    event_id: UUID
    event_type: str
    aggregate_id: str | None


def unreadable(record: Row) -> Unreadable:
    """Return what stands for the event of a record. Raises `StoreCorrupt` if it has no id."""
    try:
        event_id = UUID(record.event_id)
    except ValueError:
        error = StoreCorrupt(
            f"the store is damaged at position {record.position}: {shown(record.event_id)} is no "
            "event's id. Restore the file from a backup"
        )
        error.position = record.position
        raise error from None
    return Unreadable(event_id, record.event_type, record.aggregate_id)


def stand_in(subscription: Subscription, error: EventNotDecodable) -> Subscription:
    """Return a subscription that refuses the event in the place of one that cannot be given it.

    It has the name of that one, and so does the dead letter.
    """

    async def refuse(_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise error

    return attrs.evolve(
        subscription, invoke=refuse, is_transactional=False, retry=Retry(attempts=1), where=None
    )
