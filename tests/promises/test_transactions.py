"""Effects exactly once: what a transactional handler writes and publishes, and `store.transact`."""

import sqlite3
import time
from contextlib import closing

import attrs
import pytest
import trio

from tests.events import Noted, Other
from triobus import (
    BusClosed,
    EventBus,
    EventIdConflict,
    HandlerTimeout,
    InvalidEvent,
    InvalidHandler,
    InvalidOption,
    MemoryEventStore,
    Retry,
    SqliteEventStore,
    StatementRefused,
    StoreReadOnly,
    Transaction,
    WouldDeadlock,
    current_delivery,
)
from triobus.testing import crash

ONCE = Retry(attempts=1)


def make_tables(transaction):
    transaction.execute("CREATE TABLE IF NOT EXISTS sums (key TEXT PRIMARY KEY, sum INTEGER)")
    transaction.execute("CREATE TABLE IF NOT EXISTS calls (number INTEGER)")


def add(event, transaction):
    transaction.execute("INSERT INTO calls VALUES (?)", (event.number,))
    transaction.execute(
        "INSERT INTO sums VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET sum = sum + excluded.sum",
        (event.key, event.number),
    )


def rows(path, query):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


@pytest.fixture
async def path(tmp_path):
    path = tmp_path / "books.db"
    async with SqliteEventStore(path) as store:
        await store.transact(make_tables)
    return path


@pytest.fixture
def bus(path):
    return EventBus(SqliteEventStore(path))


# What is done together


async def test_what_a_handler_writes_is_committed_with_the_settled_delivery(bus, path):
    bus.subscribe(Noted, add, transactional=True)
    async with bus:
        await bus.publish_many([Noted(n, "ab"[n % 2]) for n in range(10)])
        await bus.wait_idle()
    assert rows(path, "SELECT * FROM sums ORDER BY key") == [("a", 20), ("b", 25)]
    assert rows(path, "SELECT position FROM progress WHERE name = 'default'") == [(10,)]
    assert rows(path, "SELECT * FROM finished") == []


async def test_a_handler_gives_back_rows_with_texts_and_the_outcome_has_its_result(bus, path):
    @bus.subscribe(Noted, transactional=True)
    def read(event, transaction):
        return transaction.execute("SELECT 'größer', 1, NULL").fetchall()

    async with bus:
        outcome = await bus.publish_and_wait(Noted(1))
    assert [*outcome.results.values()] == [[("größer", 1, None)]]


async def test_what_raises_is_rolled_back_alone_and_is_an_attempt_like_any_other(
    bus, path, autojump_clock
):
    attempts = []

    @bus.subscribe(Noted, transactional=True, retry=Retry(attempts=3, delay=1, jitter=0))
    def fail_some(event, transaction):
        add(event, transaction)
        transaction.publish(Other(event.number))
        attempts.append((event.number, transaction.delivery.attempt, trio_time()))
        if event.number == 1 and transaction.delivery.attempt < 3:
            raise ValueError("not yet")
        if event.number == 2:
            raise ValueError("never")

    def trio_time():
        return autojump_clock.current_time()

    async with bus:
        await bus.publish_many([Noted(n, str(n)) for n in range(4)])
        await bus.wait_idle()
        (letter,) = await bus.dead_letters.list()
        statistics = bus.statistics()
    assert (letter.event.number, letter.attempts, letter.message) == (2, 3, "never")
    assert (statistics.failed_attempts, statistics.retries) == (5, 4)
    assert sorted(rows(path, "SELECT number FROM calls")) == [(0,), (1,), (3,)]
    published = rows(path, "SELECT data ->> 'number' FROM events WHERE event_type = 'Other'")
    assert sorted(published) == [(0,), (1,), (3,)]
    assert [a[1:] for a in attempts if a[0] == 1] == [(1, 0), (2, 1), (3, 3)]


async def test_what_it_publishes_is_caused_by_the_event_stored_with_it_and_delivered(bus, path):
    heard = []

    @bus.subscribe(Noted, transactional=True)
    def answer(event, transaction):
        transaction.publish(Other(event.number))
        transaction.publish(Other(-event.number))

    @bus.subscribe(Other)
    async def hear(event):
        heard.append((event.number, event.causation_id, event.correlation_id))

    first = Noted(5)
    async with bus, bus.listen(Other) as others:
        await bus.publish(first)
        await bus.wait_idle()
        assert [(await anext(others)).number for _ in range(2)] == [5, -5]
    assert sorted(heard) == [(n, first.event_id, first.event_id) for n in (-5, 5)]


