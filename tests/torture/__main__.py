"""Prove the promises of triobus on real processes and real files.

python -m tests.torture --rounds 500
"""

import argparse
import sys

import trio

from tests.torture import kills
from tests.torture.violation import Violation


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--rounds", type=int, default=25, help="how many stores (default 25)")
    parser.add_argument("--seed", type=int, default=1, help="what the moments are drawn from")
    parser.add_argument("--live", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.live:
        path, first, is_last = options.live
        trio.run(kills.live, path, int(first), bool(int(is_last)))
        return 0
    try:
        kills.torture(options.rounds, options.seed, print)
    except Violation as violation:
        print(f"seed {options.seed}: {violation}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
