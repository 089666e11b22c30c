"""What a torture finds."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
"""The folder in which children run, so that they find this package."""


class Violation(Exception):
    """A promise was broken."""
