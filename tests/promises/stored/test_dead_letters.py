"""What a bus with a store promises of dead letters: they last until they are dealt with."""

import contextlib

import attrs
import pytest
import trio
import trio.testing

from tests.events import Noted
from tests.promises.stored.buses import Handled, crashing, fails, in_three_turns, subscribed
from triobus import (
    BusClosed,
    DomainEvent,
    EventBus,
    MemoryEventStore,
    Retry,
    StoreError,
    StoreIOError,
    UnknownSubscription,
)
from triobus._environment import replace


def failing_bus(store, fail, handled, **options):
    async def handler(event):
        if event.number in fail:
            raise ValueError(f"number {event.number}\ud800")
        handled.append(event.number)

    bus = EventBus(store)
    bus.subscribe(Noted, handler, name="handler", retry=Retry(attempts=1), **options)
    return bus


async def test_dead_letters_last_with_all_that_is_known_of_them(new_store):
    async with failing_bus(new_store(), {1, 2}, []) as bus:
        await bus.publish_many([Noted(n, "a") for n in range(4)])
    async with failing_bus(new_store(), set(), []) as bus:
        first, second = await bus.dead_letters.list()
        assert first.event == Noted(1, "a", **_base(first.event))
        assert (first.position, second.position) == (2, 3)
        assert (first.group, first.subscription) == ("default", "handler")
        assert (first.attempts, first.error_type) == (1, "ValueError")
        assert first.message == "number 1\\ud800"
        assert "in handler" in first.traceback
        assert first.first_failed_at == first.last_failed_at
        assert first.aggregate_id == "a"
        assert [letter.id for letter in await bus.dead_letters.list(limit=1)] == [first.id]
        assert await bus.dead_letters.list(group="other") == []
        assert len(await bus.dead_letters.list(aggregate_id="a")) == 2
        assert bus.health().status == "healthy"


def _base(event):
    names = [field.name for field in attrs.fields(DomainEvent)]
    return {name: getattr(event, name) for name in names}


async def test_dead_letters_are_replayed_in_order_and_then_gone_for_good(new_store):
    async with failing_bus(new_store(), {1, 2, 3}, []) as bus:
        await bus.publish_many([Noted(n, "a") for n in range(5)])
    handled = []
    async with failing_bus(new_store(), {2}, handled) as bus:
        letters = await bus.dead_letters.list()
        assert await bus.dead_letters.replay(group="default") == 2
        assert handled == [1, 3]
        (left,) = await bus.dead_letters.list()
        assert (left.event.number, left.attempts, left.id) == (2, 2, letters[1].id)
        assert left.first_failed_at <= left.last_failed_at
    async with failing_bus(new_store(), set(), handled) as bus:
        (left,) = await bus.dead_letters.list()
        assert left.attempts == 2
        assert await bus.dead_letters.replay(left.id) == 1
    async with failing_bus(new_store(), set(), handled) as bus:
        assert await bus.dead_letters.list() == []
    assert handled == [1, 3, 2]


async def test_more_letters_than_are_read_at_once_are_replayed_in_order(new_store):
    handled = []
    async with failing_bus(new_store(), set(range(250)), []) as bus:
        await bus.publish_many([Noted(n, "a") for n in range(250)])
        await bus.wait_idle()
    async with failing_bus(new_store(), set(), handled) as bus:
        assert await bus.dead_letters.replay(group="default") == 250
    assert handled == list(range(250))


async def test_several_replays_at_once_keep_the_order_of_an_aggregate(new_store, autojump_clock):
    handled = []

    async def slow(event):
        handled.append(event.number)
        await trio.sleep(1)

    async with failing_bus(new_store(), set(range(250)), []) as bus:
        await bus.publish_many([Noted(n, "a") for n in range(250)])
        await bus.wait_idle()
        ids = [letter.id for letter in await bus.dead_letters.list(limit=250)]
    bus = subscribed(new_store(), slow, hold=True)
    async with bus:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.dead_letters.replay, ids[:150])
            await trio.sleep(0.5)
            nursery.start_soon(bus.dead_letters.replay, ids[150:])
        assert await bus.dead_letters.list() == []
    assert handled == list(range(250))


