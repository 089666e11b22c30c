"""Fixtures that tests in several rooms use."""

import logging
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.postgres import server
from tests.sqlite.hostile.probing import check_printable

settings.register_profile("promises", deadline=None)  # of time a busy machine promises nothing
settings.load_profile("promises")


@pytest.fixture
def printable_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Look at every line that is logged in the test: it is one line, and no terminal obeys it."""
    caplog.set_level(logging.DEBUG, "triobus")
    yield
    for record in caplog.get_records("call"):
        if record.name == "triobus":
            check_printable(record.getMessage())
            assert "\n" not in record.getMessage()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say over which PostgreSQL, and how much of it."""
    group = parser.getgroup("triobus's own tests")
    group.addoption(
        "--postgres", metavar="DSN", help="the PostgreSQL to test with, in place of the wheel's"
    )
    group.addoption(
        "--all-over-postgres",
        action="store_true",
        help="every promise over PostgreSQL too, and not only those of a store",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Take the server that was given."""
    server.given = config.getoption("--postgres")
