"""Events are immutable facts."""

import ast
import copy
import os
import pickle
import subprocess
import sys
import threading
import time
import types
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, ClassVar
from uuid import UUID, uuid4

import attrs
import msgspec
import pytest
from trio.testing import MockClock

from tests.events import Noted, Other, SpecialNoted
from triobus import DomainEvent, EventBus, InvalidEvent, TriobusError

TEN = datetime(2024, 5, 17, 10, 0, 0, 123456, tzinfo=UTC)
AN_ID = UUID("12345678-1234-5678-1234-567812345678")


def test_an_event_has_an_id_and_a_time_of_its_own() -> None:
    before = datetime.now(UTC)
    first, second = Noted(1), Noted(1)
    after = datetime.now(UTC)
    assert isinstance(first.event_id, UUID)
    assert first.event_id != second.event_id
    assert before <= first.occurred_at <= second.occurred_at <= after
    assert first.occurred_at.tzinfo is UTC


def test_an_event_begins_without_cause_metadata_and_aggregate() -> None:
    event = Other()
    assert (event.correlation_id, event.causation_id) == (None, None)
    assert event.metadata == {}
    assert event.aggregate_id is None
    assert (event.event_type, event.schema_version) == ("Other", 1)


def test_own_fields_may_be_positional_and_inherited_ones_are_keywords() -> None:
    event = Noted(7, "a", event_id=AN_ID, occurred_at=TEN)
    assert (event.number, event.key, event.event_id, event.occurred_at) == (7, "a", AN_ID, TEN)
    assert event.aggregate_id == "a"
    with pytest.raises(TypeError):
        Noted(7, "a", AN_ID)
    with pytest.raises(TypeError):
        DomainEvent(AN_ID)


def test_an_event_cannot_be_changed() -> None:
    event = Noted(1)
    for field in ("number", "event_id", "metadata"):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(event, field, None)


def test_pytest_never_collects_an_event_class() -> None:
    @attrs.frozen
    class TestRan(DomainEvent):
        """Named like a test."""

    assert TestRan.__test__ is False
    assert DomainEvent.__test__ is False


def test_a_time_without_a_zone_is_refused() -> None:
    naive = datetime(2024, 5, 17, 10)
    with pytest.raises(InvalidEvent) as caught:
        Noted(1, occurred_at=naive)
    assert str(caught.value) == (
        f"occurred_at={naive!r} has no time zone: give an aware datetime, "
        "for example datetime.now(UTC)"
    )


@pytest.mark.parametrize("moment", [None, 0, 1.5, "2024-05-17T10:00:00Z", TEN.date()], ids=str)
def test_what_is_no_time_is_refused(moment: Any) -> None:
    with pytest.raises(InvalidEvent) as caught:
        Noted(1, occurred_at=moment)
    assert str(caught.value) == f"occurred_at={moment!r}: give an aware datetime"
    assert isinstance(caught.value, TriobusError)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)


def test_a_time_of_another_zone_becomes_utc() -> None:
    plus_two = timezone(timedelta(hours=2))
    event = Noted(1, occurred_at=TEN.astimezone(plus_two))
    assert event.occurred_at == TEN
    assert event.occurred_at.tzinfo is UTC
    assert event.occurred_at.isoformat() == "2024-05-17T10:00:00.123456+00:00"


def test_metadata_cannot_be_changed() -> None:
    given = {"user": "ann"}
    event = Noted(1, metadata=given)
    given["user"] = "bob"
    metadata: Any = event.metadata
    changes = [
        lambda: metadata.__setitem__("user", "bob"),
        lambda: metadata.__delitem__("user"),
        lambda: metadata.update(user="bob"),
        lambda: metadata.pop("user"),
        lambda: metadata.popitem(),
        lambda: metadata.clear(),
        lambda: metadata.setdefault("x", "y"),
        lambda: metadata.__ior__({"x": "y"}),
    ]
    for change in changes:
        with pytest.raises(TypeError, match="an event's metadata cannot be changed"):
            change()
    assert event.metadata == {"user": "ann"}


@pytest.mark.parametrize(
    "metadata", [{"a": 1}, {1: "a"}, {"a": None}, {"a": b"b"}, [1], 3, "ab", None], ids=str
)
def test_metadata_maps_strings_to_strings_and_nothing_else(metadata: Any) -> None:
    with pytest.raises(InvalidEvent, match=r"^metadata"):
        Noted(1, metadata=metadata)


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda event: pickle.loads(pickle.dumps(event)), attrs.evolve],
    ids=["copy", "deepcopy", "pickle", "evolve"],
)
def test_a_copy_is_equal_and_as_frozen(duplicate: Any) -> None:
    event = SpecialNoted(1, "a", metadata={"user": "ann"}, correlation_id=uuid4())
    again = duplicate(event)
    assert again == event
    assert type(again) is SpecialNoted
    with pytest.raises(TypeError):
        again.metadata["user"] = "bob"