async def test_dead_letters_can_be_listed_when_the_bus_has_stopped_and_before_it_starts(new_store):
    bus = subscribed(new_store(), fails, retry=Retry(attempts=1))
    async with bus:
        await bus.publish_many([Noted(1, "a"), Noted(2, "b")])
        await bus.wait_idle()
        letters = await bus.dead_letters.list()
    assert [letter.event.number for letter in letters] == [1, 2]
    assert await bus.dead_letters.list() == letters
    assert await bus.dead_letters.list(aggregate_id="b") == letters[1:]
    further = subscribed(new_store(), fails)
    assert await further.dead_letters.list(limit=1) == letters[:1]
    async with further:
        assert await further.dead_letters.list() == letters
        await further.dead_letters.discard(letters[0])
    assert await bus.dead_letters.list() == await further.dead_letters.list() == letters[1:]


async def test_dead_letters_are_dealt_with_under_load_after_at_most_two_commits(new_store):
    published = 0

    async def go_on():
        nonlocal published
        for number in range(3, 1000):
            await bus.publish(Noted(number))
            published += 1

    async def fails_at_first(event):
        if event.number < 3:
            raise OSError

    replace(instead_of_thread=in_three_turns)
    bus = subscribed(new_store(), fails_at_first, retry=Retry(attempts=1))
    async with bus:
        await bus.publish_many([Noted(1), Noted(2)])
        await bus.wait_idle()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(go_on)
            for call in (
                bus.dead_letters.list,
                lambda: bus.dead_letters.discard(1),
                lambda: bus.dead_letters.replay(2),
            ):
                while not published:
                    await trio.lowlevel.checkpoint()
                published = 0
                await call()
                assert published <= 10
            nursery.cancel_scope.cancel()


async def test_discarded_letters_are_gone_for_good(new_store):
    async with failing_bus(new_store(), {1, 2}, []) as bus:
        await bus.publish_many([Noted(n, "a") for n in range(4)])
        await bus.wait_idle()
        first, _ = await bus.dead_letters.list()
        assert await bus.dead_letters.discard(first.id) == 1
    async with failing_bus(new_store(), set(), []) as bus:
        (left,) = await bus.dead_letters.list()
        assert left.event.number == 2


@pytest.mark.parametrize("is_new", [True, False])
async def test_a_bus_that_does_not_run_discards_no_letter_of_its_store(new_store, is_new):
    bus = failing_bus(new_store(), {1}, [])
    async with bus:
        await bus.publish_many([Noted(n, "a") for n in range(4)])
        await bus.stop()
    if is_new:
        bus = failing_bus(new_store(), {1}, [])
    before = repr(bus.dead_letters)
    with pytest.raises(BusClosed, match="do it while the bus runs"):
        await bus.dead_letters.discard(1)
    assert repr(bus.dead_letters) == before
    (left,) = await bus.dead_letters.list()
    assert left.event.number == 1


class NeverForgetting(MemoryEventStore):
    """A store whose commits fail if a dead letter is to go in them."""

    async def _commit(self, transaction):
        await instead_of_a_disk()
        if None in transaction.changes.letters.values():
            raise StoreIOError("the disk is full")
        return await super()._commit(transaction)


async def instead_of_a_disk():
    for _ in range(4):
        await trio.lowlevel.cancel_shielded_checkpoint()


@pytest.mark.parametrize("turns", range(20))
async def test_discarding_never_says_that_it_is_stored_when_it_is_not_while_the_bus_stops(turns):
    bus = failing_bus(NeverForgetting(), {1}, [])
    said = []

    async def discard():
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        with pytest.raises((StoreError, BusClosed)):
            await bus.dead_letters.discard(1)
        said.append(turns)

    with contextlib.suppress(StoreError):
        async with bus:
            await bus.publish(Noted(1, "a"))
            await bus.wait_idle()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(discard)
                with contextlib.suppress(StoreError):
                    await bus.publish(Noted(2, "a"))
                with contextlib.suppress(StoreError):
                    await bus.stop(drain=False)
    assert said == [turns]
    (left,) = await bus.dead_letters.list()
    assert left.event.number == 1


@attrs.frozen
class Empty(DomainEvent):
    """An event that is false, as an empty basket may be."""

    def __bool__(self):
        return False


@pytest.mark.parametrize("turns", range(40))
async def test_a_replay_is_done_or_refused_at_every_moment_of_a_stop(turns):
    fail, handled = {1}, []
    bus = failing_bus(MemoryEventStore(), fail, handled)
    counts, refused = [], []

    async def replay():
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        try:
            counts.append(await bus.dead_letters.replay())
        except BusClosed as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await bus.publish_and_wait(Noted(1))
        fail.clear()
        nursery.start_soon(replay)
        report = await bus.stop()
    assert report.left == {"default": 0}
    assert (counts, len(refused)) in [([1], 0), ([], 1)]
    assert (len(handled), len(await bus.dead_letters.list())) == (len(counts), len(refused))


