"""The stores that commands are given: a path, or what else a kind of store takes."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from triobus._cli._messages import CommandError
from triobus._errors import StoreNotFound
from triobus.stores import EventStore, SqliteEventStore
from triobus.stores._values import Commit

_DSN = ("postgresql://", "postgres://")


def to_read(target: str) -> EventStore:
    """Return the store of that name, to look at it only; a bus may be using it."""
    return file_to_read(target)


def file_to_read(target: str) -> SqliteEventStore:
    """Return the store in the file of that name, to look at it only."""
    check_file(target)
    return SqliteEventStore(target, read_only=True)


def to_write(target: str) -> EventStore:
    """Return the store of that name, which is there; writing needs it to be free."""
    return file_to_write(target)


def file_to_write(target: str) -> SqliteEventStore:
    """Return the store in the file of that name, which is there; raises `CommandError`."""
    check_file(target)
    store = SqliteEventStore(target)
    # A store that is opened to be written is made if there is none.
    if not os.path.lexists(store.path):
        raise StoreNotFound(f"store {store.path!r}: there is no such file")
    return store


def name_of(store: EventStore) -> str:
    """Return what messages call a store."""
    return str(getattr(store, "path", store))


@asynccontextmanager
async def claimed(target: str) -> AsyncIterator[EventStore]:
    """Have a store for writing inside the block. Raises `StoreInUse` with who has it."""
    async with to_write(target) as store:
        await store._claim()
        yield store


async def committed(store: EventStore, commit: Commit) -> list[Any]:
    """Store what is to be changed in a claimed store, all of it or nothing."""
    return await store._commit(commit)


def is_dsn(target: str) -> bool:
    """Whether a text names a database and no file."""
    return target.startswith(_DSN)


def check_file(target: str) -> None:
    """Raise `CommandError` where a database is given and only a file will do."""
    if is_dsn(target):
        raise CommandError(f"{target!r}: this command keeps to stores in files; give a path")
