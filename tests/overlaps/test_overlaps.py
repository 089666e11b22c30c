"""A sample of what `python -m tests.overlaps --all` tries: some steps of every pair of calls."""

import pytest

from tests.overlaps.cases import pairs, sample
from tests.overlaps.runs import play, scaled


@pytest.mark.parametrize(("kind", "first", "second"), list(pairs()))
def test_two_calls_that_overlap_keep_every_promise(kind, first, second):
    for case in sample(kind, first, second, 2 if kind == "none" else 1):
        play(scaled(case))
