"""Programs drawn by Hypothesis keep the promises of the model; planted bugs are found."""

from collections import Counter

import attrs
import pytest
import trio

from tests.planting import instead_of
from tests.proofs.__main__ import main
from tests.proofs.model.command import explore
from tests.proofs.model.facts import Broken
from tests.proofs.model.play import Tally
from triobus import EventBus
from triobus._bus import routing
from triobus._durability.catch_up import CatchUp
from triobus._durability.lanes import StoredLanes
from triobus._durability.progress import Progress
from triobus._durability.recorder import Recorder
from triobus._events.moments import Moments
from triobus._groups.delivery import Lanes
from triobus._groups.failures import Failures
from triobus._groups.subscriptions import Group
from triobus._groups.workers import GroupShell
from triobus.stores import _values


@pytest.mark.parametrize(("kind", "examples"), [("none", 20), ("memory", 15), ("sqlite", 10)])
def test_programs_of_all_kinds_keep_the_promises(kind, examples):
    """They are the same ones every time; `python -m tests.proofs model` draws others."""
    tally = Tally()
    explore(kind, examples, 1, tally, is_shrinking=False)
    assert tally.examples == examples
    assert tally.operations > 5 * examples
    assert tally.deliveries > tally.events > examples
    assert tally.crashes > 0


@pytest.mark.parametrize(("kind", "examples"), [("none", 10), ("memory", 10), ("sqlite", 8)])
def test_programs_that_use_the_store_beside_the_bus_keep_the_promises(kind, examples):
    """They append, read, listen slowly, publish again, later, and other content of the same id.

    They take back what is to come, pause groups, and reset those that have a store.
    """
    tally = Tally()
    explore(kind, examples, 1, tally, is_shrinking=False, is_wide=True)
    assert tally.examples == examples
    assert tally.deliveries > examples


