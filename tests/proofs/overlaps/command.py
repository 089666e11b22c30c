"""The proof by overlapping calls, as a command."""

import argparse
import re
import time
from collections import Counter
from collections.abc import Iterator

from tests.proofs.overlaps.calls import CALLS
from tests.proofs.overlaps.cases import TURNS, Case, every, pairs, sample, situations, turn_of
from tests.proofs.overlaps.runs import Violation, length, play, scaled
from tests.proofs.overlaps.situations import ALL, SITUATIONS
from tests.proofs.proof import Proof

_ABOUT = """every public call overlaps every other, at every step of the scheduler

python -m tests.proofs overlaps                     a sample of all pairs
python -m tests.proofs overlaps --turn 0 --count 1  what the test suite plays of it
python -m tests.proofs overlaps --all               every step of all pairs, also cancelled
python -m tests.proofs overlaps --all publish stop  every step of one pair

Time is virtual, and no thread is started except for publish_from_thread, so that a run is the same
whenever it is repeated.
"""


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", nargs="?", metavar="A", help=", ".join(CALLS))
    parser.add_argument("second", nargs="?", metavar="B", help="the same, beginning during A")
    parser.add_argument("--all", action="store_true", help="every step")
    parser.add_argument("--count", type=int, default=2, help="how many cases of each pair (2)")
    parser.add_argument("--turn", type=int, choices=range(TURNS), help="a 64th of all pairs")
    parser.add_argument("--kind", choices=ALL, help="one kind of bus")
    parser.add_argument("--situation", choices=SITUATIONS, help="what is there before")
    parser.add_argument("--step", type=int, help="the step of A before which B begins")
    parser.add_argument("--cancel", choices=("A", "B"), default="", help="who is cancelled")
    parser.add_argument("--after", type=int, default=0, help="so many steps after B has begun")
    parser.add_argument("--seed", type=int, default=0, help="the order of tasks")


def _prove(options: argparse.Namespace) -> int:
    for name in (options.first, options.second):
        if name is not None and name not in CALLS:
            options.refuse(f"no call {name!r}: there are {', '.join(CALLS)}")
    return _play_all(_chosen(options))


def _chosen(options: argparse.Namespace) -> Iterator[Case]:
    for kind, first, second in pairs() if options.turn is None else turn_of(options.turn):
        if options.kind not in (None, kind):
            continue
        if options.first not in (None, first) or options.second not in (None, second):
            continue
        if options.step is not None:
            yield Case(
                kind,
                first,
                second,
                options.situation or "empty",
                options.step,
                options.cancel,
                options.after,
                options.seed,
            )
        elif options.all:
            for situation in situations(kind, first):
                if options.situation in (None, situation):
                    steps = length(kind, first, situation)
                    yield from every(kind, first, second, situation, steps, options.seed)
        else:
            for case in sample(kind, first, second, options.count, options.seed):
                if options.situation in (None, case.situation):
                    yield scaled(case)


def _play_all(cases: Iterator[Case]) -> int:
    count, failed, started = 0, 0, time.perf_counter()
    causes: dict[str, list[Violation]] = {}
    for case in cases:
        count += 1
        try:
            play(case)
        except Violation as violation:
            failed += 1
            causes.setdefault(_cause(violation), []).append(violation)
    for found in sorted(causes.values(), key=len, reverse=True):
        pairs_hit = Counter(f"{v.case.first} x {v.case.second}" for v in found)
        shown = ", ".join(f"{name} ({times})" for name, times in pairs_hit.most_common(6))
        print(f"{len(found)} times, in {len(pairs_hit)} pairs: {shown}\n{found[0]}\n")
    seconds = time.perf_counter() - started
    print(f"{count:,} cases in {seconds:.1f} s, {failed:,} broke a promise")
    return 1 if failed else 0


def _cause(violation: Violation) -> str:
    """Return what a violation has in common with others of the same cause: no names or numbers."""
    problem = re.sub(r"^[AB] \(.*?\)", "call", violation.problems[0])
    return re.sub(r"'[^']*'|\d+|\[.*?\]|Statistics\(.*\)", "#", problem)


PROOFS = {"overlaps": Proof(_ABOUT, _add_options, _prove)}
