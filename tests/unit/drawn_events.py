"""Event classes and values of them, as Hypothesis draws them: any that attrs and msgspec know.

A class is written as Python and run, so that annotations are texts in some of them, as they are
under `from __future__ import annotations`. Beside good values there are those that only look so:
equal to what the field is declared with, and of another type.
"""

# ruff: noqa: F401  # the classes that are drawn name what is imported here

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, IntFlag, StrEnum
from fractions import Fraction
from functools import cached_property
from ipaddress import IPv4Address
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    Optional,
    TypedDict,
    TypeVar,
)
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import msgspec
from hypothesis import strategies as st

from triobus import Converter, DomainEvent, EventNotEncodable

T = TypeVar("T")


class Side(Enum):
    BUY = "buy"
    SELL = "sell"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Colour(StrEnum):
    RED = "red"


class Rights(IntFlag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Row(TypedDict, total=False):
    name: str
    price: Decimal


@attrs.frozen
class Leg:
    symbol: str
    quantity: Decimal
    tags: tuple[str, ...] = ()


@attrs.define(slots=False)
class Loose:
    number: float = 0.0
    side: Side = Side.BUY

    @cached_property
    def double(self) -> float:
        return self.number * 2


@attrs.frozen
class Private:
    _secret: int = 0


@attrs.frozen
class Made:
    words: tuple[str, ...] = attrs.field(converter=tuple, default=())
    length: int = attrs.field(init=False)

    @length.default
    def _length(self) -> int:
        return len(self.words)


@dataclasses.dataclass(frozen=True)
class Money:
    amount: Decimal
    currency: str = "EUR"
    legs: list[Leg] = dataclasses.field(default_factory=list)


class Card(msgspec.Struct, tag=True, frozen=True):
    number: str


class Cash(msgspec.Struct, tag=True, frozen=True):
    amount: Decimal


@attrs.frozen
class Box(Generic[T]):
    content: T


Symbol = NewType("Symbol", str)


class Name(str):
    __slots__ = ()


CONVERTERS = [
    Converter(IPv4Address, to=str, of=IPv4Address),
    Converter(Path, to=str, of=Path),
    Converter(Fraction, to=str, of=Fraction),
]

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
integers = st.integers(-(2**63), 2**64 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
decimals = st.decimals(allow_nan=False, allow_infinity=False)
_berlin = ZoneInfo("Europe/Berlin")
_zones = st.sampled_from([UTC, timezone(timedelta(hours=9, minutes=30)), _berlin])
_days = (datetime(1990, 1, 1), datetime(2100, 1, 1))
moments = (
    st.datetimes(*_days)
    | st.datetimes(*_days, timezones=_zones)
    | st.builds(
        lambda minute, fold: datetime(2026, 10, 25, 2, minute, tzinfo=_berlin, fold=fold),
        st.integers(0, 59),
        st.integers(0, 1),
    )
)
times = st.times() | st.times(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-3))]))

Kind = tuple[str, st.SearchStrategy[Any]]
"""The text of an annotation, and values of it that have to be accepted."""

LEAVES: list[Kind] = [
    ("str", texts),
    ("int", integers),
    ("float", floats | st.integers(-100, 100)),
    ("bool", st.booleans()),
    ("int | None", st.none() | integers),
    ("bytes", st.binary(max_size=8)),
    ("Decimal", decimals),
    ("date", st.dates()),
    ("datetime", moments),
    ("time", times),
    ("timedelta", st.timedeltas()),
    ("UUID", st.uuids()),
    ("Side", st.sampled_from(Side)),
    ("Level", st.sampled_from(Level)),
    ("Colour", st.sampled_from(Colour)),
    ("Point", st.builds(Point, integers, floats)),
    ("Leg", st.builds(Leg, texts, decimals, st.lists(texts, max_size=2).map(tuple))),
    ("Loose", st.builds(Loose, floats, st.sampled_from(Side))),
    ("Money", st.builds(Money, decimals, texts)),
    ("Card | Cash", st.builds(Card, texts) | st.builds(Cash, decimals)),
    ("Box[int]", st.builds(Box, integers)),
    ("Row", st.fixed_dictionaries({}, optional={"name": texts, "price": decimals})),
    ("Symbol", texts),
    ("Literal['a', 3]", st.sampled_from(["a", 3])),
    ("Annotated[int, msgspec.Meta(ge=0)]", st.integers(0, 2**63)),
    ("Any", st.none() | st.booleans() | integers | texts | st.lists(integers, max_size=2)),
    ("IPv4Address", st.ip_addresses(v=4)),
    ("Path", texts.map(Path)),
    ("Fraction", st.fractions()),
]
ODD: list[Kind] = [
    ("str", st.sampled_from([Colour.RED, Name("x"), "\0", "\ud800", 7, None])),
    ("int", st.sampled_from([True, Level.LOW, Rights.READ, 2**64, 1.0, "7"])),
    ("float", st.sampled_from([True, float("nan"), float("inf"), Decimal(1), "1"])),
    ("Decimal", st.sampled_from([1, 0.5, Decimal("NaN"), Decimal("1e999999999"), "1"])),
    ("tuple[int, float]", st.sampled_from([Point(1, 2.0), [1, 2.0], (1, 2.0)])),
    ("list[str]", st.sampled_from([("a",), [Colour.RED], ["a", Name("b")]])),
    ("dict[str, int]", st.sampled_from([defaultdict(int, a=1), {Colour.RED: 1}, {"a": True}])),
    ("set[int]", st.sampled_from([frozenset([1]), {True}, {1.0}])),
    ("AbstractSet[int]", st.sampled_from([frozenset([1]), {1}])),
    ("Mapping[str, int]", st.sampled_from([{"a": 1}, defaultdict(int, a=1)])),
    ("Sequence[int]", st.sampled_from([[1], (1,), range(2)])),
    ("time", st.just(time(9, tzinfo=_berlin))),
    (
        "datetime",
        st.sampled_from(
            [
                datetime(1890, 1, 1, tzinfo=_berlin),
                datetime(2000, 1, 1, tzinfo=timezone(timedelta(seconds=30))),
            ]
        ),
    ),
    (
        "Any",
        st.sampled_from([(1,), {1}, {1: 2}, Decimal(1), Side.BUY, Leg("a", Decimal(1)), 2**64]),
    ),
    ("Private", st.builds(Private, integers)),
    ("Made", st.builds(Made, st.lists(texts, max_size=2))),
    ("Box[T]", st.builds(Box, integers | texts | decimals)),
    ("Rights", st.sampled_from([Rights.READ, Rights.READ | Rights.WRITE])),
    ("Leg", st.just(Leg(Colour.RED, Decimal(1)))),
    ("str | Decimal", texts | decimals),
    ("Leg | Money", st.just(Leg("a", Decimal(1)))),
    ("'Nowhere'", texts),
    ("Callable[[], int]", st.just(int)),
    ("complex", st.just(1j)),
    ("object", texts | st.builds(object)),
    ("bytearray", st.binary(max_size=4).map(bytearray)),
]


