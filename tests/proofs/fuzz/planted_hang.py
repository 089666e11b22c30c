"""Does not come back, for a test of the hunt."""

from hypothesis import strategies as st

from tests.proofs.fuzz.hunting import Quarry


def check(number: int) -> None:
    while number > 50:
        pass


QUARRY = Quarry(st.integers(0, 100), check)
