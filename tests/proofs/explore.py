"""The test kit explores a program without a store and one with it, as a command."""

import argparse
import sys

from tests.kit.scenarios import durable, in_memory
from tests.proofs.proof import Proof
from triobus.testing import explore

_SCENARIOS = (in_memory, durable)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seeds", type=int, default=1000, help="how many worlds for each program (1000)"
    )


def _prove(options: argparse.Namespace) -> int:
    for scenario in _SCENARIOS:
        try:
            found = explore(scenario, seeds=options.seeds)
        except AssertionError as failure:
            print(f"VIOLATION in {scenario.__name__}: {failure}", file=sys.stderr)
            return 1
        print(f"{scenario.__name__}: {found.seeds:,} worlds, no promise broken", flush=True)
    return 0


PROOFS = {
    "explore": Proof(
        "the worlds of the test kit: orders of tasks, failures, latency and crashes by a seed",
        _add_options,
        _prove,
    )
}
