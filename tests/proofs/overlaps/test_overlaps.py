"""A sample of what `python -m tests.proofs overlaps --all` tries: a step of a 64th of all pairs."""

import pytest
import trio

from tests.proofs.overlaps.calls import CALLS, Call
from tests.proofs.overlaps.cases import TURNS, Case, pairs, sample, turn_of
from tests.proofs.overlaps.runs import Violation, length, play, scaled


@pytest.mark.parametrize(("kind", "first", "second"), list(turn_of(0)))
def test_two_calls_that_overlap_keep_every_promise(kind, first, second):
    for case in sample(kind, first, second, 1):
        play(scaled(case))


def test_in_all_turns_every_pair_comes_once_on_every_kind_of_bus():
    taken = [pair for turn in range(TURNS) for pair in turn_of(turn)]
    assert sorted(taken) == sorted(pairs())


# That it finds what is wrong


async def hang(stage, role):
    await trio.sleep_forever()


async def hang_shielded(stage, role):
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()


async def fail(stage, role):
    await trio.lowlevel.checkpoint()
    raise KeyError("lane")


async def claim_too_much(stage, role):
    with stage.ledger.publishing(role.base):
        stage.ledger.event(role.base)
        stage.ledger.accept(role.base, 99)


async def leave_a_store_open(stage, role):
    await stage.store.__aenter__()


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (hang, r"A \(planted\) hangs in .*hang:"),
        (hang_shielded, r"A \(planted\) hangs in .*hang_shielded:"),
        (fail, r"A \(planted\) raised KeyError: 'lane' \(raised in fail, line"),
        (claim_too_much, r"number 100 was told positions \[99\], and is at None"),
        (claim_too_much, r"\('all', 'every'\) never handled \[100\]"),
        (leave_a_store_open, r"the store is open after the block"),
    ],
)
def test_a_planted_fault_is_found_and_told_with_the_command_that_repeats_it(
    monkeypatch, make, problem
):
    monkeypatch.setitem(CALLS, "planted", Call("planted", make))
    with pytest.raises(Violation, match=problem) as found:
        play(Case("memory", "planted", "nothing"))
    command = (
        "python -m tests.proofs overlaps planted nothing --kind memory --situation empty --step 0"
    )
    assert str(found.value).endswith(f"Repeat it: {command}")


def test_the_second_call_begins_at_the_chosen_step_of_the_first(monkeypatch):
    taken, begun = [], []

    async def take_steps(stage, role):
        taken.clear()
        for number in range(10):
            taken.append(number)
            await trio.lowlevel.checkpoint()

    async def look(stage, role):
        begun.append(len(taken))

    monkeypatch.setitem(CALLS, "steps", Call("steps", take_steps))
    monkeypatch.setitem(CALLS, "look", Call("look", look))
    for step in range(length("none", "steps", "empty") + 1):
        play(Case("none", "steps", "look", step=step))
    assert set(begun) >= set(range(2, 11))
    length.cache_clear()
