"""Events to JSON and back: what comes back is equal, and what would not be is refused."""

import json
import math
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any, ClassVar
from uuid import UUID, uuid4

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triobus import (
    DomainEvent,
    EventNotDecodable,
    EventNotEncodable,
    InvalidOption,
    upcaster,
)
from triobus._events import EventCodec


class Side(Enum):
    BUY = "buy"
    SELL = "sell"


@attrs.frozen
class Leg:
    symbol: str
    quantity: Decimal
    tags: tuple[str, ...] = ()


@attrs.frozen
class Everything(DomainEvent):
    event_type: ClassVar[str] = "codec.everything"
    name: str = ""
    number: int = 0
    share: float = 0.0
    is_open: bool = False
    amount: Decimal = Decimal(0)
    day: date = date(2000, 1, 1)
    at: datetime = datetime(2000, 1, 1, tzinfo=UTC)
    id: UUID | None = None
    side: Side = Side.BUY
    note: str | None = None
    data: bytes = b""
    words: list[str] = attrs.field(factory=list)
    pair: tuple[int, str] = (0, "")
    marks: frozenset[int] = frozenset()
    prices: dict[str, Decimal] = attrs.field(factory=dict)
    leg: Leg | None = None
    anything: Any = None

    @property
    def aggregate_id(self) -> str | None:
        return self.note


@attrs.frozen
class Odd(DomainEvent):
    """With everything that msgspec's own way to an attrs class would pass over."""

    event_type: ClassVar[str] = "codec.odd"
    _secret: str
    words: tuple[str, ...] = attrs.field(converter=tuple, default=())
    length: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "length", len(self._secret))


