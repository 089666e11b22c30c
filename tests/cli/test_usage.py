"""`triobus`: what cannot be run is one line and exit code 2, and help has examples."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.running import Here, written
from triobus.__main__ import main


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("shop", "'shop' is not MODULE:NAME: give for example shop.events:bus"),
        (":bus", "':bus' is not MODULE:NAME: give for example shop.events:bus"),
        ("shop_absent:bus", "there is no module 'shop_absent' here or installed"),
        ("shop_absent.events:bus", "there is no module 'shop_absent' here or installed"),
        ("json.events:bus", "there is no module 'json.events' here or installed"),
        ("json:bus\x1b[2J", "module 'json' has no 'bus\\x1b[2J'"),
        (
            "json:dumps",
            "dumps() cannot be called without arguments: missing a required argument: 'obj'",
        ),
    ],
)
def test_a_bus_that_is_not_there_is_one_line_and_exit_code_2(
    here: Here, target: str, message: str
) -> None:
    assert here("run", target) == (2, "", f"triobus: {message}\n")


def test_a_wrong_name_is_answered_with_the_right_one(here: Here, tmp_path: Path, name: str) -> None:
    written(tmp_path, name=name)
    message = f"triobus: module '{name}' has no 'buss'; it has the bus 'bus'\n"
    assert here("run", f"{name}:buss") == (2, "", message)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import shop_missing", "ModuleNotFoundError: \"No module named 'shop_missing'\""),
        ("1 / 0", "ZeroDivisionError: 'division by zero'"),
        ("raise SystemExit('\x1b[2J')", "SystemExit: '\\x1b[2J'"),
    ],
)
def test_a_module_that_cannot_be_imported_says_what_failed_and_where(
    here: Here, tmp_path: Path, name: str, code: str, message: str
) -> None:
    path = tmp_path / f"{name}.py"
    path.write_text(f"\n{code}\n")
    assert here("run", f"{name}:bus") == (
        2,
        "",
        f"triobus: importing '{name}' failed: {message} ({path}, line 2)\n",
    )


def test_input_that_cannot_be_read_is_one_line_and_exit_code_2(
    here: Here, tmp_path: Path, name: str
) -> None:
    written(tmp_path, name=name)
    for path, reason in [
        ("absent\n.jsonl", "No such file or directory"),
        (".", "it is a directory"),
        ("\0", "a path holds no null character"),
    ]:
        assert here("run", f"{name}:bus", "--input", path) == (
            2,
            "",
            f"triobus: cannot read {path!r}: {reason}\n",
        )


def test_input_that_cannot_be_read_on_ends_the_run(here: Here, tmp_path: Path, name: str) -> None:
    written(tmp_path, name=name)
    memory = "/proc/self/mem"  # it can be opened, and its first page cannot be read
    code, stdout, stderr = here("run", f"{name}:bus", "--input", memory, "--json")
    assert (code, json.loads(stdout)["read"]) == (2, 0)
    assert stderr == (
        f"triobus: reading '{memory}'\ntriobus: cannot read '{memory}': Input/output error\n"
    )


def test_closed_standard_input_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    written(tmp_path)
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m triobus run shop:bus <&-"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "triobus: cannot read standard input: it is closed\n",
    )


def test_a_bus_that_has_run_before_runs_again(here: Here, tmp_path: Path, name: str) -> None:
    code = """
    async def use():
        async with bus:
            pass

    trio.run(use)
    """
    written(tmp_path, code, name)
    (tmp_path / "feed.jsonl").touch()
    assert here("run", f"{name}:bus", "--input", "feed.jsonl")[0] == 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("1 / 0", "failed: ZeroDivisionError: 'division by zero'"),
        ("return 3", "did not return a list of dicts"),
        ("return [3]", "did not return a list of dicts"),
    ],
)
def test_a_report_that_cannot_be_printed_is_said_beside_the_summary(
    here: Here, tmp_path: Path, name: str, body: str, message: str
) -> None:
    written(tmp_path, f"def triobus_report():\n    {body}\n", name)
    (tmp_path / "feed.jsonl").touch()
    code, stdout, stderr = here("run", f"{name}:bus", "--input", "feed.jsonl", "--json")
    assert (code, stderr) == (
        2,
        f"triobus: reading 'feed.jsonl'\ntriobus: triobus_report() of '{name}' {message}\n",
    )
    assert json.loads(stdout)["groups"]["default"]["handled"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "triobus run: error: the following arguments are required: MODULE:NAME"),
        (
            ["demo", "--stop-timeout", "soon"],
            "triobus demo: error: argument --stop-timeout: 'soon' is no number of seconds from 0 "
            "up",
        ),
        (
            ["demo", "--stop-timeout=-1"],
            "triobus demo: error: argument --stop-timeout: '-1' is no number of seconds from 0 up",
        ),
    ],
)
def test_bad_usage_is_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, check=lambda error: error.code == 2):
        main(arguments)
    assert capsys.readouterr().err.splitlines()[-1] == message


@pytest.mark.parametrize("command", ["run", "demo"])
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, check=lambda error: error.code == 0):
        main([command, "--help"])
    assert f"\nexamples:\n  triobus {command}" in capsys.readouterr().out
