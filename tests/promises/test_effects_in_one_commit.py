"""Many events share a commit with their transactional handlers, and none of them notices."""

import contextvars
import time

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.events import Noted, Other, SpecialNoted
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
@settings(max_examples=60)
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


async def test_one_worker_has_total_order_with_a_dead_letter_in_the_middle_of_a_commit(
    store, autojump_clock
):
    tried = []
    bus = EventBus(store, workers=1)

    @bus.subscribe(Noted, transactional=True, retry=Retry(attempts=1), name="first")
    def first(event, _):
        tried.append((event.number, "first"))
        if event.number == 1:
            raise ValueError("never")

    @bus.subscribe(Noted, transactional=True, name="second")
    def second(event, _):
        tried.append((event.number, "second"))

    async with bus:
        await bus.publish_many([Noted(n, key) for n, key in enumerate(["b", "a", "a", "b", None])])
        await bus.wait_idle()
    assert tried == [(n, name) for n in range(5) for name in ("first", "second")]


async def test_one_worker_passes_over_no_event_of_another_type(store, autojump_clock):
    handled = []
    bus = EventBus(store, workers=1)
    for cls in (Noted, Other):
        bus.subscribe(
            cls, lambda event, _: handled.append(event.number), transactional=True, name=str(cls)
        )
    async with bus:
        await bus.publish_many([(Noted, Other)[n % 3 == 1](n) for n in range(9)])
        await bus.wait_idle()
    assert handled == list(range(9))


async def test_one_worker_with_retries_lets_only_their_aggregate_be_overtaken(
    store, autojump_clock
):
    handled = []
    bus = EventBus(store, workers=1)

    @bus.subscribe(Noted, transactional=True, retry=Retry(attempts=3, delay=1, jitter=0))
    def handle(event, transaction):
        if event.number in (0, 5) and transaction.delivery.attempt < 3:
            raise ValueError("not yet")
        handled.append(event.number)

    async with bus:
        await bus.publish_many([Noted(n, "abc"[n % 3]) for n in range(9)])
        await bus.wait_idle()
        assert bus.statistics().groups["default"].lag == 0
    assert handled == [1, 2, 4, 7, 0, 3, 5, 6, 8]


async def test_what_shares_a_commit_is_in_flight_with_one_busy_worker(store, autojump_clock):
    seen = []
    bus = EventBus(store, workers=4)
    token = trio.lowlevel.current_trio_token()

    def look():
        group = bus.statistics().groups["default"]
        seen.append((group.in_flight, group.busy_workers, group.queued))

    @bus.subscribe(Noted, transactional=True)
    def handle(event, _):
        trio.from_thread.run_sync(look, trio_token=token)

    async with bus:
        await bus.publish_many([Noted(n, "a") for n in range(5)])
        await bus.wait_idle()
        look()
    assert seen == [(5, 1, 0)] * 5 + [(0, 0, 0)]


async def test_after_unsubscribing_none_of_those_in_the_same_commit_is_called(
    store, autojump_clock
):
    called = []
    bus = EventBus(store)
    token = trio.lowlevel.current_trio_token()

    @bus.subscribe(Noted, transactional=True, name="other")
    def other(event, transaction):
        transaction.publish(Other(event.number))

    def handle(event, _):
        called.append(event.number)
        if event.number == 1:
            trio.from_thread.run_sync(subscription.unsubscribe, trio_token=token)

    subscription = bus.subscribe(Noted, handle, transactional=True, priority=1, name="handle")
    async with bus:
        await bus.publish_many([Noted(n, "a") for n in range(5)])
        outcome = await bus.publish_and_wait(Noted(5, "a"))
        await bus.wait_idle()
        followed = [stored.event.number async for stored in store.read(types=Other)]
        assert not await bus.dead_letters.list()
    assert called == [0, 1]
    assert followed == [0, 1, 2, 3, 4, 5]
    assert outcome.results == {"other": None}


async def test_where_is_asked_as_part_of_the_delivery_and_leaves_nothing_behind(
    store, autojump_clock
):
    variable, seen = contextvars.ContextVar("variable", default=None), []

    def where(event):
        seen.append((event.number, current_delivery().event.number, variable.get()))
        variable.set(event.number)
        return True

    bus = EventBus(store)
    bus.subscribe(Noted, lambda *_: None, transactional=True, name="every")
    bus.subscribe(
        Noted,
        lambda event, _: seen.append((event.number, current_delivery().subscription)),
        transactional=True,
        where=where,
        name="some",
    )
    async with bus:
        await bus.publish_many([Noted(n, "a") for n in range(3)])
        await bus.wait_idle()
    assert sorted(seen[:3]) == [(n, n, None) for n in range(3)]
    assert seen[3:] == [(n, "some") for n in range(3)]


async def test_what_a_commit_makes_ready_is_handled_by_all_workers(store, autojump_clock):
    bus, gate, ended = EventBus(store, workers=2), trio.Event(), []
    token = trio.lowlevel.current_trio_token()

    async def let_the_other_worker_go():
        gate.set()
        await trio.testing.wait_all_tasks_blocked()

    @bus.subscribe(Noted, transactional=True)
    def note(event, _):
        if event.number == 0:
            trio.from_thread.run(let_the_other_worker_go, trio_token=token)

    @bus.subscribe(Other)
    async def keep_a_worker_busy(_):
        await gate.wait()

    @bus.subscribe(SpecialNoted)
    async def slow(event):
        await trio.sleep(1)
        ended.append(autojump_clock.current_time())

    async with bus:
        events = [Noted(0, "0"), Other(0), *(Noted(n, f"{n}") for n in range(1, 4))]
        await bus.publish_many([*events, *(SpecialNoted(n, f"{n}") for n in range(1, 4))])
        await bus.wait_idle()
    assert ended == [1, 1, 2]


async def test_slow_handlers_hold_up_a_publisher_for_a_moment_and_not_for_all_of_them(store):
    called, is_slow = [], trio.Event()
    bus = EventBus(store, workers=1)
    token = trio.lowlevel.current_trio_token()

    @bus.subscribe(Noted, transactional=True)
    def handle(event, _):
        called.append(event.number)
        if event.number >= 100:
            token.run_sync_soon(is_slow.set)
            time.sleep(0.03)  # of which the real clock has to know: that is what is limited

    async with bus:
        await bus.publish_many([Noted(n, f"{n % 50}") for n in range(200)])
        await is_slow.wait()
        before = len(called)
        await bus.publish(Other(1))
        assert len(called) - before < 20
        await bus.stop(drain=False)
    assert called == sorted(called)


async def test_what_is_not_begun_keeps_its_place_before_what_where_leaves_out(
    store, autojump_clock
):
    ended = []
    bus = EventBus(store, workers=2)
    token = trio.lowlevel.current_trio_token()

    def handle(event, _):
        ended.append(event.number)
        if event.number == 0:
            trio.from_thread.run_sync(subscription.unsubscribe, trio_token=token)

    subscription = bus.subscribe(
        Noted, handle, transactional=True, where=lambda event: event.number != 2, name="some"
    )

    @bus.subscribe(SpecialNoted, priority=1)
    async def special(event):
        ended.append(event.number)

    async with bus:
        await bus.publish_many([*(Noted(n, "a") for n in range(3)), SpecialNoted(3, "a")])
        await bus.publish(SpecialNoted(4, "a"))
        await bus.wait_idle()
        assert bus.statistics().groups["default"].lag == 0
    assert ended == [0, 3, 4]
