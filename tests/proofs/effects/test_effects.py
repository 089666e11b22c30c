"""The proof in its short form, and the bugs that it has to find."""

import random

import pytest

from tests.proofs.effects.command import BUGS
from tests.proofs.effects.killing import NotExactlyOnce, Tally, lives


def test_every_effect_is_there_exactly_once_after_kills(tmp_path):
    tally = Tally()
    lives(tmp_path / "ledger.db", random.Random(1), 3, None, tally)
    assert tally.accepted > 20


@pytest.mark.parametrize(("bug", "kills"), [*zip(BUGS, (2, 12), strict=True)])
def test_a_planted_bug_is_found(tmp_path, bug, kills):
    with pytest.raises(NotExactlyOnce):
        lives(tmp_path / "ledger.db", random.Random(2), kills, bug, Tally())
