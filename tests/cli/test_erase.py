"""`triobus erase`: nothing of an aggregate is left, and everything else is as it was."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.cli import operated
from tests.cli.running import Here
from triobus import DomainEvent, Erased, EventBus, SqliteEventStore, StoreCorrupt
from triobus.stores.sqlite import _erasing


def everything(store: str) -> bytes:
    """All bytes of the store's files."""
    path = Path(store)
    return b"".join(each.read_bytes() for each in path.parent.glob(path.name + "*"))


def exported(here: Here, store: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in here("export", store)[1].splitlines()]


def erase(here: Here, store: str, *more: str) -> tuple[int, str, str]:
    return here("erase", store, "--aggregate", "A-2", *more)


def test_nothing_is_left_of_it_and_all_else_is_as_it_was(here: Here, store: str) -> None:
    before = exported(here, store)
    assert b"A-2" in everything(store)
    code, said, _ = erase(here, store, "--yes")
    assert (code, said) == (
        0,
        "erased 2 events, 1 dead letter and 0 scheduled of aggregate 'A-2'\n",
    )
    assert b"A-2" not in everything(store)
    after = exported(here, store)
    others = [line for line in before if line["aggregate"] != "A-2"]
    assert [line for line in after if line["type"] != "triobus.erased"] == others
    erased = [line for line in after if line["type"] == "triobus.erased"]
    assert [(line["position"], line["aggregate"], line["data"]["was"]) for line in erased] == [
        (3, None, "operated.ordered"),
        (4, None, "operated.paid"),
    ]
    ids = {line["position"]: line["data"]["event_id"] for line in before}
    assert [line["data"]["event_id"] for line in erased] == [ids[3], ids[4]]
    code, said, _ = here("verify", store)
    assert (code, "events erased: 2" in said) == (0, True)


def test_what_was_deleted_before_is_overwritten_too(here: Here, store: str) -> None:
    assert here("dead-letters", store, "discard", "--all", "--yes")[0] == 0
    assert erase(here, store, "--yes")[0] == 0
    assert b"A-2" not in everything(store)


def test_a_bus_goes_on_and_begins_the_aggregate_anew(here: Here, store: str) -> None:
    assert erase(here, store, "--yes")[0] == 0
    seen: list[DomainEvent] = []

    async def go_on() -> None:
        bus = operated.shop()
        bus.store = SqliteEventStore(store)
        everyone = bus.group("everyone", workers=1, start="beginning")

        @everyone.subscribe(DomainEvent)
        async def see(event: DomainEvent) -> None:
            seen.append(event)

        async with bus:
            await bus.publish(operated.Ordered("A-2"), expected_sequence=0)
            await bus.wait_idle()
            assert {group.lag for group in bus.statistics().groups.values()} == {0}

    trio.run(go_on, clock=trio.testing.MockClock(autojump_threshold=0))
    assert [event.was for event in seen if isinstance(event, Erased)] == [
        "operated.ordered",
        "operated.paid",
    ]
    assert here("verify", store)[0] == 0


def test_nothing_is_done_unless_it_is_meant(here: Here, store: str) -> None:
    before = everything(store)
    code, said, _ = erase(here, store, "--dry-run", "--json")
    assert (code, json.loads(said)) == (
        0,
        {"events": 2, "dead_letters": 1, "scheduled": 0, "dry_run": True},
    )
    code, _, said = erase(here, store)
    assert (code, "give --yes" in said) == (2, True)
    code, _, said = here("erase", store, "--aggregate", "nobody", "--dry-run")
    assert (code, "nothing of an aggregate 'nobody'" in said) == (2, True)
    assert everything(store) == before


def test_a_store_that_a_bus_has_is_left_alone(here: Here, store: str) -> None:
    async def beside() -> None:
        async with EventBus(SqliteEventStore(store)):
            code, _, said = await trio.to_thread.run_sync(erase, here, store, "--yes")
            assert (code, "is in use" in said) == (2, True), said

    trio.run(beside)
    assert b"A-2" in everything(store)


def test_scheduled_events_of_it_are_erased_too(here: Here, store: str) -> None:
    code, said, _ = here("erase", store, "--aggregate", "A-9", "--yes", "--json")
    assert (code, json.loads(said)["scheduled"]) == (0, 1)
    assert b"A-9" not in everything(store)


def test_cut_off_behind_the_commit_another_call_overwrites_the_rest(
    here: Here, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(_erasing.Eraser, "_overwrite", lambda *_: None)
        assert erase(here, store, "--yes")[0] == 0
    assert erase(here, store, "--yes")[0] == 2  # nothing was there, and yet
    assert b"A-2" not in everything(store)
    assert here("verify", store)[0] == 0


def test_a_damaged_log_is_not_made_to_look_whole(here: Here, store: str) -> None:
    with closing(sqlite3.connect(store, isolation_level=None)) as connection:
        connection.execute("UPDATE events SET data = replace(data, '1', '2') WHERE position = 5")

    async def try_it() -> None:
        async with SqliteEventStore(store) as opened:
            with pytest.raises(StoreCorrupt, match="position 5"):
                await opened._erase("A-2")

    trio.run(try_it)
    assert here("verify", store)[0] == 1
    assert "A-2" in here("events", store, "--last", "2", "--aggregate", "A-2")[1]
