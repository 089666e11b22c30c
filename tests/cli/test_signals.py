"""`triobus run`: signals, the progress that a terminal shows, and a drain that takes long."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.running import Here, placed, run, started, written

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


# Draining

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
