"""A store in a PostgreSQL database."""

from triobus.stores.postgres._store import PostgresEventStore

__all__ = ["PostgresEventStore"]
