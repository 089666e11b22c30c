"""The command line: what a user types, sees and gets back."""

import itertools
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import triobus
from triobus.__main__ import main
from triobus._cli._input import LONGEST_LINE, Line, LineSplitter

MODULE = """
from typing import ClassVar

import attrs
import os
import trio

from triobus import DomainEvent, EventBus, Retry

@attrs.frozen
class Placed(DomainEvent):
    event_type: ClassVar[str] = "NAME.placed"
    order_id: str
    quantity: int = 1

    @property
    def aggregate_id(self):
        return self.order_id

bus = EventBus()
handled = []
"""

HANDLER = """
@bus.subscribe(Placed, retry=Retry(attempts=2, delay=0))
async def ship(event):
    if event.quantity == 13:
        raise ValueError("unlucky")
    handled.append((event.order_id, event.quantity))

def triobus_report():
    return [{"order": order, "quantity": quantity} for order, quantity in handled]
"""

FIELDS = "'event_id', 'occurred_at', 'correlation_id', 'causation_id', 'order_id', 'quantity'"


def placed(order_id: str, name: str = "shop", **more: Any) -> str:
    return json.dumps({"type": f"{name}.placed", "data": {"order_id": order_id, **more}}) + "\n"


def written(folder: Path, code: str = HANDLER, name: str = "shop") -> None:
    (folder / f"{name}.py").write_text(MODULE.replace("NAME", name) + dedent(code))


def started(folder: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "triobus", *arguments],
        cwd=folder,
        stdin=options.pop("stdin", subprocess.PIPE),
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=options.pop("stderr", subprocess.PIPE),
        text=True,
        **options,
    )


