"""The event classes that subscriptions get."""

from collections.abc import Iterable

from triobus._events import DomainEvent, event_classes
from triobus._groups.subscriptions import Subscription


def types_of(subscriptions: Iterable[Subscription]) -> list[type[DomainEvent]]:
    """Return the loaded classes of events that some of the subscriptions get, by event type.

    A class that others derive from and that is no event of its own is left out.
    """
    wanted = tuple({cls for subscription in subscriptions for cls in subscription.types})
    found = {cls: None for cls in event_classes() if wanted and issubclass(cls, wanted)}
    found.update({cls: None for cls in wanted if cls is not DomainEvent})
    own = [cls for cls in found if not cls.__module__.startswith("triobus._")]
    return sorted(own, key=lambda cls: (cls.event_type, cls.__qualname__))
