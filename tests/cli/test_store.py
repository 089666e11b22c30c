"""The command line with a store: what was interrupted or killed is finished by the next run."""

import json
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import trio

from tests.events import Noted
from triobus import EventBus, SqliteEventStore
from triobus.__main__ import main

SHOP = """
import os, signal, sys
from typing import ClassVar
import attrs
import triobus

@attrs.frozen
class Sold(triobus.DomainEvent):
    event_type: ClassVar[str] = "cli.sold"
    number: int

    @property
    def aggregate_id(self):
        return "shop"

bus = triobus.EventBus(workers=1)
handled = []
known = []

@bus.subscribe(Sold)
async def sell(event):
    if os.environ.get("DIES_AT") == str(event.number):
        os.kill(os.getpid(), signal.SIGKILL)
    handled.append(event.number)

async def triobus_restore(store):
    async for stored in store.read():
        known.append(stored.event.number)

def triobus_report():
    return [{"handled": handled, "known": known}]
"""


def lines_of(numbers: range) -> str:
    return "".join(
        json.dumps({"type": "cli.sold", "data": {"number": number}}) + "\n" for number in numbers
    )


def run_shop(path: Path, numbers: range, **environment: str) -> subprocess.CompletedProcess[str]:
    (path / "shop.py").write_text(SHOP)
    return subprocess.run(
        [sys.executable, "-m", "triobus", "run", "shop:bus", "--store", "shop.db", "--json"],
        input=lines_of(numbers),
        cwd=path,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_killed_run_is_finished_by_the_next_one_with_the_rest_of_the_input(
    tmp_path: Path,
) -> None:
    killed = run_shop(tmp_path, range(10), DIES_AT="4")
    assert killed.returncode == -signal.SIGKILL
    done = run_shop(tmp_path, range(10, 13))
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    (report,) = summary["report"]
    assert report["known"] == list(range(10))
    # What was handled before it was killed had not been recorded, for no commit came after it.
    assert report["handled"][-9:] == [4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert summary["left_before"] == 13 - 3 - (13 - len(report["handled"]))
    assert summary["store"] == str(tmp_path / "shop.db")
    assert [entry.name for entry in tmp_path.glob("shop.db*")] == ["shop.db"]


def test_a_run_says_where_its_events_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "sold.jsonl").write_text(lines_of(range(3)))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "triobus", "run", "shop:bus"),
            *("--store", "shop.db", "--input", "sold.jsonl"),
        ],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        f"kept in {tmp_path / 'shop.db'}; known already: 0, left over from before: 0" in done.stdout
    )


KILLED_DEMO = """
import os, signal, sys
import triobus.demo
from triobus.__main__ import main

from triobus.stores.sqlite._calls import Calls
called, calls = Calls.called, []

def called_or_killed(self, connection, written, call):
    calls.append(call)
    found = called(self, connection, written, call)
    if len(calls) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return found

Calls.called = called_or_killed
main(["demo", "--store", sys.argv[2]])
"""


def test_the_demo_comes_to_the_same_positions_when_it_is_killed_in_the_middle(
    tmp_path: Path,
) -> None:
    store = str(tmp_path / "demo.db")
    for calls in (100, 200, 200):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED_DEMO, str(calls), store], capture_output=True, check=False
        )
        assert killed.returncode == -signal.SIGKILL
    done = subprocess.run(
        [sys.executable, "-m", "triobus", "demo", "--store", store, "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    summary = json.loads(done.stdout)
    assert [(row["symbol"], row["shares"], row["money"]) for row in summary["report"]] == [
        ("ACME", -20, "1006.30"),
        ("GLOBEX", 0, "114.00"),
        ("HOOLI", 0, "-3.80"),
        ("INITECH", 10, "-149.00"),
    ]


def make_store(path: Path, count: int) -> None:
    async def fill() -> None:
        bus = EventBus(SqliteEventStore(path))
        bus.subscribe(Noted, lambda event: None, name="it")
        async with bus:
            await bus.publish_many([Noted(number, "a") for number in range(count)])

    trio.run(fill)


def damage(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        assert connection.execute(statement).rowcount > 0


def test_verify_says_what_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_store(tmp_path / "a.db", 30)
    assert main(["verify", str(tmp_path / "a.db")]) == 0
    out = capsys.readouterr().out
    assert f"store {str(tmp_path / 'a.db')!r} is whole" in out
    assert "events whole: 30 of 30" in out
    assert "default             30     0             0" in out
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.db"]


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (
            "UPDATE events SET data = replace(data, '17', '18') WHERE position = 18",
            "1 events, at 18",
        ),
        ("UPDATE events SET checksum = 1 WHERE position = 5", "2 events, at 5-6"),
        ("DELETE FROM events WHERE position IN (7, 8)", "3 events, at 7-9"),
        ("DELETE FROM events WHERE position > 28", "2 events, at 29-30"),
        ("UPDATE events SET recorded_at = 'x' WHERE position = 1", "1 events, at 1"),
    ],
)
def test_verify_says_what_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], statement: str, said: str
) -> None:
    make_store(tmp_path / "a.db", 30)
    damage(tmp_path / "a.db", statement)
    assert main(["verify", str(tmp_path / "a.db")]) == 1
    out = capsys.readouterr().out
    assert "is damaged" in out
    assert f"damaged or missing: {said}" in out


