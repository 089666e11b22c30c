"""A bus over any store or none with one handler, for the tests of hostile programs."""

from typing import Any

from tests.events import Noted
from triobus import EventBus, Retry

ONCE = Retry(attempts=1)


def handling(store: Any, handler: Any, types: Any = Noted, **options: Any) -> EventBus:
    bus = EventBus(store)
    bus.subscribe(types, handler, name="handler", retry=ONCE, **options)
    return bus
