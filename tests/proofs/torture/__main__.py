"""Prove the promises of triobus on real processes and real files.

python -m tests.proofs.torture --rounds 500
"""

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence

from tests.proofs.torture import fault_lives, faults, flips, kills, lives, points, power, soak
from tests.proofs.torture.children import Server, serve, serving_two
from tests.proofs.torture.shim import How
from tests.proofs.torture.violation import NotPossible, Violation

ROUNDS = 25
STATES = 50_000
STATES_WITH_A_BUG = 2_000
FLIPS = 100_000
FAULTS_SHARE, POINTS_SHARE = 0.2, 0.6
"""Up to which part of the seconds there are a fault or a crash point is begun."""
CRASHED_AFTER = 0.7


def main(arguments: list[str] | None = None) -> int:
    """Return 0 if every promise was kept, 1 if one was broken, 2 if nothing could be tried."""
    options = _parser().parse_args(arguments)
    if options.serve:
        serve(lives.ROLES | fault_lives.ROLES)
        return 0
    try:
        broken = _run(options)
    except NotPossible as reason:
        print(f"this cannot be tried here: {reason}", file=sys.stderr)
        return 2
    for violation in broken:
        kind = "" if violation.kind == "other" else f" ({violation.kind})"
        print(f"seed {options.seed}: a promise was broken{kind}: {violation}", file=sys.stderr)
    if options.sabotage is not None and not broken:
        print(f"the bug {options.sabotage!r} was planted, and nobody saw it")
    return 1 if broken else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.proofs.torture",
        description="Prove the promises of triobus on real processes and real files: what others "
        "do to a store, every crash point of a small run, and SIGKILL at random moments. Exits "
        "with 1 if a promise was broken.",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        help=f"how many stores have their program killed, each up to {kills.KILLS} times or one "
        f"more (default {ROUNDS}, or what fits into --seconds)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=math.inf,
        help="begin nothing new after so many seconds, and leave 40 %% of them to the rounds",
    )
    parser.add_argument("--seed", type=int, default=1, help="what the moments are drawn from")
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--sabotage",
        choices=SABOTAGES,
        metavar="BUG",
        help=f"plant a bug, and see that a promise is broken then: {', '.join(SABOTAGES)}",
    )
    only.add_argument(
        "--power-loss",
        type=int,
        nargs="?",
        const=STATES,
        metavar="STATES",
        help=f"only simulate power losses, in so many states of the disk (default {STATES:,})",
    )
    only.add_argument(
        "--flips",
        type=int,
        nargs="?",
        const=FLIPS,
        metavar="N",
        help=f"only flip bits in stores at rest, and verify them (default {FLIPS:,})",
    )
    only.add_argument(
        "--soak",
        type=float,
        metavar="SECONDS",
        help="only run one bus under load for so long, and look at what it takes",
    )
    only.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser


def _run(options: argparse.Namespace) -> Sequence[Violation]:
    """Run what was chosen, and return what was violated."""
    seed = options.seed
    if options.sabotage is not None:
        return SABOTAGES[options.sabotage](options.sabotage, seed)
    if options.power_loss is not None:
        return _violations(power.run, options.power_loss, seed, print)
    if options.flips is not None:
        return _violations(flips.run, options.flips, seed, print)
    if options.soak is not None:
        return _violations(soak.run, options.soak, seed, print)
    return _everything(options.rounds, seed, options.seconds)


def _everything(rounds: int | None, seed: int, seconds: float) -> Sequence[Violation]:
    now = time.monotonic()
    if rounds is None:
        rounds = ROUNDS if seconds == math.inf else sys.maxsize
    with serving_two() as servers:
        broken = faults.torture(servers, seed, print, ends=now + FAULTS_SHARE * seconds)
        visits = _points(servers, seed, now + POINTS_SHARE * seconds)
        killed = kills.torture(servers, rounds, seed, print, ends=now + seconds)
    tallies: list[points.Tally | kills.Tally] = [*visits, killed]
    broken = [*broken, *(violation for tally in tallies for violation in tally.violations)]
    kinds = Counter(violation.kind for violation in broken)
    print(
        f"in all {len(killed.histories)} rounds, {sum(len(tally.visited) for tally in visits)} "
        f"points, {sum(tally.events for tally in tallies)} events: {kinds['lost']} lost, "
        f"{kinds['reordered']} reordered, {sum(tally.repeated for tally in tallies)} repeated that "
        f"were in flight, {kinds['repeated']} that were not"
        + (f", {kinds['other']} other violations" if kinds["other"] else "")
    )
    return broken


def _points(servers: Sequence[Server], seed: int, ends: float) -> Sequence[points.Tally]:
    """Visit the points of a run, and those of the recovery from a crash in it."""
    try:
        run = points.Run(points.BATCHES)
        new = points.torture(servers, run, seed, print, ends=ends)
        recovery = run.crashed(servers[0], CRASHED_AFTER)
        return [new, points.torture(servers, recovery, seed, print, ends=ends)]
    except NotPossible as reason:
        print(f"crash points and errors of the disk: skipped, {reason}")
        return []


def _violations(run: Callable[..., None], *arguments: object) -> Sequence[Violation]:
    """Run it, and return what was violated."""
    try:
        run(*arguments)
    except Violation as violation:
        return [violation]
    return []


def _seen_by_kills(bug: str, seed: int) -> Sequence[Violation]:
    with serving_two() as servers:
        return kills.torture(servers, ROUNDS, seed, print, sabotage=bug).violations


def _seen_by_errors(bug: str, seed: int) -> Sequence[Violation]:
    run = points.Run(points.FEW, bug)
    with serving_two() as servers:
        return points.torture(servers, run, seed, print, hows=[How.FAIL]).violations


def _seen_by_power_loss(_bug: str, seed: int) -> Sequence[Violation]:
    return _violations(power.run, STATES_WITH_A_BUG, seed, print, "off")


SABOTAGES: dict[str, Callable[[str, int], Sequence[Violation]]] = {
    "synchronous-off": _seen_by_power_loss,
    "ack-before-commit": _seen_by_kills,
    "no-fence": _seen_by_errors,
    "overtake": _seen_by_kills,
}
"""The bugs that can be planted, with what has to see them."""


if __name__ == "__main__":
    sys.exit(main())
