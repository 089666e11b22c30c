"""The benchmarks run and say what they measured; what they measure is theirs to say."""

import json
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import attrs
import pytest
import trio

from benchmarks import idle, memory, ordering, peers, recovery, report, trips
from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.measuring import Benchmark, Competitor, Figure, Report, run
from benchmarks.peers_durable import DURABLE
from benchmarks.peers_in_memory import IN_MEMORY

ROOT = Path(__file__).parents[1]
LIMITS = {
    "throughput": "raw memory channel",
    "latency": "raw memory channel, p50",
    "fanout": "raw memory channel",
    "ordering": "theoretical best",
    "durable": "raw, 1,000 rows a commit",
    "effects": "raw, 1,000 rows of each a commit",
    "batches": "handler of one, 100 aggregates",
    "scheduled": "publish",
    "recovery": "reading and decoding in a plain loop",
    "memory": "raw channel, an event queued",
    "idle": "Trio alone, switches",
    "startup": "import trio",
    "instruments": "publish, no instrument",
}


@pytest.fixture
def without_peers(monkeypatch):
    monkeypatch.setattr(peers, "versions", dict)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_shows_its_limit_first_and_a_ratio_to_it(
    name, capsys, without_peers, tmp_path, monkeypatch
):
    fill = recovery.fill
    monkeypatch.setattr(recovery, "fill", lambda path, count: fill(path, count // 10))
    assert main([name, "--quick", "--rounds", "1", "--json", str(tmp_path / "found.json")]) == 0
    out, err = capsys.readouterr()
    assert re.search(rf"^{re.escape(LIMITS[name])} +[\d,.]+ ", out, re.MULTILINE), out
    assert f"{name}: round 1 of 1: " in err
    (found,) = json.loads((tmp_path / "found.json").read_text())["reports"]
    assert found["name"] == name
    assert all(figure["median"] is not None for figure in found["figures"])


WORKS = {
    **dict.fromkeys(IN_MEMORY, ("throughput", "latency")),
    **dict.fromkeys(DURABLE, ("durable",)),
}


@pytest.mark.parametrize(
    "name", [name for name in WORKS if peers.package_of(name) in peers.versions()]
)
def test_a_peer_that_is_installed_works_in_a_process_of_its_own(name):
    with peers.process(name) as peer:
        for work in WORKS[name]:
            for handlers in (1, 3):
                assert peers.ask(peer, work=work, count=120, handlers=handlers) > 0


def test_a_peer_that_ends_is_told():
    with (
        peers.process("nobody") as peer,
        pytest.raises(RuntimeError, match=r"of a peer ended with 1 at \{'work': 'durable'"),
    ):
        peers.ask(peer, work="durable", count=1, handlers=1)


def test_rounds_take_the_competitors_in_turn():
    asked = []

    def measured(name, figures):
        left = iter(figures)

        def measure():
            asked.append(name)
            return next(left)

        return measure

    found = run(
        Benchmark(
            "speed",
            "Speed",
            [
                Competitor("limit", measured("limit", [10, 20, 10])),
                Competitor("bus", measured("bus", [9, 16, 9]), limit="limit", bound=0.9),
                Competitor("once", measured("once", [3]), "s", bound=2, is_fixed=True),
                Competitor(
                    "peer", measured("peer", [1, 2, 2]), limit="limit", bound=10, kind="peer"
                ),
            ],
        ),
        rounds=3,
    )
    assert asked == ["limit", "bus", "once", "peer", *["limit", "bus", "peer"] * 2]
    shown = {each.name: (each.median, each.ratio, each.is_reached) for each in found.figures}
    assert shown == {
        "limit": (10, None, None),
        "bus": (9, 0.9, True),
        "once": (3, None, False),
        "peer": (2, 10, True),
    }


def test_figures_of_one_competitor_stand_beside_the_limits_of_their_name():
    found = run(
        Benchmark(
            "latency",
            "Latency",
            [
                Competitor("limit", lambda: {"p50": 2.0, "p99": 4.0}, "us"),
                Competitor(
                    "bus", lambda: {"p50": 3.0, "p99": 8.0}, "us", "limit", None, {"p50": 1}
                ),
                Competitor("peer", lambda: 6.0, "us", "bus, p50", kind="peer"),
            ],
        ),
        rounds=1,
    )
    assert [(each.name, each.ratio, each.is_reached) for each in found.figures[2:]] == [
        ("bus, p50", 1.5, False),
        ("bus, p99", 2, None),
        ("peer", 2, None),
    ]


def test_a_figure_that_cannot_be_told_is_a_dash():
    found = run(Benchmark("memory", "Memory", [Competitor("growth", lambda: None, "MiB")]), 1)
    assert re.search(r"^growth +-  MiB", report.table(found), re.MULTILINE)


def test_without_psutil_a_dash_and_a_line_say_so(monkeypatch, capsys, without_peers):
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert main(["memory", "--quick", "--rounds", "1"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^growth over 200,000 events +-  MiB", out, re.MULTILINE)
    assert "psutil is not installed" in out


def _report(ratio, spread=0.01, unit="events/s"):
    return Report("speed", "Speed", [Figure("bus", unit, 1.0, 0.0, "limit", ratio, spread)])


@pytest.mark.parametrize(
    ("before", "after", "unit", "is_worse"),
    [
        (0.9, 0.8, "events/s", True),
        (0.8, 0.9, "events/s", False),
        (0.9, 0.895, "events/s", False),
        (1.5, 1.6, "us", True),
        (1.6, 1.5, "us", False),
    ],
)
def test_against_tells_a_ratio_that_is_worse_by_more_than_the_rounds_differ(
    tmp_path, before, after, unit, is_worse
):
    path = tmp_path / "before.json"
    report.write_json(path, [_report(before, unit=unit)])
    lines = report.worse([_report(after, unit=unit)], report.read_json(path))
    assert [line.partition(": the ratio")[0] for line in lines] == ["speed: bus"] * is_worse


def test_against_makes_the_exit_code_1(tmp_path, capsys, without_peers, monkeypatch):
    monkeypatch.setattr(ordering, "EVENTS", 1000)
    path = tmp_path / "before.json"
    assert main(["ordering", "--rounds", "1", "--json", str(path)]) == 0
    assert main(["ordering", "--rounds", "1", "--against", str(path)]) == 0
    text = re.sub(r'"ratio": 1\.\d+', '"ratio": 0.5', path.read_text())
    path.write_text(text)
    capsys.readouterr()
    assert main(["ordering", "--rounds", "1", "--against", str(path)]) == 1
    assert "Worse than before:\nordering: publish_many, 4 workers" in capsys.readouterr().out


@pytest.mark.parametrize("text", [None, "", "[]", '{"reports": [1]}', '{"reports": [{}]}'])
def test_against_a_file_that_is_none_is_told(text, tmp_path, capsys):
    path = tmp_path / "before.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit, match="2"):
        main(["idle", "--against", str(path)])
    assert str(path) in capsys.readouterr().err


def test_a_plot_has_every_name_in_it(tmp_path):
    pytest.importorskip("matplotlib", reason="it is in the extra bench")
    figures = [attrs.evolve(_report(0.9).figures[0], name=name) for name in ("one", "another")]
    report.plot(tmp_path / "plot.svg", [Report("speed", "Speed of both", figures)])
    text = (tmp_path / "plot.svg").read_text()
    assert "<!-- another -->" in text
    assert "<!-- Speed of both (events/s) -->" in text


def test_the_readme_is_rewritten_between_its_markers(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write_readme(path, [_report(0.9)])
    text = path.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n\n**Speed**\n")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "| bus | 0.90 | 1 events/s | 0% |" in text
    assert "old" not in text


def test_a_readme_without_markers_is_left_alone(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("text\n")
    with pytest.raises(ValueError, match="has no markers"):
        report.write_readme(path, [_report(0.9)])
    assert path.read_text() == "text\n"


async def test_a_queued_event_takes_less_than_600_bytes_beyond_itself():
    tracemalloc.start()
    try:
        assert 0 < await memory.queued_in_bus(1000) < 600
    finally:
        tracemalloc.stop()


def test_order_costs_at_most_a_twentieth_of_the_best_schedule():
    events, failing = ordering.chosen()
    clock = trio.testing.MockClock(autojump_threshold=0)
    took = trio.run(ordering.by_bus, events, failing, clock=clock)
    best = ordering.best(events, failing)
    assert best <= took < 1.05 * best


@pytest.mark.parametrize("with_bus", [False, True])
async def test_idle_counts_nothing_in_no_time(with_bus):
    found = await idle.measure(0, with_bus=with_bus)
    assert found["switches"] is None or found["switches"] <= 0


@pytest.mark.parametrize(
    "arguments",
    [["speed"], ["idle", "--rounds", "0"], ["idle", "--json", "/there/is/no/such/file.json"]],
)
def test_a_wrong_argument_is_told(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert arguments[-1] in capsys.readouterr().err


def test_the_help_names_every_benchmark():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"],
        check=True, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert all(f"\n{name}: " in done.stdout for name in BENCHMARKS)


def test_the_way_of_one_event_is_counted_and_does_not_grow(capsys):
    trips.main()
    found = {line[:32].strip(): line[32:].split() for line in capsys.readouterr().out.splitlines()}
    assert found.pop("trip") == ["entries", "files", "moves"]
    ways = {name: (int(files), int(moves)) for name, (_, files, moves) in found.items()}
    longest = {
        "publish in memory": (6, 7),
        "publish_many in memory": (9, 16),
        "publish with SQLite": (36, 92),
        "publish and retry with SQLite": (38, 124),
        "entering the block with SQLite": (46, 225),
        # Any node may ask, and the owner executes, if the bus has not begun to end meanwhile.
        "replay of one with SQLite": (37, 126),
    }
    assert ways.keys() == longest.keys()
    grown = {
        name: way
        for name, way in ways.items()
        if any(now > most for now, most in zip(way, longest[name], strict=True))
    }
    assert grown == {}
