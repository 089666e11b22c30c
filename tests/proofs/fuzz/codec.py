"""The codec: what is written comes back equal or is refused; what is read is an event or refused.

An event is made of good values and wild ones, or of a class that is drawn too. What the codec
writes is then spoiled and read again, under good and bad types and versions.
"""

import math
from decimal import Decimal
from typing import Any

import attrs
from hypothesis import strategies as st

from tests.proofs.fuzz.hunting import Quarry
from tests.proofs.fuzz.mutations import Mutation, mutated, mutations
from tests.sqlite.hostile.probing import check_printable
from tests.unit.drawn_events import CONVERTERS, Drawn, drawn
from tests.unit.drawn_events import check as check_drawn
from tests.unit.test_event_codec import Everything, Odd, Strict, everything
from triobus import DomainEvent, EventNotDecodable, EventNotEncodable
from triobus._events import EventCodec

_wild = st.sampled_from(
    [
        *(math.nan, math.inf, -0.0, 5e-324, 2**64, -(2**63) - 1, 10**400, True, None, 1.0),
        *(Decimal("sNaN"), Decimal("-Infinity"), Decimal("1e999999999"), Decimal("-0"), 1 + 2j),
        *("\0", "\ud800", "\x1b[31m", "\u202e", "x" * 100_000, b"bytes", "1e5", "2025-01-01"),
        *(
            (1, "a"),
            {1, 2},
            {1: 2},
            {(): 1},
            [[]],
            {"a": [{}]},
            range(3),
            print,
            object,
            Everything,
        ),
    ]
)
_Spoiled = tuple[tuple[type[DomainEvent], dict[str, Any]], list[Mutation], str | None, int]
_FIELDS = [field.name for field in attrs.fields(Everything) if field.init]


@st.composite
def _events(draw: st.DrawFn) -> tuple[type[DomainEvent], dict[str, Any]]:
    """Draw a class and what it is to be called with."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return Odd, {"secret": draw(_wild | st.text()), "words": draw(st.lists(st.text() | _wild))}
    if kind == 1:
        return Strict, {"number": draw(st.integers(-5, 20) | _wild)}
    good = draw(everything)
    fields = {name: getattr(good, name) for name in _FIELDS}
    for name in draw(st.lists(st.sampled_from(_FIELDS), max_size=2, unique=True)):
        fields[name] = draw(_wild | st.lists(_wild, max_size=2) | st.dictionaries(st.text(), _wild))
    return Everything, fields


_examples = drawn() | st.tuples(
    _events(),
    st.lists(mutations(), max_size=3),
    st.sampled_from(["", "x", "codec.odd", "codec.strict", "\x1b[31m", "os.system"]) | st.none(),
    st.sampled_from([1, 0, -1, 2, 2**63 - 1]),
)


def check(example: Drawn | _Spoiled) -> None:
    """Write, read, spoil and read again; raise what must not be."""
    if isinstance(example, Drawn):
        check_drawn(example, lambda: EventCodec(converters=CONVERTERS))
        return
    (cls, arguments), changes, event_type, version = example
    codec = EventCodec()
    try:
        event = cls(**arguments)
    except Exception:  # noqa: BLE001  # the class itself, or a converter of it, refuses that
        return
    try:
        data = codec.encode(event)
    except EventNotEncodable as error:
        _check_message(error)
        return
    again = codec.decode(cls.event_type, cls.schema_version, data)
    assert type(again) is cls
    assert again == event
    assert codec.decode(cls.event_type, cls.schema_version, codec.encode(again)) == event
    try:
        found = codec.decode(event_type or cls.event_type, version, mutated(data, changes))
    except EventNotDecodable as error:
        _check_message(error)
    else:
        assert isinstance(found, DomainEvent)
        assert isinstance(found.aggregate_id, str | None)
        repr(found)


def _check_message(error: Exception) -> None:
    message = str(error)
    assert message.isprintable()
    assert len(message) < 2000
    check_printable(message)


QUARRY = Quarry(_examples, check)
