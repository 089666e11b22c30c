"""The buses and the stores that tests of promises are run with."""

from collections.abc import Callable

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
