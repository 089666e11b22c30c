"""Events from JSON: what is accepted, and what a message says about the rest."""

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar
from uuid import UUID

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triobus import DomainEvent, TriobusError
from triobus._errors import EventNotDecodable
from triobus._events import EventDecoder


def _upper(text: str) -> str:
    return text.upper()


@attrs.frozen
class Traded(DomainEvent):
    event_type: ClassVar[str] = "codec.traded"
    symbol: str = attrs.field(converter=_upper)
    day: date
    price: Decimal = attrs.field()
    tags: tuple[str, ...] = ()
    limit: Annotated[int, msgspec.Meta(ge=1)] | None = None

    @price.validator
    def _check_price(self, _: Any, price: Decimal) -> None:
        if price <= 0:
            raise ValueError(f"price {price} is not above zero")

    @property
    def aggregate_id(self) -> str:
        return self.symbol


@attrs.frozen
class Ticked(DomainEvent):
    event_type: ClassVar[str] = "codec.ticked"


@attrs.frozen
class TickedToo(DomainEvent):
    event_type: ClassVar[str] = "codec.ticked"


@attrs.frozen
class Numbered(DomainEvent):
    event_type: ClassVar[str] = "codec.numbered"
    number: int
    _secret: int = 0

    @property
    def aggregate_id(self) -> Any:
        return self.number if self.number else 1 / self.number


@attrs.frozen
class Ambiguous(DomainEvent):
    event_type: ClassVar[str] = "codec.ambiguous"
    when: date | Decimal


CLASSES = [Traded, Ticked, TickedToo, Numbered, Ambiguous]
GOOD = {"symbol": "ibm", "day": "2000-01-01", "price": "100.52"}
FIELDS = (
    "'event_id', 'occurred_at', 'correlation_id', 'causation_id', 'symbol', 'day', 'price', "
    "'tags', 'limit'"
)


def decode(text: bytes | str) -> DomainEvent:
    decoder = EventDecoder(lambda: CLASSES)
    return decoder.decode(text.encode() if isinstance(text, str) else text)


def refusal(text: bytes | str) -> str:
    with pytest.raises(EventNotDecodable) as caught:
        decode(text)
    return str(caught.value)


def traded(**changes: Any) -> str:
    return json.dumps({"type": "codec.traded", "data": GOOD | changes})


def test_an_event_is_made_of_json_by_the_types_of_its_fields() -> None:
    event_id = "12345678-1234-5678-1234-567812345678"
    moment = "2000-01-01T18:00:00+02:00"
    own = {"event_id": event_id, "occurred_at": moment, "causation_id": None, "tags": ["a", "b"]}
    line = {"type": "codec.traded", "data": GOOD | own, "aggregate": "IBM", "metadata": {"a": "b"}}
    assert decode(json.dumps(line)) == Traded(
        "IBM",
        date(2000, 1, 1),
        Decimal("100.52"),
        ("a", "b"),
        event_id=UUID(event_id),
        occurred_at=datetime(2000, 1, 1, 16, tzinfo=UTC),
        metadata={"a": "b"},
    )


def test_a_decimal_keeps_every_digit_of_a_json_number() -> None:
    event = decode(traded(price=1).replace("1}", "0.12345678901234567890}"))
    assert isinstance(event, Traded)
    assert event.price == Decimal("0.12345678901234567890")


def test_metadata_cannot_be_changed_after_decoding() -> None:
    event = decode(traded())
    with pytest.raises(TypeError):
        event.metadata["a"] = "b"  # type: ignore[index]  # the type checker forbids it too


