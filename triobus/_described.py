"""An error that a handler has raised, told within limits, whatever is in it. Pure text."""

import traceback
from collections.abc import Callable
from typing import Any

MESSAGE_LENGTH = 4 * 1024
"""How many characters of what an error said, and of its type's name, are kept."""
TRACEBACK_LENGTH = 16 * 1024
"""How many bytes of the end of its traceback are."""

_EXCEPTIONS: Callable[[Any], tuple[BaseException, ...]] = vars(BaseExceptionGroup)[
    "exceptions"
].__get__


def leaves(error: BaseException) -> list[BaseException]:
    """Return the errors that a group is made of, however deep; of another error itself."""
    found = []
    rest = [error]
    while rest:
        one = rest.pop()
        # Asked of the types, for `__class__` and `exceptions` of a user's error may be anything.
        if issubclass(type(one), BaseExceptionGroup):
            rest.extend(reversed(_EXCEPTIONS(one)))
        else:
            found.append(one)
    return found


def described(error: Exception) -> dict[str, Any]:
    """Return the fields of a dead letter that tell about the error."""
    return {
        "error_type": _text(type(error).__name__[:MESSAGE_LENGTH]),
        "message": _message(error),
        "traceback": _traceback(error),
    }


def _message(error: Exception) -> str:
    """Return what an error says, cut, even if its `__str__` raises."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001  # a user's __str__ may raise anything
        return f"<str() of this {type(error).__name__} raised an error itself>"
    return _text(message[:MESSAGE_LENGTH])


def _text(text: str) -> str:
    """Return a text that can be stored, whatever is in it."""
    return text.encode("utf-8", "backslashreplace").decode()


def _traceback(error: Exception) -> str:
    lines = traceback.TracebackException.from_exception(error).format()
    text = "".join(_shortened(line) for line in lines)
    return text.encode("utf-8", "backslashreplace")[-TRACEBACK_LENGTH:].decode("utf-8", "ignore")


def _shortened(line: str) -> str:
    return line if len(line) <= MESSAGE_LENGTH else line[:MESSAGE_LENGTH] + "...\n"
