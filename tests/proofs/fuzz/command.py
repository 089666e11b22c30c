"""The hunts, as a command."""

import argparse
import faulthandler
import importlib
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.proofs.fuzz.hunting import Hunt, Quarry, hunt
from tests.proofs.proof import Proof

KINDS = ("codec", "lines", "store")
_PLANTED = ("planted_crash", "planted_hang", "planted_finding")
"""For the tests of this command."""
_PATIENCE = 400.0
"""How many seconds longer than it should a hunt may take: Hypothesis has 300 to make an example
smaller."""
_ROOT = Path(__file__).parents[3]


def _prove(options: argparse.Namespace) -> int:
    if options.inside is not None:
        return _hunt_inside(options)
    is_clean = True
    for kind in options.kinds or KINDS:
        is_clean &= _hunt_in_a_child(kind, options)
    return 0 if is_clean else 1


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "kinds",
        nargs="*",
        metavar="KIND",
        choices=(*KINDS, *_PLANTED, []),
        help=f"what to hunt in, of {', '.join(KINDS)} (default: all of them)",
    )
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="how long, for each kind (default 60)"
    )
    parser.add_argument("--seed", type=int, default=1, help="what the examples are drawn from")
    parser.add_argument("--patience", type=float, default=_PATIENCE, help=argparse.SUPPRESS)
    parser.add_argument("--inside", help=argparse.SUPPRESS)


def quarry(kind: str) -> Quarry:
    """Return what to hunt in."""
    found = importlib.import_module(f"tests.proofs.fuzz.{kind}").QUARRY
    assert isinstance(found, Quarry)
    return found


def _hunt_in_a_child(kind: str, options: argparse.Namespace) -> bool:
    """Hunt where a crash or a hang ends nothing but the child. Return whether nothing is found."""
    with tempfile.NamedTemporaryFile(prefix="triobus-fuzz-") as note:
        command = [sys.executable, "-m", "tests.proofs", "fuzz", kind, "--inside", note.name]
        command += ["--seconds", str(options.seconds), "--seed", str(options.seed)]
        command += ["--patience", str(options.patience)]
        code = subprocess.run(command, cwd=_ROOT, check=False).returncode
        if code in (0, 1):
            return code == 0
        how = f"the hunt ended with exit code {code}"
        if code < 0:
            how = f"the interpreter died of {signal.Signals(-code).name}"
        if code == -signal.SIGALRM:
            how = f"it hangs: not back {options.patience:g} s after its time"
        print(f"{kind}: 1 finding: {how}\nthe example: {Path(note.name).read_text()}", flush=True)
        return False


def _hunt_inside(options: argparse.Namespace) -> int:
    faulthandler.enable()
    (kind,) = options.kinds
    hunted = quarry(kind)
    # The system itself ends whoever does not come back, whatever it is doing.
    signal.setitimer(signal.ITIMER_REAL, options.seconds + options.patience)
    found = hunt(hunted, options.seconds, options.seed, Path(options.inside))
    print(told(kind, found), flush=True)
    return int(found.finding is not None)


def told(kind: str, found: Hunt) -> str:
    """Return the line about a hunt, and what was found below it."""
    count = "no finding" if found.finding is None else "1 finding"
    line = f"{kind}: {found.examples:,} examples, {count}, {found.seconds:.1f} s"
    return line if found.finding is None else f"{line}\n{found.finding}"


PROOFS = {
    "fuzz": Proof(
        "hunt for input that triobus does not stand: spoiled events, lines and store files\n\n"
        "A finding is printed with the smallest example of it.",
        _add_options,
        _prove,
    )
}
