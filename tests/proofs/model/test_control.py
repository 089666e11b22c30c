"""Pausing, resetting, batches and scheduled events do as a model does that is too simple to err."""

from uuid import UUID

import pytest

from tests.planting import instead_of
from tests.proofs.__main__ import main
from tests.proofs.model.control import explore
from triobus import MemoryEventStore
from triobus._bus.schedule import MemorySchedule
from triobus._durability.dead_letters import StoredDeadLetters
from triobus._groups import subscriptions
from triobus._groups.bundles import BundleWorker
from triobus._groups.bundling import BundlingLanes
from triobus._groups.delivery import Lanes
from triobus.stores._scheduled import ScheduledEvents


@pytest.mark.parametrize(("kind", "examples"), [("none", 150), ("memory", 150), ("sqlite", 40)])
def test_programs_that_control_a_group_do_as_the_model_does(kind, examples):
    """They are the same ones every time; `python -m tests.proofs control` draws others."""
    models = explore(kind, examples, 1, is_shrinking=False)
    assert len(models) == examples
    assert sum(len(model.handled) for model in models) > 3 * examples
    assert sum(len(model.letters) for model in models) > examples / 4


def test_the_command_prints_what_it_has_seen(capsys):
    assert main(["control", "--examples", "20", "--seed", "7"]) == 0
    found = capsys.readouterr().out.splitlines()[-1]
    assert found.startswith("seed 7: 60 programs, ")
    assert "0 violations" in found


def test_the_command_tells_the_seed_and_the_program_of_a_violation(capsys, monkeypatch):
    _pause_that_holds_nothing(monkeypatch)
    assert main(["control", "--examples", "40", "--seed", "2"]) == 1
    found = capsys.readouterr()
    assert found.err.startswith("seed 2, store none: ")
    assert "Program(" in found.err


# Planted bugs


def _pause_that_holds_nothing(monkeypatch):
    monkeypatch.setattr(Lanes, "freeze", lambda self: None)


def _reset_that_forgets_no_letter(monkeypatch):
    monkeypatch.setattr(StoredDeadLetters, "forget_group", lambda self, group: None)

    @instead_of(monkeypatch, MemoryEventStore, "_commit")
    async def commit_and_keep(commit, self, changes):
        before = dict(self._kept)
        found = await commit(self, changes)
        self._kept = before | self._kept
        return found


def _reset_one_too_early(monkeypatch):
    target = subscriptions._target

    def one_before(to):
        found = target(to)
        return found - 1 if isinstance(found, int) and found > 1 else found

    monkeypatch.setattr(subscriptions, "_target", one_before)


def _batch_that_blames_another(monkeypatch):
    @instead_of(monkeypatch, BundleWorker, "_isolate")
    async def blame_the_first(isolate, self, deliveries, subscription, attempts, failure):
        self._shell.failures.end(deliveries[0], subscription, failure, attempts)
        for each in deliveries:
            self._advance(each)


def _batch_that_is_too_large(monkeypatch):
    @instead_of(monkeypatch, BundlingLanes, "take_along")
    def take_one_more(take_along, self, first, limit):
        return take_along(self, first, limit + 1)


def _batch_that_overtakes(monkeypatch):
    @instead_of(monkeypatch, BundlingLanes, "take_along")
    def take_backwards(take_along, self, first, limit):
        bundle = take_along(self, first, limit)
        if len({each.key for each in bundle.deliveries}) == len(bundle.deliveries):
            bundle.deliveries.reverse()
        return bundle


def _early(monkeypatch):
    @instead_of(monkeypatch, MemorySchedule, "add")
    def add_sooner(add, self, batch, due_at):
        return add(self, batch, due_at - 1.5)


def _early_with_a_store(monkeypatch):
    @instead_of(monkeypatch, ScheduledEvents, "take_due")
    def take_sooner(take_due, self, now, limit):
        return take_due(self, now + 2, limit)


def _twice(monkeypatch):
    @instead_of(monkeypatch, MemorySchedule, "add")
    def add_twice(add, self, batch, due_at):
        is_new = add(self, batch, due_at)
        if is_new:
            id_ = UUID(int=batch.events[0].event_id.int ^ 1)
            self._agenda.add(id_, self._moments.on_trios_clock(due_at), batch)
        return is_new


def _taken_back_too_late(monkeypatch):
    @instead_of(monkeypatch, ScheduledEvents, "remove")
    def claim_it_was_there(remove, self, event_id, now):
        return remove(self, event_id, now) or True


def _taken_back_and_kept(monkeypatch):
    @instead_of(monkeypatch, MemorySchedule, "cancel")
    def keep(cancel, self, event_id):
        return self._agenda.get(event_id) is not None


@pytest.mark.parametrize(
    ("plant", "kind", "message"),
    [
        (_pause_that_holds_nothing, "none", "handled are"),
        (_pause_that_holds_nothing, "memory", "handled are"),
        (_reset_that_forgets_no_letter, "memory", "dead letters are"),
        (_reset_one_too_early, "memory", "handled are"),
        (_reset_one_too_early, "sqlite", "handled are"),
        (_batch_that_blames_another, "none", "handled are"),
        (_batch_that_is_too_large, "none", "a batch of"),
        (_batch_that_overtakes, "none", "handled are"),
        (_early, "none", "handled are|are scheduled"),
        (_early_with_a_store, "memory", "handled are|are scheduled"),
        (_twice, "none", "handled are|are scheduled"),
        (_taken_back_too_late, "memory", "True"),
        (_taken_back_and_kept, "none", "are scheduled"),
    ],
)
def test_a_planted_bug_is_found(monkeypatch, plant, kind, message):
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=message):
        explore(kind, 150, 1, is_shrinking=False)
