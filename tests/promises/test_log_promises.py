"""What every store promises of its log: positions, sequences, reading, commits, cancellation."""

from datetime import UTC, datetime, timedelta
from enum import Enum
from uuid import uuid4

import attrs
import pytest
import trio
import trio.testing

from tests.events import Noted, Other, SpecialNoted
from tests.promises.kinds import reopened
from triobus import (
    DomainEvent,
    EventNotEncodable,
    InvalidEvent,
    InvalidOption,
    SequenceConflict,
    SqliteEventStore,
    StoreClosed,
)
from triobus.stores._values import Append, Commit, NewRow


async def numbers(stream):
    return [stored.event.number async for stored in stream]


async def test_appended_events_get_positions_without_gaps_and_sequences_per_aggregate(new_store):
    async with new_store() as store:
        stored = await store.append([Noted(1, "a"), Noted(2, "b"), Noted(3, "a"), Noted(4)])
        more = await store.append([Noted(5, "b")])
    assert [(s.position, s.sequence) for s in [*stored, *more]] == [
        (1, 1),
        (2, 1),
        (3, 2),
        (4, None),
        (5, 2),
    ]
    assert [s.event.number for s in stored] == [1, 2, 3, 4]


async def test_events_come_back_equal_in_order_after_the_store_was_closed(new_store):
    events = [Noted(n, "a", metadata={"who": "me"}) for n in range(3)]
    async with new_store() as store:
        await store.append(events)
    async with new_store() as store:
        found = [stored async for stored in store.read()]
    assert [stored.event for stored in found] == events
    assert [dict(stored.event.metadata) for stored in found] == [{"who": "me"}] * 3
    assert [stored.position for stored in found] == [1, 2, 3]
    now = datetime.now(UTC)
    assert all(now - timedelta(minutes=1) < s.recorded_at <= now for s in found)


async def test_reading_goes_by_position_aggregate_type_and_limit(new_store):
    async with new_store() as store:
        await store.append(
            [Noted(1, "a"), Other(number=2), SpecialNoted(3, "a"), Noted(4, "b"), Noted(5, "a")]
        )
        assert await numbers(store.read(after=2)) == [3, 4, 5]
        assert await numbers(store.read(aggregate_id="a")) == [1, 3, 5]
        assert await numbers(store.read(after=1, aggregate_id="a", limit=1)) == [3]
        assert await numbers(store.read(types=Noted)) == [1, 3, 4, 5]
        assert await numbers(store.read(types=(SpecialNoted, Other))) == [2, 3]
        assert await numbers(store.read(types="noted")) == [1, 4, 5]
        assert await numbers(store.read(types=Noted, aggregate_id="a", after=1)) == [3, 5]
        assert await numbers(store.read(limit=2)) == [1, 2]
        assert await numbers(store.read(limit=0)) == []
        assert await numbers(store.read(after=5)) == []
        assert await numbers(store.read(aggregate_id="nobody")) == []


async def test_reading_in_batches_sees_everything_once(new_store):
    async with new_store() as store:
        await store.append([Noted(n, "ab"[n % 2]) for n in range(2500)])
        assert await numbers(store.read()) == list(range(2500))
        assert await numbers(store.read(aggregate_id="b")) == list(range(1, 2500, 2))
        assert await numbers(store.read(limit=1100)) == list(range(1100))


async def test_reading_may_be_left_at_any_time(new_store):
    async with new_store() as store:
        await store.append([Noted(n) for n in range(1000)])
        async for stored in store.read():
            if stored.position == 3:
                break
        await store.append([Noted(1000)])
        assert len(await numbers(store.read())) == 1001


@pytest.mark.parametrize("after", [2**62, 2**63 - 1, 2**63, 2**64, 10**30])
async def test_behind_a_position_that_no_event_can_have_there_is_nothing(new_store, after):
    async with new_store() as store:
        await store.append([Noted(1, "a")])
        assert await numbers(store.read(after=after)) == []
        assert await numbers(store.read(after=after, aggregate_id="a", types=Noted)) == []
        assert await numbers(store.read(limit=after)) == [1]


