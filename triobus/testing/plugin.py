"""The pytest plugin, beside pytest-trio: the marker `explore`, its option, and fixtures."""

import shlex
from collections.abc import Callable, Generator
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

import pytest
import trio

from triobus._bus import EventBus
from triobus.testing._explore import explored
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
    item.obj = _explored(item, item.obj, marker)


def _explored(item: pytest.Item, test: Callable[..., Any], marker: pytest.Mark) -> Any:
    def repeated_with(seed: int) -> str:
        return f"pytest {shlex.quote(item.nodeid)} --triobus-seed {seed}"

    def run(**arguments: Any) -> None:
        __tracebackhide__ = True

        async def in_world(world: World) -> None:
            await test(**arguments | {"world": world})

        async def alone() -> None:
            await test(**arguments)

        scenario = in_world if "world" in arguments else alone
        options = {"seed": item.config.getoption("--triobus-seed"), **marker.kwargs}
        explored(scenario, *marker.args, repeated_with=repeated_with, **options)

    return run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail a test whose clock has no effect, or in which a recorded event was changed."""
    if isinstance(item, pytest.Function) and item.get_closest_marker("trio") is not None:
        _check_clock(item)
    result = yield
    for recording in item.stash.get(_recordings, []):
        recording.assert_events_unchanged()
    return result


def _check_clock(item: pytest.Function) -> None:
    """Refuse a clock that pytest-trio does not see: it takes that among the test's arguments."""
    arguments = [item.funcargs.get(name) for name in item._fixtureinfo.argnames]
    if any(isinstance(argument, trio.abc.Clock) for argument in arguments):
        return
    for name in ("autojump_clock", "mock_clock"):
        if name in item.fixturenames:
            pytest.fail(
                f"{item.nodeid} uses the fixture {name!r} and does not take it as an argument: "
                "pytest-trio runs a test on the clock that is among its arguments, and this one "
                f"would wait in real time. Write 'async def {item.originalname}({name})'",
                pytrace=False,
            )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Show the timelines of a test that failed."""
    report = yield
    if report.when == "call" and report.failed:
        for recording in item.stash.get(_recordings, []):
            timeline, said = recording.timeline(), report.longreprtext
            if not all(line.strip() in said for line in timeline.splitlines()):
                report.sections.append(("What the bus did", timeline))
    return report


@pytest.fixture
def world(request: pytest.FixtureRequest) -> None:
    """The `World` of a test that is marked `explore`; another one for every seed."""
    if request.node.get_closest_marker("explore") is None:
        pytest.fail("the fixture 'world' is for tests that are marked @pytest.mark.explore")


@pytest.fixture
def recorded(request: pytest.FixtureRequest) -> Callable[[EventBus], Recording]:
    """`triobus.testing.record`, with the timelines in the report if the test fails.

    It does fail if something inside an event was changed (`EventChanged`).
    """

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
