"""A share of the proofs `schedules`, `cancel` and `sigint`, and that they find what is wrong."""

import types
from functools import partial

import pytest
import trio

from tests.planting import instead_of
from tests.proofs.__main__ import main
from tests.proofs.every.calls import CALLS
from tests.proofs.every.cancellations import cancel_call, cancel_scenario
from tests.proofs.every.decisions import Decisions, decided_by
from tests.proofs.every.interrupts import InterruptFailed, control_c, interrupt_everywhere
from tests.proofs.every.runs import run, run_interrupted
from tests.proofs.every.scenarios import SCENARIOS
from tests.proofs.every.schedules import (
    NotRepeatable,
    ScheduleFailed,
    every_schedule,
    one_schedule,
    some_schedules,
)
from triobus import EventBus
from triobus._groups.workers import GroupShell
from triobus.testing import StepFailed

# Interrupted between a call of a coroutine function and its 'await', Python says so in a warning.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")

# The file of a store is gone with its world, so that nothing could go on after an interrupt.
every_interruptible_scenario = pytest.mark.parametrize(
    "scenario", [s for s in SCENARIOS.values() if s.kind != "sqlite"], ids=lambda s: s.name
)
every_scenario = pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=list(SCENARIOS))


# What is enumerated


async def take_turns(names, order):
    """A task for each name takes three turns."""

    async def take_three(name):
        for _ in range(3):
            order.append(name)
            await trio.lowlevel.cancel_shielded_checkpoint()

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(take_three, name)


def test_every_order_that_the_scheduler_can_choose_comes_exactly_once():
    orders = []

    def go(decisions):
        order = []
        with decided_by(decisions):
            trio.run(take_turns, "abc", order)
        orders.append("".join(order))

    found = every_schedule(go, 1000)
    # A batch is run as it was woken or in reverse, and was woken as the one before was run.
    chosen = [a + b + c for a in ("abc", "cba") for b in ("abc", "cba") for c in ("abc", "cba")]
    assert sorted(set(orders)) == sorted(chosen)
    assert found.is_complete
    assert found.count == len(orders) == 2**found.most_bits


def test_an_enumeration_that_ends_at_its_bound_says_that_it_is_not_complete():
    found = every_schedule(partial(run, SCENARIOS["room"]), 10)
    assert (found.count, found.is_complete) == (10, False)


def test_a_run_that_cannot_be_repeated_is_refused():
    runs = []

    def go(decisions):
        runs.append(None)
        with decided_by(decisions):
            trio.run(take_turns, "abcdefg"[: 1 + len(runs)], [])

    with pytest.raises(NotRepeatable, match="after the same"):
        every_schedule(go, 1000)


def test_another_scheduler_than_the_one_that_is_known_is_refused(monkeypatch):
    monkeypatch.delattr(trio._core._run, "_r")
    with pytest.raises(RuntimeError, match="has another scheduler"), decided_by(Decisions()):
        pass


# The share


@pytest.mark.parametrize("name", ["room", "inside", "streaming", "group"])
def test_no_schedule_of_a_small_scenario_breaks_a_promise(name):
    found = every_schedule(partial(run, SCENARIOS[name]), 2000)
    assert found.is_complete
    assert found.count >= 64


@every_scenario
def test_no_schedule_that_is_drawn_breaks_a_promise(scenario):
    some_schedules(partial(run, scenario), 10, seed=1)


@every_scenario
def test_no_step_at_which_a_scenario_is_cancelled_breaks_a_promise(scenario):
    # With a store there are more, of which this tries every third.
    assert cancel_scenario(scenario, seed=1, stride=1 if scenario.kind == "none" else 3) > 10


@pytest.mark.parametrize("call", [c for c in CALLS if "none" in c.kinds], ids=lambda c: c.name)
def test_a_call_that_is_cancelled_at_any_step_is_done_or_not_begun(call):
    assert cancel_call(call, "none", is_alone=True) > 20


