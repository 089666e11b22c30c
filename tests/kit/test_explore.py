"""`explore` and `cancel_at_every_step` decide every chance by a seed, and repeat it."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trio

import triobus.testing
from tests.kit.scenarios import Ordered, durable, in_memory
from triobus import EventBus, InvalidOption
from triobus.testing import (
    ExplorationFailed,
    Faults,
    StepFailed,
    cancel_at_every_step,
    explore,
    hold_clock,
)
from triobus.testing._scheduler import scheduled_by

ROOT = Path(__file__).parent.parent.parent


def order_of_ten_tasks():
    async def main():
        order = []

        async def note(number):
            await trio.lowlevel.checkpoint()
            order.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(note, number)
        return tuple(order)

    return trio.run(main)


def seeded_order(seed):
    with scheduled_by(seed):
        return order_of_ten_tasks()


def test_a_seed_fixes_the_order_in_which_trio_takes_tasks():
    orders = [seeded_order(seed) for seed in range(20)]
    assert orders == [seeded_order(seed) for seed in range(20)]
    assert len(set(orders)) == 20


def test_the_scheduler_is_left_as_it_was():
    scheduler = trio._core._run
    before = scheduler._r.getstate(), scheduler._ALLOW_DETERMINISTIC_SCHEDULING
    seeded_order(1)
    assert (scheduler._r.getstate(), scheduler._ALLOW_DETERMINISTIC_SCHEDULING) == before


@pytest.mark.parametrize("name", ["_r", "_ALLOW_DETERMINISTIC_SCHEDULING"])
def test_a_trio_whose_scheduler_has_changed_is_refused(monkeypatch, name):
    monkeypatch.delattr(trio._core._run, name)
    with pytest.raises(RuntimeError, match=r"keeps the random source of its scheduler elsewhere"):
        seeded_order(1)


PROGRAM = """
from tests.kit.scenarios import durable, in_memory
from triobus.testing import explore
for seed in range(5):
    for scenario in (in_memory, durable):
        print(explore(scenario, seed=seed).timeline)