def run(folder: Path, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
    with started(folder, *arguments) as process:
        stdout, stderr = process.communicate(stdin)
    return process.returncode, stdout, stderr


Here = Callable[..., tuple[int, str, str]]
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


# Running


def test_what_is_read_from_standard_input_is_handled_and_summed_up(tmp_path: Path) -> None:
    written(tmp_path)
    lines = placed("a") + "\n  \r\n" + placed("a", quantity=2)
    code, stdout, stderr = run(tmp_path, "run", "shop:bus", stdin=lines)
    assert (code, stderr) == (0, "triobus: reading standard input\n")
    shown = stdout.splitlines()
    assert shown[0].startswith("events read: 2, published by handlers: 0, seconds: ")
    assert shown[1] == ""
    assert shown[2].split() == [
        *("group", "succeeded", "attempts", "failed", "dead", "letters", "left"),
        *("events/s", "p50", "p99"),
    ]
    assert shown[4].split()[:5] == ["default", "2", "0", "0", "0"]
    assert shown[5:] == [
        "",
        "order  quantity",
        "-----  --------",
        "a             1",
        "a             2",
    ]


def test_with_json_the_summary_is_all_that_is_on_standard_output(
    here: Here, tmp_path: Path, name: str
) -> None:
    written(
        tmp_path,
        "print('importing')\n" + HANDLER.replace("    if", "    print(event)\n    if", 1),
        name,
    )
    feed = placed("a", name) + placed("b", name, quantity=13) + placed("a", name, quantity=2)
    (tmp_path / "feed.jsonl").write_text(feed)
    code, stdout, _ = here("run", f"{name}:bus", "--input", "feed.jsonl", "--json")
    summary = json.loads(stdout)
    group = summary["groups"]["default"]
    for measured in ("per_second", "p50", "p99"):
        assert group.pop(measured) > 0
    assert summary.pop("seconds") > 0
    assert code == 1
    assert summary == {
        "read": 3,
        "bad_lines": 0,
        "stopped_by": None,
        "published": 3,
        "groups": {
            "default": {
                "handled": 3,
                "succeeded": 2,
                "failed_attempts": 2,
                "dead_lettered": 1,
                "left": 0,
            }
        },
        "report": [{"order": "a", "quantity": 1}, {"order": "a", "quantity": 2}],
    }


def test_a_dead_letter_is_one_line_on_standard_error_and_exit_code_1(tmp_path: Path) -> None:
    written(tmp_path)
    event_id = "12345678-1234-5678-1234-567812345678"
    line = placed("a", quantity=13, event_id=event_id)
    code, stdout, stderr = run(tmp_path, "run", "shop:bus", stdin=line)
    assert (code, stderr) == (
        1,
        "triobus: reading standard input\n"
        f"triobus: dead letter 1: event {event_id}, 'ship' in group 'default', after 2 attempts: "
        "ValueError: unlucky\n",
    )
    assert stdout.splitlines()[4].split()[:5] == ["default", "0", "2", "1", "0"]


def test_what_logging_the_module_sets_up_is_left_to_it(tmp_path: Path) -> None:
    setup = "import logging\nlogging.basicConfig(format='mine: %(levelname)s')\n"
    written(tmp_path, setup + HANDLER)
    _, _, stderr = run(tmp_path, "run", "shop:bus", stdin=placed("a", quantity=13))
    mine = "triobus: reading standard input\nmine: ERROR\nTraceback (most recent call last):\n"
    assert stderr.startswith(mine)
    assert stderr.endswith("\nValueError: unlucky\n")


def test_reading_waits_for_slow_handlers(here: Here, tmp_path: Path, name: str) -> None:
    code = """
    bus = EventBus(buffer=10)
    most = 0

    @bus.subscribe(Placed)
    async def ship(event):
        global most
        most = max(most, bus.statistics().queued)
        await trio.lowlevel.checkpoint()

    def triobus_report():
        return [{"waits": most <= 100}]
    """
    written(tmp_path, code, name)
    (tmp_path / "feed.jsonl").write_text("".join(placed(str(n), name) for n in range(2000)))
    exit_code, stdout, _ = here("run", f"{name}:bus", "--input", "feed.jsonl", "--json")
    summary = json.loads(stdout)
    assert (exit_code, summary["read"], summary["report"]) == (0, 2000, [{"waits": True}])


def test_a_handler_whose_error_ends_the_bus_ends_the_run(
    here: Here, tmp_path: Path, name: str
) -> None:
    written(tmp_path, "bus = EventBus(on_failure='raise')\n" + HANDLER, name)
    (tmp_path / "feed.jsonl").write_text(placed("a", name, quantity=13))
    code, stdout, stderr = here("run", f"{name}:bus", "--input", "feed.jsonl", "--json")
    assert code == 1
    assert "triobus: a handler failed and ended the bus:\n" in stderr
    assert "ValueError: unlucky\n" in stderr
    assert json.loads(stdout)["groups"]["default"]["left"] == 1


def test_a_run_without_events_says_so(here: Here, tmp_path: Path, name: str) -> None:
    written(tmp_path, name=name)
    (tmp_path / "feed.jsonl").touch()
    code, stdout, _ = here("run", f"{name}:bus", "--input", "feed.jsonl")
    assert code == 0
    assert stdout.startswith("events read: 0, published by handlers: 0, seconds: ")
    assert stdout.splitlines()[4:] == [
        "default          0                0             0     0         0    -    -"
    ]


def test_a_named_pipe_is_read_until_its_writer_ends(here: Here, tmp_path: Path, name: str) -> None:
    written(tmp_path, name=name)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=[placed("a", name)])
    writer.start()
    code, stdout, _ = here("run", f"{name}:bus", "--input", "pipe", "--json")
    writer.join()
    assert (code, json.loads(stdout)["read"]) == (0, 1)


def test_a_handler_that_exits_ends_the_run_too(here: Here, tmp_path: Path, name: str) -> None:
    written(tmp_path, HANDLER.replace("ValueError", "SystemExit"), name)
    (tmp_path / "feed.jsonl").write_text(placed("a", name, quantity=13))
    code, stdout, stderr = here("run", f"{name}:bus", "--input", "feed.jsonl", "--json")
    assert code == 1
    assert "triobus: a handler failed and ended the bus:\n" in stderr
    assert "SystemExit: unlucky\n" in stderr
    assert json.loads(stdout)["groups"]["default"]["left"] == 1


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    written(tmp_path)
    reading, writing = os.pipe()
    os.close(reading)
    with started(tmp_path, "run", "shop:bus", stdout=writing) as process:
        os.close(writing)
        _, stderr = process.communicate(placed("a"))
    assert (process.returncode, stderr) == (1, "triobus: reading standard input\n")


# Bad input