def test_events_are_equal_if_all_their_fields_are() -> None:
    event = Noted(1, "a", event_id=AN_ID, occurred_at=TEN, metadata={"b": "c"})
    assert event == Noted(1, "a", event_id=AN_ID, occurred_at=TEN, metadata={"b": "c"})
    assert event != Noted(2, "a", event_id=AN_ID, occurred_at=TEN, metadata={"b": "c"})
    assert event != Noted(1, "a", event_id=AN_ID, occurred_at=TEN)
    assert event != SpecialNoted(1, "a", event_id=AN_ID, occurred_at=TEN, metadata={"b": "c"})


def test_equal_events_are_one_in_a_set() -> None:
    event = Noted(1, "a", metadata={"b": "c"})
    other = attrs.evolve(event, metadata={"b": "d"})
    assert len({event, copy.deepcopy(event), other}) == 2


def test_an_event_can_be_encoded_by_msgspec() -> None:
    event = Noted(1, "a", event_id=AN_ID, occurred_at=TEN, metadata={"b": "c"})
    assert msgspec.json.decode(msgspec.json.encode(event)) == {
        "event_id": str(AN_ID),
        "occurred_at": "2024-05-17T10:00:00.123456Z",
        "correlation_id": None,
        "causation_id": None,
        "metadata": {"b": "c"},
        "number": 1,
        "key": "a",
    }


def test_the_type_of_an_event_is_its_class_name_unless_given() -> None:
    assert (Noted.event_type, Other.event_type) == ("noted", "Other")


def test_a_subclass_is_a_type_of_its_own() -> None:
    assert SpecialNoted.event_type == "SpecialNoted"


@pytest.mark.parametrize("bad", ["", None, 3, b"noted"], ids=repr)
def test_a_type_that_is_no_string_is_refused_where_the_class_is_made(bad: Any) -> None:
    with pytest.raises(InvalidEvent) as caught:

        class Bad(DomainEvent):
            event_type: ClassVar[str] = bad

    assert str(caught.value).startswith(
        "test_a_type_that_is_no_string_is_refused_where_the_class_is_made.<locals>."
        f"Bad.event_type is {bad!r}: give a string that is not empty"
    )


async def test_two_classes_of_one_name_do_not_disturb_each_other(autojump_clock: MockClock) -> None:
    source = (
        "import attrs\nfrom triobus import DomainEvent\n"
        "@attrs.frozen\nclass Ping(DomainEvent):\n    number: int = 0\n"
    )
    modules = [types.ModuleType("tests.first_ping"), types.ModuleType("tests.second_ping")]
    try:
        for module in modules:
            sys.modules[module.__name__] = module
            exec(source, module.__dict__)
        first, second = (module.Ping for module in modules)
        assert first.event_type == second.event_type == "Ping"
        seen = []

        async def on_first(event: DomainEvent) -> None:
            seen.append(("first", event))

        async def on_second(event: DomainEvent) -> None:
            seen.append(("second", event))

        bus = EventBus(workers=1)
        bus.subscribe(first, on_first)
        bus.subscribe(second, on_second)
        events = [second(1), first(2), second(3)]
        async with bus:
            await bus.publish_many(events)
        assert seen == [("second", events[0]), ("first", events[1]), ("second", events[2])]
    finally:
        for module in modules:
            del sys.modules[module.__name__]


# Ids


def test_an_id_is_a_uuid_of_version_7_which_begins_with_the_time() -> None:
    before = time.time_ns() // 1_000_000
    found = [Other(1).event_id for _ in range(1000)]
    after = time.time_ns() // 1_000_000
    for event_id in found:
        assert (event_id.version, event_id.variant) == (7, uuid.RFC_4122)
        assert before <= event_id.int >> 80 <= after
    assert len(set(found)) == 1000
    again = [uuid.UUID(str(event_id)) for event_id in found]
    assert again == found == pickle.loads(pickle.dumps(found))
    assert list(map(hash, again)) == list(map(hash, found))
    assert repr(again) == repr(found)
    varying = 0
    for event_id in found:
        varying |= event_id.int ^ found[0].int
    assert (varying & (1 << 76) - 1).bit_count() == 74  # all bits but version and variant


def test_threads_make_different_ids() -> None:
    found: list[uuid.UUID] = []
    threads = [
        threading.Thread(target=lambda: found.extend(Other(1).event_id for _ in range(2000)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 8000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_forked_child_makes_ids_of_its_own() -> None:
    program = """
import os, sys
from tests.events import Other
Other(1)
pid = os.fork()
print([str(Other(1).event_id)[15:] for _ in range(300)], flush=True)
if pid:
    os.waitpid(pid, 0)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    ids = [each for line in ran.stdout.splitlines() for each in ast.literal_eval(line)]
    assert len(set(ids)) == len(ids) == 600
