"""The proofs on real processes and real files, as commands."""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence

from tests.proofs.proof import Proof
from tests.proofs.torture import faults, flips, kills, points, power, power_effects, soak
from tests.proofs.torture.children import serving_two
from tests.proofs.torture.shim import How
from tests.proofs.torture.violation import NotPossible, Violation

ROUNDS = 25
STATES = 50_000
STATES_WITH_A_BUG = 100
FLIPS = 100_000
SECONDS_OF_A_SOAK = 1800.0
CRASHED_AFTER = 0.7

SABOTAGES = {
    "synchronous-off": "power",
    **dict.fromkeys(power_effects.BUGS, "power"),
    "ack-before-commit": "kills",
    "no-fence": "points",
    "overtake": "kills",
}
"""The bugs that can be planted, with the proof that has to see each."""

Run = Callable[[argparse.Namespace], Sequence[Violation]]
"""Does what was chosen, and returns what was violated."""


def _kills(options: argparse.Namespace) -> Sequence[Violation]:
    rounds = options.rounds
    if rounds is None:
        rounds = ROUNDS if options.seconds == math.inf else sys.maxsize
    with serving_two() as servers:
        return kills.torture(
            servers,
            rounds,
            options.seed,
            print,
            ends=time.monotonic() + options.seconds,
            sabotage=options.sabotage,
        ).violations


def _points(options: argparse.Namespace) -> Sequence[Violation]:
    """Visit the points of a run, and those of the recovery from a crash in it."""
    seed, ends = options.seed, time.monotonic() + options.seconds
    with serving_two() as servers:
        if options.sabotage is not None:
            run = points.Run(points.FEW, options.sabotage)
            return points.torture(
                servers, run, seed, print, hows=[How.FAIL], kinds=["sync"]
            ).violations
        run = points.Run(points.BATCHES)
        new = points.torture(servers, run, seed, print, ends=ends)
        recovery = run.crashed(servers[0], CRASHED_AFTER)
        again = points.torture(servers, recovery, seed, print, ends=ends)
        return [*new.violations, *again.violations]


def _faults(options: argparse.Namespace) -> Sequence[Violation]:
    with serving_two() as servers:
        return faults.torture(servers, options.seed, print, ends=time.monotonic() + options.seconds)


def _power(options: argparse.Namespace) -> Sequence[Violation]:
    bug = options.sabotage
    states = options.states or (STATES if bug is None else STATES_WITH_A_BUG)
    if bug in (None, "synchronous-off"):
        power.run(states, options.seed, print, "full" if bug is None else "off")
    else:
        power.run(states, options.seed, print, bug=bug)
    return []


def _flips(options: argparse.Namespace) -> Sequence[Violation]:
    flips.run(options.flips, options.seed, print)
    return []


def _soak(options: argparse.Namespace) -> Sequence[Violation]:
    soak.run(options.seconds, options.seed, print)
    return []


def _proof(
    name: str, about: str, run: Run, add_options: Callable[[argparse.ArgumentParser], None]
) -> Proof:
    bugs = [bug for bug, seen_by in SABOTAGES.items() if seen_by == name]

    def add(parser: argparse.ArgumentParser) -> None:
        add_options(parser)
        parser.add_argument("--seed", type=int, default=1, help="what chance is drawn from (1)")
        parser.set_defaults(sabotage=None)
        if bugs:
            parser.add_argument(
                "--sabotage",
                choices=bugs,
                metavar="BUG",
                help=f"plant a bug, and see that a promise is broken then: {', '.join(bugs)}",
            )

    return Proof(about, add, lambda options: _proved(run, options))


def _proved(run: Run, options: argparse.Namespace) -> int:
    try:
        broken = run(options)
    except NotPossible as reason:
        print(f"this cannot be tried here: {reason}", file=sys.stderr)
        return 2
    except Violation as violation:
        broken = [violation]
    for violation in broken:
        kind = "" if violation.kind == "other" else f" ({violation.kind})"
        print(f"seed {options.seed}: a promise was broken{kind}: {violation}", file=sys.stderr)
    if options.sabotage is not None and not broken:
        print(f"the bug {options.sabotage!r} was planted, and this proof did not see it")
    return 1 if broken else 0


def _seconds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="begin nothing new after so many seconds"
    )


def _rounds(parser: argparse.ArgumentParser) -> None:
    _seconds(parser)
    parser.add_argument(
        "--rounds",
        type=int,
        help=f"how many stores have their program killed, each up to {kills.KILLS} times or one "
        f"more (default {ROUNDS}, or what fits into --seconds)",
    )


def _states(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--states", type=int, help=f"in how many states of the disk (default {STATES:,})"
    )


def _bits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--flips", type=int, default=FLIPS, metavar="N", help=f"how many (default {FLIPS:,})"
    )


def _length(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seconds", type=float, default=SECONDS_OF_A_SOAK, help="for how long (default 1800)"
    )


PROOFS = {
    "kills": _proof(
        "kills",
        "SIGKILL at random moments, several times a store, while its program starts, publishes, "
        "commits, catches up, replays and closes",
        _kills,
        _rounds,
    ),
    "points": _proof(
        "points",
        "the process dies before, half-way through and after every write, sync, truncation and "
        "removal of a small run and of its recovery, or each of them fails once",
        _points,
        _seconds,
    ),
    "faults": _proof(
        "faults",
        "other processes fight for a file and read it, a disk fills, files are removed, renamed "
        "and replaced",
        _faults,
        _seconds,
    ),
    "power": _proof(
        "power",
        "record what a run writes and syncs, cut the power at every point, with torn sectors, and "
        "open what is on the disk then",
        _power,
        _states,
    ),
    "flips": _proof(
        "flips",
        "flip bits in stores, cut their files, remove or exchange the `-wal`, and ask `triobus "
        "verify`",
        _flips,
        _bits,
    ),
    "soak": _proof(
        "soak",
        "two buses under load with failures, timeouts, threads, and a restart every few seconds",
        _soak,
        _length,
    ),
}
