"""Bugs are planted in triobus: a method is replaced by one that is given the original."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest


def instead_of(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Put a function in the place of a method, which it gets before the method's own arguments."""
    original = getattr(owner, name)

    def plant(bug: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def planted(*args: Any, **options: Any) -> Any:
            return bug(original, *args, **options)

        monkeypatch.setattr(owner, name, planted)
        return bug

    return plant
