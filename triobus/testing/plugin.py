"""The pytest plugin: the marker `explore`, the option `--triobus-seed`, and fixtures.

It works beside pytest-trio. A test that is marked is no test of pytest-trio's: it has runs of Trio
of its own.
"""

from collections.abc import Callable, Generator
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

import pytest

from triobus._bus import EventBus
from triobus.testing._explore import explore
from triobus.testing._record import Recording, record
from triobus.testing._world import World

_recordings = pytest.StashKey[list[Recording]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("triobus").addoption(
        "--triobus-seed",
        type=int,
        metavar="N",
        help="run tests that are marked 'explore' with this seed alone, to repeat a failure",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Add the marker."""
    config.addinivalue_line(
        "markers",
        "explore(seeds=200, faults=None): run the async test in many worlds, each decided by a "
        "seed, as triobus.testing.explore does; its argument 'world' is the World",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    """Make a plain test of one that is marked, before pytest-trio takes it for its own."""
    marker = item.get_closest_marker("explore")
    if marker is None or not isinstance(item, pytest.Function):
        return
    if not iscoroutinefunction(item.obj):
        raise pytest.UsageError(
            f"{item.nodeid} is marked 'explore' and is no 'async def': only those can be explored"
        )
    item.obj = _explored(item.obj, marker, item.config.getoption("--triobus-seed"))


def _explored(test: Callable[..., Any], marker: pytest.Mark, seed: int | None) -> Any:
    def explored(**arguments: Any) -> None:
        __tracebackhide__ = True

        async def in_world(world: World) -> None:
            await test(**arguments | {"world": world})

        async def alone() -> None:
            await test(**arguments)

        scenario = in_world if "world" in arguments else alone
        explore(scenario, *marker.args, **{"seed": seed, **marker.kwargs})

    return explored


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Show what was recorded in a test that failed."""
    report = yield
    if report.when == "call" and report.failed:
        for recording in item.stash.get(_recordings, []):
            report.sections.append(("What the bus did", recording.timeline()))
    return report


@pytest.fixture
def world(request: pytest.FixtureRequest) -> None:
    """The `World` of a test that is marked `explore`; another one for every seed."""
    if request.node.get_closest_marker("explore") is None:
        pytest.fail("the fixture 'world' is for tests that are marked @pytest.mark.explore")


@pytest.fixture
def recorded(request: pytest.FixtureRequest) -> Callable[[EventBus], Recording]:
    """`triobus.testing.record`, with the timelines in the report if the test fails."""

    def recorded(bus: EventBus) -> Recording:
        recording = record(bus)
        recordings = request.node.stash.setdefault(_recordings, [])
        if recording not in recordings:
            recordings.append(recording)
        return recording

    return recorded


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    """The path of a store that does not exist yet, in a directory of the test's own."""
    return tmp_path / "events.db"