BAD_LINES = [
    ("nope", "not JSON: invalid character (byte 4)"),
    ("[]", "expected a JSON object, found []"),
    (
        '{"type": "shop.\\u001b[2J", "data": {}}',
        "type: 'shop.\\x1b[2J' is unknown; the known types are: 'shop.placed'",
    ),
    ('{"type": "shop.placed"}', "data: expected a JSON object, found nothing"),
    ('{"type": "shop.placed", "data": {}}', "data.order_id: expected str, found nothing"),
    ('{"type": "shop.placed", "data": {"order_id": 1}}', "data.order_id: expected str, found 1"),
    (
        '{"type": "shop.placed", "data": {"order_id": "a", "size": 1}}',
        f"data.size: no field of Placed, which has: {FIELDS}",
    ),
    (
        '{"type": "shop.placed", "data": {"order_id": "a"}, "aggregate": "b"}',
        "aggregate: expected 'a', which is the event's aggregate_id, found 'b'",
    ),
    (
        '{"type": "shop.placed", "data": {"order_id": "a"}, "metadata": []}',
        "metadata: expected a JSON object of strings, found []",
    ),
    (
        '{"type": "shop.placed", "data": {"order_id": "a"}, "id": 1}',
        "id: no field of an event in JSON, which has: 'type', 'data', 'aggregate', 'metadata'",
    ),
    ('"' + "x" * LONGEST_LINE, "the line is longer than 1048576 bytes"),
]


def test_bad_lines_are_reported_one_by_one_and_skipped(tmp_path: Path) -> None:
    written(tmp_path)
    feed = "".join(f"{line}\n" for line, _ in BAD_LINES) + placed("a")
    code, stdout, stderr = run(tmp_path, "run", "shop:bus", "--json", "--skip-bad", stdin=feed)
    summary = json.loads(stdout)
    assert stderr.splitlines() == [
        "triobus: reading standard input",
        *(
            f"triobus: line {number} of standard input: {message}"
            for number, (_, message) in enumerate(BAD_LINES, 1)
        ),
    ]
    assert (code, summary["read"], summary["bad_lines"]) == (1, 1, len(BAD_LINES))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"nope", "not JSON: invalid character (byte 4)"),
        (b"\xef\xbb\xbf{}", "the text begins with a byte order mark: give UTF-8 without it"),
        (b'{"\xff": 1}', "the text is not UTF-8: byte 2 is 0xff"),
        (b"x" * 3_000_000, "the line is longer than 1048576 bytes"),
    ],
    ids=["no JSON", "byte order mark", "no UTF-8", "too long"],
)
def test_a_bad_line_ends_the_run_after_everything_before_it(
    here: Here, tmp_path: Path, name: str, line: bytes, message: str
) -> None:
    written(tmp_path, name=name)
    before = [placed(str(number), name).encode() for number in range(150)]
    feed = b"".join([*before, line, b"\n", placed("after", name).encode()])
    (tmp_path / "feed.jsonl").write_bytes(feed)
    code, stdout, stderr = here("run", f"{name}:bus", "--input", "feed.jsonl", "--json")
    assert (code, stderr) == (
        2,
        f"triobus: reading 'feed.jsonl'\ntriobus: line 151 of 'feed.jsonl': {message}\n"
        "triobus: stopped at line 151, the rest is unread; --skip-bad goes on\n",
    )
    handled = sorted(int(row["order"]) for row in json.loads(stdout)["report"])
    assert handled == list(range(150))


def test_a_bad_line_is_counted_in_the_table(here: Here, tmp_path: Path, name: str) -> None:
    written(tmp_path, name=name)
    (tmp_path / "feed.jsonl").write_text("{}\n{}\n")
    code, stdout, _ = here("run", f"{name}:bus", "--input", "feed.jsonl", "--skip-bad")
    assert (code, stdout.splitlines()[1]) == (1, "bad lines: 2, skipped")


