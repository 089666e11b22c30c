"""A small trading pipeline: the example to read first, and what `triobus demo` runs.

Closing prices come in, money and shares come out:

    price.closed -> signal.raised -> order.placed -> order.filled
                                                 `-> order.timed-out -> order.cancelled

Every arrow is a handler that takes one event and publishes the next one. Try it, and then kill the
second one in the middle and start it again: the positions come out the same.

    triobus demo
    triobus demo --store demo.db
    triobus run triobus.demo:bus --input prices.jsonl

with lines such as

    {"type": "price.closed", "data": {"symbol": "IBM", "day": "2000-01-01", "close": "100.52"}}
"""

import zlib
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from typing import Any, ClassVar
from uuid import NAMESPACE_URL, uuid5

import attrs

from triobus import (
    DomainEvent,
    EventBus,
    EventStore,
    PostgresEventStore,
    Retry,
    SqliteEventStore,
    Transaction,
    current_delivery,
)

DAYS = 5  # in the moving average
SHARES = 10  # in an order
LIMIT = Decimal(5000)  # the largest order, in money
PATIENCE = 3600  # seconds until an order is cancelled that the broker has not filled


# 1. Events are facts, named in the past tense. The aggregate is what an event is about: events of
# one aggregate are handled in their order, one at a time, and different ones at the same time.


@attrs.frozen
class PriceClosed(DomainEvent):
    """A day's trading ended with this price."""

    event_type: ClassVar[str] = "price.closed"
    symbol: str
    day: date
    close: Decimal

    @property
    def aggregate_id(self) -> str:
        """Prices of one symbol stay in order."""
        return self.symbol


@attrs.frozen
class SignalRaised(DomainEvent):
    """The price crossed its moving average: upwards it is time to buy, downwards to sell."""

    event_type: ClassVar[str] = "signal.raised"
    symbol: str
    day: date
    close: Decimal
    is_buy: bool

    @property
    def aggregate_id(self) -> str:
        """Signals of one symbol stay in order."""
        return self.symbol


@attrs.frozen
class OrderPlaced(DomainEvent):
    """We want to buy shares, or to sell them if the quantity is negative."""

    event_type: ClassVar[str] = "order.placed"
    order_id: str
    symbol: str
    quantity: int
    price: Decimal

    @property
    def aggregate_id(self) -> str:
        """Every order is on its own: one that is retried holds up no other."""
        return self.order_id


@attrs.frozen
class OrderTimedOut(DomainEvent):
    """The time is over in which the order should have been filled."""

    event_type: ClassVar[str] = "order.timed-out"
    order_id: str


@attrs.frozen
class OrderCancelled(DomainEvent):
    """We want the order no more."""

    event_type: ClassVar[str] = "order.cancelled"
    order_id: str


@attrs.frozen
class OrderFilled(DomainEvent):
    """The broker carried an order out."""

    event_type: ClassVar[str] = "order.filled"
    order_id: str
    symbol: str
    quantity: int
    price: Decimal

    @property
    def aggregate_id(self) -> str:
        """Fills of one symbol change the same position."""
        return self.symbol


# 2. The bus, with a store and two groups: "default" decides and keeps the books, "broker" talks to
# the outside. A slow broker holds up only itself. `triobus demo --store FILE` keeps all in a file.

bus = EventBus(SqliteEventStore(":memory:"))
broker = bus.group("broker", workers=8)


# 3. Handlers that decide. What they know is in tables of their own, beside the log: a transactional
# handler writes to them, and publishes, in the commit that settles its event. So each event has its
# effect exactly once, whatever kills the program.

TABLES = (
    "CREATE TABLE IF NOT EXISTS closes "
    "(symbol TEXT, day TEXT, close TEXT, PRIMARY KEY (symbol, day))",
    "CREATE TABLE IF NOT EXISTS approved (signal TEXT PRIMARY KEY, quantity INTEGER)",
    "CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, state TEXT)",
    "CREATE TABLE IF NOT EXISTS positions (symbol TEXT PRIMARY KEY, shares BIGINT, cents BIGINT)",
)


def made(transaction: Transaction) -> Transaction:
    """Return the transaction when the tables are there."""
    for statement in TABLES:
        execute(transaction, statement)
    return transaction


def execute(transaction: Transaction, sql: str, values: Sequence[object] = ()) -> Any:
    """Execute a statement. The driver of PostgreSQL marks parameters otherwise than SQLite's."""
    if isinstance(bus.store, PostgresEventStore):
        sql = sql.replace("?", "%s")
    return transaction.execute(sql, values)


@bus.subscribe(PriceClosed, transactional=True)
def watch_average(price: PriceClosed, transaction: Transaction) -> None:
    """Raise a signal when the price crosses its moving average."""
    symbol, today = price.symbol, price.day.isoformat()
    execute(
        made(transaction),
        "INSERT INTO closes VALUES (?, ?, ?) "
        "ON CONFLICT (symbol, day) DO UPDATE SET close = excluded.close",
        (symbol, today, str(price.close)),
    )
    rows = execute(
        transaction,
        "SELECT close FROM closes WHERE symbol = ? AND day <= ? ORDER BY day DESC LIMIT ?",
        (symbol, today, DAYS + 1),
    )
    closes = [Decimal(close) for (close,) in rows]
    if len(closes) <= DAYS:
        return
    is_above, was_above = _is_above(closes[:-1]), _is_above(closes[1:])
    if is_above != was_above:
        transaction.publish(SignalRaised(symbol, price.day, price.close, is_buy=is_above))


