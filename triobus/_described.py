"""An error that a handler has raised, told within limits, whatever is in it. Pure text."""

import traceback
from collections.abc import Callable
from typing import Any

MESSAGE_LENGTH = 4 * 1024
"""How many characters of what an error said, and of its type's name, are kept."""
TRACEBACK_LENGTH = 16 * 1024
"""How many bytes of the end of its traceback are."""

_LEAVES_TOLD = 20
"""How many of a group's errors are told one by one."""
_EXCEPTIONS: Callable[[Any], tuple[BaseException, ...]] = vars(BaseExceptionGroup)[
    "exceptions"
].__get__
_NAME: Callable[[type], str] = vars(type)["__name__"].__get__
_TRACEBACK: Callable[[BaseException], Any] = vars(BaseException)["__traceback__"].__get__


def leaves(error: BaseException) -> list[BaseException]:
    """Return the errors that a group is made of, however deep; of another error itself."""
    found = []
    rest = [error]
    while rest:
        one = rest.pop()
        # Asked of the types, for `__class__` and `exceptions` of a user's error may be anything.
        if _is_group(one):
            rest.extend(reversed(_EXCEPTIONS(one)))
        else:
            found.append(one)
    return found


def described(error: BaseException) -> dict[str, Any]:
    """Return the fields of a dead letter that tell about the error."""
    return {"error_type": type_of(error), "message": message_of(error), "traceback": _trace(error)}


def type_of(error: BaseException) -> str:
    """Return the name of an error's class, and of a group's those of what is in it."""
    if not _is_group(error):
        return _cut(_name(error))
    names = dict.fromkeys(map(_name, leaves(error)[:_LEAVES_TOLD]))
    return _cut(f"{_name(error)}({', '.join(names)})")


def message_of(error: BaseException) -> str:
    """Return what an error says; of a group, what is in it and says."""
    if not _is_group(error):
        return _cut(_said(error))
    found = leaves(error)
    told = [f"{_name(leaf)}: {_cut(_said(leaf))}" for leaf in found[:_LEAVES_TOLD]]
    if len(found) > _LEAVES_TOLD:
        told.append(f"and {len(found) - _LEAVES_TOLD} more")
    return _cut("; ".join(told))


def _is_group(error: BaseException) -> bool:
    return issubclass(type(error), BaseExceptionGroup)


def _name(error: BaseException) -> str:
    name: str = _NAME(type(error))  # whatever the class's own class makes of it
    return name


def _said(error: BaseException) -> str:
    try:
        return str.__str__(str(error))
    except BaseException:  # noqa: BLE001  # a user's __str__ may raise anything, and means nothing
        return f"<str() of this {_name(error)} raised an error itself>"


def _cut(text: str) -> str:
    """Return a text that can be stored, whatever is in it."""
    return text[:MESSAGE_LENGTH].encode("utf-8", "backslashreplace").decode()[:MESSAGE_LENGTH]


def _trace(error: BaseException) -> str:
    try:
        lines = list(traceback.TracebackException.from_exception(error).format())
    except BaseException as failure:  # noqa: BLE001  # notes, attributes and more may raise anything
        lines = _bare_trace(error, failure)
    text = "".join(map(_shortened, lines)).encode("utf-8", "backslashreplace")
    return text[-TRACEBACK_LENGTH:].decode("utf-8", "ignore")


def _bare_trace(error: BaseException, failure: BaseException) -> list[str]:
    """Return where an error was raised, if what it says of itself cannot be formatted."""
    told = f"{_name(error)}: {_said(error)}\n"
    note = f"(formatting the rest of it raised {_name(failure)})\n"
    try:
        frames = traceback.format_tb(_TRACEBACK(error))
    except BaseException:  # noqa: BLE001  # a module's loader may raise anything too
        frames = []
    return ["Traceback (most recent call last):\n", *frames, told, note]


def _shortened(line: str) -> str:
    return line if len(line) <= MESSAGE_LENGTH else line[:MESSAGE_LENGTH] + "...\n"
