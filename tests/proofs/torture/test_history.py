"""What a torture would see if a program had done something else than it did."""

import pytest

from tests.proofs.torture import children
from tests.proofs.torture.children import serving_two
from tests.proofs.torture.history import History
from tests.proofs.torture.points import BATCHES, Run
from tests.proofs.torture.shim import How
from tests.proofs.torture.violation import Violation


@pytest.fixture(scope="module")
def servers():
    with serving_two() as two:
        yield two


@pytest.fixture(scope="module")
def run(servers):
    """What a good run has reported, and the store that it has left."""
    with Run(BATCHES).place() as path:
        lines = servers[0].start("script", str(path), BATCHES, None, None).run()
        yield "\n".join(" ".join(words) for words in lines), path


def history_of(text, path):
    history = History()
    history.begin()
    for line in text.splitlines():
        history.note(line.split())
    history.look_at(path)
    history.look_at_the_end(path)
    return history


def test_a_good_run_violates_nothing(run):
    history = history_of(*run)
    assert history.accepted == {1: 1, 2: 2, 11: 3, 4: 4, 26: 5, 3: 6, 13: 7, 5: 8, 12: 9}
    assert len(history.handled) == 18
    assert history.repeated == 0


@pytest.mark.parametrize(
    ("told", "instead", "kind", "message"),
    [
        ("accepted 3 6", "accepted 3 7", "lost", "accepted at 7, which has 13"),
        ("accepted 5 8", "refused 5 StoreIOError", "other", "was refused"),
        ("publishing 5\n", "", "other", None),
        ("handled default 3\n", "", "lost", "never finished it"),
        ("replayed mail 13\n", "", "lost", "lost the dead letters"),
        ("replayed mail 26", "replayed mail 26\nreplayed mail 26", "repeated", "again"),
        ("failed mail 13 2", "handled mail 13", "reordered", None),
        ("attempt mail 11 2", "attempt mail 11 1", "reordered", None),
        (
            "handled default 11\nattempt default 4 1",
            "attempt default 4 1\nhandled default 11",
            "reordered",
            "aggregate 4",
        ),
        (
            "handled default 3\n",
            "handled default 3\nattempt default 3 1\nhandled default 3\n",
            "reordered",
            None,
        ),
        ("done", "handled default 999\ndone", "lost", "never stored"),
    ],
)
def test_what_a_program_must_not_do_is_seen(run, told, instead, kind, message):
    text, path = run
    assert told in text
    if told.startswith("publishing"):
        text = text.replace("accepted 5 8\n", "")
    with pytest.raises(Violation, match=message) as caught:
        history_of(text.replace(told, instead), path)
    assert caught.value.kind == kind


def test_a_commit_that_is_reported_and_not_on_disk_is_seen(servers):
    if not servers[0].has_shim:
        pytest.skip("there is no C compiler to build what stands before the disk")
    run = Run(BATCHES)
    seen = set()
    for at in range(60, 130, 5):
        with run.place() as path:
            plan = [How.DIE_BEFORE, at, 0]
            history = History()
            with servers[0].start("script", str(path), BATCHES, None, plan) as child:
                for words in child.lines():
                    history.note(words)
            # Until its last page is written, a commit is not there after a kill.
            is_unwritten = history.life.operations[-1] == "write torture.db-wal"
            has_finished_something = history.life.begun > history.life.ended
            if history.life.is_committing and is_unwritten and has_finished_something:
                history.note(["committed"])
                with pytest.raises(Violation) as caught:
                    history.look_at(path)
                assert "and a later commit left that out" in str(caught.value)
                seen.add(str(caught.value))
    assert len(seen) > 1


def test_a_child_is_killed_when_its_block_ends_and_the_next_one_is_forked(servers, tmp_path):
    path = str(tmp_path / "a.db")
    with pytest.raises(KeyError), servers[0].start("hold", path) as first:
        assert ["has"] in (words[:1] for words in first.lines())
        raise KeyError
    assert first.wait() == -9
    with servers[0].start("hold", path) as second:
        assert ["has"] in (words[:1] for words in second.lines())


def test_a_child_that_hangs_is_a_violation(servers, tmp_path, monkeypatch):
    monkeypatch.setattr(children, "PATIENCE", 0.5)
    hang = pytest.raises(Violation, match=r"had not ended after 0\.5 s")
    with servers[0].start("hold", str(tmp_path / "a.db")) as child, hang:
        list(child.lines())
