"""Opening a schema: it is made, brought up to date, or refused."""

from psycopg import sql

from triobus._errors import NotAStore, StoreReadOnly, StoreTooNew
from triobus.stores.postgres._schema import MIGRATIONS, TABLES
from triobus.stores.postgres._server import Connection, Server

_LOCK = "SELECT pg_advisory_xact_lock(1953655138, hashtext('making ' || %s))"
_TABLES = (
    "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
    "WHERE n.nspname = %s AND c.relkind IN ('r', 'p')"
)


def make_ready(server: Server, connection: Connection) -> None:
    """See that the schema is a store's, or make it one. Raises `psycopg.Error`, `StoreError`."""
    version = _version(server, connection)
    if version < len(MIGRATIONS):
        if server.is_read_only:
            raise _not_there(server, version)
        with connection.transaction():
            connection.execute(_LOCK, (server.schema,))
            _migrate(server, connection, _version(server, connection))


def _not_there(server: Server, version: int) -> NotAStore | StoreReadOnly:
    if not version:
        return NotAStore(
            f"{server.faults.shown} is not there: give the name of a schema that a store has, or "
            "open it once without read_only=True, which makes it"
        )
    return StoreReadOnly(
        f"{server.faults.shown} has version {version} of the schema, and this triobus reads "
        f"version {len(MIGRATIONS)}: open it once without read_only=True, which brings it up to "
        "date"
    )


def _version(server: Server, connection: Connection) -> int:
    """Return the version of a schema; 0 if there is nothing in it yet."""
    found = {name for (name,) in connection.execute(_TABLES, (server.schema,))}
    if not found & set(TABLES):
        return 0
    if not found >= set(TABLES):
        raise NotAStore(
            f"{server.faults.shown} is no store, for its schema has not all the tables of one (it "
            f"lacks {', '.join(sorted(set(TABLES) - found))}): give another schema=..."
        )
    row = connection.execute(server.sql("SELECT version FROM {schema}.log")).fetchone()
    if row is None:
        raise NotAStore(f"{server.faults.shown} is no store: its table log is empty")
    version = int(row[0])
    if version > len(MIGRATIONS):
        raise StoreTooNew(
            f"{server.faults.shown} has version {version} of the schema, and this triobus knows "
            f"versions up to {len(MIGRATIONS)}: update triobus"
        )
    return version


def _migrate(server: Server, connection: Connection, version: int) -> None:
    """Bring a schema up to date, in the transaction of the caller."""
    if version == len(MIGRATIONS):
        return  # another node has made it meanwhile
    there = connection.execute(
        "SELECT FROM pg_namespace WHERE nspname = %s", (server.schema,)
    ).fetchone()
    if there is None:
        connection.execute(server.sql("CREATE SCHEMA {schema}"))
    connection.execute(server.sql("SET LOCAL search_path = {schema}"))
    name = sql.Identifier(server.schema).as_string(connection)
    for script in MIGRATIONS[version:]:
        connection.execute(script.replace("{schema}", name))
    if version:
        connection.execute("UPDATE log SET version = %s", (len(MIGRATIONS),))
    else:
        connection.execute("INSERT INTO log (version) VALUES (%s)", (len(MIGRATIONS),))