# What makes a bus, and who reads the output


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_function_that_makes_the_bus_is_called_inside_the_run(
    here: Here, tmp_path: Path, name: str, kind: str
) -> None:
    code = f"""
    {kind} make_bus():
        trio.lowlevel.current_trio_token()
        made = EventBus()
        made.subscribe(Placed, lambda event: handled.append(event.order_id))
        return made

    def triobus_report():
        return [{{"order": order}} for order in handled]
    """
    written(tmp_path, code, name)
    (tmp_path / "feed.jsonl").write_text(placed("a", name))
    code_, stdout, _ = here("run", f"{name}:make_bus", "--input", "feed.jsonl", "--json")
    assert (code_, json.loads(stdout)["report"]) == (0, [{"order": "a"}])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 3", "make_bus() returned no EventBus but an object of type 'int'"),
        (
            "raise LookupError('no mailbox')",
            "calling make_bus() failed: LookupError: 'no mailbox' (FILE, line 26)",
        ),
        (
            "return EventBus(workers=0)",
            "calling make_bus() failed: InvalidOption: workers=0: give a whole number of 1 or more "
            "(FILE, line 26)",
        ),
    ],
)
def test_a_function_that_makes_no_bus_says_why_and_where(
    here: Here, tmp_path: Path, name: str, body: str, message: str
) -> None:
    written(tmp_path, f"async def make_bus():\n    {body}\n", name)
    (tmp_path / "feed.jsonl").touch()
    line = MODULE.count("\n") + 2
    said = message.replace("FILE", str(tmp_path / f"{name}.py")).replace("line 26", f"line {line}")
    assert here("run", f"{name}:make_bus", "--input", "feed.jsonl") == (
        2,
        "",
        f"triobus: {said}\n",
    )


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_handlers_that_print_end_quietly_when_the_reader_has_gone(
    tmp_path: Path, kind: str
) -> None:
    code = f"""
    @bus.subscribe(Placed)
    {kind} ship(event):
        print(event.order_id * 100)
    """
    written(tmp_path, code)
    (tmp_path / "feed.jsonl").write_text("".join(placed(str(n)) for n in range(5000)))
    with started(tmp_path, "run", "shop:bus", "--input", "feed.jsonl") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (1, "triobus: reading 'feed.jsonl'\n")


def test_without_a_command_there_is_the_help(here: Here) -> None:
    code, stdout, stderr = here()
    assert (code, stderr) == (0, "")
    assert stdout.startswith("usage: triobus [-h] [--version] COMMAND ...\n")


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, check=lambda error: error.code == 0):
        main(["--version"])
    assert capsys.readouterr().out == f"triobus {triobus.__version__}\n"


# Bad usage


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


# Signals