def _is_above(closes: list[Decimal]) -> bool:
    """Whether the last close, which comes first, is above the average of all."""
    return closes[0] > sum(closes) / len(closes)


# Two handlers for one event: the higher priority goes first. Were the check to fail, nothing would
# be approved and no order placed.


@bus.subscribe(SignalRaised, priority=10, transactional=True)
def check_risk(signal: SignalRaised, transaction: Transaction) -> None:
    """Approve a quantity: none when the order would be worth more than the limit."""
    if SHARES * signal.close <= LIMIT:
        quantity = SHARES if signal.is_buy else -SHARES
        execute(
            made(transaction),
            "INSERT INTO approved VALUES (?, ?)",
            (str(signal.event_id), quantity),
        )


@bus.subscribe(SignalRaised, transactional=True)
def place_order(signal: SignalRaised, transaction: Transaction) -> None:
    """Order what the risk check approved, and be told when it should have been filled."""
    approved = execute(
        made(transaction), "SELECT quantity FROM approved WHERE signal = ?", (str(signal.event_id),)
    )
    for (quantity,) in approved.fetchall():
        order_id = f"{signal.symbol}-{signal.day}"
        execute(transaction, "INSERT INTO orders VALUES (?, 'open')", (order_id,))
        transaction.publish(OrderPlaced(order_id, signal.symbol, quantity, signal.close))
        transaction.publish(OrderTimedOut(order_id), delay=PATIENCE)


@bus.subscribe(OrderFilled, transactional=True)
def keep_books(fill: OrderFilled, transaction: Transaction) -> None:
    """Change the position. It is a sum, which does not mind in which order the broker was done."""
    execute(transaction, "UPDATE orders SET state = 'filled' WHERE id = ?", (fill.order_id,))
    execute(
        transaction,
        "INSERT INTO positions VALUES (?, ?, ?) ON CONFLICT (symbol) DO UPDATE "
        "SET shares = positions.shares + excluded.shares, cents = positions.cents + excluded.cents",
        (fill.symbol, fill.quantity, int(-fill.quantity * fill.price * 100)),
    )


@bus.subscribe(OrderTimedOut, transactional=True)
def give_up(timeout: OrderTimedOut, transaction: Transaction) -> None:
    """Cancel an order that is still open."""
    found = execute(
        transaction,
        "UPDATE orders SET state = 'cancelled' WHERE id = ? AND state = 'open'",
        (timeout.order_id,),
    )
    if found.rowcount:
        transaction.publish(OrderCancelled(timeout.order_id))


# 4. Handlers that talk to the outside, which takes part in no transaction: they may be called twice
# for an event. So the event that one publishes has an id made of what it is about: publishing it
# again is accepted once. One order in four needs a second attempt, and a few fail every time and
# become dead letters: `bus.dead_letters` keeps them with their errors, to be replayed or discarded.
# The chance is taken from the order's name, so that every run is the same.


class BrokerError(Exception):
    """The broker did not take the order."""


@broker.subscribe(OrderPlaced, retry=Retry(attempts=3, delay=0.05))
async def send_to_broker(order: OrderPlaced) -> None:
    """Carry the order out, if the broker has a good moment."""
    luck = zlib.crc32(order.order_id.encode()) % 100
    if luck < 2 or (luck < 25 and current_delivery().attempt == 1):
        raise BrokerError(f"no answer for {order.order_id}")
    event_id = uuid5(NAMESPACE_URL, f"order {order.order_id} is filled")
    await bus.publish(
        OrderFilled(order.order_id, order.symbol, order.quantity, order.price, event_id=event_id)
    )


@broker.subscribe(OrderCancelled)
async def cancel_with_broker(cancelled: OrderCancelled) -> None:
    """Tell the broker, who has nothing to cancel: the order never arrived."""


# 5. `triobus run` calls a function of this name, when the module has one, after the bus has
# stopped, and prints the rows that it returns below its own summary.


async def triobus_report(store: EventStore) -> list[dict[str, object]]:
    """Return the final positions, below zero where shares are owed. Dead letters are missing."""

    def ask(transaction: Transaction) -> list[tuple[str, int, int]]:
        found: list[tuple[str, int, int]] = execute(
            transaction,
            "SELECT symbol, coalesce(shares, 0), coalesce(cents, 0) "
            "FROM (SELECT DISTINCT symbol FROM closes) AS known LEFT JOIN positions USING (symbol) "
            "ORDER BY symbol",
        ).fetchall()
        return found

    await store.transact(made)
    return [
        {"symbol": symbol, "shares": shares, "money": Decimal(cents).scaleb(-2)}
        for symbol, shares, cents in await store.transact(ask, read_only=True)
    ]
