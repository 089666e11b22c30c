"""Many events share a commit with their transactional handlers, and none of them notices."""

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.events import Noted, Other
from tests.every_step import at_every_step
from triobus import EventBus, MemoryEventStore, Retry, SqliteEventStore, current_delivery

STORES = {"sqlite": lambda: SqliteEventStore(":memory:"), "memory": MemoryEventStore}


@pytest.fixture(params=STORES)
def store(request):
    return STORES[request.param]()


class Commits:
    """Counts the calls that each commit of a store makes."""

    def __init__(self, store):
        self.calls = []
        self._commit, store._commit = store._commit, self._counted
        store._commits._commit = self._counted

    async def _counted(self, commit):
        made = sum(hasattr(item, "chain") for item in commit.others)
        self.calls += [made] if made else []
        return await self._commit(commit)


async def test_what_is_ready_shares_a_commit_one_worker_or_many(store, autojump_clock):
    commits, handled = Commits(store), []
    bus = EventBus(store, workers=1)
    bus.subscribe(
        Noted, lambda event, _: handled.append(event.number), transactional=True, name="a"
    )
    async with bus:
        await bus.publish_many([Noted(n, str(n % 7)) for n in range(100)])
        await bus.wait_idle()
    assert handled == list(range(100))
    assert max(commits.calls) > 90


async def test_behind_a_failure_its_aggregate_waits_and_the_rest_of_the_commit_stands(
    store, autojump_clock
):
    tried = []
    bus = EventBus(store, workers=1)

    @bus.subscribe(Noted, transactional=True, retry=Retry(attempts=2, delay=1, jitter=0))
    def handle(event, transaction):
        attempt = transaction.delivery.attempt
        tried.append((event.key, event.number, attempt, autojump_clock.current_time()))
        transaction.publish(Other(event.number))
        if (event.key, event.number, attempt) == ("a", 1, 1):
            raise ValueError("once")

    async with bus:
        await bus.publish_many([Noted(n, key) for n in range(4) for key in "ab"])
        await bus.wait_idle()
        assert not await bus.dead_letters.list()
        assert bus.statistics().retries == 1
        followed = [stored.event.number async for stored in store.read(types=Other)]
    assert [each[1:] for each in tried if each[0] == "b"] == [(n, 1, 0) for n in range(4)]
    assert [each[1:] for each in tried if each[0] == "a"] == [
        (0, 1, 0),
        (1, 1, 0),
        (1, 2, 1),
        (2, 1, 1),
        (3, 1, 1),
    ]
    assert sorted(followed) == [0, 0, 1, 1, 2, 2, 3, 3]


async def test_a_dead_letter_lets_the_next_handler_and_the_next_event_go_on(store, autojump_clock):
    tried = []
    bus = EventBus(store)

    def handler(name):
        def handle(event, transaction):
            delivery = current_delivery()
            assert delivery == transaction.delivery
            assert (delivery.subscription, delivery.event) == (name, event)
            tried.append((name, event.number))
            if (name, event.number) == ("first", 1):
                raise ValueError("never")
            return name

        return handle

    for name in ("first", "second"):
        bus.subscribe(Noted, handler(name), transactional=True, name=name, retry=Retry(attempts=1))
    async with bus:
        await bus.publish_many([Noted(n, "a") for n in range(3)])
        outcome = await bus.publish_and_wait(Noted(3, "a"))
        (letter,) = await bus.dead_letters.list()
    assert outcome.results == {"first": "first", "second": "second"}
    assert (letter.subscription, letter.event.number) == ("first", 1)
    assert tried == [(name, n) for n in range(4) for name in ("first", "second")]


async def test_what_where_leaves_out_is_not_called_and_what_it_raises_is_a_failure(
    store, autojump_clock
):
    handled = []

    def where(event):
        if event.number == 2:
            raise ValueError("where")
        return event.number != 1

    bus = EventBus(store)
    bus.subscribe(
        Noted,
        lambda event, _: handled.append(event.number),
        transactional=True,
        where=where,
        name="some",
        retry=Retry(attempts=1),
    )
    async with bus:
        await bus.publish_many([Noted(n, "a") for n in range(5)])
        await bus.wait_idle()
        (letter,) = await bus.dead_letters.list()
        assert bus.statistics().groups["default"].lag == 0
    assert (letter.event.number, letter.message) == (2, "where")
    assert handled == [0, 3, 4]