@pytest.mark.parametrize("name", ["publish", "stop"])
def test_with_a_store_it_is_so_too_when_the_bus_is_cancelled_beside_it(name):
    (call,) = (call for call in CALLS if call.name == name)
    assert cancel_call(call, "memory", is_alone=False) > 50


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("call", [c for c in CALLS if "none" not in c.kinds], ids=lambda c: c.name)
def test_a_call_of_a_store_that_is_cancelled_at_any_step_is_done_or_not_begun(call, kind):
    assert cancel_call(call, kind, is_alone=True) > 5


@every_interruptible_scenario
def test_control_c_at_some_bytecodes_of_a_scenario_breaks_no_promise(scenario):
    with control_c():
        assert interrupt_everywhere(partial(run_interrupted, scenario), stride=293) > 1


# Planted bugs


@pytest.fixture
def _lost_wake_up(monkeypatch):
    """No worker is woken for what is published while a worker that was woken has not run yet."""

    @instead_of(monkeypatch, GroupShell, "wake")
    def wake_unless_one_is_called(wake, self):
        if not self.sent:
            wake(self)


@pytest.mark.usefixtures("_lost_wake_up")
def test_a_lost_wake_up_is_found_by_the_schedule_in_which_it_shows():
    go = partial(run, SCENARIOS["streaming"])
    with pytest.raises(ScheduleFailed, match="nobody took the event") as caught:
        every_schedule(go, 2000)
    assert "1" in caught.value.bits  # not in the first one
    with pytest.raises(ScheduleFailed) as again:
        one_schedule(go, caught.value.bits)
    assert str(again.value) == str(caught.value)


def test_a_publish_that_raises_for_what_it_has_accepted_is_found_by_cancelling(monkeypatch):
    @instead_of(monkeypatch, EventBus, "publish")
    async def publish_and_look_round(publish, self, event, **options):
        published = await publish(self, event, **options)
        await trio.lowlevel.checkpoint()
        return published

    with pytest.raises(StepFailed, match="2 accepted, 0 unsure, 3 counted as published"):
        cancel_call(CALLS[0], "none", is_alone=True)


def test_a_publish_without_protection_is_found_by_control_c(monkeypatch):
    publish = EventBus.publish
    code = publish.__code__.replace(co_name="publish_unprotected")
    unprotected = types.FunctionType(code, publish.__globals__)
    unprotected.__kwdefaults__ = publish.__kwdefaults__
    monkeypatch.setattr(EventBus, "publish", unprotected)
    with (
        control_c(),
        pytest.raises(InterruptFailed, match=r"(0|1) accepted, 0 unsure, [12] counted"),
    ):
        interrupt_everywhere(partial(run_interrupted, SCENARIOS["retry"]), stride=3)


# The command


def test_the_command_says_what_was_done_and_that_no_promise_was_broken(capsys):
    assert main(["schedules", "room"]) == 0
    assert main(["cancel", "--seeds", "2", "room"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("schedules room")
    assert "256 schedules: complete, with up to 8 decisions" in lines[0]
    assert lines[1] == ("1 scenarios: 256 schedules (complete in each scenario): no promise broken")
    assert lines[-1].endswith(" steps cancelled (every step of each order): no promise broken")


def test_the_command_names_a_scenario_that_is_not_complete(capsys):
    assert main(["schedules", "--most", "8", "room"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "NOT COMPLETE, the first 8 and 2 at random" in lines[0]
    assert "(not complete: room)" in lines[-1]


@pytest.mark.usefixtures("_lost_wake_up")
def test_the_command_fails_with_what_repeats_a_violation(capsys, monkeypatch):
    assert main(["schedules", "streaming"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("VIOLATION in schedules streaming: schedule ")
    bits = said.split()[5].rstrip(",")
    assert main(["schedules", "--repeat", bits, "streaming"]) == 1
    monkeypatch.undo()
    assert main(["schedules", "--repeat", bits, "streaming"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: NAME"),
        (["schedules", "nonsense"], "no scenario 'nonsense'"),
        (["schedules", "--repeat", "01"], "--repeat is about one scenario"),
        (["cancel", "--repeat", "01", "room"], "unrecognized arguments: --repeat"),
    ],
)
def test_the_command_refuses_what_cannot_be_done(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
