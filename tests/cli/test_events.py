"""`triobus events`: the log as a table and as lines, chosen, followed and safe on a terminal."""

import json
import signal
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
import trio

from tests.cli.operated import CONTROL, ONE, Ordered
from tests.cli.running import Here, placed, started, written
from triobus import EventBus, SqliteEventStore
from triobus._cli._messages import CommandError
from triobus._cli._times import moment_of

NOW = datetime(2026, 6, 15, 12, tzinfo=UTC)


def positions(here: Here, *arguments: str) -> list[int]:
    code, stdout, _ = here("events", *arguments, "--json")
    assert code == 0
    return [json.loads(line)["position"] for line in stdout.splitlines()]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], [1, 2, 3, 4, 5, 6, 7, 8]),
        (["--last", "3"], [6, 7, 8]),
        (["--last", "0"], []),
        (["--after", "6"], [7, 8]),
        (["--after", "6", "--last", "1"], [8]),
        (["--after", "8"], []),
        (["--type", "operated.paid"], [2, 4, 6, 8]),
        (["--type", "operated.paid", "--last", "2"], [6, 8]),
        (["--type", "operated.paid", "--type", "operated.ordered", "--after", "5"], [6, 7, 8]),
        (["--type", "nothing"], []),
        (["--aggregate", "A-2"], [3, 4]),
        (["--aggregate", CONTROL], [7, 8]),
        (["--correlation", str(ONE)], [2]),
        (["--since", "1h"], [1, 2, 3, 4, 5, 6, 7, 8]),
        (["--since", "2100-01-01T00:00Z"], []),
        (["--until", "1h"], []),
        (["--until", "now", "--last", "1"], [8]),
    ],
)
def test_the_options_choose_events(
    here: Here, store: str, options: list[str], expected: list[int]
) -> None:
    assert positions(here, store, *options) == expected


def test_since_and_until_take_the_moment_itself_in(here: Here, store: str) -> None:
    lines = [json.loads(line) for line in here("events", store, "--json")[1].splitlines()]
    third, fifth = lines[2]["recorded_at"], lines[4]["recorded_at"]
    assert positions(here, store, "--since", third, "--until", fifth) == [3, 4, 5]


def test_the_table_has_what_a_terminal_would_obey_escaped(here: Here, store: str) -> None:
    _, stdout, _ = here("events", store, "--last", "1")
    names, _, row = stdout.splitlines()
    assert names.split("  ")[0] == "position"
    assert row.split()[3:] == ["operated.paid", r"\x1b[2J\u202e", r'{"order":"\u001b[2J\u202e"}']
    for form in ("--json", "--cloudevents"):
        assert {line.isprintable() for line in here("events", store, form)[1].splitlines()} == {
            True
        }


def test_a_cloud_event_has_all_that_the_event_has(here: Here, store: str) -> None:
    _, stdout, _ = here("events", store, "--cloudevents", "--source", "/shop", "--after", "1")
    event = json.loads(stdout.splitlines()[0])
    assert datetime.fromisoformat(event.pop("time")) < datetime.fromisoformat(
        event.pop("recordedtime")
    )
    assert event == {
        "specversion": "1.0",
        "id": str(UUID(int=101)),
        "source": "/shop",
        "type": "operated.paid",
        "subject": "A-1",
        "datacontenttype": "application/json",
        "correlationid": str(ONE),
        "causationid": str(ONE),
        "position": "2",
        "sequence": "2",
        "schemaversion": 1,
        "data": {"order": "A-1"},
    }


def test_metadata_is_part_of_both_forms(here: Here, tmp_path: Path) -> None:
    async def make() -> None:
        async with SqliteEventStore(tmp_path / "meta.db") as store:
            await store.append([Ordered("A", metadata={"traceparent": "00-1", "who": "me"})])

    trio.run(make)
    (line,) = here("events", "meta.db", "--json")[1].splitlines()
    assert json.loads(line)["metadata"] == {"traceparent": "00-1", "who": "me"}
    (line,) = here("events", "meta.db", "--cloudevents")[1].splitlines()
    event = json.loads(line)
    assert event["traceparent"] == "00-1"
    assert json.loads(event["metadata"]) == {"traceparent": "00-1", "who": "me"}


