"""The model, as a command."""

import argparse
import random
import sys
import time

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded

from tests.proofs.model.facts import Broken
from tests.proofs.model.play import KINDS, Tally, play
from tests.proofs.model.programs import Program, programs
from tests.proofs.proof import Proof

SHARES = {"none": 0.3, "memory": 0.5, "sqlite": 0.2}
"""Which part of the examples has which store; a file takes the most time."""


def explore(
    kind: str,
    examples: int,
    seed: int,
    tally: Tally,
    *,
    is_shrinking: bool = True,
    is_wide: bool = False,
) -> None:
    """Play so many programs on a kind of store, wide ones if that is said.

    Raises `Broken` with the program in its notes, if that is wanted the smallest that there is.
    """

    @seeded(seed)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink] if is_shrinking else [Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(programs(is_wide=is_wide))
    def example(program: Program) -> None:
        play(program, kind, tally)

    example()


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--examples", type=int, default=1000, metavar="N", help="how many programs (default 1000)"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="what they are drawn from (default: by chance)"
    )
    parser.add_argument(
        "--store",
        choices=KINDS,
        action="append",
        help="the kinds of store to play them on; 'none' is a bus without one (default: all)",
    )
    parser.add_argument(
        "--wide",
        action="store_true",
        help="programs that use the store beside the bus, listen and publish other content, too",
    )
    parser.add_argument(
        "--no-shrink",
        action="store_true",
        help="show the first program that breaks a promise, and do not look for a smaller one",
    )


def _prove(options: argparse.Namespace) -> int:
    if options.examples < 1:
        options.refuse("--examples: give at least 1")
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    kinds = list(dict.fromkeys(options.store or KINDS))
    tally, began = Tally(), time.perf_counter()
    violations = 0
    for kind in kinds:
        share = SHARES[kind] / sum(SHARES[kind] for kind in kinds)
        examples = max(round(options.examples * share), 1)
        print(f"{examples} programs, store: {kind}", flush=True)
        try:
            explore(
                kind,
                examples,
                seed,
                tally,
                is_shrinking=not options.no_shrink,
                is_wide=options.wide,
            )
        except Broken as broken:
            violations += 1
            print(f"seed {seed}, store {kind}: {broken}", file=sys.stderr)
            print(*getattr(broken, "__notes__", ()), sep="\n", file=sys.stderr)
    print(
        f"seed {seed}: {tally.examples} examples, {tally.operations} operations, {tally.events} "
        f"events, {tally.deliveries} calls of handlers, {tally.crashes} crashes, {violations} "
        f"violations, in {time.perf_counter() - began:.0f} s"
    )
    return 1 if violations else 0


PROOFS = {
    "model": Proof(
        "play programs that Hypothesis draws on real buses, beside a model of the promises",
        _add_options,
        _prove,
    )
}
