"""What tests with hostile data share."""

from pathlib import Path

import pytest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store is."""
    return tmp_path / "hostile.db"


@pytest.fixture(autouse=True)
def nothing_in_the_log_is_a_command(printable_log: None) -> None:
    """Look at every line that is logged in these tests."""
