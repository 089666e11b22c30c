"""The READMEs are true: their examples run and have the types that they say, their links lead
somewhere, their commands name real extras.
"""

import ast
import json
import os
import pydoc
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

import triobus
import triobus.demo
import triobus.testing
from benchmarks import report
from benchmarks.__main__ import BENCHMARKS
from tests.documents import DOCUMENTS, EVERYTHING, PROSE, ROOT, look_up, rows

README = DOCUMENTS["README.md"]


LINES = README.splitlines()


BLOCKS = [
    (match[1], match[2], match[3])
    for match in re.finditer(
        r"^```(\w+)\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", EVERYTHING, re.MULTILINE | re.DOTALL
    )
]
"""Language, content and, if a block of text follows at once, the output that it promises."""


PYTHON = [(source, output) for language, source, output in BLOCKS if language == "python"]


SCRIPTS = [(source, output) for source, output in PYTHON if "trio.run(" in source]


TESTS = [source for source, _ in PYTHON if "def test_" in source]


MODULES = [source for source, _ in PYTHON if source.startswith("# ")]


COMMANDS = [
    line for language, text, _ in BLOCKS if language == "console" for line in text.splitlines()
]


ERRORS = {
    name: error
    for name, error in vars(triobus).items()
    if isinstance(error, type) and issubclass(error, Exception)
}


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    # No example takes more than seconds: only one that hangs comes to the limit.
    return subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | {"PYTHONWARNINGS": "error", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def run_python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, *arguments, cwd=cwd)


