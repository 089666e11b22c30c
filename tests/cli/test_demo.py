"""The example that newcomers read first: it runs, and it shows what it says."""

import json
import subprocess
import sys
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import triobus._cli._demo
from triobus.__main__ import main


def demo(*options: str) -> tuple[int, str, str]:
    """Run the demo in a process of its own, for a bus runs once."""
    done = subprocess.run(
        [sys.executable, "-m", "triobus", "demo", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@cache
def demo_json() -> dict[str, Any]:
    code, stdout, _ = demo("--json")
    assert code == 0  # they are part of what it shows
    summary: dict[str, Any] = json.loads(stdout)
    return summary


def test_the_demo_shows_retries_and_a_few_dead_letters() -> None:
    broker = demo_json()["groups"]["broker"]
    assert (broker["handled"], broker["failed_attempts"], broker["dead_lettered"]) == (123, 38, 2)
    assert demo_json()["groups"]["default"]["dead_lettered"] == 0


def test_the_demo_ends_in_the_same_positions_every_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["report"] == demo_json()["report"]
    assert again["report"] == [
        {"symbol": "ACME", "shares": -20, "money": "1006.30"},
        {"symbol": "GLOBEX", "shares": 0, "money": "114.00"},
        {"symbol": "HOOLI", "shares": 0, "money": "-3.80"},
        {"symbol": "INITECH", "shares": 10, "money": "-149.00"},
    ]


def test_the_demo_prints_its_positions_below_the_summary(tmp_path: Path) -> None:
    prices = tmp_path / "prices.jsonl"
    closes = ["10", "10", "10", "10", "10.00", "11.00"]  # crosses its average once, upwards
    prices.write_text(
        "".join(
            json.dumps(
                {"type": "price.closed", "data": {"symbol": "IBM", "day": day, "close": close}}
            )
            + "\n"
            for day, close in zip([f"2000-01-0{n}" for n in range(1, 7)], closes, strict=True)
        )
    )
    code, stdout, stderr = demo("--input", str(prices))
    assert (code, stderr) == (0, f"triobus: reading {str(prices)!r}\n")
    assert stdout.startswith("events read: 6, published by handlers: 3, seconds: ")
    assert stdout.splitlines()[-3:] == [
        "symbol  shares    money",
        "------  ------  -------",
        "IBM         10  -110.00",
    ]


def test_other_seeds_make_other_prices() -> None:
    generated = triobus._cli._demo.generated_prices
    assert generated(1) == generated(1)
    assert generated(1) != generated(2)
    first = json.loads(generated(1).splitlines()[0])
    assert first["data"]["symbol"] == "ACME"
    assert Decimal(first["data"]["close"]) > 0


def test_the_demo_is_short_enough_to_be_read_at_once() -> None:
    source = Path(triobus._cli.__file__).parent.parent / "demo.py"
    assert len(source.read_text().splitlines()) < 300
