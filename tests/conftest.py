"""Fixtures that tests in several rooms use."""

import logging
from collections.abc import Iterator

import pytest

from tests.sqlite.hostile.probing import check_printable


@pytest.fixture
def printable_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Look at every line that is logged in the test: it is one line, and no terminal obeys it."""
    caplog.set_level(logging.DEBUG, "triobus")
    yield
    for record in caplog.get_records("call"):
        if record.name == "triobus":
            check_printable(record.getMessage())
            assert "\n" not in record.getMessage()
