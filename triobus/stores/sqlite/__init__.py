"""A store in a SQLite file."""

from triobus.stores.sqlite._store import SqliteEventStore

__all__ = ["SqliteEventStore"]
