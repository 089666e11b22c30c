"""Fails for some examples, for a test of the hunt."""

from hypothesis import strategies as st

from tests.proofs.fuzz.hunting import Quarry


def check(number: int) -> None:
    if number > 1000:
        raise RuntimeError(f"{number} is too much")


QUARRY = Quarry(st.integers(), check)
