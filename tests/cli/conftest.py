"""The command line in the process of a test, and names for the modules that it runs."""

import itertools
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli import operated
from tests.cli.running import Here
from triobus import SqliteEventStore
from triobus.__main__ import main

_names = (f"shop_{number}" for number in itertools.count())


@pytest.fixture
def name() -> str:
    """A module's name that no other test uses, for modules and event classes stay loaded."""
    return next(_names)


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Here]:
    """Runs the command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    before = set(sys.modules)

    def run_here(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield run_here
    for module in set(sys.modules) - before:
        if module.startswith("shop"):
            del sys.modules[module]


@pytest.fixture(scope="session")
def made_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("operated") / "shop.db"
    operated.operate(SqliteEventStore(path))
    return path


@pytest.fixture
def store(made_store: Path, tmp_path: Path) -> str:
    """A store of one's own with 8 events, one scheduled, three dead letters and a retry."""
    return str(shutil.copy(made_store, tmp_path / "shop.db"))
