"""A schema of its own for each test, and a connection beside the store's."""

from collections.abc import Callable, Iterator

import psycopg
import pytest

from tests.postgres import server
from triobus import PostgresEventStore


@pytest.fixture
def schema() -> Iterator[str]:
    """The name of a schema, which is dropped behind the test."""
    name = server.new_schema()
    yield name
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f'DROP SCHEMA IF EXISTS "{name}" CASCADE')


@pytest.fixture
def opened(schema: str) -> Callable[..., PostgresEventStore]:
    """Makes stores over that schema, with options; their connections have its name too."""
    dsn = psycopg.conninfo.make_conninfo(server.dsn(), application_name=schema)
    return lambda **options: PostgresEventStore(dsn, schema=schema, **options)


@pytest.fixture
def beside() -> Iterator[psycopg.Connection]:
    """A connection of another program."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        yield connection
