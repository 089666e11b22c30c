"""Prove the promises of triobus on real processes and real files.

python -m tests.torture --rounds 500
"""

import argparse
import sys

from tests.torture import fault_lives, faults, kills, points
from tests.torture.children import serve
from tests.torture.lives import ROLES


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--rounds", type=int, default=25, help="how many stores (default 25)")
    parser.add_argument("--seed", type=int, default=1, help="what the moments are drawn from")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--sabotage")
    parser.add_argument("--points", action="store_true")
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(ROLES | fault_lives.ROLES)
        return 0
    if options.faults:
        return 1 if faults.torture(print) else 0
    if options.points:
        return 1 if points.torture(points.BATCHES, print, sabotage=options.sabotage).violations else 0
    tally = kills.torture(options.rounds, options.seed, print, seconds=options.seconds, sabotage=options.sabotage)
    return 1 if tally.violations else 0


if __name__ == "__main__":
    sys.exit(main())