@attrs.frozen
class Strict(DomainEvent):
    event_type: ClassVar[str] = "codec.strict"
    number: int = attrs.field(validator=attrs.validators.lt(10))


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
decimals = st.decimals(allow_nan=False, allow_infinity=False)
moments = st.datetimes(
    datetime(1, 1, 2),  # hypothesis adds the zone
    datetime(9999, 12, 30),
    timezones=st.just(UTC),
)
integers = st.integers(-(2**63), 2**64 - 1)
plain = st.recursive(
    st.none() | st.booleans() | integers | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
everything = st.builds(
    Everything,
    name=text,
    number=integers,
    share=st.floats(allow_nan=False, allow_infinity=False),
    is_open=st.booleans(),
    amount=decimals,
    day=st.dates(),
    at=moments,
    id=st.uuids(),
    side=st.sampled_from(Side),
    note=st.none() | text,
    data=st.binary(max_size=20),
    words=st.lists(text, max_size=3),
    pair=st.tuples(integers, text),
    marks=st.frozensets(integers, max_size=3),
    prices=st.dictionaries(text, decimals, max_size=3),
    leg=st.none() | st.builds(Leg, text, decimals, st.lists(text, max_size=2).map(tuple)),
    anything=plain,
    event_id=st.uuids(),
    occurred_at=moments,
    correlation_id=st.none() | st.uuids(),
    metadata=st.dictionaries(text, text, max_size=3),
)


def again(event: DomainEvent, codec: EventCodec | None = None) -> DomainEvent:
    codec = codec or EventCodec()
    return codec.decode(event.event_type, event.schema_version, codec.encode(event))


@given(everything)
def test_an_event_comes_back_equal(event: Everything) -> None:
    found = again(event)
    assert found == event
    assert type(found) is Everything
    assert found.metadata == event.metadata
    assert found.occurred_at.tzinfo is UTC
    assert hash(found.event_id) == hash(event.event_id)


@given(text, st.lists(text, max_size=3))
def test_private_fields_converters_and_fields_without_arguments_come_back_too(
    secret: str, words: list[str]
) -> None:
    event = Odd(secret, words)
    found = again(event)
    assert found == event
    assert (found._secret, found.words, found.length) == (secret, tuple(words), len(secret))


def test_metadata_that_comes_back_cannot_be_changed_either() -> None:
    found = again(Everything(metadata={"who": "me"}))
    with pytest.raises(TypeError):
        found.metadata["who"] = "you"
    assert isinstance(found.metadata, Mapping)


def test_the_json_of_an_event_is_one_object_with_the_names_of_its_fields() -> None:
    members = json.loads(EventCodec().encode(Odd("x", ["a"], metadata={"k": "v"})))
    assert set(members) == {
        *("secret", "words", "event_id", "occurred_at"),
        *("correlation_id", "causation_id", "metadata"),
    }
    assert (members["secret"], members["metadata"]) == ("x", {"k": "v"})


class Loud:
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    __hash__ = None  # type: ignore[assignment]  # nobody asks


loop: list[Any] = []
loop.append(loop)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"share": math.nan}, "Everything.share"),
        ({"share": math.inf}, "Everything.share"),
        ({"share": -math.inf}, "Everything.share"),
        ({"anything": [1, {"x": math.nan}]}, "Everything.anything[1]['x']"),
        ({"name": "a\0b"}, "Everything.name"),
        ({"name": "half \ud800"}, "Everything.name"),
        ({"words": ["ok", "\udfff"]}, "Everything.words[1]"),
        ({"words": ["ok", "\0"]}, "Everything.words[1]"),
        ({"metadata": {"k": "\0"}}, "Everything.metadata['k']"),
        ({"number": 2**64}, "Everything.number"),
        ({"number": -(2**63) - 1}, "Everything.number"),
        ({"pair": (2**70, "")}, "Everything.pair[0]"),
        ({"anything": {"n": 2**64}}, "Everything.anything['n']"),
        ({"number": 10**5000}, "Everything.number"),
        ({"anything": b"bytes"}, "Everything.anything"),
        ({"anything": {1, 2}}, "Everything.anything"),
        ({"anything": [0, (1,)]}, "Everything.anything: [0, (1,)] (list) would come back"),
        ({"anything": {1: "one"}}, "Everything.anything"),
        ({"anything": {(1, 2): "pair"}}, "Everything.anything"),
        ({"anything": object()}, "Everything.anything"),
        ({"anything": Loud()}, "Everything.anything"),
        ({"anything": loop}, "Everything.anything"),
        ({"amount": Decimal("NaN")}, "Everything.amount"),
        ({"amount": Decimal("sNaN")}, "Everything.amount"),
        ({"amount": Decimal("1e999999999")}, "Everything.amount"),
        ({"number": "7"}, "Everything.number"),
        ({"name": 7}, "Everything.name"),
        ({"side": "buy"}, "Everything.side"),
        ({"leg": Leg("x", Decimal("NaN"))}, "Everything.leg.quantity"),
        ({"metadata": {str(n): "" for n in range(65)}}, "Everything.metadata: found 65 keys"),
        ({"metadata": {"k": "x" * 1025}}, "Everything.metadata['k']"),
        ({"metadata": {"k" * 1025: "x"}}, "Everything.metadata"),
        ({"note": "\0"}, "Everything.note"),
        ({"name": "x" * 1_048_576}, "max_event_bytes=1,048,576"),
    ],
)
def test_what_would_not_come_back_equal_is_refused_with_its_path(
    fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(EventNotEncodable) as caught:
        EventCodec().encode(Everything(**fields))
    assert said in str(caught.value)
    assert len(str(caught.value)) < 600


def test_the_largest_event_that_is_allowed_is_accepted() -> None:
    event = Everything()
    size = len(EventCodec().encode(event))
    assert again(event, EventCodec(max_event_bytes=size)) == event
    with pytest.raises(EventNotEncodable):
        EventCodec(max_event_bytes=size - 1).encode(event)


def good() -> dict[str, Any]:
    members: dict[str, Any] = json.loads(EventCodec().encode(Everything(name="x")))
    return members


def changed(**changes: object) -> bytes:
    return json.dumps(good() | changes).encode()


def without(name: str) -> bytes:
    return json.dumps({k: v for k, v in good().items() if k != name}).encode()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not JSON"),
        (b'{"name": "x"', "too early"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b"\xff\xfe{}", "not UTF-8"),
        (json.dumps(good()).encode() + b" x", "not JSON"),
        (b"[1]", "object"),
        (b"null", "object"),
        (changed(number="many"), "number: expected int"),
        (changed(share="NaN"), "share"),
        (json.dumps(good() | {"share": math.nan}).encode(), "not JSON"),
        (changed(number=10**4000), "number"),
        (json.dumps(good()).replace('"share": 0.0', '"share": 1e400').encode(), "share"),
        (changed(name="\ud800"), "surrogate"),
        (changed(amount="1e999999999"), "amount"),
        (changed(amount="sNaN"), "amount"),
        (changed(occurred_at="2000-01-01T00:00:00"), "occurred_at"),
        (changed(occurred_at="yesterday"), "occurred_at"),
        (changed(event_id="7"), "event_id"),
        (changed(surprise=1), "surprise"),
        (changed(leg={"symbol": 1, "quantity": "1"}), "leg.symbol"),
        (changed(side="hold"), "side"),
        (changed(metadata={str(n): "" for n in range(1000)}), "metadata: found 1,000 keys"),
        (changed(metadata={"k": 1}), "metadata"),
        (without("event_id"), "event_id: expected UUID, found nothing"),
        (without("occurred_at"), "occurred_at"),
        (b'{"anything": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deeply"),
    ],
    ids=lambda value: value if isinstance(value, str) else "row",  # rows have ids and times
)
def test_a_hostile_row_is_an_error_that_says_where(data: bytes, said: str) -> None:
    with pytest.raises(EventNotDecodable) as caught:
        EventCodec().decode("codec.everything", 1, data)
    assert said in str(caught.value)
    assert "'codec.everything'" in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("length", [2, 50, 900])
