"""Effects, scheduled events, batches and resets in worlds that are killed: exactly once, by seed.

A world plays the same program again and again, with failures, delays and crashes that its seed
decides. Each planted bug breaks one promise of a commit or of a group, and a world finds it.
"""

import attrs
import pytest
import trio

from tests.events import Noted, Other
from tests.planting import instead_of
from triobus import DomainEvent, EventBus, Retry, SqliteEventStore
from triobus._durability import schedule
from triobus._durability.dead_letters import StoredDeadLetters
from triobus._durability.schedule import StoredSchedule
from triobus._groups.bundles import BundleWorker
from triobus.stores._transaction import Transaction
from triobus.stores.sqlite import _writing
from triobus.stores.sqlite._calls import Calls
from triobus.stores.sqlite._schedule import ScheduleRows
from triobus.testing import ExplorationFailed, explore

ORDERS = 6
COUNTS = "SELECT (SELECT count(*) FROM entries), (SELECT count(DISTINCT id) FROM entries)"


@attrs.frozen
class Expired(DomainEvent):
    number: int


def make_table(transaction):
    transaction.execute("CREATE TABLE IF NOT EXISTS entries (id, number INTEGER)")
    transaction.execute("CREATE TABLE IF NOT EXISTS bulk (id, number INTEGER)")


async def ledger(world):
    """Each order is entered once, answered once, and once expires a minute later."""
    store = SqliteEventStore(world.directory / "ledger.db", synchronous="normal")
    bus = EventBus(store, workers=2)
    retry = Retry(attempts=4, delay=0.01, jitter=0)
    expired = world.outside.setdefault("expired", {})

    @bus.subscribe(Noted, name="enter", transactional=True, retry=retry)
    def enter(event, transaction):
        transaction.execute(
            "INSERT INTO entries VALUES (?, ?)", (str(event.event_id), event.number)
        )
        transaction.publish(Other(event.number))
        transaction.publish(Expired(event.number), delay=60)

    bulk = bus.group("bulk", batch=3, workers=1, start="beginning")

    @bulk.subscribe(Other, name="load", transactional=True, retry=Retry(attempts=1))
    def load(events, transaction):
        if any(event.number == 4 for event in events):
            raise ValueError("four")
        transaction.executemany(
            "INSERT INTO bulk VALUES (?, ?)", [(str(e.event_id), e.number) for e in events]
        )

    @bus.subscribe(Expired, name="expire", retry=retry)
    async def expire(event):
        age = Noted(0).occurred_at - event.occurred_at  # by the clock of the world
        expired[event.event_id] = age.total_seconds()

    async with store, bus:
        await store.transact(make_table)
        for number in range(ORDERS):
            event = world.outside.setdefault(number, Noted(number, str(number % 2)))
            await bus.publish(event)
        await bus.wait_idle()
        while len(expired) < ORDERS and bus.statistics().scheduled:
            await trio.sleep(20)
            await bus.wait_idle()
        await bus.wait_idle()
        if "is_reset" not in world.outside:
            await bulk.pause()
            await bulk.reset("beginning", transaction=lambda t: t.execute("DELETE FROM bulk"))
            world.outside["is_reset"] = True
        await bulk.resume()
        await bus.wait_idle()
    await check(world)


async def check(world):
    """The tables say what must have been done, and the world outside when."""
    async with SqliteEventStore(world.directory / "ledger.db") as store:
        entries, distinct = await store.transact(
            lambda t: t.execute(COUNTS).fetchone(), read_only=True
        )
        rows = await store.transact(
            lambda t: t.execute("SELECT number FROM bulk ORDER BY number").fetchall(),
            read_only=True,
        )
        kinds = (await store.statistics()).types
        letters = await store._letter_keys()
    assert (entries, distinct) == (ORDERS, ORDERS), "an order was entered twice or not at all"
    assert kinds["Other"] == ORDERS, "an answer is lost or there twice"
    assert kinds["Expired"] == ORDERS, "a timeout is lost or came twice"
    assert [number for (number,) in rows] == [0, 1, 2, 3, 5], "another event is blamed"
    assert len(letters) == 1, "dead letters of before the reset are there"
    assert min(world.outside["expired"].values()) > 59, "a timeout came early"


def test_whatever_a_world_does_every_effect_is_there_exactly_once():
    assert explore(ledger, seeds=25).crashes


def effect_without_acknowledgement(monkeypatch):
    monkeypatch.setattr(_writing, "with_settled", lambda changes, settled, offset_of: changes)


def acknowledgement_without_effect(monkeypatch):
    @instead_of(monkeypatch, Calls, "called")
    def undo(called, self, connection, written, call):
        found = called(self, connection, written, call)
        if call.deliveries and not call.deliveries[0].attempt % 2:
            connection.execute("DELETE FROM entries WHERE rowid = (SELECT max(rowid) FROM entries)")
        return found


def lost_follow_up(monkeypatch):
    @instead_of(monkeypatch, Transaction, "publish")
    def publish_some(publish, self, event, **options):
        if not (isinstance(event, Other) and event.number == 3):
            publish(self, event, **options)


def scheduled_twice(monkeypatch):
    @instead_of(monkeypatch, ScheduleRows, "take_due")
    def take_some(take_due, self, now, limit):
        for record in take_due(self, now, limit):
            yield record
            yield record._replace(
                event_id=type(record.event_id)(int=record.event_id.int ^ 1),
                data=record.data.replace(
                    str(record.event_id).encode(),
                    str(type(record.event_id)(int=record.event_id.int ^ 1)).encode(),
                ),
            )


def one_that_comes_early(monkeypatch):
    @instead_of(monkeypatch, StoredSchedule, "_expect")
    def expect_sooner(expect, self, due):
        expect(self, due and due - 30)

    monkeypatch.setattr(schedule, "_INEXACT", 31)


def a_batch_that_blames_another(monkeypatch):
    @instead_of(monkeypatch, BundleWorker, "_isolate")
    async def blame_the_last(isolate, self, deliveries, subscription, attempts, failure):
        failures = self._shell.failures
        failures.end(deliveries[0], subscription, failure, attempts)
        for each in deliveries:
            self._advance(each)


def a_reset_that_forgets_no_letter(monkeypatch):
    monkeypatch.setattr(StoredDeadLetters, "forget_group", lambda self, group: None)

    def write_reset(connection, group, offset):
        connection.execute("DELETE FROM finished WHERE group_name = ?", (group,))
        connection.execute("DELETE FROM attempts WHERE group_name = ?", (group,))
        _writing._write_progress(connection, group, _writing.ProgressChange(offset))

    monkeypatch.setattr(_writing, "_write_reset", write_reset)


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (effect_without_acknowledgement, "twice"),
        (acknowledgement_without_effect, "entered twice or not at all"),
        (lost_follow_up, "an answer is lost"),
        (scheduled_twice, "a timeout is lost or came twice"),
        (one_that_comes_early, "early"),
        (a_batch_that_blames_another, "another event is blamed|is not by 'load'"),
        (a_reset_that_forgets_no_letter, "dead letters of before"),
    ],
)
def test_a_planted_bug_is_found(monkeypatch, plant, said):
    plant(monkeypatch)
    with pytest.raises(ExplorationFailed, match=said):
        explore(ledger, seeds=40)
