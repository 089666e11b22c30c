"""Servers that go away, refuse or lie, and options that cannot work: what the program sees."""

import psycopg
import pytest
import trio

import triobus
from tests.events import Noted
from tests.postgres import server
from tests.promises.stored.buses import Handled, subscribed
from triobus import (
    InvalidOption,
    NotAStore,
    PostgresEventStore,
    StoreClosed,
    StoreNotFound,
    StoreReadOnly,
    StoreReplaced,
    StoreTooNew,
    StoreUnavailable,
)
from triobus._events.batch import Batch


def end_connections(beside, schema):
    """End every connection of the stores over a schema, and return how many there were."""
    return beside.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = %s",
        (schema,),
    ).rowcount


def end_at(connection, beside, statement, *, is_made, fired):
    """End a connection at the next statement like that, which is made before or not."""

    class Ending(psycopg.Cursor):
        def execute(self, query, *args, **options):
            if statement not in (query if isinstance(query, str) else query.as_string(connection)):
                return super().execute(query, *args, **options)
            connection.cursor_factory = psycopg.Cursor
            if is_made:
                super().execute(query, *args, **options)
            fired.append(statement)
            pid = connection.info.backend_pid
            beside.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
            return super().execute("SELECT 1")

    connection.cursor_factory = Ending


async def test_a_bus_goes_on_when_its_connections_are_ended_and_stores_nothing_twice(
    opened, beside, schema
):
    handled = Handled()
    async with subscribed(opened(), handled) as bus:
        for number in range(10):
            if number % 3 == 1:
                assert end_connections(beside, schema) >= 2
            found = await bus.publish(Noted(number))
            assert (found.position, found.is_new) == (number + 1, True)
        await bus.wait_idle()
    assert handled == [*range(10)]
    async with opened() as store:
        assert [(s.position, s.event.number) async for s in store.read()] == [
            (n + 1, n) for n in range(10)
        ]


@pytest.mark.parametrize("is_made", [False, True], ids=["before", "behind"])
async def test_a_call_whose_connection_ends_at_the_commit_is_made_once(opened, beside, is_made):
    name, fired = f"cut_{beside.info.backend_pid}", []
    beside.execute(f"CREATE TABLE {name} (number int)")

    def adds(transaction):
        transaction.execute(f"INSERT INTO {name} VALUES (1)")
        transaction.publish(Noted(1))

    async with opened() as store:
        await store.append([Noted(0)])
        connection = store._driven._writing.connection
        end_at(connection, beside, "COMMIT", is_made=is_made, fired=fired)
        await store.transact(adds)
        assert fired == ["COMMIT"]
        assert [s.event.number async for s in store.read()] == [0, 1]
    assert beside.execute(f"SELECT number FROM {name}").fetchall() == [(1,)]
    beside.execute(f"DROP TABLE {name}")


@pytest.mark.parametrize("is_made", [False, True], ids=["before", "behind"])
async def test_an_append_whose_answer_is_lost_is_stored_once_and_is_new(opened, beside, is_made):
    fired = []
    async with opened() as store:
        await store.append([Noted(0)])
        connection = store._driven._writing.connection
        end_at(connection, beside, "append_1", is_made=is_made, fired=fired)
        (place,) = await store._submit(Batch([Noted(1)]))
        assert fired == ["append_1"]
        assert (place.position, place.is_new) == (2, True)
        assert [s.event.number async for s in store.read()] == [0, 1]


async def test_without_a_server_for_too_long_a_commit_says_so(opened):
    async with opened() as store:
        await store.append([Noted(1)])
        link = store._driven._writing
        link.patience = 0.1
        link.close()

        there, link.server._conninfo = link.server._conninfo, "host=/nowhere"
        with pytest.raises(StoreUnavailable, match="/nowhere"):
            await store.append([Noted(2)])
        link.server._conninfo = there
        await store.append([Noted(3)])
        assert [s.event.number async for s in store.read()] == [1, 3]


async def test_a_server_that_is_not_there_is_named(tmp_path):
    store = PostgresEventStore(f"postgresql:///orders?host={tmp_path}", schema="shop")
    with pytest.raises(StoreUnavailable, match=r"'shop' of database 'orders'.*server runs"):
        async with store:
            pass


async def test_a_database_that_is_not_there_is_named():
    with pytest.raises(StoreNotFound, match="does not exist"):
        dsn = psycopg.conninfo.make_conninfo(server.dsn(), dbname="nowhere")
        async with PostgresEventStore(dsn):
            pass


async def test_a_password_is_in_no_text_of_the_store(tmp_path):
    dsn = f"postgresql://me:secret@/orders?host={tmp_path}"
    store = PostgresEventStore(dsn)
    assert "secret" not in repr(store)
    with pytest.raises(StoreUnavailable) as caught:
        async with store:
            pass
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("schema", ['my "quoted" schema', "SELECT", "ümlaut", "a'b; DROP TABLE x"])
async def test_a_schema_may_have_any_name(beside, schema):
    try:
        async with PostgresEventStore(server.dsn(), schema=schema) as store:
            await store.append([Noted(1)])
            assert [s.event.number async for s in store.read()] == [1]
    finally:
        beside.execute(
            psycopg.sql.SQL("DROP SCHEMA {} CASCADE").format(psycopg.sql.Identifier(schema))
        )


