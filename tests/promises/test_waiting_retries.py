"""What waits for a retry can be looked at, tried now, and given up."""

import pytest
import trio

from tests.events import Noted, Other
from tests.promises.failing import ONCE, SECONDS, failing
from triobus import BusClosed, EventBus, InvalidOption, MemoryEventStore, Retry, WaitingRetry

HOUR = Retry(attempts=4, delay=3600, jitter=0)


def told(retry):
    return retry.event.number, retry.group, retry.subscription, retry.attempts, retry.due


async def test_what_waits_is_listed_as_it_falls_due(new_bus, autojump_clock):
    bus = new_bus()
    bus.subscribe(Noted, failing(*[OSError("no network")] * 3), name="note", retry=HOUR)
    bus.group("mail").subscribe(
        Noted, failing(ValueError("odd"), ValueError("odd")), name="send", retry=SECONDS
    )
    async with bus:
        await bus.publish(Noted(1, "a"))
        await trio.sleep(2)
        found = await bus.retries.list()
        assert [told(retry) for retry in found] == [
            (1, "mail", "send", 2, 3.0),
            (1, "default", "note", 1, 3600.0),
        ]
        assert [retry.error for retry in found] == ["ValueError: odd", "OSError: no network"]
        assert [retry.aggregate_id for retry in found] == ["a", "a"]
        assert await bus.retries.list("default") == [found[1]]
        assert await bus.retries.list(limit=1) == [found[0]]
        assert await bus.retries.list(aggregate_id="b") == []
        assert repr(bus.retries) == "<Retries, 2 of them>"
        await bus.stop(drain=False)


async def test_what_waits_can_be_tried_now(new_bus, autojump_clock):
    bus, calls = new_bus(), []
    bus.subscribe(Noted, failing(OSError(), OSError(), calls=calls), retry=HOUR)
    async with bus:
        await bus.publish(Noted(1))
        await trio.sleep(10)
        assert await bus.retries.retry_now() == 1
        await trio.sleep(10)
        assert await bus.retries.retry_now(await bus.retries.list()) == 1
        await bus.wait_idle()
        assert await bus.retries.retry_now() == 0
    assert calls == [(0, 1), (10, 2), (20, 3)]


async def test_only_what_was_chosen_is_tried_now(new_bus, autojump_clock):
    bus, tried = new_bus(), []
    for name in ("default", "mail"):
        group = bus.group("mail") if name == "mail" else bus

        async def handle(event, name=name):
            if trio.current_time():
                tried.append((name, event.number))
            else:
                raise OSError

        group.subscribe(Noted, handle, name="handle", retry=HOUR)
    async with bus:
        await bus.publish_many([Noted(1, "a"), Noted(2, "b")])
        await trio.sleep(1)
        assert await bus.retries.retry_now(group="mail", aggregate_id="b") == 1
        assert await bus.retries.retry_now(group="default", aggregate_id="c") == 0
        await trio.sleep(1)
        assert tried == [("mail", 2)]
        first, *_ = await bus.retries.list("default", "a")
        assert await bus.retries.retry_now(first) == 1
        await trio.sleep(1)
        assert tried == [("mail", 2), ("default", 1)]
        await bus.stop(drain=False)


async def test_what_is_given_up_becomes_a_dead_letter_and_the_rest_goes_on(new_bus, autojump_clock):
    bus, handled = new_bus(), []
    bus.subscribe(
        Noted, failing(OSError("no network"), OSError("no network")), name="first", retry=SECONDS
    )
    bus.subscribe(Noted, lambda event: handled.append(event.number), name="last")
    async with bus:
        await bus.publish_many([Noted(1, "a"), Noted(2, "a")])
        await trio.sleep(2)
        (waiting,) = await bus.retries.list()
        assert await bus.retries.give_up(waiting) == 1
        (letter,) = await bus.dead_letters.list()
        assert (letter.subscription, letter.attempts, letter.error_type) == ("first", 2, "GivenUp")
        assert letter.message == "given up after 2 attempts; the last error was OSError: no network"
        await bus.wait_idle()
        assert trio.current_time() == 2
        assert handled == [1, 2]
        statistics = bus.statistics()
        assert (statistics.handled, statistics.failed_attempts, statistics.retries) == (2, 2, 1)
        assert await bus.retries.give_up(waiting) == 0
        assert await bus.dead_letters.replay() == 1


async def test_a_publisher_that_waits_is_told_of_what_was_given_up(new_bus, autojump_clock):
    bus, outcomes = new_bus(), []
    bus.subscribe(Noted, failing(OSError()), name="note", retry=HOUR)

    async def publish():
        outcomes.append(await bus.publish_and_wait(Noted(1)))

    async with bus, trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        await trio.sleep(1)
        await bus.retries.give_up(await bus.retries.list())
    (outcome,) = outcomes
    assert str(outcome.errors["note"]) == "given up after 1 attempt; the last error was OSError"


async def test_a_paused_group_lets_go_of_what_is_given_up_too(new_bus, autojump_clock):
    bus = new_bus()
    group = bus.group("mail")
    group.subscribe(Noted, failing(OSError()), retry=HOUR)
    async with bus:
        await bus.publish(Noted(1))
        await trio.sleep(1)
        await group.pause()
        assert await bus.retries.give_up(await bus.retries.list()) == 1
        await bus.wait_idle()
        assert len(await bus.dead_letters.list()) == 1
        await group.resume()


