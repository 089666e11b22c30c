"""Events: what they are, and how they become JSON and are made of it. It knows no bus, no store."""

from triobus._events.codec import EventCodec, EventDecoder, check_aggregate_id
from triobus._events.converters import Converter
from triobus._events.erased import Erased
from triobus._events.event import (
    DomainEvent,
    Published,
    event_classes,
    key_of,
    published,
    with_cause,
    with_metadata,
)
from triobus._events.upcasters import upcaster

__all__ = [
    "Converter",
    "DomainEvent",
    "Erased",
    "EventCodec",
    "EventDecoder",
    "Published",
    "check_aggregate_id",
    "event_classes",
    "key_of",
    "published",
    "upcaster",
    "with_cause",
    "with_metadata",
]
