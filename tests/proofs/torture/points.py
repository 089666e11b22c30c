"""Every crash point of a small run, and every point at which the disk can refuse.

The run does the same operations on the store's files each time: it publishes, fails, retries,
acknowledges, keeps dead letters, replays them and closes. It is repeated as often as there are
points: the process dies before, half-way through and after every write, sync, truncation and
removal, or each of them fails once, and the program crashes at the error or goes on. A second life
publishes the same events again, as a program does that does not know, and comes to its end.
"""

import copy
import errno
import math
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs

from tests.proofs.torture.children import Server, in_parallel
from tests.proofs.torture.history import History
from tests.proofs.torture.shim import How
from tests.proofs.torture.violation import NotPossible, Violation

BATCHES = [[1], [2, 11, 4, 26], [3], [13, 5, 12]]
"""What a run publishes, each batch after everything before is done: with two events that fail once
and two that fail for good, and others behind them in their aggregates."""
STORE = "torture.db"
FEW = [[11]]
"""For a shorter run."""

_HALVES = ("write", "truncate")
DEATHS = (How.DIE_BEFORE, How.DIE_HALF_WAY, How.DIE_AFTER)


@attrs.frozen
class Point:
    """What happens to one operation of the run."""

    how: How
    at: int
    operation: str
    error: int = errno.EIO
    crashes_at_error: bool = False
    """Whether the program ends without a word when it sees the error; otherwise it goes on."""

    def __str__(self) -> str:
        how = self.how.name.lower().replace("_", " ")
        error = f" with {errno.errorcode[self.error]}" if self.how == How.FAIL else ""
        then = ", then crash" if self.crashes_at_error else ""
        return f"{how}{error} at operation {self.at} ({self.operation}){then}"


@attrs.frozen
class Run:
    """A run that does the same every time."""

    batches: Sequence[Sequence[int]]
    sabotage: str | None = None
    files: Mapping[str, bytes] = attrs.field(factory=dict)
    """What there is when it begins."""
    history: History = attrs.field(factory=History)
    """What there was before."""

    @contextmanager
    def place(self) -> Iterator[Path]:
        """Give it a directory of its own, and the path of its store there."""
        with tempfile.TemporaryDirectory(prefix="triobus-") as directory:
            for name, content in self.files.items():
                Path(directory, name).write_bytes(content)
            yield Path(directory, STORE)

    def operations(self, server: Server) -> list[str]:
        """Return what it does to files when nothing happens."""
        with self.place() as path:
            child = server.start("script", str(path), self.batches, None, [How.NOTHING, 0, 0])
            lines = child.run()
        return [" ".join(words[1:]) for words in lines if words[0] == "operation"]

    def crashed(self, server: Server, part: float) -> "Run":
        """Return a run that begins with what this one leaves when it dies after a part of it."""
        operations = self.operations(server)
        at = round(part * len(operations))
        with self.place() as path:
            history = self._first_life(
                server, path, Point(How.DIE_HALF_WAY, at, operations[at - 1])
            )
            files = {entry.name: entry.read_bytes() for entry in path.parent.iterdir()}
        return attrs.evolve(self, files=files, history=history)

    def visit(self, server: Server, point: Point, operations: Sequence[str]) -> History:
        """Let it come to a point, and a second life to its end. Raises `Violation`."""
        with self.place() as path:
            history = self._first_life(server, path, point)
            if history.life.operations[: point.at] != operations[: point.at]:
                raise Violation(f"another run than before: {history.life.operations[-3:]}")
            history.begin()
            for words in server.start("script", str(path), self.batches, self.sabotage, None).run():
                history.note(words)
            history.look_at(path)
            history.look_at_the_end(path)
        return history

    def _first_life(self, server: Server, path: Path, point: Point) -> History:
        history = copy.deepcopy(self.history)
        history.begin()
        plan = [point.how, point.at, point.error]
        arguments = str(path), self.batches, self.sabotage, plan, point.crashes_at_error
        with server.start("script", *arguments) as child:
            for words in child.lines():
                history.note(words)
            code = child.wait()
        if code != (0 if point.how == How.FAIL else -9):
            raise Violation(f"the first life ended with {code}")
        history.look_at(path)
        return history


@attrs.define
class Tally:
    """What the visits came to."""

    operations: int = 0
    points: int = 0
    visited: list[tuple[Point, History]] = attrs.field(factory=list)
    violations: list[Violation] = attrs.field(factory=list)

    @property
    def events(self) -> int:
        """How many events were accepted."""
        return sum(len(history.accepted) for _, history in self.visited)

    @property
    def repeated(self) -> int:
        """How many events were handled again, because they had been in flight."""
        return sum(history.repeated for _, history in self.visited)

    def __str__(self) -> str:
        visited = len(self.visited)
        crashes = sum(point.how != How.FAIL for point, _ in self.visited)
        refused = sum(len(history.refused) for _, history in self.visited)
        kinds = Counter(violation.kind for violation in self.violations)
        return (
            f"{self.points} points of {self.operations} operations, "
            + ("all visited" if visited == self.points else f"only {visited} visited")
            + f" ({crashes} crashes, {visited - crashes} errors of the disk, by which "
            f"{refused} events were refused): {self.events} events accepted, {kinds['lost']} lost, "
            f"{kinds['reordered']} reordered, {self.repeated} repeated that were in flight, "
            f"{kinds['repeated']} that were not"
            + (f", {kinds['other']} other violations" if kinds["other"] else "")
        )


def torture(
    servers: Sequence[Server],
    run: Run,
    seed: int,
    say: Callable[[str], None],
    *,
    ends: float = math.inf,
    hows: Sequence[How] = (*DEATHS, How.FAIL),
    kinds: Sequence[str] = ("",),
) -> Tally:
    """Visit every point of a run, or what can be until a monotonic time; stop at a violation.

    `kinds` are the beginnings of the operations that are meant. Raises `NotPossible` without a C
    compiler.
    """
    if not servers[0].has_shim:
        raise NotPossible("there is no C compiler to build what stands before the disk")
    operations = run.operations(servers[0])
    points = [
        point for point in _points(operations, hows) if point.operation.startswith(tuple(kinds))
    ]
    random.Random(seed).shuffle(points)  # so that a part of them is one of everything
    tally = Tally(len(operations), len(points))
    left = iter(points)

    def work(server: Server) -> None:
        # Two threads share the tally: they only append to its lists.
        for point in left:
            if tally.violations or time.monotonic() > ends:
                return
            try:
                tally.visited.append((point, run.visit(server, point, operations)))
            except Violation as violation:
                tally.violations.append(violation)
                say(f"{point}: {violation}")

    in_parallel(servers, work)
    say(str(tally))
    return tally


def _points(operations: Sequence[str], hows: Sequence[How]) -> Iterator[Point]:
    for at, operation in enumerate(operations, 1):
        for how in hows:
            if how != How.DIE_HALF_WAY or operation.startswith(_HALVES):
                yield Point(how, at, operation)
            if how == How.FAIL:
                yield Point(how, at, operation, crashes_at_error=True)
                if operation.startswith("write"):
                    yield Point(how, at, operation, errno.ENOSPC)
