"""A scenario under every schedule that Trio can produce, depth first."""

from collections.abc import Callable
from random import Random

import attrs

from tests.proofs.every.decisions import Decisions, NotRepeatable


@attrs.frozen
class Schedules:
    """What was enumerated."""

    count: int
    is_complete: bool
    """Whether there are no others."""
    most_bits: int
    """The most decisions that a schedule had."""


class ScheduleFailed(AssertionError):
    """A schedule under which a promise was broken."""

    bits: str


def every_schedule(run: Callable[[Decisions], object], most: int) -> Schedules:
    """Run with every sequence of decisions, each once, up to `most` of them.

    Raises `ScheduleFailed` with the bits that repeat it, and `NotRepeatable`.
    """
    prefix: list[bool] = []
    before: list[tuple[int, ...]] = []
    most_bits = 0
    for count in range(1, most + 1):
        decisions = Decisions(prefix)
        _run(run, decisions)
        _check_repeated(prefix, before, decisions)
        most_bits = max(most_bits, len(decisions.bits))
        prefix, before = decisions.bits, decisions.batches
        while prefix and prefix[-1]:
            prefix.pop()
        if not prefix:
            return Schedules(count, is_complete=True, most_bits=most_bits)
        prefix[-1] = True
    return Schedules(most, is_complete=False, most_bits=most_bits)


def some_schedules(run: Callable[[Decisions], object], count: int, seed: int = 0) -> None:
    """Run under so many schedules that are drawn from a seed."""
    for number in range(count):
        _run(run, Decisions(chance=Random(f"{seed} {number}")))


def one_schedule(run: Callable[[Decisions], object], bits: str) -> None:
    """Repeat the schedule of a `ScheduleFailed`."""
    _run(run, Decisions([bit == "1" for bit in bits]))


def _run(run: Callable[[Decisions], object], decisions: Decisions) -> None:
    try:
        run(decisions)
    except Exception as error:
        bits = "".join("01"[bit] for bit in decisions.bits)
        failure = ScheduleFailed(f"schedule {bits}, which --repeat {bits} repeats: {error}")
        failure.bits = bits
        raise failure from error


def _check_repeated(
    prefix: list[bool], before: list[tuple[int, ...]], decisions: Decisions
) -> None:
    if decisions.batches[: len(prefix)] != before[: len(prefix)]:
        raise NotRepeatable(
            f"after the same {len(prefix) - 1} decisions the batches were "
            f"{before[: len(prefix)]} and {decisions.batches[: len(prefix)]}"
        )
