"""A program is killed at random moments and started again."""

from tests.torture.__main__ import main
from tests.torture.kills import torture
from tests.torture.violation import Violation


def test_nothing_is_lost_in_25_rounds_of_sigkill_and_only_what_was_not_recorded_is_repeated():
    said = []
    repeated = torture(25, 2026, said.append)
    assert len(said) == 26
    assert repeated > 0  # else no kill has ever come in time to mean anything


def test_a_violation_is_told_with_the_seed(capsys, monkeypatch):
    def violated(*_):
        raise Violation("lost 3")

    monkeypatch.setattr("tests.torture.kills.torture", violated)
    assert main(["--rounds", "1", "--seed", "7"]) == 1
    assert "seed 7: lost 3" in capsys.readouterr().err
