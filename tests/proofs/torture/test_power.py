"""The power is cut at every point of a run: a short share of `python -m tests.proofs power`."""

import random
import shutil

import attrs
import pytest

from tests.proofs.torture import power
from tests.proofs.torture.power_disk import SECTOR, Disk, Operation
from tests.proofs.torture.power_recording import record
from tests.proofs.torture.violation import Violation

needs_compiler = pytest.mark.skipif(
    power.reason_against() is not None, reason=str(power.reason_against())
)


@needs_compiler
def test_with_full_no_acknowledged_event_is_lost_wherever_the_power_is_cut():
    said = []
    power.run(200, 2026, said.append)
    (line,) = said
    assert "200 states" in line
    assert ", 0 lost" in line


@needs_compiler
def test_with_normal_the_last_moments_are_lost_and_nothing_is_corrupt():
    found = power.lost(100, 2026, "normal")
    assert found.states == 100
    assert found.losing > 0
    assert found.lost > 0
    assert found.forgotten > 0
    assert found.corrupt == 0


@needs_compiler
def test_a_loss_is_a_violation_with_the_seed_and_the_point():
    with pytest.raises(Violation, match=r"seed 2026, synchronous=off: state .* at \d"):
        power.run(100, 2026, print, synchronous="off")


@needs_compiler
@pytest.mark.parametrize(
    ("bug", "said"),
    [
        ("settled-later", "follow from what is not settled, or once too often"),
        ("effect-later", "the totals are .*, and settled are "),
    ],
)
def test_effects_and_an_acknowledgement_that_are_not_in_one_commit_are_found(bug, said):
    with pytest.raises(Violation, match=f"state .* at .*: the books are wrong: .*{said}"):
        power.run(60, 2026, print, bug=bug)


@needs_compiler
def test_a_disk_that_leaves_out_what_it_was_asked_for_is_seen_to_lose_events():
    recording = record("full")
    of_the_directory, of_files = (
        attrs.evolve(
            recording,
            operations=tuple(
                operation
                for operation in recording.operations
                if operation.kind != "sync"
                or (operation.inode == recording.directory) is not is_of_the_directory
            ),
        )
        for is_of_the_directory in (True, False)
    )
    assert power.visit(of_the_directory, 60, "2026").lost > 0
    assert power.visit(of_files, 60, "2026").lost > 0


def test_what_a_store_must_not_have_after_a_power_cut_is_found():
    known = power.Known()
    for mark in ("accepted 1 one", "handled all 1", "accepted 2 two", "recorded all 0 1-1"):
        known.note(mark)
    kept = power.Kept(ids=["one", "two"], settled={"all": 0b10})
    assert power._compared(known, kept, "here") == power.Figures(states=1, acknowledged=2)
    lost = power._compared(known, attrs.evolve(kept, ids=["one"]), "here")
    assert (lost.lost, lost.losing, lost.first) == (
        1,
        1,
        "here: lost are the acknowledged events at [2]",
    )
    assert power._compared(known, attrs.evolve(kept, ids=["two", "one"]), "here").lost == 2
    assert power._compared(known, attrs.evolve(kept, settled={}), "here").forgotten == 1
    assert power._compared(known, attrs.evolve(kept, settled={"all": 0b110}), "here").corrupt == 1
    dead = attrs.evolve(kept, settled={"all": 0b110}, excused={"all": 0b100})
    assert power._compared(known, dead, "here").corrupt == 0
    assert power._compared(known, power.Kept(trouble="gone"), "here").corrupt == 1


def test_without_a_compiler_a_line_says_what_was_left_out(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert shutil.which("cc") is None
    said = []
    power.run(1000, 1, said.append)
    assert len(said) == 1
    assert "left out" in said[0]


# The disk that the power is cut of


def states(disk, mode=None, count=300):
    """Return the different states in which a disk can be after a power cut."""
    found = []
    for seed in range(count):
        state = disk.cut(random.Random(seed), mode)
        if state not in found:
            found.append(state)
    return found


def disk_with_a_file(*contents):
    disk = Disk(inode=1)
    disk.apply(Operation("create", 7, data=b"a"))
    disk.apply(Operation("sync", 1))
    for content in contents:
        disk.apply(Operation("write", 7, 0, content))
    return disk


def test_what_was_synchronised_is_there():
    disk = disk_with_a_file(b"one")
    disk.apply(Operation("sync", 7))
    assert states(disk) == [{"a": b"one"}]


def test_of_what_was_not_synchronised_each_sector_is_there_or_not():
    disk = disk_with_a_file(b"a" * SECTOR + b"b" * SECTOR)
    disk.apply(Operation("sync", 7))
    disk.apply(Operation("write", 7, 0, b"A" * SECTOR + b"B" * SECTOR))
    found = {state["a"][::SECTOR] for state in states(disk)}
    assert found == {b"ab", b"aB", b"Ab", b"AB"}


def test_a_name_is_there_only_after_its_directory_was_synchronised():
    disk = Disk(inode=1)
    disk.apply(Operation("create", 7, data=b"a"))
    disk.apply(Operation("write", 7, 0, b"one"))
    disk.apply(Operation("sync", 7))
    assert states(disk, "none") == [{}]
    assert sorted(map(str, states(disk))) == ["{'a': b'one'}", "{}"]
    disk.apply(Operation("sync", 1))
    disk.apply(Operation("unlink", data=b"a"))
    assert sorted(map(str, states(disk))) == ["{'a': b'one'}", "{}"]


def test_a_file_that_was_shortened_may_have_any_of_its_sizes():
    disk = disk_with_a_file(b"one")
    disk.apply(Operation("sync", 7))
    disk.apply(Operation("truncate", 7, 1))
    disk.apply(Operation("write", 7, 4, b"x"))
    assert {len(state["a"]) for state in states(disk)} == {3, 1, 5}
    assert {state["a"] for state in states(disk, "all")} == {b"o\0\0\0x"}


def test_a_file_is_shortened_as_a_whole_or_not_at_all():
    disk = disk_with_a_file(b"a" * SECTOR + b"b" * SECTOR)
    disk.apply(Operation("sync", 7))
    disk.apply(Operation("truncate", 7, 0))
    assert {state["a"][::SECTOR] for state in states(disk)} == {b"ab", b""}
    disk.apply(Operation("write", 7, SECTOR, b"B" * SECTOR))
    assert {state["a"][::SECTOR] for state in states(disk)} == {b"ab", b"aB", b"", b"\0B", b"\0\0"}


def test_a_prefix_is_what_was_there_at_some_moment():
    disk = disk_with_a_file(b"one", b"two", b"six")
    assert {state["a"] for state in states(disk, "prefix")} <= {b"", b"one", b"two", b"six"}
    assert {state["a"] for state in states(disk, "none")} == {b""}
