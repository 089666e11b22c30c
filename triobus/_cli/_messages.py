"""What a command says to its user, on standard error."""

import logging
import sys


class CommandError(Exception):
    """A command cannot do what it was asked; the message is the one line that the user sees."""


def say(text: str) -> None:
    """Print a message. `sys.stderr` is looked up each time: a progress bar stands in for it."""
    print(text, file=sys.stderr, flush=True)


class LogToStderr(logging.Handler):
    """Prints log records as messages, so that a progress bar is not in their way."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        say(self.format(record))