async def test_what_is_no_text_is_the_name_of_nothing(new_store):
    async with new_store() as store:
        await store.append([Noted(1, "a")])
        assert await numbers(store.read(aggregate_id="\ud800")) == []
        assert await numbers(store.read(types=("\ud800",))) == []
        for wrong in (5, b"a", object()):
            with pytest.raises(InvalidOption, match="aggregate_id="):
                store.read(aggregate_id=wrong)
        assert await numbers(store.read()) == [1]


async def test_get_finds_an_event_by_its_id(new_store):
    event = Noted(1, "a")
    async with new_store() as store:
        (stored,) = await store.append([event])
        found = await store.get(event.event_id)
        assert found == stored
        assert await store.get(uuid4()) is None


async def test_a_wrong_expected_sequence_stores_nothing_and_tells_both(new_store):
    async with new_store() as store:
        await store.append([Noted(1, "a")], expected_sequence=0)
        await store.append([Noted(2, "a"), Noted(3, "a")], expected_sequence=1)
        with pytest.raises(SequenceConflict, match=r"'a'.* 1 and has 3") as caught:
            await store.append([Noted(4, "a"), Noted(5, "a")], expected_sequence=1)
        assert (caught.value.expected, caught.value.found) == (1, 3)
        assert await numbers(store.read()) == [1, 2, 3]
        (stored,) = await store.append([Noted(6, "a")], expected_sequence=3)
        assert (stored.position, stored.sequence) == (4, 4)


async def test_of_two_that_expect_the_same_sequence_at_once_one_wins(new_store):
    results = []
    async with new_store() as store:

        async def append(number):
            try:
                await store.append([Noted(number, "a")], expected_sequence=0)
                results.append("stored")
            except SequenceConflict as error:
                results.append(error.found)

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(append, number)
        assert sorted(map(str, results)) == ["1", "1", "1", "1", "stored"]
        assert (await store.statistics()).events == 1


async def test_the_same_event_is_stored_once_and_keeps_its_first_position(new_store):
    first, second = Noted(1, "a"), Noted(2, "a")
    async with new_store() as store:
        await store.append([first])
        again = await store.append([first, second, second])
        assert [(s.position, s.sequence) for s in again] == [(1, 1), (2, 2), (2, 2)]
    async with new_store() as store:
        assert (await store.append([second]))[0].position == 2
        assert await numbers(store.read()) == [1, 2]


async def test_a_repeated_append_with_its_expected_sequence_is_no_conflict(new_store):
    events = [Noted(1, "a"), Noted(2, "a")]
    async with new_store() as store:
        await store.append(events, expected_sequence=0)
        again = await store.append(events, expected_sequence=0)
        assert [s.position for s in again] == [1, 2]
        with pytest.raises(SequenceConflict):
            await store.append([*events, Noted(3, "a")], expected_sequence=0)
        assert await numbers(store.read()) == [1, 2]


async def test_appends_of_many_tasks_share_commits_and_keep_their_batches_together(new_store):
    async with new_store() as store:
        commits = []
        commit = store._commits._commit

        async def counted(transaction):
            commits.append(len(transaction.appends))
            return await commit(transaction)

        store._commits._commit = counted

        async def append(first):
            await store.append([Noted(first), Noted(first + 1)])

        async with trio.open_nursery() as nursery:
            for first in range(0, 100, 2):
                nursery.start_soon(append, first)
        found = await numbers(store.read())
        assert sorted(found) == list(range(100))
        assert all(
            second == first + 1 for first, second in zip(found[::2], found[1::2], strict=True)
        )
        assert sum(commits) == 50
        assert len(commits) < 4


async def test_statistics_tell_what_is_in_it(new_store):
    async with new_store() as store:
        empty = await store.statistics()
        assert (empty.events, empty.aggregates, dict(empty.types)) == (0, 0, {})
        assert (empty.first_recorded_at, empty.last_recorded_at) == (None, None)
        await store.append([Noted(1, "a"), Noted(2, "b"), Other(number=3), Noted(4)])
        found = await store.statistics()
    assert (found.events, found.aggregates) == (4, 2)
    assert dict(found.types) == {"Other": 1, "noted": 3}
    assert found.first_recorded_at <= found.last_recorded_at
    assert found.size_bytes > 100
    assert dict(found.groups) == {}


