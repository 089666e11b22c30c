"""Every public call of a bus and its store overlaps every other, as the seed has it."""

import pytest
import trio

from tests.kit.scenarios import Ordered
from triobus import EventBus, MemoryEventStore, Retry
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