@attrs.define
class Lives:
    """What is left of a life that was cancelled, and what another one makes of it."""

    store: MemoryEventStore = attrs.field(factory=MemoryEventStore)
    accepted: list[int] = attrs.field(factory=list)
    followed: list[int] = attrs.field(factory=list)
    finished: bool = False


def test_cancelled_at_every_step_each_effect_is_there_once_in_the_end():
    def new_bus(record):
        bus = EventBus(record.store, workers=2)

        @bus.subscribe(Noted, transactional=True, retry=Retry(attempts=2, delay=1, jitter=0))
        def handle(event, transaction):
            transaction.publish(Other(event.number))
            if event.number == 1 and transaction.delivery.attempt == 1:
                raise ValueError("once")

        return bus

    async def scenario(record, scope):
        with scope:
            async with new_bus(record) as bus:
                events = [Noted(n, "ab"[n % 2]) for n in range(6)]
                await bus.publish_many(events)
                record.accepted += range(6)
                await bus.publish(Noted(6, "a"))
                record.accepted.append(6)
                await bus.wait_idle()
        async with new_bus(record) as bus:
            await bus.wait_idle()
            assert not await bus.dead_letters.list()
            log = [stored.event async for stored in record.store.read()]
        record.followed = sorted(event.number for event in log if type(event) is Other)
        record.finished = record.followed == sorted(e.number for e in log if type(e) is Noted)

    def check(record):
        assert record.finished
        assert set(record.accepted) <= set(record.followed)

    assert at_every_step(Lives, scenario, check) > 20


@attrs.frozen
class Play:
    """How often each handler fails at each event before it succeeds."""

    failures: list[list[int]]
    keys: list[str | None]
    workers: int
    ordering: str


@st.composite
def plays(draw):
    count = draw(st.integers(1, 12))
    handlers = draw(st.integers(1, 3))
    return Play(
        draw(
            st.lists(
                st.lists(st.sampled_from([0, 0, 0, 1, 2, 5]), min_size=handlers, max_size=handlers),
                min_size=count,
                max_size=count,
            )
        ),
        draw(st.lists(st.sampled_from(["a", "b", None]), min_size=count, max_size=count)),
        draw(st.integers(1, 3)),
        draw(st.sampled_from(["aggregate", "none"])),
    )


@pytest.mark.parametrize("kind", STORES)
@settings(max_examples=60, deadline=None)
@given(plays())
def test_every_attempt_is_made_once_in_order_and_every_success_is_stored_once(kind, play):
    clock = MockClock(autojump_threshold=0)
    tried, stored, letters = trio.run(_played, STORES[kind](), play, clock=clock)
    expected, effects, dead = [], [], []
    for number, failures in enumerate(play.failures):
        for handler, count in enumerate(failures):
            made = min(count + 1, 3)
            expected += [(number, handler, attempt) for attempt in range(1, made + 1)]
            (dead if count >= 3 else effects).append((number, handler))
    assert sorted(tried) == expected
    assert sorted(stored) == effects
    assert sorted(letters) == dead
    of_event = {n: [t[1:] for t in tried if t[0] == n] for n in range(len(play.keys))}
    assert all(calls == sorted(calls) for calls in of_event.values())
    if play.ordering == "aggregate":
        for key in "ab":
            mine = [t for t in tried if play.keys[t[0]] == key]
            assert mine == sorted(mine)


async def _played(store, play):
    tried = []
    bus = EventBus(store)
    group = bus.group("all", workers=play.workers, ordering=play.ordering)

    def subscribe(handler):
        retry = Retry(attempts=3, delay=1, jitter=0)

        @group.subscribe(Noted, transactional=True, retry=retry, name=str(handler))
        def handle(event, transaction):
            attempt = transaction.delivery.attempt
            tried.append((event.number, handler, attempt))
            transaction.publish(Other(100 * event.number + handler))
            if attempt <= play.failures[event.number][handler]:
                raise ValueError("not yet")

    for handler in range(len(play.failures[0])):
        subscribe(handler)
    async with bus:
        await bus.publish_many([Noted(n, key) for n, key in enumerate(play.keys)])
        await bus.wait_idle()
        stored = [divmod(each.event.number, 100) async for each in store.read(types=Other)]
        letters = [
            (letter.event.number, int(letter.subscription))
            for letter in await bus.dead_letters.list()
        ]
        statistics = bus.statistics().groups["all"]
        assert (statistics.lag, statistics.queued, statistics.in_flight) == (0, 0, 0)
    return tried, stored, letters
