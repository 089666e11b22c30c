"""triobus: a domain-event bus that lives inside a Trio program."""

from triobus._bus import EventBus, StopReport
from triobus._dead_letters import DeadLetter
from triobus._errors import (
    BusAlreadyStarted,
    BusClosed,
    BusFull,
    DuplicateName,
    EventIdConflict,
    EventNotDecodable,
    EventNotEncodable,
    HandlerTimeout,
    HeldBack,
    InvalidEvent,
    InvalidHandler,
    InvalidOption,
    InvalidStorePath,
    NoDelivery,
    NotAStore,
    OutcomeUnknown,
    SequenceConflict,
    StoreClosed,
    StoreCorrupt,
    StoreError,
    StoreForked,
    StoreFull,
    StoreInUse,
    StoreIOError,
    StoreNotFound,
    StoreReadOnly,
    StoreReplaced,
    StoreTooNew,
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
from triobus._upcasters import upcaster
from triobus.stores import (
    EventStore,
    MemoryEventStore,
    SqliteEventStore,
    Stored,
    StoredGroup,
    StoreStatistics,
)

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
    "EventIdConflict",
    "EventNotDecodable",
    "EventNotEncodable",
    "EventStore",
    "Group",
    "GroupStatistics",
    "HandlerTimeout",
    "Health",
    "HeldBack",
    "InvalidEvent",
    "InvalidHandler",
    "InvalidOption",
    "InvalidStorePath",
    "Listener",
    "MemoryEventStore",
    "NoDelivery",
    "NotAStore",
    "Outcome",
    "OutcomeUnknown",
    "Published",
    "Retry",
    "SequenceConflict",
    "SqliteEventStore",
    "StopReport",
    "StoreClosed",
    "StoreCorrupt",
    "StoreError",
    "StoreForked",
    "StoreFull",
    "StoreIOError",
    "StoreInUse",
    "StoreNotFound",
    "StoreReadOnly",
    "StoreReplaced",
    "StoreStatistics",
    "StoreTooNew",
    "Stored",
    "StoredGroup",
    "Subscription",
    "TriobusError",
    "UnknownDeadLetter",
    "UnknownSubscription",
    "WouldDeadlock",
    "current_delivery",
    "upcaster",
]