@pytest.mark.parametrize(
    "options",
    [{"schema": ""}, {"schema": "x" * 64}, {"schema": "pg_x"}, {"lease": 0}, {"name": ""}],
    ids=str,
)
def test_options_that_cannot_work_are_refused(options):
    with pytest.raises(InvalidOption, match=next(iter(options))):
        PostgresEventStore("postgresql://x", **options)


@pytest.mark.parametrize("dsn", [7, "nonsense", "postgresql://[x"])
def test_a_dsn_that_is_none_is_refused(dsn):
    with pytest.raises(InvalidOption, match="dsn"):
        PostgresEventStore(dsn)


async def test_options_in_a_dsn_are_kept(schema):
    dsn = psycopg.conninfo.make_conninfo(
        server.dsn(), application_name="shop", options="-c work_mem=8MB -c statement_timeout=1"
    )
    async with PostgresEventStore(dsn, schema=schema) as store:
        await store.append([Noted(n) for n in range(1000)])  # in more than a millisecond
        found = await store.transact(
            lambda t: t.execute(
                "SELECT current_setting('work_mem'), current_setting('application_name')"
            ).fetchone()
        )
        assert found == ("8MB", "shop")


async def test_a_schema_of_a_newer_triobus_is_refused(opened, beside, schema):
    async with opened():
        pass
    beside.execute(f'UPDATE "{schema}".log SET version = 99')
    with pytest.raises(StoreTooNew, match="version 99"):
        async with opened():
            pass


async def test_a_schema_of_another_program_is_no_store(opened, beside, schema):
    beside.execute(f'CREATE SCHEMA "{schema}"')
    beside.execute(f'CREATE TABLE "{schema}".events (id int)')
    with pytest.raises(NotAStore, match="lacks"):
        async with opened():
            pass


async def test_a_store_that_is_only_read_has_to_be_there(opened):
    with pytest.raises(NotAStore, match="not there"):
        async with opened(read_only=True):
            pass


async def test_without_a_right_it_says_which(opened, beside, schema):
    async with opened() as store:
        await store.append([Noted(1)])
    role = f"reader_{beside.info.backend_pid}"
    beside.execute(f"CREATE ROLE {role} LOGIN")
    try:
        beside.execute(f'GRANT USAGE ON SCHEMA "{schema}" TO {role}')
        beside.execute(f'GRANT SELECT ON ALL TABLES IN SCHEMA "{schema}" TO {role}')
        dsn = psycopg.conninfo.make_conninfo(server.dsn(), user=role)
        async with PostgresEventStore(dsn, schema=schema) as store:
            assert [s.event.number async for s in store.read()] == [1]
            with pytest.raises(StoreReadOnly, match="permission denied"):
                await store.append([Noted(2)])
        for right in ("append_1", "known_1", "head_1", "lock_1", "lasts_1", "record_1"):
            beside.execute(f'GRANT EXECUTE ON FUNCTION "{schema}".{right} TO {role}')
        async with PostgresEventStore(dsn, schema=schema) as store:
            await store.append([Noted(3)])
    finally:
        beside.execute(f"DROP OWNED BY {role}")
        beside.execute(f"DROP ROLE {role}")


async def test_a_server_that_is_read_only_is_named(opened, schema):
    async with opened():
        pass
    dsn = psycopg.conninfo.make_conninfo(server.dsn())
    async with PostgresEventStore(dsn, schema=schema) as store:
        await store.append([Noted(1)])
        store._driven._writing.connection.execute("SET default_transaction_read_only = on")
        with pytest.raises(StoreReadOnly, match="connect to the primary"):
            await store.append([Noted(2)])


async def test_a_schema_that_is_dropped_while_it_is_open_is_noticed(opened, beside, schema):
    async with opened() as store:
        await store.append([Noted(1)])
        beside.execute(f'DROP SCHEMA "{schema}" CASCADE')
        with pytest.raises(StoreReplaced):
            await store.append([Noted(2)])


async def test_events_that_are_changed_or_missing_are_found(opened, beside, schema):
    async with opened() as store:
        await store.append([Noted(n, "a") for n in range(4)])
        beside.execute(f"UPDATE \"{schema}\".events SET data = data || ' ' WHERE position = 3")
        with pytest.raises(triobus.StoreCorrupt, match="position 3"):
            [s async for s in store.read()]
        beside.execute(f'DELETE FROM "{schema}".events WHERE position = 2')
        with pytest.raises(triobus.StoreCorrupt, match="position 2"):
            [s async for s in store.read()]


async def test_it_is_closed_outside_its_block(opened):
    store = opened()
    with pytest.raises(StoreClosed):
        await store.append([Noted(1)])


async def test_stores_that_publish_at_once_leave_no_gap_and_repeat_no_position(opened):
    async with opened() as one, opened() as other, trio.open_nursery() as nursery:

        async def append(store, key):
            for number in range(50):
                await store.append([Noted(number, key), Noted(number, "shared")])

        for store, key in ((one, "a"), (other, "b"), (other, "c")):
            nursery.start_soon(append, store, key)
    async with opened() as store:
        log = [s async for s in store.read()]
    assert [s.position for s in log] == [*range(1, 301)]
    shared = [s.sequence for s in log if s.event.key == "shared"]
    assert shared == [*range(1, 151)]