def run_triobus(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # The installed command, as a reader calls it: unlike `python -m` it does not find the modules
    # of the current directory by itself.
    return run(Path(sysconfig.get_path("scripts")) / "triobus", *arguments, cwd=cwd)


def test_every_python_block_is_run_by_one_of_these_tests():
    assert sorted(SCRIPTS + [(source, None) for source in TESTS + MODULES], key=str) == sorted(
        PYTHON, key=str
    )
    assert (len(SCRIPTS), len(TESTS), len(MODULES)) == (4, 1, 4)
    assert [output for _, output in SCRIPTS if not output] == []


@pytest.mark.parametrize(("source", "output"), SCRIPTS)
def test_a_script_prints_exactly_the_output_that_follows_it(source, output, tmp_path):
    (tmp_path / "example.py").write_text(source, "utf-8")
    done = run_python("example.py", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, output), done.stderr


def test_the_first_thirty_lines_hold_an_example_and_its_output():
    top = "\n".join(LINES[:30]) + "\n"
    source, output = SCRIPTS[0]
    assert top.endswith(f"```python\n{source}```\n```text\n{output}```\n")


def test_the_five_tests_pass_in_less_than_their_hour(tmp_path):
    (source,) = TESTS
    (tmp_path / "test_example.py").write_text(source, "utf-8")
    done = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^5 passed in ", done.stdout, re.MULTILINE)


def test_the_command_line_example_prints_what_follows_it(tmp_path):
    (source,) = [source for source in MODULES if source.startswith("# shop.py\n")]
    (events,) = [text for language, text, _ in BLOCKS if language == "json"]
    command, output = next(
        (text, output) for language, text, output in BLOCKS if language == "console" and output
    )
    (tmp_path / "shop.py").write_text(source, "utf-8")
    (tmp_path / "orders.jsonl").write_text(events, "utf-8")
    program, *arguments = command.split()
    assert program == "triobus"
    done = run_triobus(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout[: len(output)] == output  # the summary below it has times in it


def alike(text: str) -> str:
    """What a command says, without what differs from run to run and from place to place."""
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ|\d+ s ago|'/.*/|[\d.]+ kB", "*", text)
    return re.sub(r" +$|-{3,}", "", text, flags=re.MULTILINE)


def test_the_session_of_operating_a_store_goes_as_it_is_written(tmp_path):
    section = DOCUMENTS["triobus/_cli/README.md"].split("\n## Operating a store\n")[1]
    for source in MODULES:
        name = source.split()[1]
        if name.startswith("shop_"):
            (tmp_path / name).write_text(source, "utf-8")
    (events,) = [text for language, text, _ in BLOCKS if language == "json"]
    (tmp_path / "orders.jsonl").write_text(events, "utf-8")
    session = re.findall(r"^```console\n(.*)\n```\n(?:```text\n((?:.*\n)*?)```\n)?", section, re.M)
    assert len(session) == 5
    codes = []
    for command, output in session:
        done = run_triobus(*command.split()[1:], cwd=tmp_path)
        codes.append(done.returncode)
        assert not output or alike(done.stdout) == alike(output), done.stderr
    assert codes == [1, 1, 1, 0, 0]


def test_the_events_of_the_command_line_example_are_one_json_object_a_line():
    (events,) = [text for language, text, _ in BLOCKS if language == "json"]
    assert [sorted(json.loads(line)) for line in events.splitlines()] == [
        ["data", "type"],
        ["data", "metadata", "type"],
    ]


@pytest.mark.parametrize("command", ["run", "demo"])
def test_the_options_of_the_command_line_exist(command, tmp_path):
    section = PROSE.split("\n## The command line\n")[1].split("\nThe other commands ")[0]
    options = {"--input"} if command == "demo" else set(re.findall(r"--[a-z-]+", section))
    done = run_triobus(command, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert options - set(re.findall(r"--[a-z-]+", done.stdout)) == set()


def test_the_set_up_commands_name_extras_that_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
        "optional-dependencies"
    ]
    named = [re.findall(r"'\.\[([\w,]+)\]'", command) for command in COMMANDS]
    assert [found for found in named if found] == [["cli,metrics"], ["test,cli"], ["bench"]]
    assert {extra for found in named for names in found for extra in names.split(",")} <= set(
        extras
    )
    (listed,) = re.findall(r"The extras: (.*?)\n\n", PROSE, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", listed)) == set(extras)


def test_the_readme_names_every_benchmark():
    listed = PROSE.partition("runs that benchmark alone:")[2].partition(".\n")[0]
    assert re.findall(r"`(\w+)`", listed) == list(BENCHMARKS)
    assert [command for command in COMMANDS if "-m benchmarks" in command] == [
        ".venv/bin/python -m benchmarks --quick"
    ]


def test_the_readme_has_the_figures_of_every_benchmark():
    written = DOCUMENTS["benchmarks/README.md"].partition(report.BEGIN)[2].partition(report.END)[0]
    titles = re.findall(r"^\*\*(.*)\*\*$", written, re.MULTILINE)
    assert len(titles) == len(BENCHMARKS)


def test_every_error_of_the_table_and_of_its_text_is_what_it_says():
    named = [name for _, names in rows("Errors") for name in re.findall(r"`(\w+)`", names)]
    assert len(set(named)) == len(named)
    assert set(named) <= set(ERRORS)
    section = " ".join(PROSE.split("\n## Errors\n")[1].split("\n## ")[0].split())
    also = re.findall(r"`(\w+)`(?: is)? an? `([\w.]+)`", section)
    assert len(also) == 4
    for name, other in also:
        assert issubclass(ERRORS[name], look_up(ast.parse(other, mode="eval").body))


def test_help_has_every_error_and_what_it_means():
    shown = pydoc.plain(pydoc.render_doc(triobus))
    assert set(ERRORS) <= set(triobus.__all__)
    assert [name for name in ERRORS if f"class {name}(" not in shown] == []
    assert [name for name, error in ERRORS.items() if not error.__dict__.get("__doc__")] == []
    assert [name for name in ERRORS if not issubclass(ERRORS[name], triobus.TriobusError)] == []


def test_every_link_leads_somewhere():
    anchors = {
        name: {
            re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        }
        for name, text in DOCUMENTS.items()
    }
    broken = []
    for name, text in DOCUMENTS.items():
        for target in re.findall(r"\]\(([^)]+)\)", text):
            path, _, anchor = target.partition("#")
            found = (ROOT / name).parent / path if path else ROOT / name
            document = os.path.relpath(found, ROOT)
            if not found.is_file() or (anchor and anchor not in anchors[document]):
                broken.append((name, target))
    assert broken == []


def test_every_python_block_passes_mypy_in_strict_mode(tmp_path):
    pytest.importorskip("mypy", reason="the type checkers come with the extra 'dev'")
    paths = []
    for number, (source, _) in enumerate(PYTHON):
        paths.append(tmp_path / f"example_{number}.py")
        paths[-1].write_text(source, "utf-8")
    done = run_python("-m", "mypy", "--strict", "--config-file=", *map(str, paths), cwd=ROOT)
    assert done.returncode == 0, done.stdout


CLIENT = """
from functools import partial
from uuid import UUID

import httpx
import trio
from hypercorn.config import Config
from hypercorn.trio import serve

import web

ONE, TWO = {"id": str(UUID(int=1)), "sku": "tea", "quantity": 3}, str(UUID(int=2))

async def main():
    config = Config.from_mapping(bind="127.0.0.1:0", accesslog=None, errorlog=None)
    done = trio.Event()
    async with trio.open_nursery() as nursery:
        start = partial(serve, web.app, config, shutdown_trigger=done.wait)
        url, = await nursery.start(start)
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            for order in (
                ONE,
                ONE,
                ONE | {"quantity": 4},
                {"id": TWO, "sku": "tea"},
                {"id": TWO, "sku": "tea", "quantity": 2**70},
            ):
                answer = await client.post("/orders", json=order)
                print(answer.status_code, sorted(answer.json()))
            print((await client.post("/orders", content=b"\\xff")).status_code)
            answer = await client.get("/readyz")
            print(answer.status_code, answer.json())
            await web.bus.stop()
            answer = await client.get("/readyz")
            print(answer.status_code, sorted(answer.json()))
            print((await client.post("/orders", json=ONE | {"id": TWO})).status_code)
        done.set()

trio.run(main)
"""


SAID = """\
201 ['position']
200 ['position']
409 ['error']
422 ['error']
422 ['error']
422
200 {'reasons': []}
503 ['reasons']
503
"""


def test_the_web_service_answers_as_the_text_says(tmp_path):
    (source,) = [source for source in MODULES if source.startswith("# web.py")]
    (tmp_path / "web.py").write_text(source, "utf-8")
    (tmp_path / "client.py").write_text(CLIENT, "utf-8")
    done = run_python("client.py", cwd=tmp_path)
    assert (done.returncode, done.stdout.replace("reserved 3 tea\n", "")) == (0, SAID), done.stderr
    assert done.stdout.count("reserved 3 tea\n") == 1