"""


def test_a_seed_gives_the_same_timeline_in_every_process():
    def timelines(hash_seed):
        return subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=60,
            check=True,
        ).stdout

    first = timelines("1")
    assert first == timelines("2")
    assert len(set(first.split(b"\n"))) > 300


def test_the_kit_is_not_imported_with_the_bus():
    program = (
        "import sys, triobus; print([m for m in sys.modules if m.startswith(('trio.testing', "
        "'triobus.testing', 'pytest'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"


def test_seeds_differ_and_are_counted():
    found = explore(durable, seeds=range(5, 25))
    assert found.seeds == 20
    assert found.crashes > 0
    assert found.published > 100
    assert found.attempts > found.published
    assert len({explore(durable, seed=seed).timeline for seed in range(5)}) == 5


def test_a_failure_names_its_seed_and_can_be_repeated():
    async def scenario():
        order = []

        async def note(number):
            await trio.lowlevel.checkpoint()
            order.append(number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(note, 1)
            nursery.start_soon(note, 2)
        assert order == [1, 2], "they came in another order"

    with pytest.raises(ExplorationFailed, match="they came in another order") as caught:
        explore(scenario)
    seed = caught.value.seed
    assert f"Repeat it with explore(..., seed={seed})\n\nWhat happened" in str(caught.value)
    with pytest.raises(ExplorationFailed) as again:
        explore(scenario, seed=seed)
    assert str(again.value) == str(caught.value)


def test_without_faults_nothing_fails_and_nothing_is_killed():
    faults = Faults(handler_failures=0, latency=0, crashes=0)
    found = explore(durable, seeds=20, faults=faults)
    assert (found.crashes, found.published, found.attempts) == (0, 160, 160)


def test_a_program_that_waits_for_ever_even_when_cancelled_is_ended():
    async def scenario():
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                await trio.sleep_forever()

    with pytest.raises(ExplorationFailed, match="ProgramHangs: every task of the program waits"):
        explore(scenario, seeds=1)


HOLD_CLOCK = r"trio\.to_thread.*'async with triobus\.testing\.hold_clock\(\)'"


def test_a_handler_that_waits_for_a_thread_is_told_of_hold_clock():
    asked = threading.Event()

    def answer():
        return asked.wait(60)

    async def scenario():
        bus = EventBus()

        @bus.subscribe(Ordered)
        async def handle(event):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, answer)
                try:
                    await trio.sleep_forever()
                finally:
                    asked.set()

        async with bus:
            await bus.publish(Ordered("Ada", 1))

    with pytest.raises(ExplorationFailed, match=f"(?s)ProgramHangs: every task.*{HOLD_CLOCK}"):
        explore(scenario, seeds=1, faults=Faults(handler_failures=0))


def test_a_timeout_that_comes_while_a_thread_is_at_work_is_told_of_it_too():
    timed_out = threading.Event()

    async def scenario():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, timed_out.wait)
            with trio.move_on_after(5) as scope:
                await trio.sleep_forever()
            timed_out.set()
        assert not scope.cancelled_caught, "time went on"

    with pytest.raises(ExplorationFailed, match=f"(?s)AssertionError: time went on.*{HOLD_CLOCK}"):
        explore(scenario, seeds=1)


def test_a_foreign_thread_that_all_wait_for_is_told_of_too():
    ended = threading.Event()

    async def scenario():
        thread = threading.Thread(target=ended.wait)
        thread.start()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()
            thread.join()

    with pytest.raises(ExplorationFailed, match=f"(?s)ProgramHangs: every task.*{HOLD_CLOCK}"):
        explore(scenario, seeds=1)


def test_in_hold_clock_a_handler_may_wait_for_a_thread():
    handled = []

    async def scenario():
        bus = EventBus()

        @bus.subscribe(Ordered, timeout=5)
        async def handle(event):
            async with hold_clock():
                handled.append(await trio.to_thread.run_sync(lambda: event.number))

        async with bus:
            await bus.publish(Ordered("Ada", 1))

    explore(scenario, seeds=5, faults=Faults(handler_failures=0))
    assert handled == [1] * 5


def test_a_hang_without_a_thread_is_not_told_of_one():
    with pytest.raises(ExplorationFailed) as caught:
        explore(trio.sleep_forever, seeds=1)
    assert "ProgramHangs" in str(caught.value)
    assert "hold_clock" not in str(caught.value)


@pytest.mark.parametrize("name", triobus.testing.__all__)
def test_everything_of_the_kit_is_shown_under_its_public_module(name):
    assert getattr(triobus.testing, name).__module__ == "triobus.testing"


def calls_to_explore(events):
    """Return how many calls of Python functions it takes to explore one schedule of so many."""

    async def scenario(world):
        bus = EventBus(store=world.store())

        @bus.subscribe(Ordered, name="handle")
        async def handle(event):
            await trio.sleep(0.001)

        async with bus, trio.open_nursery() as nursery:
            for number in range(events):
                event_id = world.event_id(f"{number}")
                event = Ordered(f"customer {number % 10}", number, event_id=event_id)
                nursery.start_soon(bus.publish, event)

    calls = 0

    def count(frame, what, argument):
        nonlocal calls
        calls += what == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        explore(scenario, seeds=1)
    finally:
        sys.setprofile(before)
    return calls


def test_exploring_costs_less_than_1500_calls_an_event_however_many_there_are():
    calls_to_explore(50)  # what is looked up once, is
    few, many = calls_to_explore(50), calls_to_explore(400)
    assert few < 50 * 1500
    assert many < 400 * 1500


async def test_inside_a_run_of_trio_they_are_refused():
    with pytest.raises(InvalidOption, match="call this in a plain function"):
        explore(in_memory)
    with pytest.raises(InvalidOption, match="call this in a plain function"):
        cancel_at_every_step(in_memory, lambda: None)


@pytest.mark.parametrize(
    "call",
    [
        lambda: explore(None),
        lambda: explore(in_memory, seeds=0),
        lambda: explore(in_memory, seed=-1),
        lambda: Faults(handler_failures=2),
        lambda: Faults(latency=-1),
        lambda: Faults(crashes=0.5),
        lambda: cancel_at_every_step(in_memory, lambda: None, step=0),
    ],
)
def test_values_that_cannot_work_are_refused(call):
    with pytest.raises(InvalidOption):
        call()


def test_a_scenario_is_cancelled_once_at_each_of_its_steps():
    reached = []

    async def scenario():
        done = 0
        reached.append(done)
        for _ in range(3):
            await trio.lowlevel.checkpoint()
            reached[-1] += 1

    checks = []
    steps = cancel_at_every_step(scenario, lambda: checks.append(len(reached)))
    assert len(checks) == steps + 1
    assert set(reached) == {0, 1, 2, 3}
    assert reached == sorted(reached)


def test_the_step_that_fails_is_named_and_can_be_run_alone():
    finished = []

    async def scenario():
        finished.append(False)
        await trio.sleep(1)
        await trio.sleep(1)
        finished[-1] = True

    async def check():
        await trio.lowlevel.checkpoint()
        assert finished[-1], "it has not finished"

    with pytest.raises(StepFailed, match="it has not finished") as caught:
        cancel_at_every_step(scenario, check)
    runs = len(finished)
    with pytest.raises(StepFailed, match=f"cancelled at step {caught.value.step}:"):
        cancel_at_every_step(scenario, check, step=caught.value.step)
    assert len(finished) == runs + 1
