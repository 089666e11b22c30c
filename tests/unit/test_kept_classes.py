"""Which classes can be kept, with converters too, and what is said of the others."""

import dataclasses
import gc
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, ClassVar, ForwardRef

import attrs
import pytest

from tests.events import Noted
from tests.unit.kept import refusal
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
