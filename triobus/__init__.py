"""triobus: a domain-event bus that lives inside a Trio program."""

from triobus._bus import EventBus, StopReport
from triobus._dead_letters import DeadLetter
from triobus._errors import (
    BusAlreadyStarted,
    BusClosed,
    BusFull,
    DuplicateName,
    EventNotDecodable,
    HandlerTimeout,
    HeldBack,
    InvalidEvent,
    InvalidHandler,
    InvalidOption,
    NoDelivery,
    TriobusError,
    UnknownDeadLetter,
    UnknownSubscription,
    WouldDeadlock,
)
from triobus._events import DomainEvent, Published
from triobus._group import Delivery, current_delivery
from triobus._health import Health
from triobus._listeners import Listener
from triobus._publishing import Outcome
from triobus._replay import DeadLetters
from triobus._retry import Retry
from triobus._statistics import BusStatistics, GroupStatistics
from triobus._subscriptions import Group, Subscription

__version__ = "0.1.0"

__all__ = [
    "BusAlreadyStarted",
    "BusClosed",
    "BusFull",
    "BusStatistics",
    "DeadLetter",
    "DeadLetters",
    "Delivery",
    "DomainEvent",
    "DuplicateName",
    "EventBus",
    "EventNotDecodable",
    "Group",
    "GroupStatistics",
    "HandlerTimeout",
    "Health",
    "HeldBack",
    "InvalidEvent",
    "InvalidHandler",
    "InvalidOption",
    "Listener",
    "NoDelivery",
    "Outcome",
    "Published",
    "Retry",
    "StopReport",
    "Subscription",
    "TriobusError",
    "UnknownDeadLetter",
    "UnknownSubscription",
    "WouldDeadlock",
    "current_delivery",
]
