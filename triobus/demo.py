"""A small trading pipeline: the example to read first, and what `triobus demo` runs.

Closing prices come in, money and shares come out:

    price.closed -> signal.raised -> order.placed -> order.filled

Every arrow is a handler that takes one event and publishes the next one. Try it, and then kill the
second one in the middle and start it again:

    triobus demo
    triobus demo --store demo.db
    triobus run triobus.demo:bus --input prices.jsonl

with lines such as

    {"type": "price.closed", "data": {"symbol": "IBM", "day": "2000-01-01", "close": "100.52"}}
"""

import zlib
from collections import defaultdict
from datetime import date
from decimal import Decimal
from typing import ClassVar
from uuid import NAMESPACE_URL, UUID, uuid5

import attrs

from triobus import DomainEvent, EventBus, EventStore, Retry, current_delivery

DAYS = 5  # in the moving average
SHARES = 10  # in an order
LIMIT = Decimal(5000)  # the largest order, in money


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


# 2. The bus, with two groups: "default" decides and keeps the books, "broker" talks to the outside.
# A slow broker holds up only itself.

bus = EventBus()
broker = bus.group("broker", workers=8)


# 3. Handlers. What they know is kept by what it is about, so that an event which is handled twice,
# because the program was killed, changes nothing. For the same reason the events that they publish
# have ids made of what they are about: publishing one again is accepted once.

_closes: defaultdict[str, dict[date, Decimal]] = defaultdict(dict)
_approved: dict[UUID, int] = {}
_fills: dict[str, OrderFilled] = {}


def named(what: str) -> UUID:
    """Return the id of the event that says this."""
    return uuid5(NAMESPACE_URL, what)


def _is_above(symbol: str, days: list[date]) -> bool:
    """Whether the last of the days closed above the average of the last few."""
    closes = [_closes[symbol][day] for day in days[-DAYS:]]
    return closes[-1] > sum(closes) / DAYS


@bus.subscribe(PriceClosed)
async def watch_average(price: PriceClosed) -> None:
    """Raise a signal when the price crosses its moving average."""
    symbol, today = price.symbol, price.day
    _closes[symbol][today] = price.close
    days = sorted(day for day in _closes[symbol] if day <= today)
    if len(days) <= DAYS:
        return
    is_above = _is_above(symbol, days)
    if is_above != _is_above(symbol, days[:-1]):
        event_id = named(f"{symbol} crosses its average on {today}")
        await bus.publish(
            SignalRaised(symbol, today, price.close, is_buy=is_above, event_id=event_id)
        )


# Two handlers for one event: the higher priority goes first. Were the check to fail, nothing would
# be approved and no order placed.


@bus.subscribe(SignalRaised, priority=10)
async def check_risk(signal: SignalRaised) -> None:
    """Approve a quantity: none when the order would be worth more than the limit."""
    if SHARES * signal.close <= LIMIT:
        _approved[signal.event_id] = SHARES if signal.is_buy else -SHARES


@bus.subscribe(SignalRaised)
async def place_order(signal: SignalRaised) -> None:
    """Order what the risk check approved."""
    quantity = _approved.get(signal.event_id)
    if quantity is not None:
        order_id = f"{signal.symbol}-{signal.day}"
        event_id = named(f"order {order_id} is placed")
        await bus.publish(
            OrderPlaced(order_id, signal.symbol, quantity, signal.close, event_id=event_id)
        )


# 4. Failure. One order in four needs a second attempt, and a few fail every time and become dead
# letters: `bus.dead_letters` keeps them with their errors, to be replayed or discarded. The chance
# is taken from the order's name, so that every run is the same.


class BrokerError(Exception):
    """The broker did not take the order."""


@broker.subscribe(OrderPlaced, retry=Retry(attempts=3, delay=0.05))
async def send_to_broker(order: OrderPlaced) -> None:
    """Carry the order out, if the broker has a good moment."""
    luck = zlib.crc32(order.order_id.encode()) % 100
    if luck < 2 or (luck < 25 and current_delivery().attempt == 1):
        raise BrokerError(f"no answer for {order.order_id}")
    event_id = named(f"order {order.order_id} is filled")
    await bus.publish(
        OrderFilled(order.order_id, order.symbol, order.quantity, order.price, event_id=event_id)
    )


@bus.subscribe(OrderFilled)
async def keep_books(fill: OrderFilled) -> None:
    """Note a fill. Positions are sums, which do not mind in which order the broker was done."""
    _fills[fill.order_id] = fill


# 5. `triobus run --store` calls a function of this name, when the module has one, before the bus
# starts: what the handlers knew is in the log.


async def triobus_restore(store: EventStore) -> None:
    """Know again what was known when the program ended."""
    async for stored in store.read():
        match stored.event:
            case PriceClosed() as price:
                _closes[price.symbol][price.day] = price.close
            case SignalRaised() as signal:
                await check_risk(signal)
            case OrderFilled() as fill:
                await keep_books(fill)


# 6. `triobus run` calls a function of this name, when the module has one, after the bus has
# stopped, and prints the rows that it returns below its own summary.


def triobus_report() -> list[dict[str, object]]:
    """Return the final positions, below zero where shares are owed. Dead letters are missing."""
    return [
        {
            "symbol": symbol,
            "shares": sum(f.quantity for f in _fills.values() if f.symbol == symbol),
            "money": -sum(
                (f.quantity * f.price for f in _fills.values() if f.symbol == symbol), Decimal()
            ),
        }
        for symbol in sorted(_closes)
    ]
