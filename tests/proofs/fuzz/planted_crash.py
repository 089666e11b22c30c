"""Kills the interpreter, for a test of the hunt."""

import os
import signal

from hypothesis import strategies as st

from tests.proofs.fuzz.hunting import Quarry


def check(number: int) -> None:
    if number > 50:
        os.kill(os.getpid(), signal.SIGSEGV)


QUARRY = Quarry(st.integers(0, 100), check)