async def test_an_event_that_the_log_has_is_accepted_once_and_another_of_its_id_is_a_failure(
    bus, path
):
    known = Other(1)

    @bus.subscribe(Noted, transactional=True, retry=ONCE)
    def answer(event, transaction):
        add(event, transaction)
        transaction.publish(attrs.evolve(known, number=event.number))

    async with bus:
        await bus.publish(known)
        await bus.publish_and_wait(Noted(1, "a"))
        outcome = await bus.publish_and_wait(Noted(2, "a"))
    (error,) = outcome.errors.values()
    assert isinstance(error, EventIdConflict)
    assert rows(path, "SELECT number FROM calls") == [(1,)]
    assert rows(path, "SELECT count(*) FROM events WHERE event_type = 'Other'") == [(1,)]


async def test_of_several_handlers_each_is_done_once_and_the_next_goes_on_after_a_crash(path):
    seen = []

    def start(blocked):
        bus = EventBus(SqliteEventStore(path))
        bus.subscribe(Noted, add, name="first", priority=3, transactional=True)

        @bus.subscribe(Noted, name="second", priority=2)
        async def second(event):
            seen.append(event.number)
            if blocked:
                await trio.sleep_forever()

        bus.subscribe(Noted, add, name="third", priority=1, transactional=True)
        return bus

    bus = start(blocked=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await bus.publish(Noted(1, "a"))
        while not seen:
            await trio.lowlevel.checkpoint()
        await crash(bus)
    assert rows(path, "SELECT number FROM calls") == [(1,)]
    async with start(blocked=False) as bus:
        await bus.wait_idle()
    assert rows(path, "SELECT number FROM calls") == [(1,), (1,)]
    assert seen == [1, 1]


async def test_after_a_crash_no_effect_is_missing_and_none_is_there_twice(path):
    for round_ in range(8):
        bus = EventBus(SqliteEventStore(path), workers=3)
        bus.subscribe(Noted, add, transactional=True)
        async with trio.open_nursery() as nursery:
            await nursery.start(bus.run)
            await bus.publish_many([Noted(1, str(n)) for n in range(20)])
            while bus.statistics().handled < 3 * round_:
                await trio.lowlevel.checkpoint()
            await crash(bus)
    bus = EventBus(SqliteEventStore(path))
    bus.subscribe(Noted, add, transactional=True)
    async with bus:
        await bus.wait_idle()
    assert rows(path, "SELECT count(*), sum(number) FROM calls") == [(160, 160)]
    async with SqliteEventStore(path) as store:
        assert await store.problems() == []


async def test_a_replayed_dead_letter_goes_with_its_effect(bus, path):
    is_mended = False

    @bus.subscribe(Noted, transactional=True, retry=ONCE)
    def fail(event, transaction):
        add(event, transaction)
        if not is_mended:
            raise ValueError("broken")

    async with bus:
        await bus.publish_and_wait(Noted(1, "a"))
        is_mended = True
        assert await bus.dead_letters.replay() == 1
        assert await bus.dead_letters.list() == []
    assert rows(path, "SELECT number FROM calls") == [(1,)]
    assert rows(path, "SELECT count(*) FROM dead_letters") == [(0,)]


async def test_a_handler_knows_its_delivery_and_where_filters_without_a_transaction(bus, path):
    seen = []

    @bus.subscribe(Noted, transactional=True, where=lambda event: event.number > 1, name="it")
    def look(event, transaction):
        assert isinstance(transaction, Transaction)
        assert transaction.delivery == current_delivery()
        seen.append((transaction.delivery.subscription, transaction.delivery.position))

    async with bus:
        await bus.publish_many([Noted(1), Noted(2), Noted(3)])
        await bus.wait_idle()
    assert sorted(seen) == [("it", 2), ("it", 3)]


async def test_a_store_in_memory_rolls_back_what_was_published_and_has_no_tables():
    store = MemoryEventStore()
    bus = EventBus(store)

    @bus.subscribe(Noted, transactional=True, retry=ONCE)
    def answer(event, transaction):
        transaction.publish(Other(event.number))
        if event.number == 1:
            raise ValueError("no")
        if event.number == 2:
            transaction.execute("SELECT 1")

    async with store:
        async with bus:
            outcomes = [await bus.publish_and_wait(Noted(n)) for n in range(3)]
        found = [s.event.number async for s in store.read(types=Other)]
    assert found == [0]
    assert [type(error) for o in outcomes for error in o.errors.values()] == [
        ValueError,
        StatementRefused,
    ]


# What goes wrong


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("COMMIT", "the store commits"),
        ("ROLLBACK", "the store commits"),
        ("BEGIN", "the store commits"),
        ("SAVEPOINT triobus", "savepoints of that name"),
        ("RELEASE Triobus", "savepoints of that name"),
        ("ROLLBACK TO triobus", "savepoints of that name"),
        ("ATTACH 'other.db' AS other", "two databases"),
        ("PRAGMA journal_mode = DELETE", "a pragma that changes"),
        ("PRAGMA wal_checkpoint", "a pragma that changes"),
        ("PRAGMA user_version = 7", "a pragma that changes"),
        ("DELETE FROM events", "'events' is triobus's own"),
        ("UPDATE Progress SET position = 0", "'progress' is triobus's own"),
        ("INSERT INTO finished VALUES ('default', 1, 1, NULL)", "'finished' is triobus's own"),
        ("DROP TABLE dead_letters", "triobus's own"),
        ("ALTER TABLE attempts ADD COLUMN x", "'attempts' is triobus's own"),
        ("CREATE INDEX own ON events (data)", "'events' is triobus's own"),
        ("CREATE TRIGGER own AFTER INSERT ON events BEGIN SELECT 1; END", "triobus's own"),
        ("CREATE TEMP TRIGGER own AFTER INSERT ON events BEGIN SELECT 1; END", "triobus's own"),
        ("CREATE TEMP TABLE Events (x)", "'events' is triobus's own"),
        ("CREATE TEMP VIEW progress AS SELECT 1", "'progress' is triobus's own"),
        ("DELETE FROM attempts WHERE group_name = ? AND position = ?", "triobus's own"),
    ],
)
async def test_a_statement_that_is_not_the_programs_own_is_refused_and_nothing_is_half_done(
    bus, path, statement, said
):
    @bus.subscribe(Noted, transactional=True, retry=ONCE)
    def write(event, transaction):
        add(event, transaction)
        transaction.execute(statement, ("x", 1) if "?" in statement else ())

    async with bus:
        outcome = await bus.publish_and_wait(Noted(1))
        (error,) = outcome.errors.values()
        assert isinstance(error, StatementRefused)
        assert said in str(error)
        assert repr(statement) in str(error)
        await bus.publish_and_wait(Noted(2))
    assert rows(path, "SELECT count(*) FROM calls") == [(0,)]
    async with SqliteEventStore(path) as store:
        assert await store.problems() == []


