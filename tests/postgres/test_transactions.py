"""Effects exactly once in PostgreSQL, and what a transaction refuses."""

import psycopg
import pytest
import trio

from tests.events import Noted, Other
from triobus import (
    EventBus,
    EventIdConflict,
    HandlerTimeout,
    InvalidHandler,
    Retry,
    StatementRefused,
)


@pytest.fixture
def table(beside):
    """A table of the program's own, which is dropped behind the test."""
    name = f"effects_{beside.info.backend_pid}"
    beside.execute(f"CREATE TABLE {name} (number int PRIMARY KEY, text text)")
    yield name
    beside.execute(f"DROP TABLE IF EXISTS {name}")


async def test_effects_and_follow_up_events_are_there_once_with_the_settled_delivery(
    opened, table, beside
):
    seen = []

    def keep(event, transaction):
        transaction.execute(f"INSERT INTO {table} VALUES (%s, %s)", (event.number, event.key))
        transaction.publish(Other(event.number))

    bus = EventBus(opened())
    bus.subscribe(Noted, keep, transactional=True)
    bus.subscribe(Other, lambda event: seen.append(event.number), name="seen")
    async with bus:
        await bus.publish_many([Noted(n, "a") for n in range(20)])
        await bus.wait_idle()
    assert beside.execute(f"SELECT number FROM {table} ORDER BY 1").fetchall() == [
        (n,) for n in range(20)
    ]
    assert sorted(seen) == [*range(20)]
    async with EventBus(opened()) as again:
        again.subscribe(Noted, keep, transactional=True)
        assert again.statistics().groups["default"].lag == 0


async def test_one_that_raises_is_rolled_back_alone_and_becomes_a_dead_letter(
    opened, table, beside
):
    def keep(event, transaction):
        transaction.execute(f"INSERT INTO {table} VALUES (%s)", (event.number,))
        transaction.publish(Other(event.number))
        if event.number % 2:
            raise ValueError("odd")

    bus = EventBus(opened(), workers=8)
    bus.subscribe(Noted, keep, transactional=True, retry=Retry(attempts=1))
    async with bus:
        await bus.publish_many([Noted(n) for n in range(10)])
        await bus.wait_idle()
        letters = await bus.dead_letters.list()
        assert sorted(letter.event.number for letter in letters) == [1, 3, 5, 7, 9]
    kept = beside.execute(f"SELECT number FROM {table} ORDER BY 1").fetchall()
    assert kept == [(0,), (2,), (4,), (6,), (8,)]
    async with opened() as store:
        assert {s.event.number async for s in store.read(types=Other)} == {0, 2, 4, 6, 8}


async def test_a_statement_that_fails_ends_the_call_unless_it_goes_back_to_a_savepoint(
    opened, table
):
    def swallows(transaction):
        transaction.execute(f"INSERT INTO {table} VALUES (1)")
        with pytest.raises(psycopg.errors.UniqueViolation) as caught:
            transaction.execute(f"INSERT INTO {table} VALUES (1)")
        assert f"in the statement 'INSERT INTO {table} VALUES (1)'" in caught.value.__notes__
        with pytest.raises(StatementRefused, match="an error has ended the transaction"):
            transaction.execute("SELECT 1")

    def goes_back(transaction):
        transaction.execute("SAVEPOINT mine")
        with pytest.raises(psycopg.errors.UniqueViolation):
            transaction.executemany(f"INSERT INTO {table} VALUES (%s)", [(2,), (2,)])
        transaction.execute("ROLLBACK TO mine")
        transaction.execute(f"INSERT INTO {table} VALUES (3)")
        return transaction.execute(f"SELECT count(*) FROM {table}").fetchone()

    async with opened() as store:
        with pytest.raises(psycopg.errors.UniqueViolation):
            await store.transact(swallows)
        assert await store.transact(goes_back) == (1,)


@pytest.mark.parametrize(
    "statement",
    [
        "COMMIT",
        " -- a comment\n/* and /* another */ */ commit ;",
        "ROLLBACK",
        "END",
        "BEGIN",
        "START TRANSACTION",
        "PREPARE TRANSACTION 'x'",
        "ROLLBACK TO triobus",
        'RELEASE SAVEPOINT "triobus"',
        "SET search_path = public",
        "RESET ALL",
        "DISCARD ALL",
        "LISTEN x",
        "COPY log TO STDOUT",
    ],
)
async def test_what_would_end_or_rearrange_the_transaction_is_refused(opened, statement):
    async with opened() as store:
        with pytest.raises(StatementRefused, match="was refused"):
            await store.transact(lambda transaction: transaction.execute(statement))


