"""`triobus groups`: how far they are, reset and removed."""

import json
from datetime import datetime

import pytest

from tests.cli.running import Here
from tests.cli.test_status import held


def offsets(here: Here, store: str) -> dict[str, tuple[int, int]]:
    found = json.loads(here("groups", store, "--json")[1])
    return {name: (group["offset"], group["dead_letters"]) for name, group in found.items()}


BEFORE = {"default": (8, 0), "mail": (8, 3), "post": (3, 0)}


def test_groups_are_listed(here: Here, store: str) -> None:
    code, stdout, _ = here("groups", store)
    assert code == 0
    assert [line.split()[:4] for line in stdout.splitlines()[2:]] == [
        ["default", "8", "0", "0"],
        ["mail", "8", "0", "0"],
        ["post", "3", "1", "1"],
    ]
    assert offsets(here, store) == BEFORE


@pytest.mark.parametrize(("to", "offset"), [("beginning", 0), ("end", 8), ("5", 5), ("8", 8)])
def test_a_group_is_reset_and_forgets_its_dead_letters(
    here: Here, store: str, to: str, offset: int
) -> None:
    said = f"behind position {offset} (it was at 8), "
    code, stdout, _ = here("groups", store, "reset", "mail", "--to", to, "--dry-run")
    assert (code, said in stdout, "forgets 3 dead letters" in stdout) == (0, True, True)
    assert offsets(here, store) == BEFORE
    code, stdout, _ = here("groups", store, "reset", "mail", "--to", to, "--yes")
    assert (code, said in stdout) == (0, True)
    assert offsets(here, store) == BEFORE | {"mail": (offset, 0)}
    assert here("verify", store)[0] == 0


def test_a_time_stands_for_what_was_recorded_before_it(here: Here, store: str) -> None:
    lines = [json.loads(line) for line in here("events", store, "--json")[1].splitlines()]
    moment = datetime.fromisoformat(lines[3]["recorded_at"]).isoformat()
    for last in ("--dry-run", "--yes"):
        _, stdout, _ = here("groups", store, "reset", "mail", "--to", moment, last, "--json")
        assert json.loads(stdout)["to"] == 3
    assert offsets(here, store)["mail"] == (3, 0)


def test_a_group_is_removed(here: Here, store: str) -> None:
    assert here("groups", store, "remove", "post", "--dry-run")[0] == 0
    assert offsets(here, store) == BEFORE
    code, stdout, _ = here("groups", store, "remove", "post", "--yes")
    assert (code, stdout) == (
        0,
        "removed group 'post', which was at position 3; forgets 1 waiting retry\n",
    )
    assert offsets(here, store) == {"default": (8, 0), "mail": (8, 3)}
    assert here("verify", store)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reset", "mail", "--to", "9", "--yes"], "the log ends at position 8"),
        (["reset", "mail", "--to", "9" * 30, "--yes"], "no log is that long"),
        (["reset", "mail", "--to", "sometime", "--yes"], "'sometime' is no time"),
        (["reset", "mail", "--to", "2026-01-01", "--yes"], "could be a time of any zone"),
        (["reset", "absent", "--to", "end", "--yes"], "it has: 'default', 'mail', 'post'"),
        (["remove", "absent", "--yes"], "it has: 'default', 'mail', 'post'"),
        (["remove", "mail"], "give --yes to do it"),
        (["reset", "mail", "--to", "end"], "give --yes to do it"),
    ],
)
def test_a_wrong_call_changes_nothing(
    here: Here, store: str, arguments: list[str], message: str
) -> None:
    code, stdout, stderr = here("groups", store, *arguments)
    assert (code, stdout) == (2, "")
    assert message in stderr
    assert offsets(here, store) == BEFORE


def test_a_store_that_a_bus_has_is_not_changed(here: Here, store: str) -> None:
    with held(store) as pid:
        for action in (["reset", "mail", "--to", "end"], ["remove", "mail"]):
            code, _, stderr = here("groups", store, *action, "--yes")
            assert (code, f"in use by process {pid}" in stderr) == (2, True)
    assert offsets(here, store) == BEFORE