def _composed(inner: st.SearchStrategy[Kind]) -> st.SearchStrategy[Kind]:
    """Types that have types in them."""
    return st.one_of(
        inner.map(lambda kind: (f"list[{kind[0]}]", st.lists(kind[1], max_size=3))),
        inner.map(
            lambda kind: (f"tuple[{kind[0]}, ...]", st.lists(kind[1], max_size=3).map(tuple))
        ),
        inner.map(
            lambda kind: (f"dict[str, {kind[0]}]", st.dictionaries(texts, kind[1], max_size=3))
        ),
        inner.map(lambda kind: (f"Optional[{kind[0]}]", st.none() | kind[1])),
        st.tuples(inner, inner).map(
            lambda kinds: (
                f"tuple[{kinds[0][0]}, {kinds[1][0]}]",
                st.tuples(kinds[0][1], kinds[1][1]),
            )
        ),
    )


_sets = st.sampled_from(
    [
        ("set[int]", st.sets(integers, max_size=3)),
        ("frozenset[str]", st.frozensets(texts, max_size=3)),
        ("dict[int, str]", st.dictionaries(st.integers(-9, 9), texts, max_size=3)),
        ("dict[IPv4Address, int]", st.dictionaries(st.ip_addresses(v=4), integers, max_size=2)),
    ]
)
_leaves = st.sampled_from(LEAVES)
good_kinds = st.recursive(_leaves | _sets, _composed, max_leaves=4)
odd_kinds = st.sampled_from(ODD) | st.sampled_from(ODD).flatmap(
    lambda kind: _composed(st.just(kind))
)

_SHAPES = {
    "plain": "{name}: {type}",
    "unannotated": "{name} = attrs.field()",
    "keyword": "{name}: {type} = attrs.field(kw_only=True)",
    "alias": "{name}: {type} = attrs.field(alias='{name}_given')",
    "private": "_{name}: {type}",
    "default": "{name}: {type} = attrs.field(default=None)",
    "factory": "{name}: {type} = attrs.field(factory=list)",
    "uncompared": "{name}: {type} = attrs.field(eq=False)",
    "validated": "{name}: {type} = attrs.field(validator=lambda *_: None)",
    "converted": "{name}: {type} = attrs.field(converter=lambda value: value)",
    "doubled": "{name}: {type} = attrs.field(converter=lambda value: value * 2)",
    "copied": "{name}: {type} = attrs.field(converter=copied)",
    "by the others": "{name}: {type} = attrs.field(default=from_itself)",
    "made": "{name}: int = attrs.field(init=False, factory=lambda: 3)",
    "counted": "{name}: int = attrs.field(init=False, factory=counter.__next__)",
}
_HARMLESS = {
    *("plain", "keyword", "alias", "private", "uncompared", "validated", "converted", "copied"),
    *("default", "factory", "by the others", "made"),
}
_ARGUMENTS = {"alias": "{name}_given"}
_WITHOUT_ARGUMENT = {"made", "counted"}

counter = itertools.count()
_classes = itertools.count()


from_itself: Any = attrs.Factory(lambda _: 1, takes_self=True)


