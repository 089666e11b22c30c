"""What an event may hold at most: limits on numbers, texts and metadata."""

import dataclasses
import inspect
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

import attrs
import msgspec

from triobus._text import shown

METADATA_KEYS = 64
METADATA_LENGTH = 1024
"""How many characters a key or a value of the metadata may have."""
NAME_BYTES = 4 * 2**20
"""How long an event type or an aggregate id may be in UTF-8; with more of each, SQLite could refuse
the row, and all that is in the same commit."""
GREATEST_VERSION = 2**53 - 1
"""The greatest schema version; beyond it not every reader of JSON tells two numbers apart."""
DEPTH = 100
"""How deep values may be inside each other. Deeper ones can be written, and then, from the bottom
of another stack, not be read."""
_EXPONENT = 6144
"""The greatest exponent of IEEE 754's decimal128. With a thousand million, which a dozen characters
are enough to write, the first `int()` of the number would fill the memory."""
_DEPTH_SEARCHED = 500
_AS_DIGITS = bytes.maketrans(b"123456789E", b"000000000e")
_LONG = b"0" * 19


def may_be_great(data: bytes) -> bool:
    """Tell whether a number in JSON may be too great. An id may look like one."""
    # In a tenth of the time of a regular expression.
    digits = data.translate(_AS_DIGITS)
    return _LONG in digits or b"e0000" in digits or b"e+0000" in digits or b"e-0000" in digits


def is_integer_kept(number: int) -> bool:
    """Tell whether a whole number has no fault."""
    return -(2**63) <= number < 2**64


def is_decimal_kept(number: Decimal) -> bool:
    """Tell whether a Decimal has no fault."""
    if -_EXPONENT <= number.adjusted() <= _EXPONENT:  # and its exponent is no greater
        return not number.is_nan()
    return not fault_of(number)


def fault_of(value: Any) -> str:
    """Return the fault of a value by itself, and the remedy; "" if it has none."""
    if isinstance(value, str):
        return fault_of_text(value)
    if isinstance(value, Decimal):
        if value.is_nan():
            return "which equals nothing, not even itself: give a number, or None"
        exponent = value.as_tuple().exponent
        if isinstance(exponent, int) and (exponent > _EXPONENT or value.adjusted() < -_EXPONENT):
            return f"and its exponent is beyond {_EXPONENT:,}: give a number within the range"
    elif isinstance(value, float) and not math.isfinite(value):
        return "and JSON has no such number: give a finite one, or None"
    elif isinstance(value, int) and not is_integer_kept(value):
        return "a whole number of more than 64 bits: give it as a str or a Decimal"
    return ""


def fault_of_text(text: object) -> str:
    """Return the fault of a value that should be a text."""
    if not isinstance(text, str):
        return f"a {type(text).__qualname__}: give a str, or None"
    if "\0" in text:
        return "which contains NUL: remove it"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "which contains half of a surrogate pair and is no text: replace it"
    return ""


def fault_of_name(text: object) -> str:
    """Return the fault of an event type or an aggregate id."""
    if fault := fault_of_text(text):
        return fault
    size = len(str(text).encode())
    if size > NAME_BYTES:
        return f"which has {size:,} bytes: give at most {NAME_BYTES:,}"
    return ""


def fault_of_metadata(metadata: Mapping[str, str], owner: str = "") -> str:
    """Return where there is too much in metadata."""
    path = f"{owner}.metadata" if owner else "metadata"
    if len(metadata) > METADATA_KEYS:
        return f"{path}: found {len(metadata):,} keys: give at most {METADATA_KEYS}"
    for key, value in metadata.items():
        for what, text in (("key", key), ("value", value)):
            if len(text) > METADATA_LENGTH:
                return (
                    f"{path}[{shown(key)}]: found a {what} of {len(text):,} characters: give at "
                    f"most {METADATA_LENGTH:,}"
                )
    return ""


def fits_metadata(metadata: Mapping[str, str], key: str, value: str) -> bool:
    """Whether one more key would still be within the limits."""
    return len(metadata) < METADATA_KEYS and max(len(key), len(value)) <= METADATA_LENGTH


def annotations_of(cls: type) -> dict[str, Any] | None:
    """Return the annotations of a class, without those of its bases; None if they raise."""
    try:
        return inspect.get_annotations(cls)
    except Exception:  # noqa: BLE001  # newer Pythons evaluate them, and that may raise anything
        return None


def field_names(value: Any) -> tuple[str, ...]:
    """Return the names of an object's fields, if its class has declared any."""
    cls = type(value)
    if attrs.has(cls):
        return tuple(field.name for field in attrs.fields(cls))
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls))
    return value.__struct_fields__ if isinstance(value, msgspec.Struct) else ()


def fields_alone(value: Any) -> Any:
    """Return what JSON has in place of a value, of objects only what their fields hold."""
    if isinstance(value, (str, int, float, Decimal, msgspec.Struct)):
        return value
    if isinstance(value, dict):
        return {key: fields_alone(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [fields_alone(item) for item in value]
    if names := field_names(value):
        return {name: fields_alone(getattr(value, name)) for name in names if hasattr(value, name)}
    return value


def leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield a value and all that is inside it with its path, in order, each once; keys too."""
    waiting = [(path, value, 0)]
    seen: set[int] = set()
    while waiting:
        path, value, depth = waiting.pop()
        yield path, value
        if isinstance(value, (str, int, float, Decimal)) or id(value) in seen:
            continue
        if depth < _DEPTH_SEARCHED:
            seen.add(id(value))
            waiting += [(path + end, item, depth + 1) for end, item in _parts(value)][::-1]


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a value, each with the end of its path."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"[{shown(key)}]", item
            yield f"[{shown(key)}]", key
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield f"[{index}]", item
    elif isinstance(value, (set, frozenset)):
        for item in value:
            yield "", item
    else:
        for name in field_names(value):
            yield f".{name}", getattr(value, name, None)
