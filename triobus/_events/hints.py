"""The types of the fields of an event class, and which of them cannot be kept."""

import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import attrs
import msgspec
from msgspec import inspect

from triobus._events.converters import Converters
from triobus._events.limits import annotations_of
from triobus._text import line

_CONTAINERS = frozenset([list, tuple, set, frozenset, dict])
_UNIONS = frozenset([typing.Union, types.UnionType])


@attrs.define
class Unkeepable(Exception):
    """A field's type cannot be kept. It becomes an error of the name that fits the caller."""

    field: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}: {self.remedy}"


def field_types(cls: type) -> dict[str, Any]:
    """Return the types of an attrs class's fields by name. Raises `Unkeepable`."""
    variables = _type_variables(cls)
    return {
        field.name: _substituted(_resolved(cls, field), variables) for field in attrs.fields(cls)
    }


def alternatives(hint: Any) -> frozenset[Any]:
    """Return the types of which a value may be."""
    is_union = typing.get_origin(hint) in _UNIONS
    return frozenset(typing.get_args(hint)) if is_union else frozenset([hint])


def with_integers(hint: Any) -> Any:
    """Return a type in which whole numbers may stand for floats, as they may in Python.

    JSON tells 5 from 5.0, so each comes back as what it was.
    """
    if hint is float:
        return float | int
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        return typing.Union[tuple(map(with_integers, arguments))]  # noqa: UP007  # made of a tuple
    if origin in _CONTAINERS:
        return origin[tuple(map(with_integers, arguments))]
    return hint


def name_of_type(hint: Any) -> str:
    """Return what a message calls a type."""
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def check_type(field: str, hint: Any, converters: Converters) -> None:
    """Raise `Unkeepable` if no value of a type could be read from JSON."""
    try:
        msgspec.json.Decoder(hint, dec_hook=converters.read)
    except Exception as error:
        raise Unkeepable(field, *_reason_and_remedy(hint, error)) from error
    for part in _parts_of(hint):
        if isinstance(part, inspect.CustomType) and converters.find(part.cls) is None:
            raise Unkeepable(
                field,
                f"JSON has nothing for a {part.cls.__qualname__}",
                "declare a type that JSON has, or give the store "
                f"converters=[Converter({part.cls.__name__}, to=..., of=...)]",
            )
        if isinstance(part, inspect.DataclassType):
            for name in (member.name for member in part.fields if member.name.startswith("_")):
                raise Unkeepable(
                    field,
                    f"{part.cls.__qualname__} has a private field {name!r}, which is not written",
                    f"call it {name.lstrip('_')!r}, or give the store a Converter for a class "
                    "that is neither attrs nor a dataclass",
                )


def may_hold_more(hint: Any) -> bool:
    """Tell whether objects of a class in a type may have attributes that are no fields of it.

    Such are what a cached property keeps; msgspec would write them.
    """
    return any(
        isinstance(part, inspect.DataclassType) and not _is_tight(part) for part in _parts_of(hint)
    )


def _is_tight(part: inspect.DataclassType) -> bool:
    cls = typing.get_origin(part.cls) or part.cls
    slots = {
        name
        for base in cls.__mro__
        for name, member in vars(base).items()
        if isinstance(member, types.MemberDescriptorType)
    }
    return not cls.__dictoffset__ and slots <= {field.name for field in part.fields}


def _reason_and_remedy(hint: Any, error: Exception) -> tuple[str, str]:
    reason = f"{name_of_type(hint)} cannot be read from JSON ({line(str(error))})"
    if isinstance(error, NameError):
        return reason, _REMEDY_FOR_NAMES
    if isinstance(error, NotImplementedError):
        reason = f"{name_of_type(hint)} has, or holds, a class with a default that takes 'self'"
        return reason, "give that field a plain default or a factory without arguments"
    if "union" in str(error):
        return reason, (
            "use one field for each type, or a union of msgspec.Struct classes with tag=True, "
            "which JSON can tell apart"
        )
    return reason, "declare a type that JSON has, or give the store a Converter for it"


_REMEDY_FOR_NAMES = (
    "import the name where the class is, and not only under TYPE_CHECKING, and define it outside "
    "of functions"
)


def _parts_of(hint: Any) -> Iterator[inspect.Type]:
    """Yield all that a type is made of."""
    try:
        waiting: list[Any] = [inspect.type_info(hint)]
    except Exception:  # noqa: BLE001  # that msgspec can read it is known; this is but for messages
        return
    seen: dict[int, Any] = {}  # the parts too, or another could get the id of one
    while waiting:
        part = waiting.pop()
        if isinstance(part, (tuple, list)):
            waiting += part
        elif isinstance(part, (inspect.Type, inspect.Field)) and id(part) not in seen:
            seen[id(part)] = part
            if isinstance(part, inspect.Type):
                yield part
            waiting += [
                getattr(part, name)
                for name in part.__struct_fields__
                if name not in ("default", "default_factory")
            ]


def _resolved(cls: type, field: "attrs.Attribute[Any]") -> Any:
    hint = Any if field.type is None else field.type
    owners = (base for base in cls.__mro__ if field.name in (annotations_of(base) or {}))
    owner = next(owners, cls)
    module = vars(sys.modules.get(owner.__module__, types))
    holder = type(owner.__name__, (), {"__annotations__": {field.name: hint}})
    try:
        # The module comes before the class, in which a field may be called as its type is.
        names = {owner.__name__: owner, **vars(owner), **module}
        return typing.get_type_hints(holder, dict(names), names, include_extras=True)[field.name]
    except Exception as error:
        reason = f"its type {line(str(hint))} cannot be resolved ({line(str(error))})"
        remedy = _REMEDY_FOR_NAMES if isinstance(error, NameError) else "write a type"
        raise Unkeepable(field.name, reason, remedy) from error


def _type_variables(cls: type) -> Mapping[Any, Any]:
    """Return what the type variables of generic bases stand for in a class."""
    known: dict[Any, Any] = {}
    for owner in cls.__mro__:
        for base in owner.__dict__.get("__orig_bases__", ()):
            variables = getattr(typing.get_origin(base), "__parameters__", ())
            for variable, argument in zip(variables, typing.get_args(base), strict=False):
                known.setdefault(variable, _substituted(argument, known))
    return known


def _substituted(hint: Any, variables: Mapping[Any, Any]) -> Any:
    if isinstance(hint, TypeVar):
        return variables.get(hint, hint)
    parameters = getattr(hint, "__parameters__", ())
    if not parameters or isinstance(hint, type):
        return hint
    return hint[tuple(variables.get(parameter, parameter) for parameter in parameters)]
