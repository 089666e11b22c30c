"""What a proof is to the command line."""

import argparse
from collections.abc import Callable

import attrs


@attrs.frozen
class Proof:
    """One `python -m tests.proofs NAME`."""

    about: str
    """What it does, for the help: a summary, and below it what else there is to say."""
    add_options: Callable[[argparse.ArgumentParser], None]
    prove: Callable[[argparse.Namespace], int]
    """Returns 0 if every promise was kept, 1 if one was broken, 2 if nothing could be tried."""
