"""A short share of `python -m tests.proofs kills`, `points` and `faults`."""

import random
import re

import pytest
import trio

from tests.proofs.__main__ import PROOFS, main
from tests.proofs.torture import faults, kills, points
from tests.proofs.torture.children import serving_two
from tests.proofs.torture.command import SABOTAGES
from tests.proofs.torture.shim import How, built
from triobus import SqliteEventStore


@pytest.fixture(scope="module")
def servers():
    with serving_two() as two:
        yield two


def test_nothing_is_lost_or_reordered_when_programs_are_killed_whatever_they_are_doing(servers):
    said = []
    # With this seed each way of life is killed six times or more.
    tally = kills.torture(servers, 12, 2861, said.append)
    assert tally.violations == []
    assert len(tally.histories) == 12
    assert set(tally.kills) == {"starting", "publishing", "catching-up", "replaying", "closing"}
    assert tally.in_commits > 0
    # Else no kill has ever come in time to mean anything.
    assert tally.repeated > 0
    assert said[-1].startswith("12 rounds, ")
    assert " 0 lost, 0 reordered, " in said[-1]


needs_compiler = pytest.mark.skipif(
    built() is None, reason="there is no C compiler to build what stands before the disk"
)


@pytest.fixture
def made(tmp_path):
    """A store in which there is nothing yet."""

    async def make():
        async with SqliteEventStore(tmp_path / "a.db"):
            pass

    trio.run(make)
    return (tmp_path / "a.db").read_bytes()


@needs_compiler
def test_every_crash_point_of_a_small_run_keeps_the_promises(servers, made):
    said = []
    run = points.Run(points.FEW, files={points.STORE: made})
    # Behind an operation the files are as before the next one, which the long proof visits too.
    hows = [How.DIE_HALF_WAY, How.DIE_AFTER]
    tally = points.torture(servers, run, 1, said.append, hows=hows)
    assert tally.violations == []
    assert len(tally.visited) == tally.points > 60
    assert {point.how for point, _ in tally.visited} == {*hows}
    assert tally.repeated > 0
    assert "all visited" in said[-1]


@needs_compiler
def test_whatever_the_disk_refuses_to_synchronise_keeps_the_promises(servers, made):
    run = points.Run(points.FEW, files={points.STORE: made})
    tally = points.torture(servers, run, 1, print, hows=[How.FAIL], kinds=["sync", "truncate"])
    assert tally.violations == []
    assert len(tally.visited) == tally.points > 10
    assert any(history.refused for _, history in tally.visited)


@needs_compiler
def test_a_program_that_dies_while_it_removes_the_log_leaves_no_half_of_it(servers):
    run = points.Run(points.BATCHES)
    tally = points.torture(servers, run, 1, print, hows=[How.DIE_HALF_WAY], kinds=["truncate"])
    assert tally.violations == []
    assert len(tally.visited) == tally.points > 0


REPLACED = "files removed, renamed or replaced"


@pytest.mark.parametrize("name", sorted(faults.FAULTS.keys() - {REPLACED}))
def test_what_is_done_to_a_store_loses_nothing(servers, name):
    try:
        faults.FAULTS[name](servers, random.Random(1))
    except faults.NotPossible as reason:
        pytest.skip(str(reason))


def test_files_that_are_removed_or_replaced_are_noticed_at_the_next_commit(servers):
    said = faults.replaced_files(servers[0], random.Random(1), moments=2)
    assert said.startswith("12 times")


@pytest.mark.parametrize(
    ("bug", "seen"),
    [
        # What was told to be on disk and is not: an event, or that one was handled.
        ("ack-before-commit", r"\((lost|repeated)\): "),
        ("overtake", r"\(reordered\): "),
        pytest.param("no-fence", "the log has .* refused", marks=needs_compiler),
        pytest.param("synchronous-off", "lost", marks=needs_compiler),
    ],
)
def test_a_planted_bug_is_seen_and_told_with_the_seed(bug, seen, capsys):
    assert main([SABOTAGES[bug], "--sabotage", bug, "--seed", "7"]) == 1
    said = capsys.readouterr().err
    assert "seed 7: a promise was broken" in said
    assert re.search(seen, said)


def test_every_bug_that_can_be_planted_has_its_test():
    of_power = {"synchronous-off", "settled-later", "effect-later"}  # see test_power
    assert set(SABOTAGES) == {"ack-before-commit", "overtake", "no-fence", *of_power}


def test_kills_and_faults_begin_nothing_when_their_time_is_over_and_say_so(capsys):
    assert main(["kills", "--seconds", "0"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        "0 rounds, 0 kills (; 0 of them in a commit, 0 more too late): 0 events accepted, 0 lost, "
        "0 reordered, 0 repeated that were in flight, 0 that were not"
    )
    assert main(["faults", "--seconds", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{name}: skipped, the time is over" for name in faults.FAULTS]


@needs_compiler
def test_points_begins_nothing_when_its_time_is_over_and_says_so(capsys):
    assert main(["points", "--seconds", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "only 0 visited (0 crashes, 0 errors of the disk" in line


@pytest.mark.parametrize("name", PROOFS)
def test_every_proof_explains_its_options(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m tests.proofs {name} ")