async def test_verify_looks_at_a_store_that_a_bus_is_using(tmp_path: Path) -> None:
    bus = EventBus(SqliteEventStore(tmp_path / "a.db"))
    async with bus:
        await bus.publish_many([Noted(number) for number in range(20)])
        done = await trio.run_process(
            [sys.executable, "-m", "triobus", "verify", str(tmp_path / "a.db")],
            capture_stdout=True,
        )
        assert b"events whole: 20 of 20" in done.stdout
        await bus.publish(Noted(21))


@pytest.mark.parametrize("command", ["verify", "run"])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.write_text("hello, world\n" * 100), "not a database"),
        (lambda path: _foreign(path, "PRAGMA application_id = 7"), "another application"),
        (lambda path: _newer(path), "version 99"),
    ],
)
def test_a_file_that_is_no_store_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, make, said: str
) -> None:
    path = tmp_path / "a.db"
    make(path)
    if command == "verify":
        assert main(["verify", str(path)]) == 2
    else:
        (tmp_path / "shop.py").write_text(SHOP)
        done = subprocess.run(
            [sys.executable, "-m", "triobus", "run", "shop:bus", "--store", str(path)],
            cwd=tmp_path,
            env={"PYTHONPATH": str(Path(__file__).parents[2])},
            input="",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        sys.stderr.write(done.stderr)
    lines = [
        x for x in capsys.readouterr().err.splitlines() if not x.startswith("triobus: reading")
    ]
    assert len(lines) == 1
    assert said in lines[0]
    assert str(path) in lines[0]


def _foreign(path: Path, pragma: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE notes (text)")
        connection.execute(pragma)


def _newer(path: Path) -> None:
    make_store(path, 1)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA user_version = 99")


def test_verify_of_a_file_that_is_not_there_makes_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(tmp_path / "none.db")]) == 2
    assert "there is no such file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_a_store_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--store", ""]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_lines_that_the_store_has_already_are_counted(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    line = json.dumps(
        {
            "type": "cli.sold",
            "data": {"number": 1, "event_id": "12345678-1234-5678-1234-567812345678"},
        }
    )
    command = [sys.executable, "-m", "triobus", "run", "shop:bus", "--store", "shop.db"]
    summaries = []
    for _ in range(2):
        done = subprocess.run(
            [*command, "--json"],
            input=f"{line}\n{lines_of(range(2, 4))}",
            cwd=tmp_path,
            env={"PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        )
        summaries.append(json.loads(done.stdout))
    assert [(summary["read"], summary["known_already"]) for summary in summaries] == [
        (3, 0),
        (3, 1),
    ]


IDS = [f"00000000-0000-4000-8000-00000000000{digit}" for digit in range(4)]


@pytest.mark.parametrize(
    ("options", "code", "handled", "said"),
    [
        ([], 2, [0, 1], "stopped at line 3, the rest is unread; --skip-bad goes on"),
        (["--skip-bad"], 1, [0, 1, 3], None),
    ],
    ids=["without --skip-bad", "with it"],
)
def test_an_event_that_the_store_refuses_is_a_bad_line_and_those_beside_it_are_accepted(
    tmp_path: Path, options: list[str], code: int, handled: list[int], said: str | None
) -> None:
    events = [(IDS[0], 0), (IDS[1], 1), (IDS[0], 2), (IDS[3], 3)]
    lines = [
        json.dumps({"type": "cli.sold", "data": {"event_id": event_id, "number": number}})
        for event_id, number in events
    ]
    (tmp_path / "shop.py").write_text(SHOP)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "triobus", "run", "shop:bus"),
            *("--store", "shop.db", "--json", *options),
        ],
        input="\n".join([*lines, "no event"]),
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    summary = json.loads(done.stdout)
    assert [row["handled"] for row in summary["report"]] == [handled]
    assert summary["read"] == len(handled)
    refused, *others = done.stderr.splitlines()[1:]
    assert refused.startswith("triobus: line 3 of standard input: ")
    assert IDS[0] in refused
    if said is None:
        (other,) = others
        assert other.startswith("triobus: line 5 of standard input: ")
    else:
        assert others == [f"triobus: {said}"]
