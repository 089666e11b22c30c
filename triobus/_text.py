"""Text that comes from anywhere, made safe for a terminal, a log and a limit."""

import reprlib

LONGEST_SHOWN = 60
_LONGEST_LINE = 300


def escaped(text: str, kept: str = "") -> str:
    """Return the text without anything that a terminal would take for a command.

    That are control characters of both kinds, line ends, what turns the direction of writing, and
    halves of surrogate pairs; each is written as in a Python string. Those in `kept` stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else repr(c)[1:-1] for c in text)


def line(text: str) -> str:
    """Return a text that is not ours as part of a message: one line of bounded length."""
    return escaped(text if len(text) <= _LONGEST_LINE else text[:_LONGEST_LINE] + "...")


def shown(value: object) -> str:
    """Return the repr of any value in short, on one line."""
    shorten = reprlib.Repr()
    shorten.maxstring = shorten.maxother = LONGEST_SHOWN
    try:
        return line(shorten.repr(value))
    except Exception:  # noqa: BLE001  # a `__repr__` may raise anything, and so does a huge int's
        return f"a {escaped(type(value).__name__)}"


def said(error: BaseException) -> str:
    """Return the type of an error and what it says, if it can say anything."""
    try:
        # attrs puts the message first and objects behind it.
        message = str(error.args[0] if error.args else error)
    except Exception:  # noqa: BLE001  # a `__str__` may raise anything
        message = ""
    return f"{type(error).__name__}: {line(message)}" if message else type(error).__name__
