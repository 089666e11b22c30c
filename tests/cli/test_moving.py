"""`triobus export`, `import` and `backup`: a log elsewhere, the same to the last bit."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import trio

from tests.cli.operated import ONE, Ordered
from tests.cli.running import Here
from tests.cli.test_events import damage
from tests.cli.test_status import held
from triobus import SqliteEventStore


def log_of(path: str | Path) -> list[tuple[Any, ...]]:
    """Every row of a log, checksums included."""
    with closing(sqlite3.connect(path)) as file:
        return file.execute("SELECT * FROM events ORDER BY position").fetchall()


def exported(here: Here, store: str, *options: str) -> list[dict[str, Any]]:
    code, stdout, _ = here("export", store, *options)
    assert code == 0
    return [json.loads(line) for line in stdout.splitlines()]


def imported(here: Here, tmp_path: Path, lines: list[Any], *options: str) -> tuple[int, str, str]:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (tmp_path / "in.jsonl").write_text(text)
    return here("import", "copy.db", "in.jsonl", *options)


@pytest.mark.parametrize("form", [[], ["--cloudevents"]])
def test_what_is_exported_and_imported_is_the_same_log(
    here: Here, store: str, tmp_path: Path, form: list[str]
) -> None:
    async def add_odd_ones() -> None:
        async with SqliteEventStore(store) as own:
            await own.append(
                [Ordered('日本 \x7f\u202e"\\', 10**15, metadata={"traceparent": "00"})]
            )

    trio.run(add_odd_ones)
    assert here("export", store, "--to", "shop.jsonl", *form)[0] == 0
    assert here("import", "copy.db", "shop.jsonl") == (
        0,
        "imported 9 events; known already: 0\n",
        "",
    )
    assert log_of(tmp_path / "copy.db") == log_of(store)
    again = here("import", "copy.db", "shop.jsonl", "--json")
    assert json.loads(again[1]) == {"imported": 0, "known_already": 9, "dry_run": False}
    assert log_of(tmp_path / "copy.db") == log_of(store)
    assert here("verify", "copy.db")[0] == 0


def test_an_import_of_which_half_is_there_brings_the_rest(
    here: Here, store: str, tmp_path: Path
) -> None:
    lines = exported(here, store)
    assert imported(here, tmp_path, lines[:5])[0] == 0
    dry = imported(here, tmp_path, lines, "--dry-run")
    assert dry[:2] == (0, "would import 3 events; known already: 5\n")
    assert len(log_of(tmp_path / "copy.db")) == 5
    assert imported(here, tmp_path, lines)[:2] == (0, "imported 3 events; known already: 5\n")
    assert log_of(tmp_path / "copy.db") == log_of(store)


def test_a_dry_run_makes_no_store(here: Here, store: str, tmp_path: Path) -> None:
    lines = exported(here, store)
    assert imported(here, tmp_path, lines, "--dry-run")[0] == 0
    assert not os.path.lexists(tmp_path / "copy.db")


def change(index: int, **values: Any) -> Callable[[list[Any]], None]:
    return lambda lines: lines[index].update(values)


def replace(index: int, text: str) -> Callable[[list[Any]], None]:
    def replaced(lines: list[Any]) -> None:
        lines[index] = text

    return replaced


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (replace(7, "{"), "line 8 of 'in.jsonl': DecodeError"),
        (replace(7, '{"type": "x"}'), "line 8 of 'in.jsonl': ValidationError"),
        (replace(7, "x" * (32 * 2**20 + 1)), "line 8 of 'in.jsonl': it is longer than"),
        (change(7, position=99), "line 8 of 'in.jsonl': position 99 would be 8 in this store"),
        (change(7, sequence=5), "line 8 of 'in.jsonl': sequence 5 would be 2 in this store"),
        (change(7, position=-1), "position -1 is no whole number from 1 up"),
        (change(7, aggregate=None), "sequence 2 is one of an aggregate, and there is none"),
        (change(7, recorded_at="2026-01-01T00:00:00"), "has no time zone"),
        (change(7, recorded_at="soon"), "line 8 of 'in.jsonl': ValidationError"),
        (change(7, type=""), "type is empty"),
        (change(7, type="a\0b"), "contains NUL"),
        (change(7, schema_version=-1), "schema version -1"),
        (change(7, data={"order": "A-9"}), "event_id"),
        (change(7, surprise=1), "surprise"),
        (change(7, specversion="0.3"), "line 8 of 'in.jsonl'"),
        (
            change(7, data={"event_id": str(ONE), "occurred_at": "2026-01-01T00:00:00Z"}),
            f"event {ONE}, a 'operated.paid', was not stored: its id is that of a",
        ),
    ],
)
def test_one_bad_line_is_told_and_nothing_is_imported(
    here: Here, store: str, tmp_path: Path, spoil: Callable[[list[Any]], None], message: str
) -> None:
    lines: list[Any] = exported(here, store)
    assert imported(here, tmp_path, lines[:2])[0] == 0
    before = log_of(tmp_path / "copy.db")
    spoil(lines)
    code, stdout, stderr = imported(here, tmp_path, lines)
    assert (code, stdout) == (2, "")
    assert message in stderr
    assert stderr.endswith("Nothing was imported\n")
    assert log_of(tmp_path / "copy.db") == before
    assert here("verify", "copy.db")[0] == 0


def test_a_bad_line_leaves_no_new_store_behind(here: Here, tmp_path: Path) -> None:
    assert imported(here, tmp_path, ["{"])[0] == 2
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl"]


def test_another_event_under_a_known_id_is_a_conflict(
    here: Here, store: str, tmp_path: Path
) -> None:
    lines = exported(here, store)
    assert imported(here, tmp_path, lines)[0] == 0
    lines[2]["data"]["quantity"] = 7
    code, _, stderr = imported(here, tmp_path, lines)
    assert code == 2
    assert "line 3 of 'in.jsonl'" in stderr
    assert "it differs in 'quantity'" in stderr


def test_events_are_renumbered_behind_what_is_there(here: Here, store: str, tmp_path: Path) -> None:
    async def make() -> None:
        async with SqliteEventStore(tmp_path / "copy.db") as own:
            await own.append([Ordered("A-1", event_id=UUID(int=50))])

    trio.run(make)
    lines = exported(here, store)
    code, _, stderr = imported(here, tmp_path, lines)
    assert (code, "position 1 would be 2" in stderr) == (2, True)
    assert imported(here, tmp_path, lines, "--renumber")[0] == 0
    places = [(line["position"], line["sequence"]) for line in exported(here, "copy.db")]
    assert places == [*zip(range(1, 10), [1, 2, 3, 1, 2, 1, 2, 1, 2], strict=True)]
    assert here("verify", "copy.db")[0] == 0


def test_lines_without_places_come_behind_what_is_there(
    here: Here, store: str, tmp_path: Path
) -> None:
    lines = exported(here, store)
    bare = [{"type": line["type"], "data": line["data"]} for line in lines[:1]]
    assert imported(here, tmp_path, bare)[0] == 0
    (line,) = exported(here, "copy.db")
    assert (line["position"], line["aggregate"], line["data"]) == (1, None, lines[0]["data"])


def test_a_store_that_a_bus_has_takes_nothing_over(here: Here, store: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").touch()
    with held(store) as pid:
        code, _, stderr = here("import", store, "in.jsonl")
        assert (code, f"in use by process {pid}" in stderr) == (2, True)


def test_an_export_of_damage_ends_there_and_leaves_no_file(
    here: Here, store: str, tmp_path: Path
) -> None:
    damage(store)
    code, _, stderr = here("export", store, "--to", "out.jsonl")
    assert (code, "position 3" in stderr) == (1, True)
    assert not os.path.lexists(tmp_path / "out.jsonl")


def test_a_backup_is_the_whole_store_while_another_process_has_it(here: Here, store: str) -> None:
    with held(store):
        code, stdout, stderr = here("backup", store, "copy.db")
    assert (code, stderr) == (0, "")
    assert stdout.startswith("copied 8 events, 49.2 kB, to ")
    assert stdout.endswith("; it is whole\n")
    assert log_of("copy.db") == log_of(store)
    assert here("groups", "copy.db")[1] == here("groups", store)[1]
    assert here("dead-letters", "copy.db")[1] == here("dead-letters", store)[1]
    assert os.stat("copy.db").st_mode & 0o777 == 0o600
    assert sorted(os.listdir()) == ["copy.db", "shop.db"]


def test_a_backup_of_damage_is_not_kept(here: Here, store: str) -> None:
    damage(store)
    code, stdout, stderr = here("backup", store, "copy.db")
    assert (code, stdout) == (1, "")
    assert "No copy was kept" in stderr
    assert sorted(os.listdir()) == ["shop.db"]


@pytest.mark.parametrize("command", [["backup", "S", "F"], ["export", "S", "--to", "F"]])
def test_a_file_that_is_there_is_not_written_over(
    here: Here, store: str, tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "there").write_text("mine")
    given = [{"S": store, "F": "there"}.get(part, part) for part in command]
    code, stdout, stderr = here(*given)
    assert (code, stdout, "is there already" in stderr) == (2, "", True)
    assert (tmp_path / "there").read_text() == "mine"
    given = [{"S": store, "F": "no/such/place"}.get(part, part) for part in command]
    code, _, stderr = here(*given)
    assert (code, "No such file or directory" in stderr) == (2, True)


def test_a_copy_that_finds_no_room_is_said_and_not_kept(
    here: Here, store: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        ["sh", "-c", f"ulimit -f 80; exec {sys.executable} -m triobus backup {store} copy.db"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "could not be written" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["shop.db"]


async def test_readers_and_a_backup_go_beside_a_writer_that_never_rests(
    here: Here, store: str
) -> None:
    def look() -> list[int]:
        return [
            here(*command)[0]
            for command in (
                ["backup", store, "copy.db"],
                ["status", store],
                ["events", store],
                ["show", store, "1"],
                ["verify", store],
            )
        ]

    written = 8
    async with SqliteEventStore(store) as own, trio.open_nursery() as nursery:

        async def write() -> None:
            nonlocal written
            while True:
                await own.append([Ordered(f"more-{written}")])
                written += 1

        nursery.start_soon(write)
        assert await trio.to_thread.run_sync(look) == [0, 1, 0, 0, 0]
        nursery.cancel_scope.cancel()
    log, copy = log_of(store), log_of("copy.db")
    assert (len(log) in (written, written + 1), log[: len(copy)] == copy) == (True, True)
    assert 8 <= len(copy) < len(log)
    assert sorted(os.listdir()) == ["copy.db", "shop.db"]
