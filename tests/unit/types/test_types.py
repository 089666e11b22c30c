"""mypy and pyright know what an event's handler is given, and refuse a handler of another event."""

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import run
from typing import Any

import pytest

for checker in ("mypy", "basedpyright"):
    pytest.importorskip(checker, reason="the type checkers come with the extra 'dev'")

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
Errors = Mapping[int, set[str]]
"""The codes of what a checker says, by line."""

CODES = {
    "handler": {"arg-type", "reportArgumentType", "reportCallIssue"},
    "attribute": {"attr-defined", "union-attr", "reportAttributeAccessIssue"},
    "option": {"call-overload", "reportArgumentType", "reportCallIssue"},
    "type": {"type-var", "arg-type", "reportArgumentType", "reportCallIssue"},
}
"""What the checkers may say to the lines that are marked with these words."""


def mypy(path: Path, tmp_path: Path) -> Errors:
    cache = f"--cache-dir={tmp_path.parent / 'mypy'}"  # two at once break one that they share
    options = ["--strict", "--config-file=", "--no-error-summary", cache]
    shown = _said(path, "mypy", *options, str(path))
    found = re.findall(r"^.*?:(\d+): error: .*\[([\w-]+)\]$", shown, re.MULTILINE)
    assert len(found) == shown.count(": error:"), shown
    return _by_line((int(line), code) for line, code in found)


def pyright(path: Path, tmp_path: Path) -> Errors:
    settings = {"typeCheckingMode": "strict", "include": [str(path)], "extraPaths": [str(ROOT)]}
    project = tmp_path / "pyrightconfig.json"
    project.write_text(json.dumps(settings))
    arguments = ["--outputjson", "--project", str(project), "--pythonpath", sys.executable]
    shown = json.loads(_said(path, "basedpyright", *arguments))
    assert shown["summary"]["filesAnalyzed"] == 1
    return _by_line(
        (each["range"]["start"]["line"] + 1, each.get("rule", each["message"]))
        for each in shown["generalDiagnostics"]
    )


def _said(path: Path, module: str, *arguments: str) -> str:
    command = [sys.executable, "-m", module, *arguments]
    done = run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def _by_line(found: Any) -> Errors:
    errors: dict[int, set[str]] = {}
    for line, code in found:
        errors.setdefault(line, set()).add(code)
    return errors


checkers = pytest.mark.parametrize("check", [mypy, pyright])


@checkers
def test_what_is_right_is_accepted(check: Callable[..., Errors], tmp_path: Path) -> None:
    assert check(HERE / "accepted.py", tmp_path) == {}


@checkers
def test_what_is_wrong_is_refused_where_it_is(check: Callable[..., Errors], tmp_path: Path) -> None:
    path = HERE / "refused.py"
    lines = enumerate(path.read_text().splitlines(), 1)
    marked = {number: line.partition("# refused: ")[2] for number, line in lines}
    expected = {number: CODES[word] for number, word in marked.items() if word}
    found = check(path, tmp_path)
    assert sorted(found) == sorted(expected)
    # What is of no known type after the error is said too, and is no matter of its own.
    about = {
        line: {code for code in codes if not code.startswith("reportUnknown")}
        for line, codes in found.items()
    }
    assert [line for line in found if not about[line] or not about[line] <= expected[line]] == []
