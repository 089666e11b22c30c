"""SIGKILL at random moments: a program is killed again and again, and looked at after each kill.

A round is one store and several lives of a child. What a life does and when it is killed is drawn
from the seed: while it publishes, catches up with what a group missed, replays dead letters or
closes, after a number of lines that it has reported and a moment more. The last life comes to its
end.
"""

import math
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from tests.proofs.torture.children import Child, Server, in_parallel
from tests.proofs.torture.history import History
from tests.proofs.torture.violation import Violation

KILLS = 4
"""How often the program of a round is killed, at most."""
_LATEST = 0.001
"""How many seconds after a line a kill comes, at most."""
_AT_START = 0.02
"""How many after the fork, if it is not to come after a line."""

_WAYS = {
    # way of life: the phase from which on lines are counted, and after how many it is killed
    "starting": ("starting", 0),
    "publishing": ("publishing", 300),
    "alone": ("publishing", 300),
    "catching-up": ("catching-up", 150),
    "replaying": ("replaying", 300),
    "closing": ("closing", 160),
}


@attrs.define
class Kill:
    """The moment at which a child is to be killed."""

    child: Child
    phase: str
    """It comes so many lines and then so many seconds after this phase has begun."""
    lines: int
    seconds: float
    _has_begun: bool = False
    _is_over: bool = False

    @classmethod
    def drawn(cls, child: Child, way: str, chance: random.Random) -> "Kill":
        """Draw a moment of that way of life."""
        phase, most = _WAYS[way]
        latest = _LATEST if most else _AT_START
        return cls(child, phase, chance.randint(0, most), chance.uniform(0, latest))

    def look(self, phase: str) -> None:
        """Kill the child if its time has come; called at the start, and after each line."""
        self._has_begun = self._has_begun or phase == self.phase
        if self._is_over or not self._has_begun:
            return
        self.lines -= 1
        # Dead letters are replayed again and again, with publishing between.
        if self.lines < 0 and (phase == self.phase or self.phase != "replaying"):
            self._is_over = True
            time.sleep(self.seconds)
            self.child.kill()


@attrs.frozen
class Ended:
    """How a life ended that was to be killed."""

    phase: str
    """What it was doing."""
    is_committing: bool
    """Whether a commit was under way."""
    is_killed: bool
    """Otherwise it had come to its own end before."""


@attrs.define
class Tally:
    """What a number of rounds came to."""

    histories: list[History] = attrs.field(factory=list)
    """One for each round."""
    ends: list[Ended] = attrs.field(factory=list)
    violations: list[Violation] = attrs.field(factory=list)

    @property
    def kills(self) -> Counter[str]:
        """How often a program was killed, by what it was doing."""
        return Counter(end.phase for end in self.ends if end.is_killed)

    @property
    def in_commits(self) -> int:
        """How often one was killed inside a commit."""
        return sum(end.is_killed and end.is_committing for end in self.ends)

    @property
    def events(self) -> int:
        """How many events were accepted."""
        return sum(len(history.accepted) for history in self.histories)

    @property
    def repeated(self) -> int:
        """How many events were handled again, because they had been in flight."""
        return sum(history.repeated for history in self.histories)

    def __str__(self) -> str:
        phases = ", ".join(f"{count} {phase}" for phase, count in sorted(self.kills.items()))
        kinds = Counter(violation.kind for violation in self.violations)
        return (
            f"{len(self.histories)} rounds, {self.kills.total()} kills ({phases}; "
            f"{self.in_commits} of them in a commit, {len(self.ends) - self.kills.total()} more "
            f"too late): {self.events} events accepted, {kinds['lost']} lost, "
            f"{kinds['reordered']} reordered, {self.repeated} repeated that were in flight, "
            f"{kinds['repeated']} that were not"
            + (f", {kinds['other']} other violations" if kinds["other"] else "")
        )


def torture(
    servers: Sequence[Server],
    rounds: int,
    seed: int,
    say: Callable[[str], None],
    *,
    ends: float = math.inf,
    sabotage: str | None = None,
) -> Tally:
    """Run so many rounds, or as many as begin until a monotonic time; stop at a violation."""
    tally = Tally()
    numbers = iter(range(rounds))

    def work(server: Server) -> None:
        # Two threads share the tally: they only append to its lists.
        for number in numbers:
            if tally.violations or time.monotonic() > ends:
                return
            _run_round(server, number, seed, tally, say, sabotage)

    in_parallel(servers, work)
    say(str(tally))
    return tally


def _run_round(
    server: Server,
    number: int,
    seed: int,
    tally: Tally,
    say: Callable[[str], None],
    sabotage: str | None,
) -> None:
    chance = random.Random(f"{seed} {number}")
    history = History()
    with tempfile.TemporaryDirectory(prefix="triobus-") as directory:
        path = Path(directory, "torture.db")
        try:
            _run_lives(server, path, chance, history, tally, sabotage)
        except Violation as violation:
            tally.violations.append(violation)
            say(f"round {number + 1}, seed {seed}: {violation}")
    tally.histories.append(history)


def _run_lives(
    server: Server,
    path: Path,
    chance: random.Random,
    history: History,
    tally: Tally,
    sabotage: str | None,
) -> None:
    ways = chance.choices([*_WAYS], k=chance.randint(1, KILLS))
    if "catching-up" in ways:
        ways.insert(ways.index("catching-up"), "alone")
    for first, way in enumerate((*ways, "ending")):
        again = sorted(history.uncertain)
        history.begin()
        with server.start("live", str(path), 10_000 * first + 1, again, way, sabotage) as child:
            kill = None if way == "ending" else Kill.drawn(child, way, chance)
            if kill is not None:
                kill.look("starting")
            for words in child.lines():
                history.note(words)
                if kill is not None:
                    kill.look(history.life.phase)
            code = child.wait()
        _note_end(code, way, history, tally)
        history.look_at(path)
    history.look_at_the_end(path)


def _note_end(code: int, way: str, history: History, tally: Tally) -> None:
    life = history.life
    if code not in (0, -9) or (code == -9 and way == "ending") or (code == 0 and not life.is_done):
        raise Violation(f"a life that was {way} ended with {code} when {life.phase}")
    if way != "ending":
        tally.ends.append(Ended(life.phase, life.is_committing, code == -9))
