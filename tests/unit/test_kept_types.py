"""What comes back of an event: values, what is beside its fields, causes, ids and times."""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, time
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import pytest
import trio

from tests.events import Noted
from tests.unit.kept import refusal
from triobus import DomainEvent, EventBus, EventNotEncodable, MemoryEventStore, SqliteEventStore
from triobus._events import EventCodec

BERLIN = ZoneInfo("Europe/Berlin")


def again(event: DomainEvent, **options: Any) -> Any:
    codec = EventCodec(**options)
    data = codec.encode(event)
    assert codec.encode(event) == data
    return EventCodec(**options).decode(event.event_type, event.schema_version, data)


# What is in an event and no field


@pytest.mark.parametrize("slots", [True, False])
def test_a_cached_property_is_not_written(slots: bool) -> None:
    @attrs.frozen(slots=slots)
    class Order(DomainEvent):
        quantity: int

        @functools.cached_property
        def total(self) -> int:
            return self.quantity * 2

    order = Order(3)
    assert order.total == 6
    assert again(order) == order


@attrs.frozen(slots=False)
class Cached:
    number: int

    @functools.cached_property
    def twice(self) -> object:
        return object()


@dataclasses.dataclass
class Loose:
    number: int


@attrs.frozen
class Nesting(DomainEvent):
    one: Cached
    many: list[dict[str, Loose | None]]


def test_what_objects_in_fields_have_beside_their_fields_is_not_written() -> None:
    event = Nesting(Cached(1), [{"a": Loose(2), "b": None}])
    assert event.one.twice
    event.many[0]["a"].more = object()  # type: ignore[union-attr]  # that is what is tested
    data = EventCodec().encode(event)
    assert b'"one":{"number":1},"many":[{"a":{"number":2},"b":null}]' in data
    assert again(event) == event


def test_an_attribute_that_is_set_beside_the_fields_is_not_written() -> None:
    @attrs.frozen(slots=False)
    class Open(DomainEvent):
        number: int

    event = Open(3)
    object.__setattr__(event, "more", object())
    assert again(event) == event


def test_a_default_made_of_the_others_and_a_field_without_annotation_are_kept() -> None:
    @attrs.frozen
    class Derived(DomainEvent):
        x: int
        y: int = attrs.field()

        @y.default
        def _y(self) -> int:
            return self.x

    @attrs.frozen
    class Untyped(DomainEvent):
        x = attrs.field()

    assert again(Untyped("x")).x == "x"
    event = Derived(1)
    assert again(event) == event
    data = EventCodec().encode(event).replace(b'"y":1,', b"")
    assert EventCodec().decode("Derived", 1, data) == event


# Values


class Level(NamedTuple):
    price: Decimal


class Colour(StrEnum):
    RED = "red"


class Rank(IntEnum):
    ONE = 1


@attrs.frozen
class Held(DomainEvent):
    text: str = ""
    number: int = 0
    share: float = 0.0
    amount: Decimal = Decimal(0)
    pair: tuple[Any, ...] = ()
    group: AbstractSet[int] = attrs.field(factory=set)
    counts: dict[str, int] = attrs.field(factory=dict)
    words: list[str] = attrs.field(factory=list)
    at: datetime | None = None
    daily: time | None = None
    rank: Rank = Rank.ONE
    anything: Any = None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"text": Colour.RED}, "Held.text: <Colour.RED: 'red'> (Colour) would come back as 'red'"),
        ({"number": Rank.ONE}, "Held.number: <Rank.ONE: 1> (Rank) would come back as 1 (int)"),
        ({"number": True}, "Held.number: expected int, found true"),
        ({"amount": 1}, "Held.amount: 1 (int) would come back as Decimal('1') (Decimal)"),
        ({"pair": Level(Decimal(1))}, "Held.pair: Level(price="),
        (
            {"group": frozenset([1])},
            "Held.group: frozenset({1}) (frozenset) would come back as {1}",
        ),
        ({"counts": defaultdict(int, a=1)}, "Held.counts: defaultdict("),
        ({"counts": {Colour.RED: 1}}, "Held.counts: "),
        (
            {"words": ["a", Colour.RED]},
            "Held.words: ['a', <Colour.RED: 'red'>] (list) would",
        ),
        ({"daily": time(9, tzinfo=BERLIN)}, "Held.daily: datetime.time(9, 0, tzinfo="),
        ({"at": datetime(1890, 1, 1, tzinfo=BERLIN)}, "give it in UTC"),
        ({"anything": functools.reduce(lambda x, _: [x], range(200), [])}, "Held.anything: values"),
    ],
)
def test_a_value_that_would_come_back_as_another_type_is_refused_by_field(
    fields: dict[str, Any], said: str
) -> None:
    message = refusal(Held(**fields))
    assert said in message
    assert ": give " in message or ", or give " in message