async def test_neither_a_trigger_nor_a_view_leads_to_a_table_of_triobus(bus, path):
    def make(transaction):
        transaction.execute(
            "CREATE TRIGGER sly AFTER INSERT ON calls BEGIN DELETE FROM attempts; END"
        )
        transaction.execute("CREATE VIEW seen AS SELECT * FROM dead_letters")
        transaction.execute(
            "CREATE TRIGGER slyer INSTEAD OF DELETE ON seen "
            "BEGIN DELETE FROM dead_letters WHERE id = OLD.id; END"
        )

    async with bus:
        await bus.store.transact(make)
        for statement in ("INSERT INTO calls VALUES (1)", "DELETE FROM seen"):
            with pytest.raises(StatementRefused, match="triobus's own"):
                await bus.store.transact(lambda t, s=statement: t.execute(s))
        await bus.publish(Noted(1))
    async with SqliteEventStore(path) as store:
        assert await store.problems() == []


async def test_what_the_driver_says_comes_as_it_is_with_the_statement(bus, path):
    caught = []

    @bus.subscribe(Noted, transactional=True, retry=ONCE)
    def write(event, transaction):
        transaction.execute("INSERT INTO sums VALUES ('a', 1)")
        try:
            transaction.execute("INSERT INTO sums VALUES ('a', 2)")
        except sqlite3.IntegrityError:
            caught.append(event.number)
        if event.number == 2:
            transaction.execute("SELEKT 1")

    async with bus:
        await bus.publish_and_wait(Noted(1))
        await bus.store.transact(lambda t: t.execute("DELETE FROM sums"))
        outcome = await bus.publish_and_wait(Noted(2))
    (error,) = outcome.errors.values()
    assert isinstance(error, sqlite3.OperationalError)
    assert error.__notes__ == ["in the statement 'SELEKT 1'"]
    assert caught == [1, 2]
    assert rows(path, "SELECT * FROM sums") == []


