"""Values and errors in words that are safe for a terminal, a log and a store."""

import reprlib
import traceback
from collections.abc import Callable
from typing import Any

LONGEST_SHOWN = 60
_LONGEST_LINE = 300


def escaped(text: str, kept: str = "") -> str:
    """Return the text without anything that a terminal would take for a command.

    That is control characters of both kinds, line ends, what turns the direction of writing, and
    halves of surrogate pairs; each is written as in a Python string. Those in `kept` stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else repr(c)[1:-1] for c in text)


def line(text: str) -> str:
    """Return a text that is not ours as part of a message: one line of bounded length."""
    return escaped(text if len(text) <= _LONGEST_LINE else text[:_LONGEST_LINE] + "...")


def shown(value: object, longest: int = LONGEST_SHOWN) -> str:
    """Return the repr of any value in short, on one line."""
    shorten = reprlib.Repr()
    shorten.maxstring = shorten.maxother = longest
    shorten.maxlist = shorten.maxtuple = shorten.maxset = shorten.maxfrozenset = longest // 10
    shorten.maxdict = longest // 15
    try:
        return line(shorten.repr(value))
    except Exception:  # noqa: BLE001  # a `__repr__` may raise anything, and so does a huge int's
        return f"a {escaped(type(value).__name__)}"


def said(error: BaseException) -> str:
    """Return the type of an error and what it says, if it says anything."""
    try:
        # attrs puts the message first and objects behind it.
        message = str(error.args[0] if error.args else error)
    except Exception:  # noqa: BLE001  # a `__str__` may raise anything
        message = _speechless(error)
    return f"{type(error).__name__}: {line(message)}" if message else type(error).__name__


MESSAGE_LENGTH = 4 * 1024
"""How many characters are kept of an error's message, and of its type's name."""
TRACEBACK_LENGTH = 16 * 1024
"""How many bytes are kept of the end of its traceback."""

_BRIEF = 200
_LEAVES_TOLD = 20
"""How many of a group's errors are told one by one."""
# Asked of the types, for `__class__`, `exceptions` and more of a user's error may be anything.
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
        if _is_group(one):
            rest.extend(reversed(_EXCEPTIONS(one)))
        else:
            found.append(one)
    return found


def described(error: BaseException) -> dict[str, Any]:
    """Return the fields of a dead letter that tell about the error."""
    return {"error_type": type_of(error), "message": message_of(error), "traceback": _trace(error)}


def type_of(error: BaseException) -> str:
    """Return the name of an error's class, and of a group's those of its errors."""
    if not _is_group(error):
        return _cut(_name(error))
    names = dict.fromkeys(map(_name, leaves(error)[:_LEAVES_TOLD]))
    return _cut(f"{_name(error)}({', '.join(names)})")


def message_of(error: BaseException) -> str:
    """Return what an error says; of a group, the names and messages of its errors."""
    if not _is_group(error):
        return _cut(_message(error))
    found = leaves(error)
    told = [f"{_name(leaf)}: {_cut(_message(leaf))}" for leaf in found[:_LEAVES_TOLD]]
    if len(found) > _LEAVES_TOLD:
        told.append(f"and {len(found) - _LEAVES_TOLD} more")
    return _cut("; ".join(told))


def brief(error: BaseException) -> str:
    """Return one line of at most 200 characters about an error, whatever it is."""
    message = line(message_of(error)[:_BRIEF])
    name = line(type_of(error))
    text = f"{name}: {message}" if message else name
    return text if len(text) <= _BRIEF else f"{text[: _BRIEF - 1]}…"


def _is_group(error: BaseException) -> bool:
    return issubclass(type(error), BaseExceptionGroup)


def _name(error: BaseException) -> str:
    name: str = _NAME(type(error))
    return name


def _message(error: BaseException) -> str:
    try:
        return str.__str__(str(error))
    except BaseException:  # noqa: BLE001  # a user's __str__ may raise anything, and means nothing
        return _speechless(error)


def _speechless(error: BaseException) -> str:
    return f"<str() of this {_name(error)} raised an error itself>"


def _cut(text: str) -> str:
    """Return a text that can be stored, whatever is in it."""
    return text[:MESSAGE_LENGTH].encode("utf-8", "backslashreplace").decode()[:MESSAGE_LENGTH]


def _trace(error: BaseException) -> str:
    try:
        lines = list(traceback.TracebackException.from_exception(error).format())
    except BaseException as failure:  # noqa: BLE001  # notes, attributes and more may raise anything
        lines = _bare_trace(error, failure)
    short = (
        line if len(line) <= MESSAGE_LENGTH else line[:MESSAGE_LENGTH] + "...\n" for line in lines
    )
    text = "".join(short).encode("utf-8", "backslashreplace")
    return text[-TRACEBACK_LENGTH:].decode("utf-8", "ignore")


def _bare_trace(error: BaseException, failure: BaseException) -> list[str]:
    """Return where an error was raised, if the error itself cannot be formatted."""
    told = f"{_name(error)}: {_message(error)}\n"
    note = f"(formatting the rest of it raised {_name(failure)})\n"
    try:
        frames = traceback.format_tb(_TRACEBACK(error))
    except BaseException:  # noqa: BLE001  # a module's loader may raise anything too
        frames = []
    return ["Traceback (most recent call last):\n", *frames, told, note]
