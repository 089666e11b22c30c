"""The books that a transactional handler keeps while the power may be cut: are they right?

An event that the group "books" has settled is entered once: its number is in the total of its
aggregate, and a follow-up event in the log, whose cause it is. One that has become a dead letter is
in neither, and nor is one that is not settled.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import attrs
import msgspec

import triobus
from triobus.stores._values import Row
from triobus.stores.sqlite import _writing
from triobus.stores.sqlite._transaction import SqliteTransaction

GROUP = "books"
BUGS = ("settled-later", "effect-later")
"""What reaches the disk a commit later than what belongs to it."""
_TABLE = "CREATE TABLE IF NOT EXISTS totals (account TEXT PRIMARY KEY, total INTEGER NOT NULL)"
_ADD = (
    "INSERT INTO totals VALUES (?, ?) "
    "ON CONFLICT (account) DO UPDATE SET total = total + excluded.total"
)


@attrs.frozen
class Booked(triobus.DomainEvent):
    """Follows from an event that is entered in the books."""

    event_type: ClassVar[str] = "power.booked"
    number: int


def keep_books(
    bus: triobus.EventBus,
    wanted: Any,
    retry: triobus.Retry,
    fails: Callable[[int, int], bool],
    handled: Callable[..., None],
) -> None:
    """Subscribe the handler that keeps the books. What it does before it fails must be undone."""

    @bus.group(GROUP, workers=2, start="beginning").subscribe(
        wanted, name="enter", retry=retry, transactional=True
    )
    def enter(event: Any, transaction: triobus.Transaction) -> None:
        transaction.execute(_ADD, (event.aggregate_id, event.number))
        transaction.publish(Booked(event.number))
        delivery = transaction.delivery
        assert delivery is not None
        if fails(event.number, delivery.attempt):
            raise ValueError(event.number)
        handled(GROUP, delivery.position)


def make_table(transaction: triobus.Transaction) -> None:
    """Make the table of the books, unless there is one."""
    transaction.execute(_TABLE)


async def wrong_books(
    store: triobus.SqliteEventStore, rows: Sequence[Row], settled: int, wanted: str
) -> str:
    """Return in what the books differ from what is settled and no dead letter; "" if in nothing.

    `settled` has a bit for each position of such an event; `wanted` is the type of those entered.
    """
    entered = [row for row in rows if row.event_type == wanted and settled >> row.position & 1]
    followed = [row for row in rows if row.event_type == Booked.event_type]
    causes = Counter(msgspec.json.decode(row.data)["causation_id"] for row in followed)
    expected = Counter(str(row.event_id) for row in entered)
    if causes != expected:
        return (
            f"{(expected - causes).total()} follow-up events are missing, and "
            f"{(causes - expected).total()} follow from what is not settled, or once too often"
        )
    sums = Counter[str]()
    for row in entered:
        sums[str(row.aggregate_id)] += msgspec.json.decode(row.data)["number"]
    totals = await store.transact(_totals, read_only=True)
    return "" if totals == sums else f"the totals are {totals}, and settled are {dict(sums)}"


def _totals(transaction: triobus.Transaction) -> dict[str, int]:
    tables = "SELECT 1 FROM sqlite_schema WHERE name = 'totals'"
    if transaction.execute(tables).fetchone() is None:
        return {}
    return dict(transaction.execute("SELECT account, total FROM totals"))


def plant(bug: str) -> None:
    """Take effects and their acknowledgement apart, in two commits."""
    if bug == "settled-later":
        _plant_settled_later()
    elif bug == "effect-later":
        _plant_effect_later()


def _plant_settled_later() -> None:
    with_settled, last = _writing.with_settled, list[Any]()

    def with_settled_of_before(changes: Any, settled: Any, offset_of: Any) -> Any:
        before, last[:] = last[:], settled
        return with_settled(changes, before, offset_of)

    _writing.with_settled = with_settled_of_before


def _plant_effect_later() -> None:
    execute, last = SqliteTransaction.execute, list[Any]()

    def execute_that_of_before(self: SqliteTransaction, statement: str, values: Any = ()) -> Any:
        if statement != _ADD:
            return execute(self, statement, values)
        before, last[:] = last[:], [values]
        return [execute(self, statement, each) for each in before]

    SqliteTransaction.execute = execute_that_of_before  # type: ignore[method-assign]  # a sabotage
