"""The made-up prices of `triobus demo`."""

import random
from collections.abc import Iterator
from datetime import date, timedelta
from uuid import NAMESPACE_URL, uuid5

import msgspec

DEMO = "triobus.demo:bus"
"""Loaded by name, as any other bus is: its event types exist only where it runs."""

_FIRST_PRICES = {"ACME": 40.0, "GLOBEX": 120.0, "HOOLI": 450.0, "INITECH": 15.0}
_DAYS = 120


def generated_prices(seed: int = 1) -> bytes:
    """Return closing prices as lines of JSON, the same ones for the same seed."""
    return b"".join(msgspec.json.encode(line) + b"\n" for line in _walk(random.Random(seed)))


def _walk(chance: random.Random) -> Iterator[dict[str, object]]:
    prices = dict(_FIRST_PRICES)
    for day in range(_DAYS):
        for symbol in prices:
            prices[symbol] *= 1 + chance.gauss(0, 0.02)
            when = date(2025, 1, 1) + timedelta(days=day)
            data = {
                # The same price is the same event, however often it is given.
                "event_id": uuid5(NAMESPACE_URL, f"price of {symbol} on {when}"),
                "symbol": symbol,
                "day": when,
                "close": f"{prices[symbol]:.2f}",
            }
            yield {"type": "price.closed", "data": data}