def test_a_cut_text_is_an_error(length: int) -> None:
    data = EventCodec().encode(Everything(name="x" * 1000))
    with pytest.raises(EventNotDecodable):
        EventCodec().decode("codec.everything", 1, data[:length])


def test_validators_are_asked_when_an_event_is_read() -> None:
    data = EventCodec().encode(Strict(9)).replace(b'"number":9', b'"number":11')
    with pytest.raises(EventNotDecodable, match="Strict refuses it: ValueError"):
        EventCodec().decode("codec.strict", 1, data)


def test_other_zones_come_back_as_the_same_moment() -> None:
    tokyo = timezone(timedelta(hours=9))
    event = Everything(occurred_at=datetime(2026, 1, 1, 9, tzinfo=tokyo))
    assert again(event).occurred_at == datetime(2026, 1, 1, tzinfo=UTC)


# Types


def test_an_unknown_type_is_told_with_the_known_ones() -> None:
    with pytest.raises(EventNotDecodable, match=r"'gone\.type' is unknown; the known types are"):
        EventCodec().decode("gone.type", 1, b"{}")


def test_a_class_is_refused_whose_events_this_process_could_not_read_back() -> None:
    @attrs.frozen
    class First(DomainEvent):
        event_type: ClassVar[str] = "codec.twice"
        number: int = 0

    @attrs.frozen
    class Second(DomainEvent):
        event_type: ClassVar[str] = "codec.twice"
        number: int = 0

    with pytest.raises(EventNotEncodable, match=r"First could not be .*Second.*types="):
        EventCodec().encode(First(3))
    data = EventCodec(types=[First]).encode(First(3))
    with pytest.raises(EventNotDecodable, match=r"First and .*Second.*types="):
        EventCodec().decode("codec.twice", 1, data)
    settled = EventCodec(types=[Second])
    assert type(settled.decode("codec.twice", 1, data)) is Second
    with pytest.raises(EventNotEncodable, match="Second"):
        settled.encode(First(3))
    assert settled.classes("codec.twice") == [Second]


@pytest.mark.parametrize("types", [[int], ["codec.odd"], Everything, 7])
def test_types_have_to_be_event_classes(types: Any) -> None:
    with pytest.raises(InvalidOption):
        EventCodec(types=types)


# Upcasters


