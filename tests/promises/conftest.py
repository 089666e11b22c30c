"""The buses and the stores that tests of promises are run with."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.promises.kinds import KINDS, NEW, Reopened, reopened
from triobus import EventBus, EventStore


@pytest.fixture(params=NEW)
def new_bus(request: pytest.FixtureRequest) -> Callable[..., EventBus]:
    """Makes a bus with options, over each kind of store in turn."""
    new_store = NEW[request.param]
    return lambda **options: EventBus(new_store(), **options)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def new_store(kind: str, tmp_path) -> Reopened:
    """Opens the same store again and again, as a program does that starts again."""
    return reopened(kind, tmp_path)


@pytest.fixture(params=[*KINDS, "none"])
def any_store(request: pytest.FixtureRequest, tmp_path) -> Callable[[], EventStore | None]:
    """Opens a store of every kind again and again, and then none."""
    return (lambda: None) if request.param == "none" else reopened(request.param, tmp_path)


_OVER_POSTGRES = (
    "stored/",
    "test_commits.py",
    "test_log_promises.py",
    "test_pause_and_reset.py",
    "test_reading.py",
    "test_same_id.py",
    "test_scheduled_events.py",
)
"""The promises that are about a store. The others run over PostgreSQL with an option: each test
makes a schema, and all of them together would take minutes."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is run over PostgreSQL only with `--all-over-postgres`."""
    if config.getoption("--all-over-postgres"):
        return
    left_out = [item for item in items if _is_left_out(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def _is_left_out(item: pytest.Item) -> bool:
    here = Path(__file__).parent
    if not item.path.is_relative_to(here):
        return False
    kinds = getattr(item, "callspec", None)
    is_over_postgres = kinds is not None and "postgres" in kinds.params.values()
    name = item.path.relative_to(here).as_posix()
    return is_over_postgres and not name.startswith(_OVER_POSTGRES)
