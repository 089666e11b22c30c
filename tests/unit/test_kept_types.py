"""Which classes and values of fields are kept, and what is said about the others."""

import dataclasses
import functools
import gc
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, time
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, ClassVar, ForwardRef, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import pytest
import trio

from tests.events import Noted
from triobus import (
    Converter,
    DomainEvent,
    EventBus,
    EventNotDecodable,
    EventNotEncodable,
    InvalidEvent,
    InvalidOption,
    MemoryEventStore,
    SqliteEventStore,
)
from triobus._events import EventCodec

BERLIN = ZoneInfo("Europe/Berlin")


def again(event: DomainEvent, **options: Any) -> Any:
    codec = EventCodec(**options)
    data = codec.encode(event)
    assert codec.encode(event) == data
    return EventCodec(**options).decode(event.event_type, event.schema_version, data)


def refusal(event: DomainEvent, **options: Any) -> str:
    codec = EventCodec(**options)
    with pytest.raises(EventNotEncodable) as caught:
        codec.encode(event)
    with pytest.raises(EventNotEncodable) as later:
        codec.encode(event)
    assert str(later.value) == str(caught.value)
    return str(caught.value)


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


# Classes


@attrs.frozen
class Card:
    number: str


@attrs.frozen
class Cash:
    amount: Decimal


@attrs.frozen
class _Secretive:
    _secret: int


@attrs.frozen
class _Selfish:
    x: int
    y: int = attrs.field(default=attrs.Factory(lambda self: self.x, takes_self=True))


@pytest.mark.parametrize(
    ("type_", "said"),
    [
        (Card | Cash, "msgspec.Struct classes with tag=True"),
        (str | Decimal, "use one field for each type"),
        ("Nowhere", "import the name where the class is"),
        (list[ForwardRef("Nowhere")], "import the name where the class is"),  # type: ignore[misc]  # so
        (Callable[[], int], "declare a type that JSON has"),
        (IPv4Address, "converters=[Converter(IPv4Address, to=..., of=...)]"),
        (list[IPv4Address | None], "Converter(IPv4Address"),
        (_Secretive, "_Secretive has a private field '_secret'"),
        (dict[str, _Selfish], "give that field a plain default"),
    ],
)
def test_a_class_that_cannot_be_kept_is_refused_with_field_reason_and_way_out(
    type_: Any, said: str
) -> None:
    cls = attrs.make_class(
        "Unkept", {"fine": attrs.field(type=int), "wrong": attrs.field(type=type_)}, (DomainEvent,)
    )
    for check in (lambda: EventCodec().check_class(cls), lambda: EventCodec().encode(cls(1, None))):
        with pytest.raises(EventNotEncodable) as caught:
            check()
        assert str(caught.value).startswith("Unkept.wrong: ")
        assert said in str(caught.value)


def test_a_class_that_can_no_longer_be_kept_does_not_end_the_reading() -> None:
    @attrs.frozen
    class Grown(DomainEvent):
        where: "Nowhere"  # type: ignore[name-defined]  # noqa: F821  # that is what is tested

    with pytest.raises(EventNotDecodable, match=r"event 'Grown': .*Grown\.where: its type"):
        EventCodec().decode("Grown", 1, b"{}")


def test_what_belongs_to_a_class_is_refused_as_a_field() -> None:
    for slots in (True, False):
        with pytest.raises(InvalidEvent, match=r"Typed\.event_type is annotated .*ClassVar\[str\]"):

            @attrs.frozen(slots=slots)
            class Typed(DomainEvent):
                event_type: str = "a"  # type: ignore[misc]  # that is what is tested

        with pytest.raises(InvalidEvent, match=r"Versioned\.schema_version .*ClassVar\[int\]"):

            @attrs.frozen(slots=slots)
            class Versioned(DomainEvent):
                schema_version: "int" = 3  # type: ignore[misc]  # that is what is tested


@pytest.mark.parametrize("version", [0, 2**64, True, "1"])
def test_a_version_that_no_row_can_have_is_refused(version: Any) -> None:
    cls = type("Versioned", (DomainEvent,), {"schema_version": version})
    with pytest.raises(EventNotEncodable, match=r"Versioned\.schema_version is"):
        EventCodec().check_class(attrs.frozen(cls))


def test_a_mere_base_may_be_subscribed_to() -> None:
    class Base(DomainEvent):
        pass

    for cls in (DomainEvent, Base):
        EventCodec().check_class(cls)


def test_the_newest_class_of_one_name_counts() -> None:
    def define() -> type[DomainEvent]:
        @attrs.frozen
        class Tick(DomainEvent):
            event_type: ClassVar[str] = "kept.tick"
            number: int = 0

        return Tick

    codec = EventCodec()
    old = define()()
    data = codec.encode(old)
    new = define()()
    assert type(codec.decode("kept.tick", 1, data)) is type(new)
    codec.encode(new)
    with pytest.raises(EventNotEncodable, match="has been defined again"):
        codec.encode(old)