def test_a_whole_number_in_a_field_of_floats_stays_one() -> None:
    found = again(Held(share=5))
    assert (found.share, type(found.share)) == (5, int)
    assert type(again(Held(share=5.0)).share) is float


@pytest.mark.parametrize("fold", [0, 1])
@pytest.mark.parametrize(("month", "day", "hour"), [(1, 1, 9), (10, 25, 2), (3, 29, 2), (3, 29, 3)])
def test_a_moment_in_a_zone_comes_back_as_the_same_moment_at_every_hour(
    month: int, day: int, hour: int, fold: int
) -> None:
    moment = datetime(2026, month, day, hour, 30, tzinfo=BERLIN, fold=fold)
    found = again(Held(at=moment)).at
    assert found.astimezone(UTC) == moment.astimezone(UTC)


def test_a_member_of_an_int_enum_beside_long_digits_is_read() -> None:
    found = again(Held(rank=Rank.ONE, anything=["1" * 20]))  # a search of a range would never end
    assert (found.rank, found.anything) == (Rank.ONE, ["1" * 20])


def test_an_event_after_others_of_the_same_types_is_looked_at_too() -> None:
    codec = EventCodec()
    codec.encode(Held(share=1.0, number=1, amount=Decimal(1), text="a"))
    for fields in (
        {"share": float("nan")},
        {"number": 2**64},
        {"amount": Decimal("NaN")},
        {"text": "\0"},
        {"text": "\ud800"},
    ):
        with pytest.raises(EventNotEncodable):
            codec.encode(Held(**fields))  # type: ignore[arg-type]  # of several types


def test_a_converter_that_would_change_the_value_again_is_refused_each_time() -> None:
    @attrs.frozen
    class Paid(DomainEvent):
        cents: int = attrs.field(converter=lambda euros: euros * 100)

    codec = EventCodec()
    assert codec.decode("Paid", 1, codec.encode(Paid(0))) is not None
    with pytest.raises(EventNotEncodable, match=r"Paid\.cents: 500 .*50000.*its converter"):
        codec.encode(Paid(5))


# Aggregates


class Desk(str, Enum):  # noqa: UP042  # its format() is not its value
    ONE = "one"


@attrs.frozen
class Asked(DomainEvent):
    asked: list[int] = attrs.field(factory=list, eq=False)
    desk: Any = "one"

    @property
    def aggregate_id(self) -> Any:
        self.asked.append(1)
        return self.desk


@pytest.mark.parametrize("kind", [None, "sqlite", "memory"])
async def test_an_event_is_asked_for_its_aggregate_once(kind: str | None, tmp_path: Path) -> None:
    stores = {"sqlite": lambda: SqliteEventStore(tmp_path / "a.db"), "memory": MemoryEventStore}
    bus = EventBus(stores[kind]() if kind else None)
    handled: list[int] = []

    @bus.subscribe(Asked, hold=True)
    async def note(event: Asked) -> None:
        handled.append(len(event.asked))
        raise ValueError

    event, others = Asked(), [Asked(), Asked()]
    async with bus:
        await bus.publish(event)
        await bus.publish_many(others)
    assert [len(one.asked) for one in (event, *others)] == [1, 1, 1]