async def test_an_event_that_is_false_is_replayed_as_itself(new_store):
    handled = []

    async def fails_once(event):
        handled.append(event)
        if len(handled) == 1:
            raise OSError

    bus = subscribed(new_store(), fails_once, Empty, retry=Retry(attempts=1))
    event = Empty()
    async with bus:
        await bus.publish(event)
        await bus.wait_idle()
        assert await bus.dead_letters.replay() == 1
    assert handled == [event, event]


async def test_letters_are_listed_at_every_moment_of_a_stop(new_store):
    replace(instead_of_thread=in_three_turns)
    listed = []

    async def look_after(turns):
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        listed.append([letter.event.number for letter in await bus.dead_letters.list()])

    bus = failing_bus(new_store(), {1, 2}, [])
    async with bus:
        await bus.publish_many([Noted(n, "a") for n in (1, 2)])
        await bus.wait_idle()
        async with trio.open_nursery() as nursery:
            for turns in range(60):
                nursery.start_soon(look_after, turns)
            await bus.publish(Noted(3, "a"))
            await bus.stop()
    assert listed == [[1, 2]] * 60


async def test_ids_of_dead_letters_go_on_after_a_restart(new_store):
    ids = []
    for number in range(3):
        async with failing_bus(new_store(), {number}, []) as bus:
            await bus.publish(Noted(number, "a"))
            await bus.wait_idle()
            ids.append([letter.id for letter in await bus.dead_letters.list()][-1])
    assert ids == sorted(set(ids))


async def test_hold_works_through_a_restart(new_store):
    handled = []
    async with failing_bus(new_store(), {1}, handled, hold=True) as bus:
        await bus.publish_many([Noted(n, "a") for n in (0, 1, 2)])
        await bus.publish(Noted(10, "b"))
    async with failing_bus(new_store(), set(), handled, hold=True) as bus:
        await bus.publish_many([Noted(3, "a"), Noted(11, "b")])
        await bus.wait_idle()
        assert sorted(handled) == [0, 10, 11]
        letters = await bus.dead_letters.list()
        assert [(x.event.number, x.attempts) for x in letters] == [(1, 1), (2, 0), (3, 0)]
        await bus.dead_letters.replay(group="default")
        await bus.publish(Noted(4, "a"))
    assert [n for n in handled if n < 10] == [0, 1, 2, 3, 4]


async def test_a_letter_whose_subscription_is_gone_stays_listed_and_replay_names_those_there_are(
    new_store,
):
    async with failing_bus(new_store(), {1}, []) as bus:
        await bus.publish(Noted(1, "a"))
    async with EventBus(new_store()) as bus:
        bus.subscribe(Noted, Handled(), name="another")
        (letter,) = await bus.dead_letters.list()
        with pytest.raises(UnknownSubscription, match=r"'handler'.*it has: 'another'"):
            await bus.dead_letters.replay(letter.id)
        assert len(await bus.dead_letters.list()) == 1


async def test_a_letter_whose_group_is_gone_stays_listed_too(new_store):
    bus = EventBus(new_store())

    async def fails(event):
        raise ValueError

    bus.group("mail").subscribe(Noted, fails, retry=Retry(attempts=1))
    async with bus:
        await bus.publish(Noted(1, "a"))
    async with EventBus(new_store()) as bus:
        (letter,) = await bus.dead_letters.list(group="mail")
        with pytest.raises(UnknownSubscription, match=r"no such group.*'default'"):
            await bus.dead_letters.replay(letter.id)
        await bus.dead_letters.discard(letter.id)


async def test_dead_letters_and_what_is_left_of_their_delivery_are_recorded_together(
    new_store, autojump_clock
):
    calls = []

    async def bad(event):
        calls.append("bad")
        raise ValueError

    async def hanging(event):
        calls.append("hanging")
        await trio.sleep_forever()

    async def good(event):
        calls.append("good")

    def bus(second):
        bus = EventBus(new_store())
        bus.subscribe(Noted, bad, name="bad", retry=Retry(attempts=1), priority=2)
        bus.subscribe(Noted, second, name="second", priority=1)
        return bus

    async with crashing(bus(hanging)) as first:
        await first.publish(Noted(1, "a"))
        await trio.sleep(1)
    async with bus(good) as second:
        await second.wait_idle()
        assert len(await second.dead_letters.list()) == 1
    assert calls == ["bad", "hanging", "good"]
