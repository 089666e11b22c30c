"""Checks of options, so that a bad value is an error at the call that gives it."""

import functools
import inspect
import math
from typing import Any

import trio

from triobus._errors import InvalidHandler, InvalidOption, NotInTrio


def whole_number(option: str, value: object, *, least: int) -> int:
    """Return `value` if it is an int of at least `least`, else raise `InvalidOption`."""
    if type(value) is not int or value < least:
        raise InvalidOption(f"{option}={value!r}: give a whole number of {least} or more")
    return value


def capacity(option: str, value: object, *, least: int) -> float:
    """Return `value` if it counts events, `math.inf` included, else raise `InvalidOption`."""
    if type(value) is float and value == math.inf:
        return value
    try:
        return whole_number(option, value, least=least)
    except InvalidOption as error:
        raise InvalidOption(f"{error}, or math.inf") from None


def number(option: str, value: object, *, least: float, most: float = math.inf) -> float:
    """Return `value` as a float if it is finite and in bounds, else raise `InvalidOption`."""
    if isinstance(value, (int, float)) and type(value) is not bool:
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if math.isfinite(found) and least <= found <= most:
            return found
    upper = "" if most == math.inf else f" and at most {most:g}"
    raise InvalidOption(f"{option}={value!r}: give a finite number of at least {least:g}{upper}")


def boolean(option: str, value: object) -> None:
    """Raise `InvalidOption` unless `value` is True or False."""
    if not isinstance(value, bool):
        raise InvalidOption(f"{option}={value!r}: give True or False")


def choice(option: str, value: str, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`, else raise `InvalidOption`."""
    if value not in choices:
        raise InvalidOption(f"{option}={value!r}: give {' or '.join(map(repr, choices))}")
    return value


def predicate(option: str, value: object) -> None:
    """Raise `InvalidOption` unless `value` is None or a plain function of an event.

    A coroutine or a generator counts as true, so a function that returns one would let all pass.
    """
    if value is None:
        return
    if not callable(value):
        raise InvalidOption(f"{option}={value!r}: give a function that takes the event")
    if is_async(value) or is_generator(value):
        raise InvalidOption(
            f"{option}={value!r}: what it returns is true whatever the event is, for it is async "
            "or a generator: give a plain function that returns True or False"
        )


def truth(option: str, found: object) -> bool:
    """Return whether a predicate's answer is true; raise `InvalidOption` if it is to be awaited."""
    if found is True or found is False:
        return found
    if inspect.isawaitable(found):
        if inspect.iscoroutine(found):
            found.close()
        raise InvalidOption(
            f"{option} returned {type(found).__name__!r}, which is to be awaited: give a plain "
            "function that returns True or False"
        )
    return bool(found)


def is_async(function: Any) -> bool:
    """Whether calling it gives a coroutine, as far as it can be told."""
    return any(map(inspect.iscoroutinefunction, _bodies(function)))


def is_generator(function: Any) -> bool:
    """Whether calling it would only make a generator."""
    bodies = _bodies(function)
    return any(map(inspect.isgeneratorfunction, bodies)) or any(
        map(inspect.isasyncgenfunction, bodies)
    )


def _bodies(function: Any) -> tuple[Any, ...]:
    while isinstance(function, functools.partial):
        function = function.func
    call = None if isinstance(function, type) else getattr(function, "__call__", None)  # noqa: B004  # the method is wanted, not whether it is there
    return function, call


def check_plain(option: str, function: Any) -> None:
    """Raise `InvalidHandler` for what cannot be called inside a transaction."""
    if not callable(function) or is_async(function) or is_generator(function):
        raise InvalidHandler(
            f"{option}={function!r}: give a plain function, which takes the transaction and "
            "returns when all is done"
        )


def name(option: str, value: object) -> str:
    """Return `value` if it is a string that is not empty, else raise `InvalidOption`."""
    if not isinstance(value, str) or not value:
        raise InvalidOption(f"{option}={value!r}: give a string that is not empty")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InvalidOption(f"{option}={value!r}: it has half of a surrogate pair; take that out")
    return value


def inside_trio(what: str) -> None:
    """Raise `NotInTrio` unless this is a task of a Trio run; `what` was asked for."""
    if not trio.lowlevel.in_trio_task():
        raise NotInTrio(
            f"{what} needs Trio, and no Trio task is running here: triobus lives inside a Trio "
            "program, so start it with trio.run(main), not with asyncio.run(main)"
        )