def test_a_class_in_two_modules_is_refused_where_it_is_published() -> None:
    def define(module: str) -> type[DomainEvent]:
        names = {"__module__": module, "event_type": "kept.twice"}
        return attrs.frozen(type("Tick", (DomainEvent,), names))

    classes = define("__main__"), define("shop")
    for cls in classes:
        with pytest.raises(EventNotEncodable, match="a module that both import"):
            EventCodec().encode(cls())
    EventCodec(types=classes[:1]).encode(classes[0]())
    del classes, cls
    gc.collect()


def test_messages_for_changed_classes_name_the_ways_out() -> None:
    data = EventCodec().encode(Noted(1)).replace(b'"number"', b'"count"')
    with pytest.raises(EventNotDecodable, match=r"@upcaster\(Noted, from_version=1\)"):
        EventCodec().decode("noted", 1, data)
    with pytest.raises(EventNotDecodable, match="write event_type = 'Gone' in it"):
        EventCodec().decode("Gone", 1, data)


@dataclasses.dataclass(frozen=True)
class Plainly(DomainEvent):
    number: int


@pytest.mark.parametrize("store", [None, MemoryEventStore])
async def test_a_dataclass_is_refused_before_it_is_handled(store: Any) -> None:
    handled: list[Any] = []
    bus = EventBus(store and store())
    bus.subscribe(DomainEvent, handled.append)
    async with bus:
        for publish in (bus.publish, lambda event: bus.publish_many([event, Noted(1)])):
            with pytest.raises(InvalidEvent, match=r"Plainly is a dataclass.*@attrs\.frozen"):
                await publish(Plainly(1))
    assert handled == []


def test_a_forgotten_decorator_is_named() -> None:
    class Forgotten(DomainEvent):
        number: int

    with pytest.raises(InvalidEvent, match=r"decorate the class with @attrs\.frozen"):
        Forgotten(1)


# Converters


@attrs.frozen
class Linked(DomainEvent):
    address: IPv4Address
    path: Path | None = None
    shares: list[Fraction] = attrs.field(factory=list)
    by_name: dict[str, tuple[IPv4Address, int]] = attrs.field(factory=dict)


CONVERTERS = [
    Converter(IPv4Address, to=str, of=IPv4Address),
    Converter(Path, to=str, of=Path),
    Converter(Fraction, to=str, of=Fraction),
]
HOME = IPv4Address("127.0.0.1")
LINKED = Linked(HOME, Path("/etc/hosts"), [Fraction(1, 3)], {"a": (HOME, 1)})


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
async def test_types_of_the_programs_own_come_back_through_their_converters(
    kind: str, tmp_path: Path
) -> None:
    store = (
        SqliteEventStore(tmp_path / "a.db", converters=CONVERTERS)
        if kind == "sqlite"
        else MemoryEventStore(converters=CONVERTERS)
    )
    async with store:
        await store.append([LINKED, Linked(HOME)])
        found = [stored.event async for stored in store.read()]
    assert found[0] == LINKED
    assert type(found[0].path) is type(LINKED.path)
    assert found[1].path is None


def test_what_converters_raise_is_told_with_the_field() -> None:
    def refuse(_: object) -> Any:
        raise KeyError("no way")

    for name, said in (("to", "Linked.address: "), ("of", "address: expected IPv4Address")):
        parts = {"to": str, "of": IPv4Address} | {name: refuse}
        broken = [Converter(IPv4Address, **parts), *CONVERTERS[1:]]
        message = refusal(LINKED, converters=broken)
        assert said in message
        assert f"the Converter of IPv4Address raised KeyError: no way in '{name}'" in message
    data = EventCodec(converters=CONVERTERS).encode(LINKED)
    with pytest.raises(EventNotDecodable, match=r"shares\[0\]: the Converter of Fraction raised"):
        EventCodec(converters=CONVERTERS).decode("Linked", 1, data.replace(b"1/3", b"1/0"))


@pytest.mark.parametrize(
    "converters",
    [
        7,
        [str],
        CONVERTERS[0],
        [*CONVERTERS, CONVERTERS[0]],
        [Converter(datetime, to=str, of=datetime.fromisoformat)],
        [Converter(Card, to=str, of=Card)],
    ],
)
def test_converters_that_cannot_be_used_are_refused(converters: Any) -> None:
    with pytest.raises(InvalidOption, match="converters"):
        MemoryEventStore(converters=converters)


@pytest.mark.parametrize("arguments", [("x", str, str), (Path, None, Path), (Path, str, 7)])
def test_a_converter_needs_a_class_and_two_functions(arguments: Any) -> None:
    type_, to, of = arguments
    with pytest.raises(InvalidOption, match="Converter"):
        Converter(type_, to=to, of=of)


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