async def test_a_store_that_is_not_open_says_so(new_store):
    store = new_store()
    for _ in range(2):
        with pytest.raises(StoreClosed, match="async with"):
            await store.append([Noted(1)])
        with pytest.raises(trio.ClosedResourceError):
            await store.get(uuid4())
        with pytest.raises(StoreClosed):
            await numbers(store.read())
        with pytest.raises(StoreClosed):
            await store.statistics()
        async with store:
            await store.append([])


async def test_a_store_may_be_opened_inside_itself(new_store):
    store = new_store()
    async with store:
        async with store:
            await store.append([Noted(1)])
        assert await numbers(store.read()) == [1]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda store: store.append(["no event"]), InvalidEvent),
        (lambda store: store.append([Noted(1)], expected_sequence=0), InvalidOption),
        (
            lambda store: store.append([Noted(1, "a"), Noted(2, "b")], expected_sequence=0),
            InvalidOption,
        ),
        (lambda store: store.append([Noted(1, "a")], expected_sequence=-1), InvalidOption),
        (lambda store: store.append([Noted(1, "a")], expected_sequence=True), InvalidOption),
        (lambda store: store.get("not a uuid"), InvalidOption),
    ],
)
async def test_bad_input_is_refused_where_it_enters_and_nothing_is_stored(new_store, call, error):
    async with new_store() as store:
        with pytest.raises(error):
            await call(store)
        assert (await store.statistics()).events == 0


@pytest.mark.parametrize(
    "options", [{"after": -1}, {"limit": -1}, {"types": int}, {"types": (Noted, 3)}]
)
async def test_bad_options_of_read_are_refused_at_the_call(new_store, options):
    async with new_store() as store:
        with pytest.raises(InvalidOption):
            store.read(**options)


async def test_everything_that_is_awaited_is_a_checkpoint(new_store):
    async with new_store() as store:
        with trio.testing.assert_checkpoints():
            await store.append([Noted(1)])
        with trio.testing.assert_checkpoints():
            await store.append([])
        with trio.testing.assert_checkpoints():
            await store.get(uuid4())
        with trio.testing.assert_checkpoints():
            await store.statistics()
        with trio.testing.assert_checkpoints():
            await numbers(store.read(limit=0))
        with trio.testing.assert_checkpoints():
            async with new_store():
                pass


async def test_cancelled_before_it_began_an_append_stores_nothing(new_store):
    async with new_store() as store:
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.append([Noted(1)])
        assert scope.cancelled_caught
        assert (await store.statistics()).events == 0


async def test_an_append_that_waits_for_a_commit_can_be_cancelled_and_one_in_it_completes(
    new_store,
):
    stored = []
    async with new_store() as store:
        gate, in_commit = trio.Event(), trio.Event()
        commit = store._commits._commit

        async def slow(transaction):
            in_commit.set()
            with trio.CancelScope(shield=True):
                await gate.wait()
            return await commit(transaction)

        store._commits._commit = slow

        async def append(number, scope):
            with scope:
                await store.append([Noted(number)])
                stored.append(number)

        first, second, third = trio.CancelScope(), trio.CancelScope(), trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(append, 1, first)
            await in_commit.wait()
            nursery.start_soon(append, 2, second)
            nursery.start_soon(append, 3, third)
            await trio.testing.wait_all_tasks_blocked()
            first.cancel()
            second.cancel()
            await trio.testing.wait_all_tasks_blocked()
            gate.set()
        assert stored == [1, 3]
        assert (first.cancelled_caught, second.cancelled_caught) == (False, True)
        assert await numbers(store.read()) == [1, 3]


async def test_an_append_that_shares_the_commit_of_another_completes_when_it_is_cancelled(
    new_store,
):
    stored, scopes = [], [trio.CancelScope() for _ in range(3)]
    async with new_store() as store:
        commit = store._commits._commit

        async def cancelling(transaction):
            for scope in scopes:
                scope.cancel()
            return await commit(transaction)

        async def append(number):
            with scopes[number]:
                await store.append([Noted(number)])
                stored.append(number)

        await store._claim()
        store._commits._commit = cancelling
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(append, number)
        assert sorted(stored) == sorted(await numbers(store.read()))
        assert sorted(stored) == [0, 1, 2]