async def test_a_replay_that_waits_can_be_given_up_and_keeps_its_letter(new_bus, autojump_clock):
    bus = new_bus()
    bus.subscribe(Noted, failing(*[OSError()] * 5), retry=SECONDS)
    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.dead_letters.replay)
            await trio.sleep(0.5)
            assert await bus.retries.give_up(await bus.retries.list()) == 1
        (letter,) = await bus.dead_letters.list()
        assert (letter.id, letter.attempts, letter.error_type) == (1, 5, "GivenUp")


async def test_a_batch_waits_and_is_given_up_as_a_whole(new_bus, autojump_clock):
    bus = new_bus()
    bulk = bus.group("bulk", batch=3, workers=1)
    seen = []

    async def fails(events):
        raise OSError("no disk")

    async def sees(events):
        seen.append([event.number for event in events])

    bulk.subscribe(Noted, fails, name="store", retry=HOUR, priority=1)
    bulk.subscribe(Noted, sees, name="count")
    async with bus:
        await bus.publish_many([Noted(1, "a"), Noted(2, "a"), Noted(3, "b")])
        await trio.sleep(1)
        waiting = await bus.retries.list()
        assert [told(retry) for retry in waiting] == [
            (number, "bulk", "store", 1, 3600.0) for number in (1, 2, 3)
        ]
        assert await bus.retries.give_up(waiting[1]) == 3
        await bus.wait_idle()
        assert trio.current_time() == 1
        letters = await bus.dead_letters.list()
        assert sorted(letter.event.number for letter in letters) == [1, 2, 3]
    assert sorted(number for numbers in seen for number in numbers) == [1, 2, 3]


async def test_many_that_a_store_has_are_read_back_to_be_shown_tried_and_given_up(autojump_clock):
    count, bus = 300, EventBus(MemoryEventStore())  # of which 256 stay in memory
    handled = []

    async def handle(event):
        if trio.current_time() < 5:
            raise OSError("broker is down")
        handled.append(event.number)

    bus.subscribe(Noted, handle, name="send", retry=HOUR)
    async with bus:
        await bus.publish_many([Noted(number, str(number)) for number in range(count)])
        await trio.sleep(5)
        waiting = await bus.retries.list(limit=1000)
        assert [retry.event.number for retry in waiting] == list(range(count))
        assert {retry.error for retry in waiting} == {"OSError: broker is down"}
        assert await bus.retries.give_up(waiting[:1] + waiting[-1:]) == 2
        assert await bus.retries.retry_now(waiting[1:2] + waiting[-2:]) == 2
        await trio.sleep(1)
        assert sorted(handled) == [1, count - 2]
        assert bus.statistics().waiting_for_retry == count - 4
        assert await bus.retries.retry_now() == count - 4
        await bus.wait_idle()
        assert trio.current_time() == 6
        letters = await bus.dead_letters.list()
        assert sorted(letter.event.number for letter in letters) == [0, count - 1]
        assert bus.statistics().groups["default"].lag == 0


async def test_more_than_256_different_errors_are_not_all_kept(autojump_clock):
    bus = EventBus(MemoryEventStore())

    async def handle(event):
        raise OSError(event.number)

    bus.subscribe(Noted, handle, retry=HOUR)
    async with bus:
        await bus.publish_many([Noted(number, str(number)) for number in range(600)])
        await trio.sleep(1)
        errors = [retry.error for retry in await bus.retries.list(limit=1000)]
        assert sum(error is not None for error in errors) == 2 * 256
        await bus.stop(drain=False)


async def test_retries_that_a_restart_has_found_have_no_error_yet(autojump_clock):
    store = MemoryEventStore()
    for life in range(2):
        bus = EventBus(store)
        bus.subscribe(Noted, failing(OSError()), name="note", retry=HOUR)
        async with bus:
            if not life:
                await bus.publish(Noted(1))
            await trio.sleep(1)
            (waiting,) = await bus.retries.list()
            assert told(waiting)[:4] == (1, "default", "note", 1)
            assert waiting.due == pytest.approx(3600, abs=2)
            assert waiting.error == (None if life else "OSError")
            await bus.stop(drain=False)


async def test_bad_calls_are_refused(new_bus, autojump_clock):
    bus = new_bus()
    for call in (bus.retries.list, bus.retries.retry_now):
        with pytest.raises(BusClosed, match=r"retries\.\w+\(\): the bus is not open"):
            await call()
    bus.subscribe(Other, failing(OSError()), retry=ONCE)
    async with bus:
        with pytest.raises(InvalidOption, match="no such group; it has: 'default'"):
            await bus.retries.list("mail")
        with pytest.raises(InvalidOption, match="no such group"):
            await bus.retries.retry_now(group="mail")
        with pytest.raises(InvalidOption, match=r"7 is no retry: give what retries\.list"):
            await bus.retries.give_up(7)
        with pytest.raises(InvalidOption, match="'all' is no retry"):
            await bus.retries.give_up("all")
        with pytest.raises(InvalidOption, match="one of them was given beside retries"):
            await bus.retries.retry_now([], group="default")
        with pytest.raises(InvalidOption, match="limit=-1"):
            await bus.retries.list(limit=-1)
        gone = WaitingRetry(
            id=1,
            event=None,
            position=None,
            aggregate_id=None,
            group="gone",
            subscription="gone",
            attempts=1,
            error=None,
            due=0.0,
        )
        assert await bus.retries.give_up([gone]) == 0