WAITING = """
@bus.subscribe(Placed)
def ship(event):
    os.write(2, b"handling\\n")
    os.read(GATE, 1)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_reading_and_lets_handlers_finish(
    tmp_path: Path, number: signal.Signals
) -> None:
    gate, opener = os.pipe()
    written(tmp_path, WAITING.replace("GATE", str(gate)))
    with started(tmp_path, "run", "shop:bus", "--json", pass_fds=[gate]) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        assert process.stdout is not None
        process.stdin.write(placed("a"))
        process.stdin.flush()
        assert process.stderr.readline() == "triobus: reading standard input\n"
        assert process.stderr.readline() == "handling\n"
        process.send_signal(number)
        assert process.stderr.readline() == (
            f"triobus: {number.name}: reading no more; handlers have 10 s to finish, and the same "
            "signal again ends the program at once\n"
        )
        os.write(opener, b"x")
        summary = json.loads(process.stdout.read())
        assert process.stderr.read() == ""
    os.close(gate)
    os.close(opener)
    assert process.returncode == 128 + number
    assert (summary["stopped_by"], summary["read"]) == (number.name, 1)
    assert summary["groups"]["default"]["left"] == 0


def test_handlers_that_take_too_long_after_a_signal_are_cancelled_and_reported(
    tmp_path: Path,
) -> None:
    code = """
    @bus.subscribe(Placed)
    async def ship(event):
        os.write(2, b"handling\\n")
        await trio.sleep_forever()
    """
    written(tmp_path, code)
    with started(tmp_path, "run", "shop:bus", "--stop-timeout", "0") as process:
        assert process.stdin is not None
        assert process.stderr is not None
        assert process.stdout is not None
        process.stdin.write(placed("a") * 3)
        process.stdin.flush()
        while process.stderr.readline() != "handling\n":
            pass
        process.send_signal(signal.SIGINT)
        stderr = process.stderr.read()
        stdout = process.stdout.read()
    assert process.returncode == 130
    assert stderr == (
        "triobus: SIGINT: reading no more; handlers have 0 s to finish, and the same signal again "
        "ends the program at once\n"
        "triobus: the bus stopped and left deliveries: 3 in group 'default'\n"
    )
    assert stdout.splitlines()[1] == "stopped by SIGINT; events left: 3"


def test_a_second_signal_ends_the_program_though_a_handler_is_stuck(tmp_path: Path) -> None:
    gate, opener = os.pipe()
    written(tmp_path, WAITING.replace("GATE", str(gate)))
    with started(tmp_path, "run", "shop:bus", pass_fds=[gate]) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        assert process.stdout is not None
        process.stdin.write(placed("a"))
        process.stdin.flush()
        while process.stderr.readline() != "handling\n":
            pass
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline().startswith("triobus: SIGINT: reading no more")
        process.send_signal(signal.SIGINT)
        assert (process.stdout.read(), process.stderr.read()) == ("", "")
    os.close(gate)
    os.close(opener)
    assert process.returncode == -signal.SIGINT


def test_an_interrupted_import_is_one_line(here: Here, tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text("raise KeyboardInterrupt")
    assert here("run", f"{name}:bus") == (130, "", "triobus: interrupted\n")


# Progress


def on_terminal(folder: Path, *python: str) -> str:
    """Return what a terminal on standard error gets to see."""
    ours, theirs = pty.openpty()
    written(folder)
    (folder / "feed.jsonl").write_text(placed("a"))
    command = [sys.executable, *python, "run", "shop:bus", "--input", "feed.jsonl"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    seen = b""
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        while chunk := _read(ours):
            seen += chunk
    os.close(ours)
    assert process.returncode == 0
    return seen.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # so Linux says that nobody has the other end any more
        return b""


def test_a_terminal_shows_a_bar_and_is_left_as_it_was(tmp_path: Path) -> None:
    seen = on_terminal(tmp_path, "-m", "triobus")
    assert "reading 'feed.jsonl'" in seen
    assert "read, " in seen
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    assert seen.count(hidden) == seen.count(shown) == 1
    assert seen.index(hidden) < seen.index(shown)


def test_without_rich_a_terminal_shows_a_plain_line(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['rich'] = None; sys.modules['rich.progress'] = None; "
        "from triobus.__main__ import main; sys.exit(main())"
    )
    assert on_terminal(tmp_path, "-c", code) == "triobus: reading 'feed.jsonl'\r\n"


# Lines


def split(*chunks: bytes) -> list[Line]:
    splitter = LineSplitter()
    return [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.end()


def test_lines_are_put_together_across_chunks() -> None:
    assert split(b"a", b"b\nc", b"\n", b"\nd") == [Line(1, b"ab"), Line(2, b"c"), Line(4, b"d")]


def test_blank_lines_are_counted_and_passed_over() -> None:
    assert split(b"\n \t\r\na\r\n\n") == [Line(3, b"a\r")]


def test_a_line_may_have_one_mebibyte_and_no_more() -> None:
    longest = b"x" * LONGEST_LINE
    assert split(longest, b"\n", longest, b"y\n", b"z") == [
        Line(1, longest),
        Line(2, None),
        Line(3, b"z"),
    ]


def test_a_line_that_is_too_long_is_reported_before_it_ends() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"x" * (LONGEST_LINE + 1)) == [Line(1, None)]
    assert splitter.feed(b"x" * LONGEST_LINE) == []
    assert splitter.feed(b"\na\n") == [Line(2, b"a")]


def test_a_line_without_an_end_takes_little_more_memory_than_it_may_have() -> None:
    splitter = LineSplitter()
    chunk = b"x" * 65536
    tracemalloc.start()
    try:
        found = [line for _ in range(1000) for line in splitter.feed(chunk)]
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == [Line(1, None)]
    assert most < 2.5 * LONGEST_LINE


PATIENT = """
import logging
from typing import ClassVar
import attrs
import trio
import triobus

@attrs.frozen
class Sold(triobus.DomainEvent):
    event_type: ClassVar[str] = "patient.sold"

bus = triobus.EventBus()
said = trio.Event()

def notice(record):
    said.set()
    return True

logging.getLogger("triobus").addFilter(notice)

@bus.subscribe(Sold, name="sell")
async def sell(event):
    await said.wait()  # until the bus has said that it waits for this
"""


def test_a_drain_that_takes_long_says_what_it_waits_for(tmp_path: Path) -> None:
    (tmp_path / "patient.py").write_text(PATIENT)
    code, stdout, stderr = run(
        tmp_path, "run", "patient:bus", "--json", stdin='{"type": "patient.sold", "data": {}}\n'
    )
    (line,) = [line for line in stderr.splitlines() if "waits for" in line]
    assert line.startswith("triobus: the bus is stopping and waits for ")
    assert "sell" in line
    assert "default" in line
    assert (code, json.loads(stdout)["groups"]["default"]["succeeded"]) == (0, 1)
