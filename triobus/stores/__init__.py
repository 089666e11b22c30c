"""Where events are kept: the protocol `EventStore`, and stores in memory and two databases."""

from triobus.stores._store import EventStore
from triobus.stores._transaction import Transaction
from triobus.stores._values import Stored, StoredGroup, StoredNode, StoreStatistics
from triobus.stores.memory import MemoryEventStore
from triobus.stores.postgres import PostgresEventStore
from triobus.stores.sqlite import SqliteEventStore

__all__ = [
    "EventStore",
    "MemoryEventStore",
    "PostgresEventStore",
    "SqliteEventStore",
    "StoreStatistics",
    "Stored",
    "StoredGroup",
    "StoredNode",
    "Transaction",
]
