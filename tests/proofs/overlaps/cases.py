"""One case: two calls, the step at which the second begins, and who is cancelled."""

import shlex
from collections.abc import Iterator
from random import Random
from typing import Literal

import attrs

from tests.proofs.overlaps.calls import CALLS
from tests.proofs.overlaps.situations import ALL, SITUATIONS
from tests.proofs.overlaps.stage import Kind

_MOST = 300
"""Of a call that takes more steps, only so many are tried, which are spread evenly."""


@attrs.frozen
class Case:
    """What has to be known to repeat a run."""

    kind: Kind
    first: str
    second: str
    situation: str = "empty"
    step: int = 0
    """The step of the scheduler, counted from the beginning of the first call, before which the
    second begins."""
    cancels: Literal["", "A", "B"] = ""
    """Which of the two calls is cancelled."""
    after: int = 0
    """How many steps after the second has begun."""
    seed: int = 0
    """What decides the order of tasks."""

    def command(self) -> str:
        """Return the command that repeats it."""
        options = f"--kind {self.kind} --situation {shlex.quote(self.situation)} --step {self.step}"
        if self.cancels:
            options += f" --cancel {self.cancels} --after {self.after}"
        if self.seed:
            options += f" --seed {self.seed}"
        names = f"{shlex.quote(self.first)} {shlex.quote(self.second)}"
        return f"python -m tests.proofs overlaps {names} {options}"


def situations(kind: Kind, first: str) -> list[str]:
    """Return the names of the situations in which a call can be the first."""
    found = [name for name, situation in SITUATIONS.items() if kind in situation.kinds]
    if CALLS[first].needs == "new" and kind in ("none", "sqlite-memory"):
        found = [name for name in found if name in ("empty", "held")]
    return found


def pairs() -> Iterator[tuple[Kind, str, str]]:
    """Yield every kind of bus with every pair of calls that can be made on it."""
    for kind in ALL:
        possible = [name for name, call in CALLS.items() if kind in call.kinds]
        for first in possible:
            for second in possible:
                yield kind, first, second


TURNS = 64


def turn_of(turn: int) -> Iterator[tuple[Kind, str, str]]:
    """Yield a 64th of all pairs; in `TURNS` of them each comes once on every kind of bus."""
    numbers = {name: number for number, name in enumerate(CALLS)}
    for kind, first, second in pairs():
        share = 3 * numbers[first] + numbers[second] + 5 * ALL.index(kind)
        if (share - turn) % TURNS == 0:
            yield kind, first, second


def sample(kind: Kind, first: str, second: str, count: int, salt: int = 0) -> Iterator[Case]:
    """Yield some cases of a pair, the same ones each time; `step` is a share of 1000."""
    random = Random(f"{kind} {first} {second} {salt}")
    possible = situations(kind, first)
    for _ in range(count):
        yield Case(
            kind,
            first,
            second,
            random.choice(possible),
            random.randrange(1001),
            random.choice(("", "", "", "A", "B")),
            random.choice((0, 1, 2, 3, 5, 8)),
            random.randrange(100),
        )


def every(
    kind: Kind, first: str, second: str, situation: str, steps: int, seed: int
) -> Iterator[Case]:
    """Yield every step of a pair in a situation, undisturbed and with either call cancelled."""
    for step in range(steps + 1) if steps < _MOST else [n * steps // _MOST for n in range(_MOST)]:
        yield Case(kind, first, second, situation, step, seed=seed)
        for after in (0, 1, 2, 4, 7):
            yield Case(kind, first, second, situation, step, "A", after, seed)
            yield Case(kind, first, second, situation, step, "B", after, seed)
