"""`triobus status`: what a store holds, who has it, and what waits for a person."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.cli.running import Here
from triobus import SqliteEventStore
from triobus._cli._output import columns_of, cut, table

HOLD = """
import sys, trio
from triobus import SqliteEventStore

async def main():
    async with SqliteEventStore(sys.argv[1]) as store:
        await store._claim()
        print("claimed", flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)

trio.run(main)
"""


@contextmanager
def held(store: str) -> Iterator[int]:
    """Let another process have the store; gives its pid."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, store],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"claimed\n"
        yield process.pid
        process.communicate(b"\n")


def test_status_says_what_is_there_and_what_waits(here: Here, store: str) -> None:
    code, stdout, stderr = here("status", store)
    changing = r"\d{4}-\S+ \S+Z|\d+ \w+ ago|\d+\.\d kB|\d{5} d"
    lines = [re.sub(changing, "*", line) for line in stdout.splitlines()]
    assert (code, stderr) == (1, "")
    assert lines == [
        f"store {store!r}, *, no bus has it open",
        "8 events, from * to * (*)",
        "4 aggregates",
        "2 types: operated.ordered 4, operated.paid 4",
        "1 event scheduled for later, the first due in *",
        "",
        "group    settled up to  lag  retries  next retry      dead letters",
        "-------  -------------  ---  -------  --------------  ------------",
        "default              8    0        0  -                          0",
        "mail                 8    0        0  -                          3",
        "post                 3    1        1  due in *             0",
        "",
        "waits for a person:",
        "  3 dead letters of group 'mail': see 'triobus dead-letters'",
    ]


def test_status_has_the_same_as_json(here: Here, store: str) -> None:
    code, stdout, _ = here("status", store, "--json")
    found = json.loads(stdout)
    assert code == 1
    assert found["types"] == {"operated.ordered": 4, "operated.paid": 4}
    assert (found["events"], found["aggregates"], found["scheduled"]) == (8, 4, 1)
    assert (found["in_use"], found["pid"], found["store"]) == (False, None, store)
    assert found["groups"]["post"] == {
        "offset": 3,
        "lag": 1,
        "retries": 1,
        "next_due": "2100-01-01T02:00:00Z",
        "dead_letters": 0,
    }
    assert found["waiting"] == ["3 dead letters of group 'mail': see 'triobus dead-letters'"]


def test_a_store_in_which_nothing_waits_for_a_person_is_0(here: Here, tmp_path: Path) -> None:
    async def make() -> None:
        async with SqliteEventStore(tmp_path / "new.db"):
            pass

    trio.run(make)
    code, stdout, _ = here("status", "new.db")
    assert (code, stdout.splitlines()[1:]) == (0, ["0 events", "no group has ever worked on it"])


def test_status_says_which_process_has_the_store(here: Here, store: str) -> None:
    with held(store) as pid:
        assert f"process {pid} has it open" in here("status", store)[1]
        assert json.loads(here("status", store, "--json")[1])["pid"] == pid
    assert "no bus has it open" in here("status", store)[1]


async def test_looking_takes_no_lock_away_from_a_bus_of_the_same_process(store: str) -> None:
    async with SqliteEventStore(store) as open_store:
        await open_store._claim()
        async with SqliteEventStore(store, read_only=True) as reader:
            holder = await reader._holder()
        assert holder is not None
        command = [sys.executable, "-c", HOLD, store]
        second = await trio.run_process(command, check=False, capture_stderr=True)
        assert b"StoreInUse" in second.stderr


def test_a_lock_file_that_a_killed_process_left_is_no_holder(here: Here, store: str) -> None:
    Path(store + "-lock").write_text("1\n")
    assert "no bus has it open" in here("status", store)[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.write_text("no database\n" * 100), "not"),
        (lambda path: path.mkdir(), "directory"),
    ],
)
def test_what_is_no_store_is_one_line_and_exit_code_2(
    here: Here, tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / "x.db")
    code, stdout, stderr = here("status", "x.db")
    assert (code, stdout) == (2, "")
    assert (stderr[:9], stderr.count("\n")) == ("triobus: ", 1)
    assert message in stderr


def test_a_table_fits_a_narrow_terminal_and_wide_characters_count_twice() -> None:
    rows = [{"name": "日本" * 10, "n": 7, "said": "x" * 100}]
    lines = table(rows, columns=40).splitlines()
    assert {columns_of(line) <= 40 for line in lines} == {True}
    assert lines[2].endswith("...")
    assert [cut("日本語", width) for width in (6, 5, 4)] == ["日本語", "日...", "..."]