def copied(value: Any) -> Any:
    """A converter that may be called as often as one likes."""
    return list(value) if type(value) is list else value


@attrs.frozen
class Drawn:
    """A class, and what to call it with."""

    source: str
    arguments: list[dict[str, Any]]
    is_good: bool
    """Whether it has to be accepted."""
    asks_cached: bool
    """Whether a cached property is asked before the event is published."""
    cls: type[DomainEvent] = attrs.field(repr=False)


@st.composite
def drawn(draw: st.DrawFn) -> Drawn:
    """Draw a class, and values for several events of it."""
    is_good = draw(st.booleans())
    names = ["a", "b", "c"][: draw(st.integers(1, 3))]
    lines, values, shapes = [], {}, {}
    for name in names:
        type_, strategy = draw(good_kinds if is_good or draw(st.booleans()) else odd_kinds)
        shape = draw(st.sampled_from(sorted(_HARMLESS if is_good else _SHAPES)))
        shapes[name] = shape
        lines.append(_SHAPES[shape].format(name=name, type=type_))
        if shape not in _WITHOUT_ARGUMENT:
            values[_ARGUMENTS.get(shape, "{name}").format(name=name)] = strategy
    # Those without a default come first, as attrs asks for.
    lines.sort(key=lambda line: "default" in line or "factory" in line)
    source = _source(
        lines,
        is_text=draw(st.booleans()),
        options=draw(st.sampled_from(["", "(slots=False)", "(kw_only=True)", "(eq=False)"])),
        generic="" if is_good else draw(st.sampled_from(["", ", Generic[T]"])),
    )
    arguments = [
        {name: draw(strategy) for name, strategy in values.items()}
        for _ in range(draw(st.integers(1, 3)))
    ]
    return Drawn(source, arguments, is_good, draw(st.booleans()), made(source))


def _source(lines: Sequence[str], *, is_text: bool, options: str, generic: str) -> str:
    number = next(_classes)
    return "\n".join(
        [
            *(["from __future__ import annotations"] if is_text else []),
            f"@attrs.frozen{options}",
            f"class Drawn{number}(DomainEvent{generic}):",
            f"    event_type: ClassVar[str] = 'drawn.{number}'",
            *(f"    {line}" for line in lines),
            "    @cached_property",
            "    def total(self): return 7",
        ]
    )


def made(source: str) -> type[DomainEvent]:
    """Return the class that a text defines, as if this module did."""
    names = dict(globals())
    exec(compile(source, "<drawn>", "exec", dont_inherit=True), names)
    cls: type[DomainEvent] = next(
        value
        for name, value in names.items()
        if isinstance(value, type) and name.startswith("Drawn") and name != "Drawn"
    )
    return cls


def is_alike(given: Any, back: Any) -> bool:
    """Tell whether two values are equal and of the same types all the way down."""
    if type(given) is not type(back):
        return False
    if isinstance(given, datetime) and given.tzinfo is not None:
        return back.tzinfo is not None and given.astimezone(UTC) == back.astimezone(UTC)
    if isinstance(given, time):
        return bool((given.tzinfo is None) == (back.tzinfo is None) and given == back)
    if isinstance(given, (list, tuple)):
        return len(given) == len(back) and all(map(is_alike, given, back))
    if isinstance(given, (set, frozenset)):
        return _typed(given) == _typed(back)
    if isinstance(given, dict):
        return _typed(given) == _typed(back) and all(
            is_alike(item, back[key]) for key, item in given.items()
        )
    names = _field_names(given)
    if names:
        return all(is_alike(getattr(given, name), getattr(back, name)) for name in names)
    return bool(given == back)


def _typed(values: Any) -> set[tuple[type, Any]]:
    return {(type(value), value) for value in values}


def _field_names(value: Any) -> list[str]:
    cls = type(value)
    if attrs.has(cls):
        return [field.name for field in attrs.fields(cls)]
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls)]
    return list(getattr(cls, "__struct_fields__", ()))


def check(example: Drawn, new_codec: Callable[[], Any]) -> int:
    """Write and read events of a class; return how many were accepted."""
    accepted = 0
    codec = new_codec()  # one for all of them, for it learns from each
    for arguments in example.arguments:
        try:
            event = example.cls(**arguments)
        except Exception:  # noqa: BLE001  # the class itself, or a converter of it, refuses that
            continue
        if example.asks_cached:
            assert event.total == 7  # type: ignore[attr-defined]  # each has it
        refused: EventNotEncodable | None = None
        try:
            data = codec.encode(event)
        except EventNotEncodable as caught:
            refused = caught
        if refused is not None:
            assert not example.is_good, refused
            assert example.cls.__name__ in str(refused)
            continue
        accepted += 1
        for reader in (codec, new_codec()):
            back = reader.decode(event.event_type, event.schema_version, data)
            for field in attrs.fields(example.cls):
                pair = getattr(event, field.name), getattr(back, field.name)
                is_left_out = not field.init and not field.eq
                assert is_left_out or is_alike(*pair), (field.name, *pair)
    return accepted
