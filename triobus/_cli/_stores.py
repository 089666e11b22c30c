"""The stores that commands are given: a path, or what else a kind of store takes."""

import argparse
import os
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from triobus._cli._messages import CommandError
from triobus._errors import InvalidOption, StoreNotFound
from triobus.stores import EventStore, PostgresEventStore, SqliteEventStore
from triobus.stores._values import Commit

_DSN = re.compile(r"postgres[\w+.-]*://", re.IGNORECASE)
"""Also what is none, but is meant to be one: as a path it would be shown with its password."""


def to_read(target: str, schema: str) -> EventStore:
    """Return the store of that name, to look at it only; a bus may be using it."""
    return _database(target, schema, read_only=True) if is_dsn(target) else file_to_read(target)


def file_to_read(target: str) -> SqliteEventStore:
    """Return the store in the file of that name, to look at it only."""
    check_file(target)
    return SqliteEventStore(target, read_only=True)


def to_write(target: str, schema: str) -> EventStore:
    """Return the store of that name, which is there; writing needs it to be free."""
    return _database(target, schema) if is_dsn(target) else file_to_write(target)


def to_run(target: str, schema: str) -> EventStore:
    """Return the store of that name for a bus, which makes it if it is not there."""
    return _database(target, schema) if is_dsn(target) else SqliteEventStore(target)


def _database(dsn: str, schema: str, *, read_only: bool = False) -> EventStore:
    try:
        return PostgresEventStore(dsn, schema=schema, read_only=read_only)
    except (ImportError, InvalidOption) as error:
        raise CommandError(str(error)) from error


def file_to_write(target: str) -> SqliteEventStore:
    """Return the store in the file of that name, which is there; raises `CommandError`."""
    check_file(target)
    store = SqliteEventStore(target)
    # A store that is opened to be written is made if there is none.
    if not os.path.lexists(store.path):
        raise StoreNotFound(f"store {store.path!r}: there is no such file")
    return store


def name_of(store: EventStore) -> str:
    """Return what messages call a store: a path, or where a database is, without its password."""
    if isinstance(store, PostgresEventStore):
        return store._shown
    assert isinstance(store, SqliteEventStore)
    return store.path


def shown(store: EventStore) -> str:
    """Return what begins a sentence about a store."""
    name = name_of(store)
    return name if isinstance(store, PostgresEventStore) else f"store {name!r}"


@asynccontextmanager
async def claimed(target: str, schema: str) -> AsyncIterator[EventStore]:
    """Have a store for writing inside the block. Raises `StoreInUse` with who has it."""
    if is_dsn(target):
        async with to_read(target, schema):  # else a store that is not there would be made
            pass
    async with to_write(target, schema) as store:
        await store._claim()
        yield store


def to_change(options: argparse.Namespace) -> AbstractAsyncContextManager[EventStore]:
    """Have a store for a change, and with `--dry-run` only to look at it."""
    if options.dry_run:
        return to_read(options.store, options.schema)
    return claimed(options.store, options.schema)


async def committed(store: EventStore, commit: Commit) -> list[Any]:
    """Store what is to be changed in a claimed store, all of it or nothing."""
    return await store._commit(commit)


def is_dsn(target: str) -> bool:
    """Whether a text names a database and no file."""
    return _DSN.match(target) is not None


def check_file(target: str) -> None:
    """Raise `CommandError` where a database is given and only a file will do."""
    if is_dsn(target):
        raise CommandError(
            "a database was given, and this command is for stores in files: give a path. The "
            "copies of a database are made with pg_dump"
        )
