"""The hunt: examples are drawn by Hypothesis and checked, until the time is up or one fails."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

_EXAMPLES_A_ROUND = 50
_SHOWN = 4000


@attrs.frozen
class Quarry:
    """What is hunted in: examples, and what must hold for each of them."""

    examples: SearchStrategy[Any]
    check: Callable[[Any], None]
    """Raises whatever is a finding."""


@attrs.define
class Hunt:
    """What became of a hunt."""

    examples: int = 0
    seconds: float = 0.0
    finding: str | None = None
    """What was found, with the smallest example of it."""


def hunt(quarry: Quarry, seconds: float, first_seed: int, note: Path | None = None) -> Hunt:
    """Check examples for so many seconds, or until a finding, which is made as small as it gets.

    Each example is written to the file `note` before it is checked, for somebody to read it there
    if the interpreter does not survive it, or does not come back.
    """
    found = Hunt()
    begun = time.monotonic()
    last: list[Any] = [None]
    has_failed = False

    def is_over() -> bool:
        return time.monotonic() - begun >= seconds

    def check(example: Any) -> None:
        nonlocal has_failed
        if found.examples and is_over() and not has_failed:
            return  # the rest of the round
        if note is not None:
            note.write_text(_shown(example))
        found.examples += 1
        last[0] = example
        try:
            quarry.check(example)
        except Exception:
            has_failed = True
            raise

    number = first_seed
    while found.finding is None and not is_over():
        search = settings(
            max_examples=_EXAMPLES_A_ROUND,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )(seed(number)(given(quarry.examples)(check)))
        try:
            search()
        except Exception as error:  # noqa: BLE001  # whatever it is, it is what we hunt
            found.finding = (
                f"seed {number}: {type(error).__name__}: {_shown(error)}\n"
                f"the smallest example: {_shown(last[0])}"
            )
        number += 1
    found.seconds = time.monotonic() - begun
    return found


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001  # an example may be anything
        text = f"a {type(value).__name__}, whose repr raised {type(error).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text):,} characters)"
