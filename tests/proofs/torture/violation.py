"""What a torture finds."""

from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[3]
"""The folder in which children run, so that they find this package."""

Kind = Literal["lost", "reordered", "repeated", "other"]


class Violation(Exception):
    """A promise was broken."""

    def __init__(self, message: str, kind: Kind = "other") -> None:
        super().__init__(message)
        self.kind: Kind = kind
        """Which of the promises it was."""


class NotPossible(Exception):
    """Something cannot be tried on this machine; the message says why."""