async def test_a_cursor_cannot_commit_and_is_closed_when_the_function_returns(path):
    kept = []

    def leave_open(transaction):
        add(Noted(1, "a"), transaction)
        cursor = transaction.execute("SELECT * FROM events UNION ALL SELECT * FROM events")
        kept.extend([transaction, cursor])
        with pytest.raises(StatementRefused, match="the store's own"):
            cursor.connection.commit()
        with pytest.raises(StatementRefused, match="it commits"):
            cursor.executescript("SELECT 1")
        return cursor.fetchone()

    async with SqliteEventStore(path) as store:
        await store.append([Noted(1), Noted(2)])
        await store.transact(leave_open)
        with pytest.raises(sqlite3.ProgrammingError):
            kept[1].fetchone()
        for call in (lambda: kept[0].execute("SELECT 1"), lambda: kept[0].publish(Noted(1))):
            with pytest.raises(StatementRefused, match="had returned"):
                call()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


async def test_a_timeout_interrupts_a_statement_and_nobody_elses_work_is_lost(bus, path):
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) "

    @bus.subscribe(Noted, transactional=True, retry=ONCE, timeout=0.05)
    def write(event, transaction):
        add(event, transaction)
        if event.number == 1:
            transaction.execute(endless + "SELECT count(*) FROM n").fetchone()
        if event.number == 2:
            transaction.execute(endless + "INSERT INTO calls SELECT x FROM n")

    async with bus:
        await bus.publish_many([Noted(n, str(n)) for n in range(4)])
        await bus.wait_idle()
        letters = await bus.dead_letters.list()
    assert sorted(letter.event.number for letter in letters) == [1, 2]
    assert {letter.error_type.rpartition(".")[2] for letter in letters} == {"HandlerTimeout"}
    assert sorted(rows(path, "SELECT number FROM calls")) == [(0,), (3,)]


async def test_an_interrupted_statement_that_is_passed_over_is_a_timeout_all_the_same(bus, path):
    @bus.subscribe(Noted, transactional=True, retry=ONCE, timeout=0.01)
    def write(event, transaction):
        time.sleep(0.02)
        try:
            transaction.execute(
                "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) "
                "INSERT INTO calls SELECT x FROM n"
            )
        except HandlerTimeout:
            return

    async with bus:
        outcome = await bus.publish_and_wait(Noted(1))
    assert [type(error) for error in outcome.errors.values()] == [HandlerTimeout]
    assert rows(path, "SELECT count(*) FROM calls") == [(0,)]


@pytest.mark.parametrize("kind", ["async", "one parameter", "generator", "no transaction"])
async def test_what_cannot_be_transactional_is_refused_when_it_subscribes(bus, kind):
    async def slow(event, transaction): ...

    def lone(event): ...

    def generates(event, transaction):
        yield

    handler = {"async": slow, "one parameter": lone, "generator": generates}.get(kind, add)
    if kind == "no transaction":
        with pytest.raises(InvalidHandler, match="one event"):
            bus.subscribe(Noted, handler)
        with pytest.raises(InvalidOption, match="transactional=1"):
            bus.subscribe(Noted, handler, transactional=1)
        return
    with pytest.raises(InvalidHandler):
        bus.subscribe(Noted, handler, transactional=True)


def test_a_bus_without_a_store_takes_no_transactional_handler():
    with pytest.raises(InvalidOption, match="a bus without a store commits nothing"):
        EventBus().subscribe(Noted, add, transactional=True)


