"""Bugs that are planted on purpose: each of them is found by the tests of this room."""

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from hypothesis.stateful import run_state_machine_as_test
from trio.testing import MockClock

from tests.promises.shared import test_effects, test_sharing
from tests.unit.test_assignments import Sharing
from triobus._durability.sharing.share import Part
from triobus.stores._sharing import Assignments, Claim, _Node

_take, _renew, _serve = Assignments.take, Assignments.renew, Assignments.serve


def _take_what_another_has(self: Assignments, node: int, name: str) -> Any:
    nodes, self._nodes = self._nodes, {node: self._nodes[node]}
    try:
        return _take(self, node, name)
    finally:
        self._nodes = nodes


def _revive(self: Assignments, node: int, now: float) -> bool:
    self._nodes.setdefault(node, _Node("back from the dead", now))
    return _renew(self, node, now)


def _serve_in_any_revision(self: Assignments, node: int, claim: Claim, head: int) -> bool:
    return _serve(self, node, attrs.evolve(claim, revision="any"), head)


def _run(test: Callable[[Any], Any]) -> None:
    trio.run(test, None, clock=MockClock(autojump_threshold=0))


BUGS: dict[str, tuple[Any, str, Any, Callable[[], None]]] = {
    "no fence": (
        Assignments,
        "may_record",
        lambda *_: True,
        lambda: _run(test_effects.test_a_transaction_of_a_zombie_rolls_back_whole),
    ),
    "a heartbeat that revives the dead": (
        Assignments,
        "renew",
        _revive,
        lambda: run_state_machine_as_test(Sharing),
    ),
    "two owners": (
        Assignments,
        "take",
        _take_what_another_has,
        lambda: _run(
            test_sharing.test_every_event_is_handled_by_one_of_the_nodes_in_its_order,
        ),
    ),
    "a release that forgets what runs": (
        Part,
        "is_at_rest",
        property(lambda part: part.is_leaving),
        lambda: _run(
            test_sharing.test_a_join_waits_for_the_handlers_that_run_and_for_nothing_else,
        ),
    ),
    "an old revision that passes over": (
        Assignments,
        "serve",
        _serve_in_any_revision,
        lambda: _run(
            test_effects.test_an_older_revision_takes_nothing_and_passes_nothing_over,
        ),
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name, planted, look = BUGS[bug]
    look()  # as it is, it holds
    monkeypatch.setattr(where, name, planted)
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        look()
