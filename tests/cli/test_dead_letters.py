"""`triobus dead-letters`: what failed and why, discarded and replayed."""

import json
from pathlib import Path

import pytest

from tests.cli.operated import CONTROL
from tests.cli.running import Here
from tests.cli.test_status import held

MENDED = """
from tests.cli.operated import Paid
from triobus import EventBus, Retry

bus = EventBus(workers=1)
mail = bus.group("mail", workers=1, start="beginning")
handled = []

@mail.subscribe(Paid, name="NAME", retry=Retry(attempts=1))
async def thank(event):
    if event.order == "A-3":
        raise ValueError("still none")
    handled.append(event.order)
"""


def ids(here: Here, store: str, *options: str) -> list[int]:
    code, stdout, _ = here("dead-letters", store, "--list", "--json", *options)
    found = [json.loads(line)["id"] for line in stdout.splitlines()]
    assert code == int(bool(found))
    return found


def test_dead_letters_are_grouped_by_subscription_and_error(here: Here, store: str) -> None:
    code, stdout, _ = here("dead-letters", store)
    names, _, row, *rest = stdout.splitlines()
    assert code == 1
    assert names.split("  ")[0] == "dead letters"
    assert row.split()[:5] == ["3", "mail", "thank", "ValueError", "1..3"]
    assert row.endswith(r"no address of \x1b[2J\u202e")
    assert rest == ["", "--list shows them one by one, --show 1 one with its traceback"]
    found = json.loads(here("dead-letters", store, "--json")[1])
    assert found["dead_letters"] == 3
    assert [(group["count"], group["held_back"]) for group in found["groups"]] == [(3, 0)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], [1, 2, 3]),
        (["--limit", "2"], [1, 2]),
        (["--aggregate", "A-3"], [2]),
        (["--aggregate", CONTROL], [3]),
        (["--error", "ValueError", "--group", "mail"], [1, 2, 3]),
        (["--error", "KeyError"], []),
        (["--group", "post"], []),
    ],
)
def test_the_options_choose_dead_letters(
    here: Here, store: str, options: list[str], expected: list[int]
) -> None:
    assert ids(here, store, *options) == expected


def test_one_is_shown_with_its_event_and_traceback_in_lines(here: Here, store: str) -> None:
    code, stdout, _ = here("dead-letters", store, "--show", "3")
    assert code == 1
    assert stdout.splitlines()[1] == r"  ValueError: no address of \x1b[2J\u202e"
    assert stdout.splitlines()[-1] == r"ValueError: no address of \x1b[2J\u202e"
    assert "Traceback (most recent call last):\n" in stdout
    shown = json.loads(here("dead-letters", store, "--show", "1", "--json")[1])
    assert (shown["subscription"], shown["event"]["data"]["order"]) == ("thank", "A-2")


def test_discarding_forgets_what_was_chosen_and_nothing_else(here: Here, store: str) -> None:
    assert here("dead-letters", store, "discard", "2", "--dry-run") == (
        0,
        "would discard 1 dead letter\n",
        "",
    )
    assert ids(here, store) == [1, 2, 3]
    done = here("dead-letters", store, "discard", "2-3", "--yes")
    assert done == (0, "discarded 2 dead letters\n", "")
    assert ids(here, store) == [1]
    _, stdout, _ = here("dead-letters", store, "discard", "--all", "--yes", "--json")
    assert json.loads(stdout) == {"discarded": [1], "dry_run": False}
    assert here("dead-letters", store) == (0, "no dead letters\n", "")
    assert here("verify", store)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["discard", "2", "99", "--yes"], "has no dead letter 99"),
        (["discard", "50-60", "--yes"], "has no dead letter 50"),
        (["discard", "--yes"], "which ones?"),
        (["discard", "1", "--all", "--yes"], "ids and --all were given"),
        (["discard", "1"], "give --yes to do it"),
        (["--show", "99"], "has no dead letter 99"),
        (["--list", "--limit", "-1"], "--limit -1"),
    ],
)
def test_a_wrong_call_changes_nothing(
    here: Here, store: str, arguments: list[str], message: str
) -> None:
    code, stdout, stderr = here("dead-letters", store, *arguments)
    assert (code, stdout) == (2, "")
    assert message in stderr
    assert ids(here, store) == [1, 2, 3]


def test_a_store_that_a_bus_has_is_not_changed(here: Here, store: str) -> None:
    with held(store) as pid:
        for action in (["discard", "1", "--yes"], ["discard", "--all", "--yes"]):
            code, stdout, stderr = here("dead-letters", store, *action)
            assert (code, stdout) == (2, "")
            assert f"in use by process {pid}" in stderr
        assert ids(here, store) == [1, 2, 3]


def mended(tmp_path: Path, name: str, subscription: str = "thank") -> str:
    (tmp_path / f"{name}.py").write_text(MENDED.replace("NAME", subscription))
    return f"{name}:bus"


def test_replaying_delivers_again_to_mended_handlers(
    here: Here, store: str, tmp_path: Path, name: str
) -> None:
    target = mended(tmp_path, name)
    dry = here("dead-letters", store, "replay", target, "--dry-run")
    assert dry == (0, "would replay 3 dead letters\n", "")
    assert here("dead-letters", store, "replay", target, "1")[:2] == (0, "1 dead letter handled\n")
    code, stdout, _ = here("dead-letters", store, "replay", target, "--json")
    assert (code, json.loads(stdout)) == (
        1,
        {"replayed": 2, "handled": 1, "failed": 1, "dry_run": False},
    )
    assert ids(here, store) == [2]
    assert "ValueError: still none" in here("dead-letters", store, "--show", "2")[1]
    assert here("verify", store)[0] == 0


def test_handlers_that_are_not_those_of_the_file_are_refused_before_anything_starts(
    here: Here, store: str, tmp_path: Path, name: str
) -> None:
    target = mended(tmp_path, name, "greet")
    before = here("groups", store, "--json")
    code, stdout, stderr = here("dead-letters", store, "replay", target)
    assert (code, stdout) == (2, "")
    assert f"of handlers that {target} does not have: 'thank' in group 'mail'" in stderr
    assert "it has 'greet' in group 'mail'" in stderr
    assert here("groups", store, "--json") == before


def test_replaying_in_a_store_that_a_bus_has_is_refused(
    here: Here, store: str, tmp_path: Path, name: str
) -> None:
    target = mended(tmp_path, name)
    with held(store) as pid:
        code, _, stderr = here("dead-letters", store, "replay", target)
        assert code == 2
        assert f"in use by process {pid}" in stderr