async def test_a_member_of_an_enum_as_aggregate_or_type_is_kept_as_its_text(tmp_path: Path) -> None:
    class Kind(str, Enum):  # noqa: UP042  # as above
        A = "kept.by.enum"

    @attrs.frozen
    class Typed(DomainEvent):
        event_type: ClassVar[str] = Kind.A

        @property
        def aggregate_id(self) -> str:
            return Desk.ONE

    async with SqliteEventStore(tmp_path / "a.db") as store:
        await store.append([Typed()])
        (stored,) = [stored async for stored in store.read(aggregate_id="one")]
    assert (stored.sequence, type(stored.event.event_type)) == (1, str)


async def test_a_name_that_no_row_can_have_is_refused_for_its_publisher_alone(
    tmp_path: Path,
) -> None:
    async with SqliteEventStore(tmp_path / "a.db") as store:
        results: list[Any] = []

        async def append(event: DomainEvent) -> None:
            try:
                results.extend(await store.append([event]))
            except EventNotEncodable as error:
                results.append(str(error)[:18])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(append, Noted(1))
            nursery.start_soon(append, Asked(desk="x" * 17 * 2**20))
            nursery.start_soon(append, Noted(2))
        assert sorted(map(str, results))[0] == "Asked.aggregate_id"
        assert {stored.event.number async for stored in store.read()} == {1, 2}


# Causes


class Ran(Exception):
    pass


@pytest.mark.parametrize("slots", [True, False])
async def test_publishing_in_a_handler_copies_the_event_and_runs_none_of_its_code(
    slots: bool,
) -> None:
    made: list[int] = []

    @attrs.frozen(slots=slots, cache_hash=True)
    class Paid(DomainEvent):
        cents: int = attrs.field(converter=lambda euros: euros * 100)
        _secret: int = attrs.field(default=7)
        number: int = attrs.field(init=False, factory=lambda: made.append(1) or len(made))

        def __attrs_post_init__(self) -> None:
            made.append(1)

        @functools.cached_property
        def total(self) -> object:
            return object()

    @attrs.frozen
    class Own(DomainEvent):
        number: int

        def __init__(self, text: str) -> None:
            self.__attrs_init__(int(text))

    paid, own = Paid(5), Own("3")
    before = list(made), paid.total, hash(paid)
    bus = EventBus()
    found: list[Any] = []
    bus.subscribe((Paid, Own), found.append)

    @bus.subscribe(Noted)
    async def relay(event: Noted) -> None:
        await bus.publish_many([paid, own])

    cause = Noted(1)
    async with bus:
        await bus.publish(cause)
    copies = sorted(found, key=lambda event: type(event).__name__)
    assert [(e.correlation_id, e.causation_id) for e in copies] == [(cause.event_id,) * 2] * 2
    assert (copies[0].number, copies[1].cents, copies[1]._secret) == (3, 500, 7)
    assert (made, copies[1].total, hash(paid)) == before
    assert copies[1].number == paid.number
    assert paid.causation_id is None
    assert hash(copies[1]) != hash(paid)  # the ids are a part of it, though it was kept


# Ids and times


def test_a_time_and_texts_of_other_classes_become_plain_ones() -> None:
    class Stamp(datetime):
        pass

    event = Noted(
        1, occurred_at=Stamp(2026, 1, 1, tzinfo=BERLIN), metadata={Colour.RED: Colour.RED}
    )
    assert type(event.occurred_at) is datetime
    assert event.occurred_at == datetime(2025, 12, 31, 23, tzinfo=UTC)
    assert [type(text) for text in [*event.metadata, *event.metadata.values()]] == [str, str]
    assert again(event) == event


def test_an_id_of_another_class_is_refused_with_its_field() -> None:
    class Uuid(UUID):
        pass

    assert "Noted.event_id: Uuid(" in refusal(Noted(1, event_id=Uuid(int=1)))
