"""The command line on a store in PostgreSQL: it says the same as on one in a file."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio

from tests.cli import operated
from tests.cli.conftest import here, made_store, store
from tests.cli.running import Here, started
from tests.postgres import server
from triobus import PostgresEventStore

__all__ = ["here", "made_store", "store"]

Asked = Callable[..., tuple[int, Any]]

OF_ONE_STORE = {"store", "size_bytes", "seconds"}
"""What two stores with the same events say of themselves alone, beside times."""


@pytest.fixture
def database(schema: str) -> tuple[str, ...]:
    """The arguments that name a store of the same shop."""
    operated.operate(PostgresEventStore(server.dsn(), schema=schema))
    return server.dsn(), "--schema", schema


def alike(found: Any) -> Any:
    if isinstance(found, dict):
        return {
            key: alike(value)
            for key, value in found.items()
            if key not in OF_ONE_STORE and not key.endswith("_at")
        }
    return [alike(one) for one in found] if isinstance(found, list) else found


def said(here: Here, *arguments: str) -> tuple[int, Any]:
    code, output, errors = here(*arguments)
    assert not errors, errors
    try:
        return code, alike(json.loads(output))
    except json.JSONDecodeError:
        return code, [alike(json.loads(line)) for line in output.splitlines()]


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["events"],
        ["events", "--type", "operated.paid", "--last", "2"],
        ["events", "--aggregate", "A-2"],
        ["show", str(operated.TWO)],
        ["dead-letters"],
        ["dead-letters", "--list"],
        ["retries"],
        ["groups"],
        ["graph"],
    ],
    ids=" ".join,
)
def test_it_says_the_same_of_a_database_as_of_a_file(here, store, database, command):
    name, *more = command
    of_file = said(here, name, store, *more, "--json")
    assert said(here, name, *database, *more, "--json") == of_file
    assert of_file[1]


def test_what_is_exported_of_a_database_is_what_is_exported_of_a_file(here, store, database):
    assert said(here, "export", *database) == said(here, "export", store)


def test_letters_are_discarded_and_groups_reset_and_removed(here, database):
    dsn, *schema = database
    assert here("dead-letters", dsn, *schema, "discard", "1", "--yes")[0] == 0
    assert [
        each["id"] for each in said(here, "dead-letters", *database, "--list", "--json")[1]
    ] == [
        2,
        3,
    ]
    assert here("groups", dsn, *schema, "reset", "mail", "--to", "beginning", "--yes")[0] == 0
    assert here("groups", dsn, *schema, "remove", "post", "--yes")[0] == 0
    _, groups = said(here, "status", *database, "--json")
    assert {name: group["offset"] for name, group in groups["groups"].items()} == {
        "default": 8,
        "mail": 0,
    }


def test_who_has_the_log_is_named_and_nothing_is_changed(here, database):
    dsn, *schema = database

    async def look_beside() -> None:
        async with PostgresEventStore(dsn, schema=schema[1], name="the shop") as store:
            await store._claim()
            code, output, _ = await trio.to_thread.run_sync(here, "status", *database)
            assert (code, "'the shop' has it open" in output) == (1, True)
            code, _, errors = await trio.to_thread.run_sync(
                here, "dead-letters", dsn, *schema, "discard", "1", "--yes"
            )
            assert (code, "'the shop'" in errors) == (2, True)

    trio.run(look_beside)
    assert len(said(here, "dead-letters", *database, "--list", "--json")[1]) == 3


def test_a_database_that_is_not_there_is_named_without_its_password(here, schema):
    nowhere = "postgresql://somebody:secret@127.0.0.1:1/shop"
    for arguments in (
        ("status", nowhere),
        ("verify", nowhere),
        ("backup", nowhere, "copy.db"),
        ("import", nowhere, "events.jsonl"),
        ("run", "triobus.demo:bus", "--store", nowhere),
        ("status", server.dsn(), "--schema", schema),
        ("dead-letters", server.dsn(), "--schema", schema, "discard", "1", "--yes"),
        ("status", server.dsn(), "--schema", ""),
    ):
        code, output, errors = here(*arguments)
        assert (code, output) == (2, ""), arguments
        assert "secret" not in errors
        assert len(errors.splitlines()) == 1, errors
    with psycopg.connect(server.dsn()) as connection:
        found = connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (schema,))
        assert found.fetchall() == []


@pytest.mark.parametrize(
    "wrong",
    [
        "postgresql://me:secret@[::1/shop",
        "postgresql://me:secret%zz@127.0.0.1:1/shop",
        "postgresql://me:pass@secret@127.0.0.1:1/shop",
        "postgresql://me:pass/secret@127.0.0.1:1/shop",
        "postgresql://me:pass?@secret@127.0.0.1:1/shop",
        "POSTGRESQL://me:secret@127.0.0.1:1/shop",
        "postgresql+psycopg://me:secret@127.0.0.1:1/shop?sslmode=require",
    ],
)
@pytest.mark.parametrize(
    "command", [["status"], ["demo", "--store"], ["verify"]], ids=lambda command: command[0]
)
def test_an_address_that_is_wrong_is_refused_without_its_password(here, command, wrong):
    code, output, errors = here(*command, wrong)
    assert (code, output, len(errors.splitlines())) == (2, "", 1), errors
    assert "secret" not in errors
    assert errors.startswith("triobus: dsn: ") or command == ["verify"]


def test_a_letter_that_is_not_there_is_missed_in_a_store_named_once(here, database):
    code, _, errors = here("dead-letters", *database, "--show", "99")
    assert code == 2
    assert errors.startswith(f"triobus: store {database[2]!r} of database ")


def test_the_demo_goes_on_in_a_database(here, schema):
    store = ("--store", server.dsn(), "--schema", schema)
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS closes, approved, orders, positions")
    code, output, _ = here("demo", *store, "--json")
    first = json.loads(output)
    assert (code, first["read"], first["known_already"]) == (0, 480, 0)
    code, output, _ = here("demo", *store, "--json")
    again = json.loads(output)
    assert (code, again["known_already"], again["report"]) == (0, 480, first["report"])
    assert any(row["shares"] for row in first["report"])


def test_events_are_followed_by_what_the_database_tells(database):
    dsn, *schema = database

    async def append() -> None:
        async with PostgresEventStore(dsn, schema=schema[1]) as store:
            await store.append([operated.Ordered("A-10")])

    with started(Path.cwd(), "events", dsn, *schema, "--follow", "--last", "1", "--json") as child:
        assert child.stdout is not None
        try:
            assert json.loads(child.stdout.readline())["position"] == 8
            trio.run(append)
            assert json.loads(child.stdout.readline())["data"]["order"] == "A-10"
            child.send_signal(signal.SIGINT)
            _, errors = child.communicate()
            assert (child.returncode, errors) == (0, "")
        finally:
            child.kill()