async def test_several_statements_at_once_are_refused_by_the_server(opened, table, beside):
    async with opened() as store:
        with pytest.raises(psycopg.errors.SyntaxError, match="multiple commands"):
            await store.transact(
                lambda transaction: transaction.execute(f"DELETE FROM {table}; COMMIT")
            )

        def commits(transaction):
            transaction.execute("SELECT 1").connection.commit()

        with pytest.raises(StatementRefused, match="commit"):
            await store.transact(commits)


@pytest.mark.parametrize("table", ["events", "log", "segments", "finished", "dead_letters"])
async def test_the_tables_of_the_store_may_be_read_and_not_written(opened, schema, table):
    async with opened() as store:
        await store.append([Noted(1)])
        name = f'"{schema}".{table}'
        for statement in (f"DELETE FROM {name}", f"TRUNCATE {name} CASCADE"):
            with pytest.raises(StatementRefused, match=f"the table {table} is triobus's own"):
                await store.transact(lambda t, s=statement: t.execute(s))
        await store.transact(lambda t: t.execute(f"SELECT * FROM {name}").fetchall())
        await store.append([Noted(2)])
        assert [s.event.number async for s in store.read()] == [1, 2]


async def test_with_read_only_nothing_is_written(opened, table):
    async with opened() as store:
        await store.append([Noted(1)])
        with pytest.raises(StatementRefused, match="read_only=True"):
            await store.transact(
                lambda t: t.execute(f"INSERT INTO {table} VALUES (1)"), read_only=True
            )
        found = await store.transact(
            lambda t: t.execute(f"SELECT count(*) FROM {table}").fetchone(), read_only=True
        )
        assert found == (0,)


async def test_a_timeout_interrupts_a_statement(opened):
    def sleeps(event, transaction):
        transaction.execute("SELECT pg_sleep(60)")

    bus = EventBus(opened())
    bus.subscribe(Noted, sleeps, transactional=True, timeout=0.2, retry=Retry(attempts=1))
    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        (letter,) = await bus.dead_letters.list()
        assert "HandlerTimeout" in letter.error_type
        await bus.publish(Other())
    assert HandlerTimeout.__name__ in letter.error_type


async def test_a_constraint_that_is_deferred_fails_the_call_that_breaks_it(opened, table, beside):
    beside.execute(
        f"ALTER TABLE {table} ADD other int REFERENCES {table} DEFERRABLE INITIALLY DEFERRED"
    )

    def refers(number, to):
        return lambda t: t.execute(f"INSERT INTO {table} VALUES (%s, '', %s)", (number, to))

    async with opened() as store, trio.open_nursery() as nursery:

        async def fails():
            with pytest.raises(psycopg.errors.ForeignKeyViolation):
                await store.transact(refers(1, 99))

        nursery.start_soon(fails)
        nursery.start_soon(store.transact, refers(2, 2))
    assert beside.execute(f"SELECT number FROM {table}").fetchall() == [(2,)]


async def test_an_event_whose_id_is_taken_rolls_back_its_call_alone(opened, table, beside):
    async with opened() as store:
        (first,) = await store.append([Noted(1)])
        taken = Noted(2, event_id=first.event.event_id)

        def publishes(transaction, number, event):
            transaction.execute(f"INSERT INTO {table} VALUES (%s)", (number,))
            transaction.publish(event)

        async def fails():
            with pytest.raises(EventIdConflict):
                await store.transact(publishes, 1, taken)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails)
            nursery.start_soon(store.transact, publishes, 2, Noted(3))
        assert [s.event.number async for s in store.read()] == [1, 3]
    assert beside.execute(f"SELECT number FROM {table}").fetchall() == [(2,)]


async def test_what_is_returned_is_not_awaited_and_what_is_late_is_refused(opened):
    kept = []
    async with opened() as store:
        with pytest.raises(InvalidHandler, match="awaitable"):
            await store.transact(lambda _: trio.Event().wait())
        await store.transact(kept.append)
        with pytest.raises(StatementRefused, match="after the function"):
            kept[0].execute("SELECT 1")