def test_triobus_run_takes_the_lines_as_they_are(here: Here, tmp_path: Path, name: str) -> None:
    written(tmp_path, name=name)
    (tmp_path / "in.jsonl").write_text(placed("A", name) + placed("B", name, quantity=2))
    assert here("run", f"{name}:bus", "--input", "in.jsonl", "--store", "one.db")[0] == 0
    (tmp_path / "again.jsonl").write_text(here("events", "one.db", "--json")[1])
    code, stdout, _ = here("run", f"{name}:bus", "--input", "again.jsonl", "--store", "two.db")
    assert (code, stdout.splitlines()[0][:14]) == (0, "events read: 2")
    first, second = (
        here("events", path, "--json")[1].splitlines() for path in ("one.db", "two.db")
    )
    assert [json.loads(line)["data"] for line in first] == [
        json.loads(line)["data"] for line in second
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-31T12:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31T12:00+02:00", datetime(2026, 1, 31, 10, tzinfo=UTC)),
        ("90s", datetime(2026, 6, 15, 11, 58, 30, tzinfo=UTC)),
        ("1.5h", datetime(2026, 6, 15, 10, 30, tzinfo=UTC)),
        ("7d", datetime(2026, 6, 8, 12, tzinfo=UTC)),
        ("now", NOW),
    ],
)
def test_times_that_mean_one_moment(text: str, expected: datetime) -> None:
    assert moment_of(text, NOW) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("yesterday", "is no time"),
        ("2026-02-30T00:00Z", "is no time"),
        ("", "is no time"),
        ("5", "is no time"),
        ("2026-01-31", "could be a time of any zone: write 2026-01-31T00:00Z for UTC"),
        ("2026-01-31T12:00", "could be a time of any zone: write 2026-01-31T12:00Z for UTC"),
        ("0001-01-01T00:00+14:00", "is before the year 1"),
        ("999999999w", "is before the year 1"),
    ],
)
def test_times_that_mean_nothing_or_several_moments(text: str, message: str) -> None:
    with pytest.raises(CommandError, match=message):
        moment_of(text, NOW)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json", "--cloudevents"], "give one of them"),
        (["--since", "1h", "--until", "2h"], "--since 1h is later than --until 2h"),
        (["--follow", "--until", "now"], "--follow waits"),
    ],
)
def test_options_that_contradict_each_other(
    here: Here, store: str, options: list[str], message: str
) -> None:
    code, stdout, stderr = here("events", store, *options)
    assert (code, stdout) == (2, "")
    assert message in stderr


@pytest.mark.parametrize("option", [["--last", "-1"], ["--after", "x"], ["--correlation", "1"]])
def test_numbers_and_ids_that_are_none(store: str, option: list[str], here: Here) -> None:
    with pytest.raises(SystemExit, match="2"):
        here("events", store, *option)


def test_damage_is_exit_code_1_and_says_where(here: Here, store: str) -> None:
    damage(store)
    code, _, stderr = here("events", store, "--after", "0")
    assert code == 1
    assert "position 3" in stderr


def damage(store: str) -> None:
    with closing(sqlite3.connect(store)) as file, file:
        file.execute("UPDATE events SET data = '{}' WHERE position = 3")


async def test_following_goes_on_over_a_restart_of_the_bus(store: str, tmp_path: Path) -> None:
    process = started(tmp_path, "events", store, "--follow", "--json", "--last", "1")
    assert process.stdout is not None
    found = [json.loads(await trio.to_thread.run_sync(process.stdout.readline))["position"]]
    for number in range(2):  # two lives of a bus
        async with EventBus(SqliteEventStore(store)) as bus:
            await bus.publish(Ordered(f"B-{number}"))
            line = await trio.to_thread.run_sync(process.stdout.readline)
            found.append(json.loads(line)["position"])
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert (found, process.returncode, stderr) == ([8, 9, 10], 0, "")


def test_a_reader_that_goes_away_ends_it_without_a_word(store: str, tmp_path: Path) -> None:
    with started(tmp_path, "events", store, "--follow", "--json") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()

        async def write() -> None:
            async with SqliteEventStore(store) as own:
                await own.append([Ordered("last")])

        trio.run(write)
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_a_terminal_of_ascii_gets_ascii(tmp_path: Path) -> None:
    async def make() -> None:
        async with SqliteEventStore(tmp_path / "wide.db") as store:
            await store.append([Ordered("日本")])

    trio.run(make)
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONIOENCODING": "ascii"}
    with started(tmp_path, "events", "wide.db", env=environment) as process:
        stdout, stderr = process.communicate()
    assert (process.returncode, stderr) == (0, "")
    assert r"\u65e5\u672c" in stdout
