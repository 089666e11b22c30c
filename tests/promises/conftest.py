"""The stores that tests of promises are run with."""

import pytest

from tests.promises.kinds import KINDS, Reopened, reopened


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def new_store(kind: str, tmp_path) -> Reopened:
    """Opens the same store again and again, as a program does that starts again."""
    return reopened(kind, tmp_path)