async def test_publishing_from_inside_by_way_of_the_bus_would_wait_for_itself(bus, path):
    @bus.subscribe(Noted, transactional=True, retry=ONCE)
    def answer(event, transaction):
        bus.publish_from_thread(Other(1))

    async with bus:
        outcome = await bus.publish_and_wait(Noted(1))
    (error,) = outcome.errors.values()
    assert isinstance(error, WouldDeadlock)
    assert "transaction.publish(event)" in str(error)


async def test_while_the_store_cannot_commit_no_attempt_is_spent(bus, path, autojump_clock):
    commits = []
    commit = bus.store._commit

    async def fail_some(pending):
        if pending.others:
            commits.append(pending)
            if len(commits) <= 6:
                raise StoreReadOnly("for a while")
        return await commit(pending)

    bus.store._commits._commit = fail_some
    bus.subscribe(Noted, add, transactional=True, retry=ONCE)
    async with bus:
        await bus.publish_and_wait(Noted(1, "a"))
        assert await bus.dead_letters.list() == []
    assert rows(path, "SELECT number FROM calls") == [(1,)]
    assert autojump_clock.current_time() == 6


# store.transact


async def test_transact_commits_what_a_function_does_and_returns_what_it_returns(path):
    async with SqliteEventStore(path) as store:
        assert await store.transact(lambda t, a, b: a + b, 1, 2) == 3
        await store.transact(lambda t: t.executemany("INSERT INTO calls VALUES (?)", [(1,), (2,)]))
        with pytest.raises(ZeroDivisionError):
            await store.transact(_write_and_fail)
    assert rows(path, "SELECT number FROM calls") == [(1,), (2,)]


def _write_and_fail(transaction):
    transaction.execute("INSERT INTO calls VALUES (3)")
    transaction.publish(Noted(3))
    1 / 0  # noqa: B018  # it raises


async def test_transact_appends_what_is_published_and_a_bus_delivers_it(bus, path):
    heard = []
    bus.subscribe(Noted, heard.append)

    def publish(transaction):
        assert transaction.delivery is None
        transaction.publish(Noted(1, "a"))
        transaction.publish(Noted(2, "a"))

    async with bus:
        await bus.store.transact(publish)
        await bus.wait_idle()
        with pytest.raises(InvalidEvent):
            await bus.store.transact(lambda t: t.publish("no event"))
    assert [event.number for event in heard] == [1, 2]
    assert rows(path, "SELECT aggregate_id, sequence FROM events") == [("a", 1), ("a", 2)]


async def test_read_only_asks_and_never_writes(path):
    async with SqliteEventStore(path, read_only=True) as store:
        ask = lambda t: t.execute("SELECT count(*) FROM calls").fetchone()  # noqa: E731
        assert await store.transact(ask, read_only=True) == (0,)
        with pytest.raises(StatementRefused, match="read_only=True"):
            await store.transact(make_tables_anew, read_only=True)
        with pytest.raises(StatementRefused, match="read_only=True"):
            await store.transact(lambda t: t.publish(Noted(1)), read_only=True)
        with pytest.raises(StoreReadOnly):
            await store.transact(make_tables)
        with pytest.raises(InvalidOption):
            await store.transact(ask, read_only=1)


def make_tables_anew(transaction):
    transaction.execute("CREATE TABLE more (x)")


async def test_read_only_beside_a_writer_leaves_it_a_writer(bus, path):
    async with bus:
        await bus.store.transact(lambda t: t.execute("SELECT 1").fetchone(), read_only=True)
        await bus.publish(Noted(1))
        await bus.store.transact(lambda t: t.execute("INSERT INTO calls VALUES (1)"))


@pytest.mark.parametrize("function", ["text", None, 7])
async def test_transact_takes_plain_functions_only(path, function):
    async def slow(transaction): ...

    async with SqliteEventStore(path) as store:
        for given in (function, slow):
            with pytest.raises(InvalidHandler, match="plain function"):
                await store.transact(given)
        with pytest.raises(InvalidHandler, match="awaitable"):
            await store.transact(lambda t: slow(t))


async def test_transact_that_is_cancelled_before_it_has_begun_is_never_called(path):
    called = []
    async with SqliteEventStore(path) as store:
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.transact(called.append)
        assert scope.cancelled_caught
        assert called == []


