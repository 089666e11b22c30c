"""The pytest plugin: marker, option and fixtures, beside pytest-trio."""

import pytest

EVENTS = """
import attrs, pytest, trio
from triobus import DomainEvent, EventBus
from triobus.testing import Faults

@attrs.frozen
class Placed(DomainEvent):
    number: int
"""


@pytest.fixture(params=["trio_mode = true", ""])
def project(request, pytester, monkeypatch):
    for name in ("CI", "BUILD_NUMBER"):  # with one of them pytest says each failure twice
        monkeypatch.delenv(name, raising=False)
    pytester.makeini(f"[pytest]\n{request.param}\naddopts = --strict-markers -W error\n")

    def run(source, *arguments):
        pytester.makepyfile(EVENTS + source)
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)

    return run


def test_a_marked_test_runs_in_many_worlds(project):
    done = project("""
worlds = []

@pytest.mark.explore(seeds=7, faults=Faults(crashes=0))
async def test_with_a_world(world, tmp_path):
    worlds.append(world.seed)
    async with EventBus(store=world.store()) as bus:
        await bus.publish(Placed(1))

@pytest.mark.explore(seeds=3)
async def test_without():
    worlds.append("without")

def test_after():
    assert worlds == [*range(7), *["without"] * 3]
""")
    done.assert_outcomes(passed=3)


FAILING = """
@pytest.mark.explore(seeds=50)
async def test_order():
    order = []
    async def note(number):
        await trio.lowlevel.checkpoint()
        order.append(number)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(note, 1)
        nursery.start_soon(note, 2)
    print("seen", order)
    assert order == [1, 2]
"""


def test_its_failure_names_the_seed_which_the_option_repeats(project):
    done = project(FAILING)
    done.assert_outcomes(failed=1)
    (line,) = [line for line in done.outlines if "ExplorationFailed: seed" in line][:1]
    seed = line.split("seed ")[1].split(":")[0]
    alone = project(FAILING, "--triobus-seed", seed)
    alone.assert_outcomes(failed=1)
    assert alone.stdout.str().count("seen [2, 1]") == 1
    assert f"seed {seed}:" in alone.stdout.str()
    for said in (done.stdout.str(), alone.stdout.str()):
        command = f"pytest {alone_file(said)}::test_order --triobus-seed {seed}"
        assert f"Repeat it with {command}" in said
        assert "explore(..., seed" not in said


def alone_file(said):
    return next(word for word in said.split() if word.endswith(".py::test_order")).split("::")[0]


RECORDED = """
@pytest.mark.explore(seeds=1, faults=Faults(crashes=0, handler_failures=0))
async def test_with_an_assertion_of_the_recording(world):
    async with EventBus() as bus:
        await bus.publish(Placed(7))
    world.recording.assert_nothing_failed()
    world.recording.assert_published(Placed, number=8)

@pytest.mark.trio
async def test_with_an_assertion_of_recorded(recorded):
    bus = EventBus()
    recording = recorded(bus)
    async with bus:
        await bus.publish(Placed(7))
    recording.assert_published(Placed, number=8)
"""


@pytest.mark.parametrize("name", ["an_assertion_of_the_recording", "an_assertion_of_recorded"])
def test_a_failing_test_shows_its_timeline_once_with_times_from_nought(project, name):
    done = project(RECORDED, "-k", name)
    done.assert_outcomes(failed=1, deselected=1)
    said = done.stdout.str()
    assert "no Placed(number=8) was published" in said
    assert said.count("#1 Placed(number=7) published") == 1
    assert " 0.000  #1 Placed(number=7) published" in said


def test_a_test_in_which_a_recorded_event_was_changed_fails(project):
    done = project("""
@attrs.frozen
class Packed(DomainEvent):
    items: list

@pytest.mark.trio
async def test_it(recorded):
    bus = EventBus()
    recorded(bus)
    @bus.subscribe(Packed, name="pack")
    async def pack(event):
        event.items.clear()
    async with bus:
        await bus.publish(Packed([1]))
""")
    done.assert_outcomes(failed=1)
    said = done.stdout.str()
    assert (
        "triobus.testing.EventChanged: Packed.items was changed while default/pack had it" in said
    )
    assert said.count("#1 Packed(items=") == 1


CLOCKS = """
@pytest.fixture
def clock(autojump_clock):
    return autojump_clock

@pytest.mark.trio
@pytest.mark.usefixtures("autojump_clock")
async def test_marked():
    await trio.sleep(1e9)

@pytest.mark.trio
async def test_indirect(clock):
    await trio.sleep(1e9)

@pytest.mark.trio
@pytest.mark.usefixtures("autojump_clock")
async def test_taken(autojump_clock):
    await trio.sleep(1e9)

@pytest.mark.usefixtures("autojump_clock")
def test_plain():
    pass
"""


def test_a_clock_that_has_no_effect_is_refused_with_what_to_write(project):
    done = project(CLOCKS)
    done.assert_outcomes(failed=1, passed=3)
    assert "Write 'async def test_marked(autojump_clock)'" in done.stdout.str()


def test_a_marked_test_that_is_not_async_is_refused(project):
    done = project("@pytest.mark.explore\ndef test_plain():\n    pass\n")
    assert "is marked 'explore' and is no 'async def'" in done.stdout.str() + done.stderr.str()
    assert done.ret != 0


def test_the_world_is_for_marked_tests(project):
    done = project("def test_plain(world):\n    pass\n")
    assert "'world' is for tests that are marked @pytest.mark.explore" in done.stdout.str()


def test_a_failing_test_shows_what_it_had_recorded(project):
    done = project("""
@pytest.mark.trio
async def test_it(recorded, store_path):
    bus = EventBus()
    assert recorded(bus) is recorded(bus)
    async with bus:
        await bus.publish(Placed(7))
    assert store_path.exists()
""")
    done.assert_outcomes(failed=1)
    assert "What the bus did" in done.stdout.str()
    assert "#1 Placed(number=7) published" in done.stdout.str()
