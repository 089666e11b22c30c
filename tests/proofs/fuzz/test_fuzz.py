"""A short share of the hunts, and what becomes of a finding."""

import pytest

from tests.proofs.__main__ import main
from tests.proofs.fuzz import store
from tests.proofs.fuzz.command import KINDS, quarry, told
from tests.proofs.fuzz.hunting import Hunt, hunt


@pytest.mark.parametrize("kind", KINDS)
def test_a_short_hunt_finds_nothing(kind):
    found = hunt(quarry(kind), seconds=0.7, first_seed=2026)
    assert found.finding is None, told(kind, found)
    assert found.examples > 0


def test_a_finding_is_told_with_its_seed_and_the_smallest_example():
    first, *rest = told("planted", hunt(quarry("planted_finding"), 60, first_seed=7)).splitlines()
    assert first.startswith("planted: ")
    assert " examples, 1 finding, " in first
    assert rest == [
        "seed 7: RuntimeError: RuntimeError('1001 is too much')",
        "the smallest example: 1001",
    ]


def test_an_interpreter_that_dies_is_a_finding(capfd):
    assert main(["fuzz", "--seconds", "5", "planted_crash"]) == 1
    said, example = capfd.readouterr().out.splitlines()
    assert said == "planted_crash: 1 finding: the interpreter died of SIGSEGV"
    assert int(example.removeprefix("the example: ")) > 50


def test_a_hunt_that_does_not_come_back_is_a_finding(capfd):
    assert main(["fuzz", "--seconds", "0.5", "--patience", "0.5", "planted_hang"]) == 1
    said, example = capfd.readouterr().out.splitlines()
    assert said == "planted_hang: 1 finding: it hangs: not back 0.5 s after its time"
    assert int(example.removeprefix("the example: ")) > 50


def test_a_clean_hunt_is_one_line_and_exit_code_0(capfd):
    assert main(["fuzz", "--seconds", "0.1", "lines"]) == 0
    (line,) = capfd.readouterr().out.splitlines()
    assert line.startswith("lines: ")
    assert " examples, no finding, " in line


def test_a_hunt_without_a_finding_is_one_line():
    assert told("codec", Hunt(1234, 60.04)) == "codec: 1,234 examples, no finding, 60.0 s"


def test_a_page_of_the_index_of_ids_that_leads_to_another_event_is_noticed():
    store.check(([], False, [("page head", 2, 9, 11)], None))