async def test_other_tables_are_no_concern_of_the_schema_and_of_verify(path):
    def make(transaction):
        transaction.execute("CREATE TABLE orders (id TEXT PRIMARY KEY, state TEXT)")
        transaction.execute("CREATE INDEX by_state ON orders (state)")
        transaction.execute("CREATE VIEW open AS SELECT * FROM orders")
        transaction.execute(
            "CREATE TRIGGER counts AFTER INSERT ON orders BEGIN INSERT INTO calls VALUES (1); END"
        )
        transaction.execute("INSERT INTO orders VALUES ('o-1', 'open')")
        transaction.execute("ANALYZE")

    async with SqliteEventStore(path) as store:
        await store.transact(make)
    async with SqliteEventStore(path) as store:
        assert await store.problems() == []
        await store.append([Noted(1)])
    assert rows(path, "SELECT number FROM calls") == [(1,)]


async def test_after_the_bus_has_ended_transact_works_on_the_open_store(path):
    async with SqliteEventStore(path) as store:
        async with EventBus(store) as bus:
            await bus.publish(Noted(1))
        with pytest.raises(BusClosed):
            await bus.publish(Noted(2))
        await store.transact(lambda t: t.publish(Noted(2)))
        assert [s.position async for s in store.read()] == [1, 2]


# What readers and users found


async def test_a_swallowed_error_that_ended_the_transaction_is_a_failure_and_nothing_is_stored(
    bus, path, autojump_clock
):
    await _own(path)

    @bus.subscribe(Noted, transactional=True, retry=Retry(attempts=2, delay=1))
    def write(event, transaction):
        if event.number == 1:
            with pytest.raises(sqlite3.IntegrityError):
                transaction.execute("INSERT OR ROLLBACK INTO own VALUES (5)")
            with pytest.raises(StatementRefused, match="let that error leave"):
                transaction.execute("INSERT INTO calls VALUES (6)")
        else:
            add(event, transaction)

    async with bus:
        await bus.publish_many([Noted(n, str(n)) for n in range(3)])
        await bus.wait_idle()
        (letter,) = await bus.dead_letters.list()
    assert (letter.event.number, letter.error_type) == (1, "IntegrityError")
    assert sorted(rows(path, "SELECT number FROM calls")) == [(0,), (2,)]


async def _own(path):
    async with SqliteEventStore(path) as store:
        await store.transact(lambda t: t.execute("CREATE TABLE own (x INTEGER PRIMARY KEY)"))
        await store.transact(lambda t: t.execute("INSERT INTO own VALUES (5)"))


async def test_no_table_can_be_renamed_to_stand_before_one_of_triobus(path):
    def shadow(transaction):
        transaction.execute("CREATE TEMP TABLE x AS SELECT * FROM events")
        transaction.execute("ALTER TABLE x RENAME TO Events")

    async with SqliteEventStore(path) as store:
        with pytest.raises(StatementRefused, match="choose another name"):
            await store.transact(shadow)
        await store.append([Noted(1)])
    assert rows(path, "SELECT count(*) FROM events") == [(1,)]


async def test_no_statement_of_triobus_is_taken_for_one_of_the_program(path):
    def misuse(transaction):
        transaction.execute("INSERT INTO calls VALUES (1)")
        cursor = transaction.execute("SELECT 1")
        for statement in ("COMMIT", "UPDATE progress SET fences = fences + 1 WHERE name = ''"):
            with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
                cursor.execute(statement)
        raise ValueError("no")

    async with SqliteEventStore(path) as store:
        await store.append([Noted(1)])
        with pytest.raises(ValueError, match="no"):
            await store.transact(misuse)
    assert rows(path, "SELECT count(*) FROM calls") == [(0,)]


async def test_an_error_of_a_question_is_the_programs_own(path):
    async with SqliteEventStore(path) as store:
        for error, ask in {
            sqlite3.OperationalError: lambda t: t.execute("SELECT * FROM nothing"),
            FileNotFoundError: lambda t: open("/nowhere"),  # noqa: SIM115  # it raises
            ValueError: lambda t: int("x"),
        }.items():
            with pytest.raises(error):
                await store.transact(ask, read_only=True)
        count = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 3000000) "
        found = await store.transact(
            lambda t: t.execute(count + "SELECT count(*) FROM n").fetchone(), read_only=True
        )
    assert found == (3_000_000,)


