"""Every public call of a bus and its store overlaps every other, as the seed has it."""

import pytest
import trio

from tests.kit.scenarios import Ordered
from tests.planting import instead_of
from triobus import EventBus, MemoryEventStore, Retry
from triobus._bus.schedule import MemorySchedule
from triobus._durability.catch_up import CatchUp
from triobus._groups.workers import GroupShell
from triobus.stores._scheduled import ScheduledEvents
from triobus.testing import ExplorationFailed, Faults, explore

CALM = Faults(crashes=0)


def order(number):
    return Ordered(["Ada", "Bob", "Cyd"][number % 3], number)


def new_bus(store=None, **options):
    bus = EventBus(store, **options)

    @bus.subscribe(Ordered, name="it", retry=Retry(attempts=2, delay=0.5))
    async def handle(event):
        await trio.sleep(0.01)
        if event.number % 5 == 0:
            raise OSError("every fifth fails")

    return bus


def store_of(kind, world):
    if kind == "none":
        return None
    return world.store() if kind == "sqlite" else MemoryEventStore()


@pytest.mark.parametrize("kind", ["none", "memory", "sqlite"])
def test_calls_that_overlap_by_chance_break_no_promise(kind):
    async def scenario(world):
        async with new_bus(store_of(kind, world), workers=2, buffer=3) as bus:
            await world.mix(world.calls(bus, order))

    assert explore(scenario, seeds=15, faults=CALM).published > 100


def test_calls_that_overlap_by_chance_and_crashes_break_no_promise():
    async def scenario(world):
        async with new_bus(world.store(), workers=2) as bus:
            await world.mix(world.calls(bus, lambda number: order(number + 100 * world.life)))

    assert explore(scenario, seeds=15).crashes > 0


def test_a_scenario_mixes_calls_of_its_own():
    called = []

    async def own():
        called.append(await trio.lowlevel.checkpoint())

    async def scenario(world):
        await world.mix({"own": own}, tasks=2, steps=3)
        assert world.timeline().count("own begins") == 6

    explore(scenario, seeds=4, faults=CALM)
    assert 12 < len(called) <= 24


def test_the_same_seed_mixes_the_same_calls():
    async def scenario(world):
        async with new_bus(world.store()) as bus:
            await world.mix(world.calls(bus, order))

    assert explore(scenario, seed=3).timeline == explore(scenario, seed=3).timeline


def test_a_call_that_hangs_is_seen_in_the_timeline():
    async def scenario(world):
        await world.mix({"hang": trio.sleep_forever}, tasks=1, steps=50)

    with pytest.raises(ExplorationFailed, match="ProgramHangs") as caught:
        explore(scenario, seeds=1, faults=CALM)
    assert str(caught.value).splitlines()[-1].endswith("hang begins")


def test_a_call_that_fails_is_found():
    async def fail():
        raise ValueError("it does not work")

    async def scenario(world):
        await world.mix({"fail": fail})

    with pytest.raises(ExplorationFailed, match="ValueError: it does not work"):
        explore(scenario, seeds=1, faults=CALM)


# Planted bugs


async def _mixing(world):
    async with new_bus(MemoryEventStore(), workers=2, buffer=3) as bus:
        await world.mix(world.calls(bus, order), steps=20)


async def _mixing_without_a_store(world):
    async with new_bus(workers=2, buffer=3) as bus:
        await world.mix(world.calls(bus, order), steps=20)


def test_an_event_that_is_taken_back_twice_is_found(monkeypatch):
    monkeypatch.setattr(MemorySchedule, "cancel", lambda self, event_id: True)
    with pytest.raises(ExplorationFailed, match="was taken back, and was not scheduled"):
        explore(_mixing_without_a_store, seeds=20, faults=CALM)


def test_an_event_that_comes_early_is_found(monkeypatch):
    @instead_of(monkeypatch, ScheduledEvents, "add")
    def hurry(add, self, item, known):
        return add(self, item._replace(due_at=item.due_at - 0.5), known)

    with pytest.raises(ExplorationFailed, match="was handled before it was due"):
        explore(_mixing, seeds=40, faults=CALM)


def test_a_pause_that_does_not_wait_is_found(monkeypatch):
    async def freeze_only(self):
        self.lanes.freeze()
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(GroupShell, "rest", freeze_only)
    with pytest.raises(ExplorationFailed, match="is paused, and 1 of its handlers run"):
        explore(_mixing, seeds=40, faults=CALM)


def test_a_reset_after_which_nothing_comes_again_is_found(monkeypatch):
    @instead_of(monkeypatch, CatchUp, "begin_anew")
    def begin_at_the_end(begin_anew, self, offset):
        begin_anew(self, self.last)

    with pytest.raises(ExplorationFailed, match=r"is recorded as finished|is lost"):
        explore(_mixing, seeds=40, faults=CALM)
