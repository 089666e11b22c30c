"""`triobus show` and `triobus retries`: one event with causes and effects, and what waits."""

import json
import re
from pathlib import Path
from uuid import UUID

import pytest
import trio

from tests.cli.operated import THREE, TWO, Ordered, Paid
from tests.cli.running import Here
from triobus import SqliteEventStore

PAID = UUID(int=102)


def test_an_event_is_shown_with_causes_effects_and_what_handlers_made_of_it(
    here: Here, store: str
) -> None:
    code, stdout, stderr = here("show", store, str(PAID))
    changing = r"\d{4}-\d\d-\d\d[T ][\d:.]+Z|\d+ d$"
    lines = [re.sub(changing, "*", line) for line in stdout.splitlines()]
    assert (code, stderr) == (0, "")
    assert lines == [
        f"event {PAID}",
        "  type         operated.paid",
        "  place        position 4, sequence 2 of aggregate 'A-2'",
        "  recorded at  *",
        "  occurred at  *",
        f"  correlation  {TWO}",
        f"  caused by    {TWO}",
        '    order: "A-2"',
        "",
        "causes and effects:",
        f"  3 operated.ordered of 'A-2'  {TWO}",
        "      default: settled",
        "      mail: settled",
        "      post: settled",
        f"    4 operated.paid of 'A-2'  {PAID}  <- this one",
        "        default: settled",
        "        mail: settled",
        "        mail: dead letter 1: 'thank' after 2 attempts, ValueError: no address of A-2",
        "        post: waits for a retry: 'ship' after 1 attempt, due in *",
    ]


def test_a_position_stands_for_its_event_and_json_has_the_tree(here: Here, store: str) -> None:
    code, stdout, _ = here("show", store, "3", "--json")
    found = json.loads(stdout)
    assert (code, found["event"]["position"], found["is_cut"]) == (0, 3, False)
    assert found["tree"]["event_id"] == str(TWO)
    (effect,) = found["tree"]["effects"]
    assert (effect["event_id"], effect["effects"]) == (str(PAID), [])
    states = {group["group"]: group["state"] for group in effect["groups"]}
    assert states == {"default": "settled", "mail": "settled", "post": "waits for a retry"}
    assert [letter["id"] for letter in effect["groups"][1]["dead_letters"]] == [1]
    assert effect["groups"][2]["due_at"] == "2100-01-01T02:00:00Z"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("99", "has no position 99: the log ends at 8"),
        ("0", "has no position 0: the log ends at 8"),
        (str(UUID(int=77)), f"has no event with the id {UUID(int=77)}"),
    ],
)
def test_what_is_not_there_is_said(here: Here, store: str, asked: str, message: str) -> None:
    code, stdout, stderr = here("show", store, asked)
    assert (code, stdout) == (2, "")
    assert message in stderr


def test_chains_circles_and_causes_that_are_elsewhere(here: Here, tmp_path: Path) -> None:
    first, second, third = (UUID(int=number) for number in (21, 22, 23))

    async def make() -> None:
        async with SqliteEventStore(tmp_path / "odd.db") as store:
            await store.append(
                [
                    Ordered("X", event_id=first, causation_id=second, correlation_id=THREE),
                    Ordered("X", event_id=second, causation_id=first, correlation_id=THREE),
                    Ordered("Y", event_id=third, causation_id=UUID(int=99)),
                    *(Paid("Y", causation_id=third, correlation_id=third) for _ in range(5)),
                ]
            )

    trio.run(make)
    assert here("show", "odd.db", "1")[0] == 0
    code, stdout, _ = here("show", "odd.db", "3", "--limit", "3")
    assert code == 0
    assert f"  {UUID(int=99)} (not in this log)" in stdout.splitlines()
    assert stdout.count("operated.paid") == 2
    assert stdout.splitlines()[-1] == "  and more; --limit N shows them"


def test_retries_say_what_waits_of_whom_and_until_when(here: Here, store: str) -> None:
    code, stdout, _ = here("retries", store)
    names, _, row = stdout.splitlines()
    assert code == 0
    assert names.split() == (
        ["group", "position", "type", "aggregate", "subscription", "attempts", "due", "due", "at"]
    )
    assert row.split()[:6] == ["post", "4", "operated.paid", "A-2", "ship", "1"]
    assert row.endswith("2100-01-01 02:00:00Z")
    assert json.loads(here("retries", store, "--json")[1]) == {
        "group": "post",
        "position": 4,
        "event_id": str(PAID),
        "type": "operated.paid",
        "aggregate": "A-2",
        "subscription": "ship",
        "attempts": 1,
        "due_at": "2100-01-01T02:00:00Z",
        "delay": 7200.0,
        "done": [],
    }
    assert here("retries", store, "--group", "mail") == (0, "nothing waits for a retry\n", "")
