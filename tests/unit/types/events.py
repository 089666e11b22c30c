"""Events for the cases of both kinds."""

import attrs

from triobus import DomainEvent


@attrs.frozen
class Ordered(DomainEvent):
    quantity: int


@attrs.frozen
class OrderedTwice(Ordered):
    second: int


@attrs.frozen
class Paid(DomainEvent):
    cents: int


@attrs.frozen
class Shipped(DomainEvent):
    parcel: str


@attrs.frozen
class Returned(DomainEvent):
    parcel: str


@attrs.frozen
class Lost(DomainEvent):
    parcel: str


@attrs.frozen
class Found(DomainEvent):
    parcel: str


@attrs.frozen
class Closed(DomainEvent):
    pass
