"""The commands on stores: with any store, any terminal, and without rich."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import trio

from tests.cli.operated import Ordered
from tests.cli.running import Here, started
from triobus import SqliteEventStore
from triobus.__main__ import main

COMMANDS = {
    "status": [],
    "events": [],
    "show": ["1"],
    "dead-letters": [],
    "retries": [],
    "groups": [],
    "export": [],
    "backup": ["copy.db"],
    "graph": [],
    "verify": [],
}
"""What only looks, with what it needs besides the store."""
CHANGES = [
    ["dead-letters", "STORE", "discard", "--all", "--yes"],
    ["groups", "STORE", "reset", "mail", "--to", "end", "--yes"],
    ["groups", "STORE", "remove", "mail", "--yes"],
    ["import", "STORE", "in.jsonl"],
]
WITHOUT_RICH = """
import sys
sys.modules["rich"] = None
from triobus.__main__ import main
sys.exit(main())
"""


def spoil(store: str, statement: str) -> None:
    with closing(sqlite3.connect(store)) as file:
        file.execute(statement)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("PRAGMA user_version = 99", "update triobus"),
        ("PRAGMA application_id = 7", "is a database of another application"),
        ("DROP TABLE attempts", "does not have the schema of a store"),
    ],
)
def test_newer_and_foreign_stores_are_one_line_and_exit_code_2(
    here: Here, store: str, command: str, statement: str, message: str
) -> None:
    spoil(store, statement)
    code, stdout, stderr = here(command, store, *COMMANDS[command])
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert message in stderr
    assert os.listdir() == ["shop.db"]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_only_looks_changes_no_byte_and_leaves_no_file(
    here: Here, store: str, command: str
) -> None:
    before = Path(store).read_bytes()
    here(command, store, *COMMANDS[command])
    assert Path(store).read_bytes() == before
    assert set(os.listdir()) - {"copy.db"} == {"shop.db"}


@pytest.mark.parametrize("command", CHANGES, ids=lambda command: "-".join(command[::2][:2]))
def test_a_change_of_a_store_that_is_not_there_makes_none(
    here: Here, tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "in.jsonl").write_text("{\n")
    code, stdout, _ = here(*(part.replace("STORE", "absent.db") for part in command))
    assert (code, stdout, os.listdir()) == (2, "", ["in.jsonl"])


@pytest.mark.parametrize("command", ["backup", "import", "verify"])
def test_a_database_where_only_a_file_will_do_is_said(here: Here, command: str) -> None:
    code, stdout, stderr = here(command, "postgresql://localhost/shop", *COMMANDS.get(command, []))
    assert (code, stdout, "give a path" in stderr) == (2, "", True)
    assert os.listdir() == []


def test_another_program_that_has_locked_the_store_is_said(here: Here, store: str) -> None:
    with closing(sqlite3.connect(store, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        code, stdout, stderr = here("dead-letters", store, "discard", "--all", "--yes")
        assert (code, stdout, "has locked it" in stderr) == (2, "", True)
        assert here("dead-letters", store)[1].splitlines()[2].split()[0] == "3"


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_one_object_or_one_a_line(here: Here, store: str, command: str) -> None:
    _, stdout, stderr = here(command, store, *COMMANDS[command], "--json")
    assert stderr == ""
    if command in ("events", "retries", "export"):
        assert len([json.loads(line) for line in stdout.splitlines()]) >= 1
    else:
        assert isinstance(json.loads(stdout), dict)
    assert {line.isprintable() for line in stdout.splitlines()} == {True}


@pytest.mark.parametrize("command", ["status", "events", "dead-letters", "groups"])
def test_without_rich_and_colours_in_ascii_everything_is_plain_text(
    store: str, tmp_path: Path, command: str
) -> None:
    root = str(Path(__file__).parents[2])
    environment = {"PYTHONPATH": root, "LC_ALL": "C", "NO_COLOR": "1", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RICH, command, store],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert (done.returncode in (0, 1), done.stderr) == (True, b"")
    assert done.stdout.isascii()
    assert b"\x1b" not in done.stdout


async def test_watching_says_what_has_changed_until_ctrl_c(store: str, tmp_path: Path) -> None:
    process = started(tmp_path, "status", store, "--watch", "--json")
    assert process.stdout is not None

    def read_object() -> int:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        while lines[-1] != "}\n":
            lines.append(process.stdout.readline())
        return int(json.loads("".join(lines))["events"])

    found = [await trio.to_thread.run_sync(read_object)]
    async with SqliteEventStore(store) as own:
        await own.append([Ordered("B")])
        found.append(await trio.to_thread.run_sync(read_object))
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert (found, process.returncode, stderr) == ([8, 9], 0, "")


@pytest.mark.parametrize(
    "command",
    [
        *(["schema"], ["import"]),
        *([command] for command in COMMANDS),
        *(["dead-letters", "x.db", action] for action in ("discard", "replay")),
        *(["groups", "x.db", action] for action in ("reset", "remove")),
    ],
    ids=" ".join,
)
def test_every_help_has_lines_that_fit_and_examples_of_commands_that_exist(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    examples = re.findall(r"^  triobus ([a-z-]+)", text, re.MULTILINE)
    assert set(examples) <= {*COMMANDS, "run", "import", "schema"}
    if len(command) == 1:
        assert command == ["verify"] or command[0] in examples
        assert "exit codes:" in text