def test_the_command_prints_what_it_has_seen(capsys):
    assert main(["model", "--examples", "3", "--seed", "7"]) == 0
    first = capsys.readouterr().out.splitlines()[-1].rpartition(", in ")[0]
    assert main(["model", "--examples", "3", "--seed", "7"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].rpartition(", in ")[0] == first
    assert first.startswith("seed 7: ")
    assert first.endswith("0 violations")


def test_the_command_tells_the_seed_and_the_program_of_a_violation(capsys, monkeypatch):
    _ignored_priority(monkeypatch)
    assert main(["model", "--examples", "20", "--seed", "2", "--store", "none", "--no-shrink"]) == 1
    found = capsys.readouterr()
    assert found.err.startswith("seed 2, store none: ")
    assert "Program(" in found.err
    assert ", 1 violations, in " in found.out


# Planted bugs


def _lost_acknowledgement(monkeypatch):
    @instead_of(monkeypatch, CatchUp, "_settle")
    def settle_all_but_one(settle, self, delivery):
        if delivery.position != 2:
            settle(self, delivery)


def _acknowledgement_too_early(monkeypatch):
    @instead_of(monkeypatch, CatchUp, "record_attempts")
    def finish_what_has_failed(record_attempts, self, delivery, *rest):
        record_attempts(self, delivery, *rest)
        self.acknowledgements.progress.finish(delivery.position)


def _swapped_events(monkeypatch):
    for lanes in (Lanes, StoredLanes):
        monkeypatch.setattr(lanes, "add_many", _add_swapped(lanes.add_many))


def _add_swapped(add):
    def add_swapped(self, *args):
        add(self, *args)
        if len(self._queue) > 1:
            self._queue[-1], self._queue[-2] = self._queue[-2], self._queue[-1]

    return add_swapped


def _forgotten_retry(monkeypatch):
    @instead_of(monkeypatch, Lanes, "fail")
    def forget(fail, self, delivery, error, now):
        due = fail(self, delivery, error, now)
        if due is not None and delivery.attempt == 2:
            self._waiting.clear()
        return due


def _retry_too_soon(monkeypatch):
    fail = Lanes.fail
    monkeypatch.setattr(Lanes, "fail", lambda self, *args: fail(self, *args[:-1], args[-1] - 0.2))


def _overtaken_retry(monkeypatch):
    @instead_of(monkeypatch, Lanes, "fail")
    def let_go(fail, self, delivery, error, now):
        due = fail(self, delivery, error, now)
        if due is not None and delivery.key is not None and not self._lanes[delivery.key]:
            del self._lanes[delivery.key]
            delivery.key = None
        return due


def _delivered_twice(monkeypatch):
    @instead_of(monkeypatch, Lanes, "take")
    def take_again(take, self, *recycled):
        delivery = take(self, *recycled)
        if delivery is not None and delivery.number == 3 and delivery.key is None:
            self.add(delivery.event, None, delivery.plan, position=delivery.position)
        return delivery


def _forgotten_attempts(monkeypatch):
    @instead_of(monkeypatch, CatchUp, "restore")
    def forget(restore, self, record, suspects):
        restore(self, attrs.evolve(record, attempts=()), suspects)


def _skipped_event(monkeypatch):
    @instead_of(monkeypatch, CatchUp, "restore")
    def skip_one(restore, self, record, suspects):
        restore(self, record, suspects)
        if self.read_to < self.last:
            self.read_to += 1


def _dropped_letter(monkeypatch):
    @instead_of(monkeypatch, Failures, "give_up")
    def keep_no_second_failure(give_up, self, delivery, subscription, error, attempts):
        if attempts != 2:
            give_up(self, delivery, subscription, error, attempts)


def _miscounted_attempts(monkeypatch):
    @instead_of(monkeypatch, Failures, "give_up")
    def one_less(give_up, self, delivery, subscription, error, attempts):
        give_up(self, delivery, subscription, error, max(attempts - 1, 0))


def _ignored_hold(monkeypatch):
    monkeypatch.setattr(GroupShell, "is_passed_over", lambda self, delivery, s: not s.is_active)


def _ignored_priority(monkeypatch):
    monkeypatch.setattr(
        Group,
        "_in_order",
        lambda self, wanted: tuple(s for s in self._by_name.values() if s in wanted),
    )


def _lost_cause(monkeypatch):
    monkeypatch.setattr(routing, "with_cause", lambda event, cause: event)


def _too_many_workers(monkeypatch):
    @instead_of(monkeypatch, GroupShell, "start")
    async def one_more(start, self, nursery):
        self.worker_limit += 1
        await start(self, nursery)


def _lost_wake_up(monkeypatch):
    @instead_of(monkeypatch, GroupShell, "wake")
    def wake_unless_one_works(wake, self):
        if not self.lanes.in_flight:
            wake(self)


def _early_drain(monkeypatch):
    monkeypatch.setattr(
        GroupShell, "unsettled", property(lambda self: self.lanes.unsettled - self.lanes.waiting)
    )


def _half_a_batch(monkeypatch):
    @instead_of(monkeypatch, CatchUp, "offer")
    def offer_all_but_the_last(offer, self, events, keys, first, watch):
        if len(events) > 2:
            self.acknowledgements.progress.finish(first + len(events) - 1)
            self.read_to += 1
            events, keys = events[:-1], keys[:-1]
        offer(self, events, keys, first, watch)


def _delivered_although_it_raised(monkeypatch):
    @instead_of(monkeypatch, EventBus, "publish")
    async def publish_and_look_again(publish, self, event, *, expected_sequence=None):
        published = await publish(self, event, expected_sequence=expected_sequence)
        await trio.lowlevel.checkpoint_if_cancelled()
        return published


def _offset_that_runs_ahead(monkeypatch):
    @instead_of(monkeypatch, Progress, "take_change")
    def ahead(take_change, self):
        change = take_change(self)
        return attrs.evolve(change, offset=max([change.offset, *self._lasts]))


def _lost_changes(monkeypatch):
    take_changes = Recorder.take_changes
    counted = Counter()

    def take_and_lose(self):
        changes = take_changes(self)
        counted[self] += 1
        return changes if counted[self] % 3 else _values.Changes()

    monkeypatch.setattr(Recorder, "take_changes", take_and_lose)


def _comes_early(monkeypatch):
    @instead_of(monkeypatch, Moments, "on_trios_clock")
    def hurry(on_trios_clock, self, due):
        return on_trios_clock(self, due) - 0.05


def _pause_that_does_not_wait(monkeypatch):
    async def rest(self):
        self.lanes.freeze()
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(GroupShell, "rest", rest)


def _pause_that_lets_retries_through(monkeypatch):
    @instead_of(monkeypatch, GroupShell, "rest")
    async def rest_and_thaw(rest, self):
        await rest(self)
        self.lanes.thaw()
        self.wake()


def _reset_to_the_end(monkeypatch):
    @instead_of(monkeypatch, CatchUp, "begin_anew")
    def begin_at_the_end(begin_anew, self, offset):
        begin_anew(self, self.last)


@pytest.mark.parametrize(
    ("plant", "kind", "seed", "message"),
    [
        (_comes_early, "none", 3, r"is due at .*, and came at"),
        (_pause_that_does_not_wait, "none", 0, "is paused, and 1 of its handlers run"),
        (_pause_that_lets_retries_through, "none", 11, "and its group is paused"),
        (_reset_to_the_end, "memory", 2, "is recorded as finished|was drained|never done"),
    ],
)
def test_a_bug_in_time_or_control_is_found(monkeypatch, plant, kind, seed, message):
    plant(monkeypatch)
    with pytest.raises(Broken, match=message):
        explore(kind, 60, seed, Tally(), is_shrinking=False, is_wide=True)


@pytest.mark.parametrize(
    ("plant", "kind", "seed", "message"),
    [
        (_lost_acknowledgement, "memory", 0, "statistics|not recorded|was drained"),
        (_acknowledgement_too_early, "memory", 0, "is recorded as finished|was drained|statistics"),
        (_swapped_events, "none", 2, "in different orders|which is before it"),
        (_swapped_events, "memory", 3, "which is before it"),
        (_forgotten_retry, "none", 0, "."),
        (_retry_too_soon, "none", 0, "before its retry was due"),
        (_overtaken_retry, "none", 8, "which is before it|waits for a retry|between two"),
        (
            _delivered_twice,
            "none",
            3,
            "again, which it was done with|at the same time|it is attempt",
        ),
        (
            _forgotten_attempts,
            "memory",
            3,
            "and it is attempt|before its retry|again, which it was",
        ),
        (_skipped_event, "memory", 2, "."),
        (_dropped_letter, "none", 0, "dead letters are missing|statistics|says nothing of"),
        (_miscounted_attempts, "none", 0, "is listed, and it must be"),
        (_ignored_hold, "none", 4, "holds it back"),
        (_ignored_priority, "none", 2, "which comes before it|which comes after it"),
        (_lost_cause, "none", 0, "and published was"),
        (_too_many_workers, "none", 3, "by more workers than there are"),
        (_lost_wake_up, "none", 4, "has a free worker, and time passes|every task waits"),
        (_early_drain, "none", 0, "nothing is left, and|was cancelled while"),
        (_half_a_batch, "memory", 0, "."),
        (
            _delivered_although_it_raised,
            "none",
            24,
            "publishing it has raised|was not accepted|and counted are",
        ),
        (_offset_that_runs_ahead, "memory", 3, "is recorded as finished"),
        (
            _lost_changes,
            "memory",
            0,
            "dead letters are missing|not recorded|was drained|is stored as",
        ),
    ],
)
def test_a_planted_bug_is_found(monkeypatch, plant, kind, seed, message):
    """Each seed is one that shows the bug soon."""
    plant(monkeypatch)
    with pytest.raises(Broken, match=message):
        explore(kind, 40, seed, Tally(), is_shrinking=False)