async def test_what_takes_longer_than_its_timeout_is_rolled_back_whatever_it_catches(bus, path):
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n"

    @bus.subscribe(Noted, transactional=True, retry=ONCE, timeout=0.02)
    def write(event, transaction):
        add(event, transaction)
        if event.number == 0:
            for _ in transaction.execute(endless):
                pass
        if event.number == 1:
            time.sleep(0.04)
        if event.number == 2:
            time.sleep(0.04)
            transaction.execute("SELECT 1")

    async with bus:
        outcomes = [await bus.publish_and_wait(Noted(n, "a")) for n in range(3)]
    assert [type(e) for o in outcomes for e in o.errors.values()] == [HandlerTimeout] * 3
    assert rows(path, "SELECT count(*) FROM calls") == [(0,)]


@pytest.mark.parametrize("statement", [5, None, b"SELECT 1", ["SELECT 1"]])
async def test_a_statement_is_a_text(path, statement):
    async with SqliteEventStore(path) as store:
        with pytest.raises(InvalidOption, match="as a str"):
            await store.transact(lambda t: t.execute(statement))


async def test_a_table_for_full_text_search_is_the_programs_own(path):
    async with SqliteEventStore(path) as store:
        await store.transact(lambda t: t.execute("CREATE VIRTUAL TABLE texts USING fts5 (words)"))
        await store.transact(lambda t: t.execute("INSERT INTO texts VALUES ('a text')"))
        found = await store.transact(
            lambda t: t.execute("SELECT * FROM texts WHERE texts MATCH 'text'").fetchall(),
            read_only=True,
        )
        assert await store.problems() == []
    assert found == [("a text",)]


async def test_after_a_kill_with_several_rows_of_progress_the_store_is_whole(path, autojump_clock):
    def start():
        bus = EventBus(SqliteEventStore(path), workers=4)

        @bus.subscribe(Noted, name="it", transactional=True, retry=Retry(attempts=9, delay=50))
        def it(event, transaction):
            if event.number == 0 and transaction.delivery.attempt < 3:
                raise ValueError("later")
            add(event, transaction)

        return bus

    for _ in range(3):
        async with trio.open_nursery() as nursery:
            bus = start()
            await nursery.start(bus.run)
            if not rows(path, "SELECT 1 FROM events"):
                await bus.publish_many([Noted(n, str(n)) for n in range(6)])
            while bus.statistics().groups["default"].lag > 1:
                await trio.lowlevel.checkpoint()
            await crash(bus)
    async with start() as bus:
        await bus.wait_idle()
    async with SqliteEventStore(path) as store:
        assert await store.problems() == []
        assert (await store.statistics()).groups["default"].lag == 0
    assert sorted(rows(path, "SELECT number FROM calls")) == [(n,) for n in range(6)]


async def test_a_full_disk_inside_a_handler_is_no_failure_of_the_handler(bus, path, autojump_clock):
    calls = []

    @bus.subscribe(Noted, transactional=True, retry=ONCE)
    def write(event, transaction):
        calls.append(event.number)
        if len(calls) < 3:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorname = "SQLITE_FULL"
            raise error
        add(event, transaction)

    async with bus:
        await bus.publish_and_wait(Noted(1, "a"))
        assert await bus.dead_letters.list() == []
    assert calls == [1, 1, 1]
    assert rows(path, "SELECT number FROM calls") == [(1,)]


async def test_in_memory_what_a_failed_call_has_scheduled_is_forgotten(autojump_clock):
    store, other = MemoryEventStore(), Other(1)

    def conflict(transaction):
        transaction.publish(Other(9), delay=5)
        transaction.publish(other, delay=5)
        transaction.publish(attrs.evolve(other, number=2), delay=5)

    bus, heard = EventBus(store), []
    bus.subscribe(Other, heard.append)
    async with bus:
        with pytest.raises(EventIdConflict):
            await store.transact(conflict)
        assert bus.statistics().scheduled == 0
        await bus.publish(Other(3), delay=6)
        await trio.sleep(10)
        await bus.wait_idle()
    assert [event.number for event in heard] == [3]
