"""Every crash point of a small run, and every point at which the disk can refuse.

The run does the same operations on the store's files each time: it publishes, fails, retries,
acknowledges, keeps dead letters, replays them and closes. It is repeated as often as there are
points: the process dies before, half-way through and after every write, sync, truncation and
removal, or each of them fails once, and the program crashes at the error or goes on. A second life
publishes the same events again, as a program does that does not know, and comes to its end.
"""

import errno
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs

from tests.torture.children import Server, serving
from tests.torture.history import History
from tests.torture.shim import How, built
from tests.torture.violation import NotPossible, Violation

BATCHES = [[1], [2, 11, 4, 26], [3], [13, 5, 12]]
"""What a run publishes, each batch after everything before is done: with two events that fail once
and two that fail for good, and others behind them in their aggregates."""
FEW = [[11], [13]]
"""A shorter run."""

_AT_ONCE = 2
_HALVES = ("write", "truncate")


@attrs.frozen
class Point:
    """What happens to one operation of the run."""

    how: How
    at: int
    operation: str
    crashes_at_error: bool = False
    """Whether the program ends without a word when it sees the error; otherwise it goes on."""

    def __str__(self) -> str:
        way = f"{self.how.name.lower().replace('_', ' ')}"
        then = ", then crash" if self.crashes_at_error else ""
        return f"{way} at operation {self.at} ({self.operation}){then}"


@attrs.define
class Tally:
    """What the visits came to."""

    operations: int = 0
    points: int = 0
    visited: Counter[How] = attrs.field(factory=Counter)
    refused: int = 0
    """How many events were refused because of an error."""
    events: int = 0
    repeated: int = 0
    violations: list[Violation] = attrs.field(factory=list)

    def __str__(self) -> str:
        visited = self.visited.total()
        kinds = Counter(violation.kind for violation in self.violations)
        return (
            f"{self.points} points of {self.operations} operations, "
            + ("all visited" if visited == self.points else f"only {visited} visited")
            + f" ({self.points - self.visited[How.FAIL]} crashes, {self.visited[How.FAIL]} errors "
            f"of the disk, by which {self.refused} events were refused): {self.events} events "
            f"accepted, {kinds['lost']} lost, {kinds['reordered']} reordered, {self.repeated} "
            f"repeated that were in flight, {kinds['repeated']} that were not"
            + (f", {kinds['other']} other violations" if kinds["other"] else "")
        )


def torture(
    batches: Sequence[Sequence[int]],
    say: Callable[[str], None],
    *,
    sabotage: str | None = None,
    hows: Sequence[How] = tuple(How)[1:],
) -> Tally:
    """Visit every point of a run; stop at a violation. Raises `NotPossible` without a compiler."""
    library = built()
    if library is None:
        raise NotPossible("there is no C compiler to build what stands before the disk")
    tally = Tally()
    with serving(library) as server:
        operations = _operations(server, batches)
    points = list(_points(operations, hows))
    tally.operations, tally.points = len(operations), len(points)
    left = iter(points)

    def work() -> None:
        with serving(library) as server:
            for point in left:
                if tally.violations:
                    return
                _visit(server, batches, point, operations, tally, say, sabotage)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for worker in [pool.submit(work) for _ in range(_AT_ONCE)]:
            worker.result()
    say(str(tally))
    return tally


def _operations(server: Server, batches: Sequence[Sequence[int]]) -> list[str]:
    """Return the operations of the run when nothing happens."""
    with tempfile.TemporaryDirectory(prefix="triobus-") as directory:
        child = server.start(
            "script", f"{directory}/torture.db", batches, None, [How.NOTHING, 0, 0]
        )
        lines = child.run()
    return [" ".join(words[1:]) for words in lines if words[0] == "operation"]


def _points(operations: Sequence[str], hows: Sequence[How]) -> Iterator[Point]:
    for at, operation in enumerate(operations, 1):
        for how in hows:
            if how != How.DIE_HALF_WAY or operation.startswith(_HALVES):
                yield Point(how, at, operation)
            if how == How.FAIL:
                yield Point(how, at, operation, crashes_at_error=True)


def _visit(
    server: Server,
    batches: Sequence[Sequence[int]],
    point: Point,
    operations: Sequence[str],
    tally: Tally,
    say: Callable[[str], None],
    sabotage: str | None,
) -> None:
    history = History()
    plan = [point.how, point.at, errno.EIO]
    with tempfile.TemporaryDirectory(prefix="triobus-") as directory:
        path = Path(directory, "torture.db")
        try:
            child = server.start(
                "script", str(path), batches, sabotage, plan, point.crashes_at_error
            )
            for words in child.lines():
                history.note(words)
            code = child.wait()
            done = history.life.operations
            if done[: point.at] != list(operations[: point.at]):
                raise Violation(f"the run did something else than before: {done[-3:]}")
            if code != (0 if point.how == How.FAIL else -9):
                raise Violation(f"the first life ended with {code}")
            tally.visited[point.how] += 1
            tally.refused += len(history.life.refused)
            history.look_at(path)
            history.begin()
            for words in server.start("script", str(path), batches, sabotage, None).run():
                history.note(words)
            history.look_at(path)
            history.look_at_the_end(path)
        except Violation as violation:
            tally.violations.append(violation)
            say(f"{point}: {violation}")
    tally.events += len(history.accepted)
    tally.repeated += history.repeated
