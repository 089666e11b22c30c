"""Which process this is: asked at every call, which asking the operating system would slow down."""

import os

_forks = 0


def forks() -> int:
    """Return how often this process was forked from another one: a child is one further."""
    return _forks


def _count() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count)