@attrs.frozen
class Grown(DomainEvent):
    event_type: ClassVar[str] = "codec.grown"
    schema_version: ClassVar[int] = 3
    money: tuple[Decimal, str]


@upcaster(Grown, from_version=1)
def _add_currency(data: dict[str, Any]) -> dict[str, Any]:
    return data | {"currency": "EUR"}


@upcaster(Grown, from_version=2)
def _split(data: dict[str, Any]) -> dict[str, Any]:
    amount, currency = data.pop("amount"), data.pop("currency")
    return {"money": [amount, currency]}


def stored(**own: Any) -> bytes:
    base = {"event_id": str(uuid4()), "occurred_at": "2020-01-01T00:00:00Z", "metadata": {"a": "b"}}
    return json.dumps(base | own).encode()


def test_older_data_goes_through_all_upcasters_and_the_base_fields_stay() -> None:
    data = stored(amount="1.50")
    found = EventCodec().decode("codec.grown", 1, data)
    assert found.money == (Decimal("1.50"), "EUR")
    assert str(found.event_id) == json.loads(data)["event_id"]
    assert found.metadata == {"a": "b"}
    later = EventCodec().decode("codec.grown", 2, stored(amount="2", currency="USD"))
    assert later.money == (Decimal(2), "USD")


@attrs.frozen
class Gappy(DomainEvent):
    event_type: ClassVar[str] = "codec.gappy"
    schema_version: ClassVar[int] = 4


@upcaster(Gappy, from_version=1)
def _raises(data: dict[str, Any]) -> dict[str, Any]:
    raise KeyError("nothing there")


@upcaster(Gappy, from_version=3)
def _forgets(data: dict[str, Any]) -> dict[str, Any]:
    return None  # type: ignore[return-value]  # that is what is tested


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (2, "decorate a function with @upcaster(Gappy, from_version=2)"),
        (3, "_forgets"),
        (5, "5"),
        (0, "0"),
    ],
)
def test_a_chain_that_does_not_reach_says_where_it_breaks(version: int, said: str) -> None:
    with pytest.raises(EventNotDecodable) as caught:
        EventCodec().decode("codec.gappy", version, stored())
    assert said in str(caught.value)


def test_the_same_upcaster_may_be_registered_again_and_another_may_not() -> None:
    assert upcaster(Grown, from_version=1)(_add_currency) is _add_currency
    with pytest.raises(InvalidOption, match="_add_currency does this already"):
        upcaster(Grown, from_version=1)(_split)


@pytest.mark.parametrize(
    ("event_class", "version"), [("x", 1), (int, 1), (Grown, 0), (Grown, True), (Grown, "1")]
)
def test_bad_arguments_of_upcaster_are_refused(event_class: Any, version: Any) -> None:
    with pytest.raises(InvalidOption):
        upcaster(event_class, from_version=version)


def test_classes_of_one_event_type_have_upcasters_of_their_own() -> None:
    def define(module: str, count: int) -> type[DomainEvent]:
        @attrs.frozen
        class Shared(DomainEvent):
            event_type: ClassVar[str] = "codec.shared"
            schema_version: ClassVar[int] = 2
            count: int

        Shared.__module__ = module
        upcaster(Shared, from_version=1)(lambda data: data | {"count": count})
        return Shared

    classes = [define("one", 1), define("two", 2)]
    found = [EventCodec(types=[cls]).decode("codec.shared", 1, stored()) for cls in classes]
    assert [(type(event), event.count) for event in found] == [(classes[0], 1), (classes[1], 2)]


# Ids


def test_ids_are_uuids_of_version_7_that_begin_with_the_time() -> None:
    events = [Everything() for _ in range(1000)]
    ids = [event.event_id for event in events]
    assert len(set(ids)) == 1000
    assert {(id_.version, id_.variant) for id_ in ids} == {(7, "specified in RFC 4122")}
    times = [id_.int >> 80 for id_ in ids]
    assert times == sorted(times)
    assert abs(times[0] / 1000 - datetime.now(UTC).timestamp()) < 60
