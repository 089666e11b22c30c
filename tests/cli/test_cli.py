"""`triobus run`: what it reads, sums up and reports, and what makes its bus."""

import json
import os
import threading
from pathlib import Path

import pytest

import triobus
from tests.cli.running import HANDLER, MODULE, Here, placed, run, started, written
from triobus.__main__ import main
from triobus._cli._input import LONGEST_LINE

FIELDS = "'event_id', 'occurred_at', 'correlation_id', 'causation_id', 'order_id', 'quantity'"


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
        "scheduled": 0,
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
        "id: no field of an event in JSON, which has: 'type', 'data', 'aggregate', 'metadata', "
        "'schema_version', 'position', 'sequence', 'recorded_at'",
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
