"""The program that is killed: `python -m tests.proofs.effects.ledger FILE SEED [BUG]`.

It says on standard output which entries were accepted, one number a line. Each is entered in a
table by a transactional handler, which fails now and then, and is answered by an event that a group
with batches enters in a table, too; a scheduled event closes it.
"""

import os
import random
import sys
from pathlib import Path

import attrs
import trio

from triobus import DomainEvent, EventBus, Retry, SqliteEventStore, Transaction
from triobus.stores.sqlite import _writing
from triobus.stores.sqlite._calls import Calls

TABLES = ("entries", "answers", "closed")


@attrs.frozen
class Entered(DomainEvent):
    number: int
    account: str

    @property
    def aggregate_id(self) -> str:
        return self.account


@attrs.frozen
class Answered(Entered): ...


@attrs.frozen
class Closed(DomainEvent):
    number: int


def _is_entry(event: Entered) -> bool:
    return type(event) is Entered


def plant(bug: str) -> None:
    """Break a promise, so that the proof can be seen to find it."""
    if bug == "no-acknowledgement":
        _writing.with_settled = lambda changes, settled, offset_of: changes
    if bug == "commit-inside":
        plain = Calls.called

        def called(self, connection, written, call):  # type: ignore[no-untyped-def]  # as the original
            found = plain(self, connection, written, call)
            if call.deliveries and random.random() < 0.2:
                connection.execute("COMMIT")  # the effects without the record of it
                os.kill(os.getpid(), 9)
            return found

        Calls.called = called


def ledger(path: Path, chance: random.Random) -> EventBus:
    """Return a bus whose handlers keep the books."""
    bus = EventBus(SqliteEventStore(path), workers=4, buffer=chance.choice([4, 20, 1000]))
    retry = Retry(attempts=50, delay=0.001, max_delay=0.01)

    @bus.subscribe(Entered, name="enter", where=_is_entry, retry=retry, transactional=True)
    def enter(event: Entered, transaction: Transaction) -> None:
        transaction.execute("INSERT INTO entries VALUES (?)", (event.number,))
        transaction.publish(Answered(event.number, event.account))
        transaction.publish(Closed(event.number), delay=chance.random() * 0.05)
        if chance.random() < 0.1:
            raise ValueError("not now")

    bulk = bus.group("bulk", batch=7, workers=2, start="beginning")

    @bulk.subscribe(Answered, name="answer", retry=retry, transactional=True)
    def answer(events: tuple[Answered, ...], transaction: Transaction) -> None:
        rows = [(event.number,) for event in events]
        transaction.executemany("INSERT INTO answers VALUES (?)", rows)
        if chance.random() < 0.1:
            raise ValueError("not now")

    @bus.subscribe(Closed, name="close", retry=retry, transactional=True)
    def close(event: Closed, transaction: Transaction) -> None:
        transaction.execute("INSERT INTO closed VALUES (?)", (event.number,))

    return bus


def make_tables(transaction: Transaction) -> int:
    """Make the tables, and return the number of the last entry that was accepted."""
    for table in TABLES:
        transaction.execute(f"CREATE TABLE IF NOT EXISTS {table} (number INTEGER)")
    (last,) = transaction.execute(
        "SELECT coalesce(max(data ->> 'number'), 0) FROM events WHERE event_type = 'Entered'"
    ).fetchone()
    return int(last)


async def main(path: Path, seed: int) -> None:
    """Accept entries until the process is killed; a negative seed only finishes what there is."""
    bus = ledger(path, random.Random(seed))
    assert bus.store is not None
    async with bus.store, bus:
        last = await bus.store.transact(make_tables)

        async def accept(account: str, numbers: range) -> None:
            for number in numbers:
                await bus.publish(Entered(number, account))
                print(number, flush=True)

        if seed < 0:
            await bus.wait_idle()
            while bus.statistics().scheduled:
                await trio.sleep(0.01)
                await bus.wait_idle()
            return
        async with trio.open_nursery() as nursery:
            for account in range(5):
                numbers = range(last + 1 + account, last + 10**6, 5)
                nursery.start_soon(accept, str(account), numbers)


if __name__ == "__main__":
    for bug in sys.argv[3:]:
        plant(bug)
    trio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
