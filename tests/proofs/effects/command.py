"""`python -m tests.proofs effects`."""

import argparse
import random
import tempfile
from pathlib import Path

from tests.proofs.effects.killing import NotExactlyOnce, Tally, lives
from tests.proofs.proof import Proof

BUGS = ("no-acknowledgement", "commit-inside")


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stores", type=int, default=20, help="how many stores are tried")
    parser.add_argument("--kills", type=int, default=5, help="how often each program is killed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sabotage", choices=BUGS, help="plant a bug, which has to be found")


def _prove(options: argparse.Namespace) -> int:
    chance, tally = random.Random(options.seed), Tally()
    try:
        for _ in range(options.stores):
            with tempfile.TemporaryDirectory() as directory:
                path = Path(directory) / "ledger.db"
                lives(path, chance, options.kills, options.sabotage, tally)
    except NotExactlyOnce as error:
        print(f"effects: after {tally.kills} kills (--seed {options.seed}): {error}")
        return 1
    print(
        f"effects: {tally.kills} kills, {tally.accepted:,} entries accepted: each has its three "
        "effects exactly once"
    )
    return 0


PROOFS = {
    "effects": Proof(
        "what transactional handlers write is there exactly once, whatever kills the program",
        _add_options,
        _prove,
    )
}
