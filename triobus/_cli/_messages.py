"""What a command says to its user, on standard error."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from triobus._cli._streams import is_reader_gone
from triobus._text import escaped


class CommandError(Exception):
    """A command cannot do what it was asked; the message is the one line that the user sees."""


def say(text: str) -> None:
    """Print a message, and nothing in it that the terminal would take for a command."""
    # `sys.stderr` is looked up each time, for a progress bar stands in for it.
    print(escaped(text, kept="\n"), file=sys.stderr, flush=True)


class LogToStderr(logging.Handler):
    """Prints log records as messages, so that a progress bar is not in their way."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record on one line, without its traceback; nothing once the reader has gone."""
        if not is_reader_gone():
            say(escaped(f"{record.name}: {record.getMessage()}"))


@contextmanager
def log_on_stderr() -> Iterator[None]:
    """Print what triobus logs, unless the user's module has set logging up itself."""
    logger, handler = logging.getLogger("triobus"), LogToStderr(logging.WARNING)
    if not logger.hasHandlers():
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
