"""What a store's file looks like, and what is done with a file that looks otherwise.

The schema of a file is compared with this one, text by text, before anything is selected from it: a
trigger that eats events, or a view in the place of a table, is not a store.
"""

import functools
import sqlite3

from triobus._errors import NotAStore, StoreTooNew
from triobus.stores.sqlite._checksums import add_to_version_1

APPLICATION_ID = 0x7472_6962
""""trib": what `file` and `PRAGMA application_id` tell of it."""

_VERSION_1 = """
CREATE TABLE events (
    position INTEGER PRIMARY KEY,
    event_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    schema_version INTEGER NOT NULL,
    aggregate_id TEXT,
    sequence INTEGER,
    recorded_at TEXT NOT NULL,
    data TEXT NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX events_by_id ON events (event_id);
CREATE INDEX events_by_aggregate ON events (aggregate_id) WHERE aggregate_id IS NOT NULL;
CREATE TABLE progress (
    name TEXT PRIMARY KEY,
    position INTEGER NOT NULL,
    checksum INTEGER,
    fences INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE finished (
    group_name TEXT NOT NULL,
    first_position INTEGER NOT NULL,
    last_position INTEGER NOT NULL,
    PRIMARY KEY (group_name, first_position)
) STRICT, WITHOUT ROWID;
CREATE TABLE attempts (
    group_name TEXT NOT NULL,
    position INTEGER NOT NULL,
    subscription TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    due_at REAL NOT NULL,
    delay REAL NOT NULL,
    done TEXT NOT NULL,
    PRIMARY KEY (group_name, position)
) STRICT, WITHOUT ROWID;
CREATE TABLE dead_letters (
    id INTEGER PRIMARY KEY,
    position INTEGER NOT NULL,
    group_name TEXT NOT NULL,
    subscription TEXT NOT NULL,
    aggregate_id TEXT,
    attempts INTEGER NOT NULL,
    first_failed_at TEXT NOT NULL,
    last_failed_at TEXT NOT NULL,
    error_type TEXT NOT NULL,
    message TEXT NOT NULL,
    traceback TEXT NOT NULL
) STRICT;
INSERT INTO progress VALUES ('', 0, 0, 0)
"""

_VERSION_2 = """
ALTER TABLE events ADD COLUMN correlation_id TEXT;
UPDATE events SET correlation_id = data ->> 'correlation_id' WHERE json_valid(data);
CREATE INDEX events_by_correlation ON events (correlation_id) WHERE correlation_id IS NOT NULL;
ALTER TABLE finished ADD COLUMN checksum INTEGER;
ALTER TABLE attempts ADD COLUMN checksum INTEGER;
ALTER TABLE dead_letters ADD COLUMN checksum INTEGER;
CREATE TABLE scheduled (
    number INTEGER PRIMARY KEY,
    due_at REAL NOT NULL,
    event_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    schema_version INTEGER NOT NULL,
    aggregate_id TEXT,
    data TEXT NOT NULL,
    correlation_id TEXT,
    checksum INTEGER
) STRICT;
CREATE UNIQUE INDEX scheduled_by_id ON scheduled (event_id);
CREATE INDEX scheduled_by_due ON scheduled (due_at, number)
"""

MIGRATIONS: tuple[str, ...] = (_VERSION_1, _VERSION_2)
"""Statements, separated by ";" at the end of a line, that make each version of the one before."""


def statements(script: str) -> list[str]:
    """Return the statements of a migration."""
    return [statement.strip() for statement in script.split(";\n")]


@functools.cache
def expected(version: int) -> frozenset[tuple[str, str]]:
    """Return kind and text of everything that a schema of that version has."""
    connection = sqlite3.connect(":memory:")
    try:
        for script in MIGRATIONS[:version]:
            for statement in statements(script):
                connection.execute(statement)
        return frozenset(connection.execute(_SCHEMA))
    finally:
        connection.close()


TABLES = frozenset(["events", "progress", "finished", "attempts", "dead_letters", "scheduled"])
"""The tables that are triobus's own, of any version; a program may have others beside them."""
_SCHEMA = "SELECT type, sql FROM sqlite_schema WHERE sql IS NOT NULL"
_OWN = f"{_SCHEMA} AND lower(tbl_name) IN ({', '.join(map(repr, sorted(TABLES)))})"
"""What is of these tables: themselves, their indexes, and triggers that anybody has put on them."""


def version_of(connection: sqlite3.Connection, shown: str) -> int:
    """Return the version of a file's schema, 0 for a file in which there is nothing yet.

    Raises `NotAStore` or `StoreTooNew`, and `sqlite3.Error`.
    """
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (encoding,) = connection.execute("PRAGMA encoding").fetchone()
    found = {(_text(kind), _text(sql)) for kind, sql in connection.execute(_OWN)}
    (others,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if not others and not application_id and not version:
        return 0
    if application_id != APPLICATION_ID:
        raise NotAStore(
            f"{shown} is a database of another application (application_id {application_id}, "
            f"expected {APPLICATION_ID}): give the path of a store, or one where there is no file"
        )
    if version > len(MIGRATIONS):
        raise StoreTooNew(
            f"{shown} has version {version} of the schema, and this triobus knows versions up to "
            f"{len(MIGRATIONS)}: update triobus"
        )
    if version < 1 or found != expected(version) or _text(encoding) != "UTF-8":
        what = _difference(found, expected(max(version, 1)))
        raise NotAStore(
            f"{shown} does not have the schema of a store: {what}. Another program has changed it; "
            "restore the file from a backup"
        )
    return int(version)


def _difference(found: set[tuple[str, str]], wanted: frozenset[tuple[str, str]]) -> str:
    """Say what is different in a schema, or the first of it."""
    surplus = sorted(sql for _, sql in found - wanted)
    missing = sorted(sql for _, sql in wanted - found)
    if surplus:
        return f"it has {surplus[0][:80]!r}"
    return f"it lacks {missing[0][:80]!r}" if missing else "it has another encoding or version"


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring a schema up to date, in the transaction that the caller has begun."""
    for script in MIGRATIONS[version:]:
        for statement in statements(script):
            connection.execute(statement)
    if version < 2:
        add_to_version_1(connection)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
