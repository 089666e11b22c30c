"""The READMEs are true: their examples run and have the types that they say, their names and links
exist, their commands name real extras.
"""

import ast
import asyncio
import builtins
import inspect
import json
import os
import pydoc
import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import trio

import triobus
import triobus.demo
import triobus.testing
from benchmarks import report
from benchmarks.__main__ import BENCHMARKS
from tests.kit.scenarios import in_memory
from tests.proofs import __main__ as proofs
from tests.proofs.torture.command import SABOTAGES
from triobus.testing import plugin

ROOT = Path(__file__).parent.parent
DOCUMENTS = {
    name: (ROOT / name).read_text("utf-8")
    for name in (
        "README.md",
        "benchmarks/README.md",
        "tests/README.md",
        "triobus/testing/README.md",
    )
}
README = DOCUMENTS["README.md"]
ROOMS = sorted(path.parent.name for path in (ROOT / "tests").glob("*/__init__.py"))
LINES = README.splitlines()
EVERYTHING = "\n".join([*DOCUMENTS.values(), str(triobus.__doc__)])

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
PROSE = re.sub(r"^```.*?^```$", "", EVERYTHING, flags=re.MULTILINE | re.DOTALL)
ERRORS = {
    name: error
    for name, error in vars(triobus).items()
    if isinstance(error, type) and issubclass(error, Exception)
}


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its two title lines."""
    section = PROSE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


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
    assert (len(SCRIPTS), len(TESTS), len(MODULES)) == (3, 1, 2)
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
    ((command, output),) = [
        (text, output) for language, text, output in BLOCKS if language == "console" and output
    ]
    (tmp_path / "shop.py").write_text(source, "utf-8")
    (tmp_path / "orders.jsonl").write_text(events, "utf-8")
    program, *arguments = command.split()
    assert program == "triobus"
    done = run_triobus(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout[: len(output)] == output  # the summary below it has times in it


def test_the_events_of_the_command_line_example_are_one_json_object_a_line():
    (events,) = [text for language, text, _ in BLOCKS if language == "json"]
    assert [sorted(json.loads(line)) for line in events.splitlines()] == [
        ["data", "type"],
        ["data", "metadata", "type"],
    ]


@pytest.mark.parametrize("command", ["run", "demo"])
def test_the_options_of_the_command_line_exist(command, tmp_path):
    section = PROSE.split("\n## The command line\n")[1].split("\n## ")[0]
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


# Names in backticks. What parses as a Python expression is looked up in the package; foreign names
# have to be listed here, or be in the first column of a table for people who come from elsewhere.

VALUES = {
    "bus": triobus.EventBus(),
    "subscription": triobus.Subscription,
    "event": triobus.DomainEvent,
    "letter": triobus.DeadLetter,
    "store": triobus.SqliteEventStore,
    "path": Path,
    "triobus_restore": triobus.demo.triobus_restore,
    "outcome": triobus.Outcome,
    "nursery": trio.Nursery,
    "trio": trio,
    "asyncio": asyncio,
    "triobus": triobus,
    "OrderPlaced": triobus.DomainEvent,
    "scenario": in_memory,
    "world": triobus.testing.World,
    "check": triobus.testing.World.timeline,
    **{name: getattr(plugin, name) for name in ("recorded", "store_path")},
}
NOT_OURS = {
    *("autojump_clock", "TrioEventEmitter", "'*'"),  # of pytest-trio, pyee and bubus
    *("def", "async for", "pytest"),
    *BENCHMARKS,
    "/readyz",
    *("cli", "metrics", "test", "bench", "dev"),  # extras, which have a test of their own
    *("aggregate", "metadata"),  # keys of an event on the command line
    *("-wal",),  # files of SQLite
    *SABOTAGES,
    *proofs.PROOFS,
    "python -m tests.proofs NAME",
    *(f"tests/{room}" for room in ROOMS),
}

PUBLIC_CLASSES = [
    value
    for value in (*vars(triobus).values(), *vars(triobus.testing).values())
    if isinstance(value, type)
]
MEMBERS = {name for cls in PUBLIC_CLASSES for name in dir(cls)}
PARAMETERS = {
    parameter
    for cls in (
        triobus.EventBus,
        triobus.Group,
        triobus.DeadLetters,
        triobus.Retry,
        triobus.RetryAfter,
        triobus.SqliteEventStore,
    )
    for name, function in [("__init__", cls), *vars(cls).items()]
    if (inspect.isfunction(function) and not name.startswith("_")) or function is cls
    for parameter in inspect.signature(function).parameters
}
"""What options are called; those of the values that the bus returns are none."""


def spans() -> list[str]:
    """Everything in backticks, without the first columns of the tables of other libraries."""
    ours = []
    for section in PROSE.split("\n## "):
        for line in section.splitlines():
            is_foreign = section.startswith("Coming from") and line.startswith("|")
            ours.append(line.split("|", 2)[2] if is_foreign else line)
    return sorted(set(re.findall(r"`([^`\n]+)`", "\n".join(ours))))


def look_up(node: ast.expr) -> object:
    """The object that an expression of the README stands for; raises if there is none."""
    match node:
        case ast.Name(id=name):
            if name in VALUES:
                return VALUES[name]
            homes = (triobus, triobus.testing, builtins)
            return next(getattr(home, name) for home in homes if hasattr(home, name))
        case ast.Attribute(value=value, attr=name):
            return getattr(look_up(value), name)
        case ast.Call(func=function, args=arguments, keywords=keywords):
            called = look_up(function)
            signature = inspect.signature(called)
            signature.bind_partial(*arguments, **{str(k.arg): k.value for k in keywords})
            for argument in arguments:
                look_up(argument)
            return None
        case ast.Constant():
            return node.value
    raise LookupError(ast.dump(node))


def explain(span: str) -> str | None:
    """Why what is in backticks is no name of ours, or None if it is one."""
    source = span.removeprefix("await ").removeprefix("async with ").removesuffix(":")
    if span in NOT_OURS or span.startswith(("--", "@", "pytest ", "triobus ", "sqlite3 ")):
        return None
    if command := re.fullmatch(r"python -m tests\.proofs(?: (.*))?", span):
        try:
            proofs.parser().parse_args(shlex.split(command[1] or "--help"))
        except SystemExit as end:
            return "no such command" if end.code else None
        return None
    if span.startswith("python -m benchmarks"):
        return None
    if re.fullmatch(r"\w+=[\w\".]+", source):  # an option, such as `workers=1`
        return None if source.split("=")[0] in PARAMETERS else "no such option"
    if source.isidentifier() and source in MEMBERS | PARAMETERS:
        return None
    try:
        look_up(ast.parse(source, mode="eval").body)
    except (SyntaxError, LookupError, AttributeError, TypeError, StopIteration) as error:
        return f"{type(error).__name__}: {error}"
    return None


def test_every_name_in_backticks_exists():
    assert {span: why for span in spans() if (why := explain(span)) is not None} == {}
    assert NOT_OURS - set(spans()) == set()


def test_a_name_that_does_not_exist_would_be_noticed():
    wrong = [
        "bus.publish_batch()",
        "bus.stop(wait=True)",
        "retries=3",
        "BusBroken",
        "publish_all",
        "trio.Overload",
        "bus.dead_letters.purge()",
    ]
    assert [span for span in wrong if explain(span) is None] == []


# Faults

FAULTS = {
    "a handler never returns": (
        "test_a_handler_that_never_returns_holds_up_its_aggregate_and_no_other"
    ),
    "the same, with a `timeout`": (
        "test_with_a_timeout_one_that_never_returns_becomes_a_dead_letter"
    ),
    "the same, at `bus.stop(timeout=...)`": (
        "test_stop_with_a_timeout_ends_a_handler_that_would_never_return"
    ),
    "a handler swallows its cancellation": (
        "test_one_that_swallows_its_cancellation_is_waited_for_until_it_returns"
    ),
    "it raises a `BaseException`, `KeyboardInterrupt`, `SystemExit`": (
        "test_what_is_no_exception_ends_the_bus_and_the_event_comes_on_the_next_start"
    ),
    "it cancels a scope of its own": ("test_a_handler_may_cancel_a_scope_of_its_own"),
    "it raises `trio.Cancelled` out of its scope": (
        "test_a_cancellation_that_a_handler_raises_out_of_its_scope_is_a_failure_like_any_other"
    ),
    "it cancels the nursery around its bus": (
        "test_one_that_cancels_the_nursery_around_its_bus_ends_it_as_any_cancellation_does"
    ),
    "it calls `bus.stop()` on its own bus": (
        "test_a_stop_inside_a_handler_raises_would_deadlock_and_the_bus_runs_on"
    ),
    "it calls `bus.wait_idle()` or `bus.publish_and_wait()`": (
        "test_what_would_wait_for_the_handler_that_calls_it_raises_would_deadlock"
    ),
    "`where` raises": ("test_an_error_in_where_is_a_failure_of_the_handler"),
    "the repr of an event, or the str of an error, raises": (
        "test_an_event_and_an_error_that_cannot_be_shown_go_the_way_of_all_others"
    ),
    "an error with a message of 50 MB": ("test_an_error_of_50_mb_is_cut_before_it_is_kept"),
    "100,000 aggregates": (
        "test_a_hundred_thousand_aggregates_keep_their_order_and_leave_nothing_behind"
    ),
    "an event of 1 MiB and one byte, with a store": (
        "test_an_event_of_1_mib_is_kept_and_one_byte_more_is_refused_and_not_delivered"
    ),
    "10,000 subscriptions": ("test_ten_thousand_subscriptions_are_called_in_their_order"),
    "the clock of the system is set back or forward": (
        "test_a_retry_keeps_its_time_though_the_clock_of_the_system_is_set"
    ),
    "256 tasks publish while the bus stops": (
        "test_publishers_know_what_was_accepted_when_a_bus_is_stopped"
    ),
    "the process is killed": (
        "test_nothing_is_lost_or_reordered_when_programs_are_killed_whatever_they_are_doing"
    ),
    "it is killed in the same event again and again": (
        "test_a_killed_process_that_starts_again_and_again_comes_to_an_end"
    ),
    "the process forks": (
        "test_a_forked_child_is_refused_and_its_exit_drops_nothing_of_the_parents"
    ),
    "SQLite is interrupted": ("test_a_commit_that_sqlite_interrupts_fails_its_publish_alone"),
    "the disk is full": (
        "test_a_full_disk_fails_exactly_its_publishes_and_the_bus_goes_on_when_there_is_room"
    ),
    "a limit of file sizes, or an error on writing": (
        "test_a_limit_of_file_sizes_is_an_error_of_the_disk_and_the_bus_goes_on"
    ),
    "a commit fails to sync": (
        "test_a_commit_that_fails_to_sync_is_fenced_and_not_in_the_log_after_a_crash"
    ),
    "and that other commit fails too": (
        "test_a_commit_whose_fence_fails_too_has_an_unknown_outcome_and_can_be_repeated"
    ),
    "a checkpoint of SQLite fails to sync": (
        "test_a_checkpoint_that_fails_to_sync_loses_nothing_and_is_told"
    ),
    "another program has locked the file": (
        "test_a_file_that_another_program_has_locked_is_told_and_the_bus_goes_on"
    ),
    "one read of the log fails": ("test_a_read_that_fails_is_made_again_and_health_says_so"),
    "a reader never ends, and the `-wal` grows": (
        "test_a_reader_that_never_ends_is_told_until_it_ends"
    ),
    "the file or its `-wal` is removed or replaced": (
        "test_a_store_that_is_removed_or_replaced_while_it_is_open_is_noticed"
    ),
    "finished deliveries cannot be recorded at a clean end": (
        "test_what_cannot_be_recorded_at_a_clean_end_is_an_error_as_itself"
    ),
    "the same, and the block raises": (
        "test_what_cannot_be_recorded_leaves_together_with_the_error_of_the_block"
    ),
    "the same, under cancellation": (
        "test_cancellation_goes_on_though_something_cannot_be_recorded"
    ),
    "a row of the log is damaged": (
        "test_a_damaged_row_ends_a_bus_that_comes_to_it_and_is_never_handled"
    ),
    "a bus in a guest run, and its host is interrupted": (
        "test_control_c_leaves_the_guest_as_keyboard_interrupt_and_the_store_whole"
    ),
}
"""The test of each row of the table of faults."""


def test_every_fault_of_the_table_has_its_test():
    section = DOCUMENTS["tests/README.md"].split("## Faults, and what they become")[1]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in section.splitlines()[4:] if line]
    assert rows == [*FAULTS]
    sources = [path.read_text() for path in Path(__file__).parent.rglob("test_*.py")]
    for name in FAULTS.values():
        assert any(f"def {name}(" in source for source in sources), name


def test_every_room_of_the_tests_is_in_their_readme():
    assert sorted(row[0] for row in rows("Running the tests")) == [
        f"`tests/{room}`" for room in ROOMS
    ]


def test_every_proof_is_in_the_readme_of_the_tests():
    commands = [row[0].split()[3].strip("`") for row in rows("Proof") if "tests.proofs" in row[0]]
    assert commands == [*proofs.PROOFS]