def test_a_private_attribute_is_given_by_its_public_name() -> None:
    assert refusal('{"type": "codec.numbered", "data": {"number": 1, "_secret": 2}}') == (
        "data._secret: no field of Numbered, which has: 'event_id', 'occurred_at', "
        "'correlation_id', 'causation_id', 'number', 'secret'"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON: it ends too early, or an escape is half of a surrogate pair"),
        (b"{", "not JSON: it ends too early, or an escape is half of a surrogate pair"),
        (b'"\\ud800"', "not JSON: it ends too early, or an escape is half of a surrogate pair"),
        (
            b'{"type": "\\ud800", "data": {}}',
            "not JSON: it ends too early, or an escape is half of a surrogate pair",
        ),
        (b'{"a": ' * 100_000, "the JSON is nested too deeply"),
        (b"nope", "not JSON: invalid character (byte 4)"),
        (b"{} {}", "not JSON: trailing characters (byte 4)"),
        (b"[1]", "expected a JSON object, found [1]"),
        (b'{"type": "\xff"}', "the text is not UTF-8: byte 10 is 0xff"),
        (b"\xef\xbb\xbf{}", "the text begins with a byte order mark: give UTF-8 without it"),
    ],
)
def test_what_is_no_json_object_is_refused(text: bytes, message: str) -> None:
    assert refusal(text) == message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({}, "type: expected str, found nothing"),
        ({"type": 3, "data": {}}, "type: expected str, found 3"),
        ({"type": "codec.traded"}, "data: expected a JSON object, found nothing"),
        ({"type": "codec.traded", "data": [1]}, "data: expected a JSON object, found [1]"),
        (
            {"type": "codec.traded", "data": GOOD, "metadata": {"a": 1}},
            "metadata[...]: expected `str`, got `int`",
        ),
        (
            {"type": "codec.traded", "data": GOOD, "metadata": None},
            "metadata: expected a JSON object of strings, found null",
        ),
        (
            {"type": "codec.traded", "data": GOOD, "aggregate": "MSFT"},
            "aggregate: expected 'IBM', which is the event's aggregate_id, found 'MSFT'",
        ),
        (
            {"type": "codec.traded", "data": GOOD, "aggregate": None},
            "aggregate: expected 'IBM', which is the event's aggregate_id, found None",
        ),
        (
            {"type": "codec.traded", "data": GOOD, "when": 1},
            "when: no field of an event in JSON, which has: 'type', 'data', 'aggregate', "
            "'metadata', 'schema_version', 'position', 'sequence', 'recorded_at'",
        ),
        (
            {"type": "codec.trade", "data": GOOD},
            "type: 'codec.trade' is unknown; the known types are: 'codec.ambiguous', "
            "'codec.numbered', 'codec.ticked', 'codec.traded'",
        ),
        (
            {"type": "\x1b[31m", "data": {}},
            "type: '\\x1b[31m' is unknown; the known types are: 'codec.ambiguous', "
            "'codec.numbered', 'codec.ticked', 'codec.traded'",
        ),
        (
            {"type": "codec.ticked", "data": {}},
            f"type: 'codec.ticked' is the type of {__name__}.Ticked and {__name__}.TickedToo: "
            "give one of them another event_type",
        ),
        (
            {"type": "codec.numbered", "data": {"number": 7}},
            "data: Numbered: InvalidEvent: Numbered.aggregate_id is 7: return a string, or None "
            "for an event that needs no order",
        ),
        (
            {"type": "codec.numbered", "data": {"number": 0}},
            "data: Numbered: ZeroDivisionError: division by zero",
        ),
    ],
)
def test_a_wrong_object_is_refused_with_the_path_of_what_is_wrong(
    line: dict[str, Any], message: str
) -> None:
    assert refusal(json.dumps(line)) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"price": "abc"}, 'data.price: expected Decimal, found "abc"'),
        ({"price": True}, "data.price: expected Decimal, found true"),
        ({"day": "2000-13-01"}, 'data.day: expected date, found "2000-13-01"'),
        ({"symbol": None}, "data.symbol: expected str, found null"),
        ({"symbol": ["x" * 99]}, 'data.symbol: expected str, found ["' + "x" * 58 + "..."),
        ({"tags": ["a", 1]}, "data.tags[1]: expected `str`, got `int`"),
        ({"event_id": "x"}, 'data.event_id: expected UUID, found "x"'),
        ({"price": "-1"}, "data: Traded refuses it: ValueError: price -1 is not above zero"),
        ({"closed": 1}, f"data.closed: no field of Traded, which has: {FIELDS}"),
        ({"\x1b[2J": 1}, f"data['\\x1b[2J']: no field of Traded, which has: {FIELDS}"),
        ({"metadata": {}}, f"data.metadata: no field of Traded, which has: {FIELDS}"),
        (
            {"occurred_at": "2000-01-01T00:00:00"},
            "data: Traded refuses it: InvalidEvent: occurred_at=datetime.datetime(2000, 1, 1, 0, "
            "0) has no time zone: give an aware datetime, for example datetime.now(UTC)",
        ),
    ],
)
def test_a_wrong_field_is_refused_with_its_path(changes: dict[str, Any], message: str) -> None:
    assert refusal(traded(**changes)) == message


def test_a_missing_field_is_refused_with_its_path() -> None:
    text = '{"type": "codec.traded", "data": {"symbol": "IBM", "day": "2000-01-01"}}'
    assert refusal(text) == "data.price: expected Decimal, found nothing"


def test_a_field_whose_type_json_cannot_tell_is_named_with_its_class() -> None:
    message = refusal('{"type": "codec.ambiguous", "data": {"when": "2000-01-01"}}')
    assert message.startswith(
        "type: 'codec.ambiguous' cannot be read from JSON, Ambiguous.when: datetime.date | "
        "decimal.Decimal cannot be read from JSON ("
    )


def test_a_class_that_is_loaded_later_is_found() -> None:
    classes: list[type[DomainEvent]] = []
    decoder = EventDecoder(lambda: classes)
    with pytest.raises(EventNotDecodable, match="the known types are: none"):
        decoder.decode(traded().encode())
    classes.append(Traded)
    assert isinstance(decoder.decode(traded().encode()), Traded)


def test_loaded_classes_are_found_without_being_named() -> None:
    event = EventDecoder().decode(traded().encode())
    assert type(event) is Traded


def test_the_error_is_one_of_triobus_and_a_value_error() -> None:
    assert EventNotDecodable.__mro__[1:3] == (TriobusError, ValueError)


_values: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, -1.5, "", "\x1b[2J", "1e9", "2000-01-01", [], ["a", 1], {}, {"\u202e": []}]
)
_members = st.sampled_from(["type", "data", "aggregate", "metadata", "\n"])
_fields = st.sampled_from(["symbol", "day", "price", "tags", "limit", "\x9b"])


@given(
    st.binary()
    | st.dictionaries(_members, _values).map(lambda line: json.dumps(line).encode())
    | st.dictionaries(_fields, _values).map(lambda data: traded(**data).encode())
)
def test_whatever_is_read_becomes_an_event_or_one_printable_line(text: bytes) -> None:
    try:
        event = decode(text)
    except EventNotDecodable as error:
        assert str(error).isprintable()  # noqa: PT017  # an event is as good an end
    else:
        assert type(event) is Traded
