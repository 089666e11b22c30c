"""Prove the promises of triobus.

python -m tests.proofs kills --rounds 500

Each proof prints what it has looked at, and exits with 1 if a promise was broken, with what repeats
it. `python -m tests.proofs NAME --help` has the options of one.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from tests.proofs import explore
from tests.proofs.effects import command as effects
from tests.proofs.every import command as every
from tests.proofs.fuzz import command as fuzz
from tests.proofs.model import command as model
from tests.proofs.model import control
from tests.proofs.overlaps import command as overlaps
from tests.proofs.proof import Proof
from tests.proofs.torture import command as torture

PROOFS: dict[str, Proof] = {
    **torture.PROOFS,
    **effects.PROOFS,
    **every.PROOFS,
    **overlaps.PROOFS,
    **model.PROOFS,
    **control.PROOFS,
    **fuzz.PROOFS,
    **explore.PROOFS,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    options = parser().parse_args(arguments)
    logging.getLogger("triobus").addHandler(logging.NullHandler())
    return int(PROOFS[options.proof].prove(options))


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    summary, _, rest = str(__doc__).partition("\n\n")
    found = argparse.ArgumentParser(
        prog="python -m tests.proofs",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    proofs = found.add_subparsers(dest="proof", required=True, metavar="NAME")
    for name, proof in PROOFS.items():
        first, _, more = proof.about.partition("\n\n")
        chosen = proofs.add_parser(
            name,
            help=first,
            description=first,
            epilog=more,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        chosen.set_defaults(refuse=chosen.error)
        proof.add_options(chosen)
    return found


if __name__ == "__main__":
    sys.exit(main())
