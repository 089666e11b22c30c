"""What tests with hostile data share."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.probing import check_printable


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store is."""
    return tmp_path / "hostile.db"


@pytest.fixture(autouse=True)
def nothing_in_the_log_is_a_command(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Look at every line that is logged in these tests."""
    caplog.set_level(logging.DEBUG, "triobus")
    yield
    for record in caplog.get_records("call"):
        if record.name == "triobus":
            check_printable(record.getMessage())
            assert "\n" not in record.getMessage()
