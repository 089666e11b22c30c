"""`Converter`, by which a program keeps types of its own in a store."""

from collections.abc import Callable, Iterable
from typing import Any

import attrs
import msgspec

from triobus._errors import InvalidOption
from triobus._text import said, shown


@attrs.frozen
class Converter:
    """How values of a type that JSON does not know are kept: `to` is called when an event is
    stored, and `of`, with what `to` returned, when it is read.

        SqliteEventStore(
            "shop.db",
            converters=[
                Converter(IPv4Address, to=str, of=IPv4Address),
                Converter(Path, to=str, of=Path),
                Converter(Fraction, to=str, of=Fraction),
            ],
        )

    `to` returns what JSON has: a str, a number, a list or a dict of them. It is for subclasses of
    the type too, and for values inside lists, dicts, optionals and nested objects. An event whose
    value does not come back equal and of the same type is refused when it is published. What the
    two raise becomes `EventNotEncodable` or `EventNotDecodable`.

    Raises `InvalidOption` if `type` is no class, or `to` or `of` cannot be called.
    """

    type: type
    to: Callable[[Any], Any] = attrs.field(kw_only=True)
    of: Callable[[Any], Any] = attrs.field(kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.type, type):
            raise InvalidOption(
                f"Converter({shown(self.type)}): give a class, such as ipaddress.IPv4Address"
            )
        for name, function in (("to", self.to), ("of", self.of)):
            if not callable(function):
                raise InvalidOption(
                    f"Converter({self.type.__qualname__}, {name}={shown(function)}): give a "
                    "function of one argument"
                )


class NotConvertible(ValueError):
    """What a converter raised, with its name. msgspec adds where it was."""


@attrs.frozen(eq=False)
class Converters:
    """All converters of a store."""

    _by_type: dict[type, Converter] = attrs.field(factory=dict)

    @classmethod
    def of(cls, given: Iterable[Converter]) -> "Converters":
        """Raises `InvalidOption` for a converter that cannot be used."""
        if isinstance(given, (str, Converter)) or not isinstance(given, Iterable):
            raise InvalidOption(f"converters={shown(given)}: give a list of Converter(...)")
        known: dict[type, Converter] = {}
        for converter in given:
            if not isinstance(converter, Converter):
                raise InvalidOption(
                    f"converters has {shown(converter)}: give Converter(type, to=..., of=...)"
                )
            name = converter.type.__qualname__
            if converter.type in known:
                raise InvalidOption(f"converters has two for {name}: leave out one")
            if not _is_unknown_to_json(converter.type):
                raise InvalidOption(
                    f"converters has one for {name}, which is kept without and would never get to "
                    "it: leave it out"
                )
            known[converter.type] = converter
        return cls(known)

    def find(self, cls: type) -> Converter | None:
        """Return the converter for a class, which may be its base's."""
        bases = getattr(cls, "__mro__", ())
        return next((self._by_type[base] for base in bases if base in self._by_type), None)

    def write(self, value: Any) -> Any:
        """Return what JSON has in place of a value; the hook of an encoder."""
        converter = self.find(type(value))
        if converter is None:
            raise NotConvertible(
                f"JSON has nothing for a {type(value).__qualname__}, and the store no Converter"
            )
        return _converted(converter, "to", value)

    def read(self, cls: type, value: Any) -> Any:
        """Return the value that JSON has something in place of; the hook of a decoder."""
        converter = self.find(cls)
        if converter is None:
            raise NotConvertible(f"the store has no Converter for {cls.__qualname__}")
        return _converted(converter, "of", value)


def _converted(converter: Converter, way: str, value: Any) -> Any:
    try:
        return getattr(converter, way)(value)
    except Exception as error:
        raise NotConvertible(
            f"the Converter of {converter.type.__qualname__} raised {said(error)} in {way!r}"
        ) from error


def _is_unknown_to_json(cls: type) -> bool:
    try:
        return isinstance(msgspec.inspect.type_info(cls), msgspec.inspect.CustomType)
    except Exception:  # noqa: BLE001  # of a class whose own fields cannot be resolved, anything
        return False
