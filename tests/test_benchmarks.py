"""The benchmarks run and say what they measured; what they measure is theirs to say."""

import re

import pytest

from benchmarks.__main__ import main
from benchmarks.idle import voluntary_switches
from benchmarks.throughput import bytes_per_queued_event


def test_throughput_shows_every_figure_beside_its_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["throughput", "--quick", "--rounds", "1"]) in (0, 1)
    names = re.findall(r"^(\w.*?)  +[\d,]+", capsys.readouterr().out, re.MULTILINE)
    assert names == [
        "raw memory channel",
        "publish",
        "publish_many, 1 aggregate",
        "publish_many, 100 aggregates",
        "publish_many, 10,000 aggregates",
        "memory of a queued event",
    ]


def test_durable_shows_every_figure_beside_its_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["durable", "--quick", "--rounds", "1"]) in (0, 1)
    names = re.findall(r"^(\w.*?)  +[\d,]+", capsys.readouterr().out, re.MULTILINE)
    assert names == [
        "raw, 1,000 rows a commit",
        "the same with the bus's ids",
        "raw, one row a commit",
        "256 publishers",
        "publish_many of 500",
        "one publisher",
        "reading and decoding in a plain loop",
        "catching up on 20,000 events",
        "memory of a backlog of 50,000",
    ]


def test_a_queued_event_takes_less_than_600_bytes_beyond_itself() -> None:
    assert 0 < bytes_per_queued_event(1000) < 600


@pytest.mark.parametrize("with_bus", [False, True])
async def test_idle_counts_nothing_in_no_time(with_bus: bool) -> None:
    assert await voluntary_switches(0, with_bus=with_bus) <= 0


@pytest.mark.parametrize("arguments", [["speed"], ["throughput", "--rounds", "0"]])
def test_a_wrong_argument_is_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert arguments[-1] in capsys.readouterr().err