async def test_a_failing_commit_fails_its_own_appends_and_no_others(new_store):
    outcomes = {}
    async with new_store() as store:
        await store._claim()
        commit = store._commits._commit
        fail = True

        async def failing(transaction):
            nonlocal fail
            if fail:
                fail = False
                raise StoreClosed("the disk was pulled out")
            return await commit(transaction)

        store._commits._commit = failing

        async def append(number):
            try:
                await store.append([Noted(number)])
                outcomes[number] = "stored"
            except StoreClosed:
                outcomes[number] = "failed"

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(append, number)
        assert set(outcomes.values()) == {"failed"}
        await append(3)
        assert outcomes[3] == "stored"
        assert await numbers(store.read()) == [3]


async def test_an_event_that_is_too_large_is_refused(kind, tmp_path):
    from triobus import EventNotEncodable

    async with reopened(kind, tmp_path, max_event_bytes=1000)() as store:
        with pytest.raises(EventNotEncodable, match="1,000"):
            await store.append([Noted(1), Noted(2, "x" * 1000)])
        await store.append([Noted(3)])
        assert await numbers(store.read()) == [3]


# What cannot be in a row


class Kind(str, Enum):  # noqa: UP042  # its str() is another than its value
    ONE = "one"


@attrs.frozen
class Sorted(DomainEvent):
    """Its name of an aggregate is a member of an enum, which is a str."""

    number: int

    @property
    def aggregate_id(self):
        return Kind.ONE


async def test_names_that_are_members_of_an_enum_are_stored_as_the_text_that_they_are(new_store):
    async with new_store() as store:
        await store.append([Sorted(1), Noted(2, "one")])
        await store.append([Sorted(3)], expected_sequence=2)
        assert await numbers(store.read(aggregate_id="one")) == [1, 2, 3]
        assert [s.sequence async for s in store.read()] == [1, 2, 3]


@pytest.mark.parametrize(
    "changed",
    [
        {"event_type": "x" * (17 * 2**20)},
        {"event_type": Kind.ONE},
        {"event_type": "half \ud800"},
        {"aggregate_id": "x" * (17 * 2**20)},
        {"aggregate_id": b"bytes"},
        {"schema_version": 2**64},
        {"schema_version": 2**63},
        {"schema_version": -1},
        {"schema_version": True},
        {"schema_version": 1.0},
    ],
    ids=lambda changed: " ".join(f"{name} {str(value)[:9]!a}" for name, value in changed.items()),
)
async def test_what_cannot_be_in_a_row_is_refused_for_its_publisher_alone(new_store, changed):
    event = Noted(1, "a")
    async with new_store() as store:
        await store._claim()
        data = store._codec.encode(event)
        good = NewRow(event.event_id, event.event_type, 1, "a", data)
        bad = good._replace(event_id=uuid4(), **changed)
        (first,), refused = await store._commit(Commit([Append([good]), Append([bad])]))
        assert first.position == 1
        assert isinstance(refused, EventNotEncodable)
        assert [s.event async for s in store.read()] == [event]


# In a REPL


async def test_a_store_says_in_one_line_what_it_is_and_what_for_it_is_open(new_store):
    store = new_store()
    assert "not open" in repr(store)
    async with store:
        await store.append([Noted(n) for n in range(1234)])
        assert repr(store).endswith(", 1,234 events>")
        assert "open" in repr(store)
    assert "\n" not in repr(store)
    assert "not open" in repr(store)


async def test_a_store_in_a_file_says_whether_it_may_write(tmp_path):
    path = tmp_path / "a.db"
    async with SqliteEventStore(path) as store:
        assert repr(store) == f"<SqliteEventStore {str(path)!r}, open for reading>"
        await store.append([Noted(1)])
        assert repr(store) == f"<SqliteEventStore {str(path)!r}, open for writing, 1 event>"
    async with SqliteEventStore(path, read_only=True) as store:
        assert repr(store) == f"<SqliteEventStore {str(path)!r}, read-only>"
    assert repr(store) == f"<SqliteEventStore {str(path)!r}, not open>"
