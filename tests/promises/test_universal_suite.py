"""What Watermill asks of every pub/sub it has (its pubsub/tests/test_pubsub.go), asked of triobus.

Each promise is tested with every kind of store, and without one where it needs nothing that lasts.
A further store gets into this suite by its line in `kinds.py`.
"""

from collections import Counter, defaultdict
from contextlib import suppress
from contextvars import ContextVar
from uuid import UUID

import pytest
import trio
import trio.testing

from tests.events import Noted, Other
from tests.promises.kinds import KINDS, reopened
from triobus import (
    BusClosed,
    EventBus,
    OutcomeUnknown,
    Retry,
    StoreError,
    StoreInUse,
    current_delivery,
)
from triobus.testing import crash


@pytest.fixture(params=[*KINDS, "none"])
def any_store(request, tmp_path):
    """Opens a store of every kind again and again, and then none."""
    return (lambda: None) if request.param == "none" else reopened(request.param, tmp_path)


def handling(store, handler, types=Noted, **options):
    bus = EventBus(store, **options)
    bus.subscribe(types, handler, name="handler", retry=Retry(attempts=50, delay=0.1))
    return bus


class Received(list):
    """A handler that remembers what it has got, and in which order."""

    async def __call__(self, event):
        self.append(event.number)


async def test_every_event_arrives_once_with_its_fields_and_metadata(any_store, autojump_clock):
    received = {}

    async def handler(event):
        assert event.event_id not in received
        received[event.event_id] = event

    events = [Noted(n, str(n), metadata={"test": f"{n} é\n"}) for n in range(100)]
    async with handling(any_store(), handler, workers=1) as bus:
        for event in events[:50]:
            await bus.publish(event)
        await bus.publish_many(events[50:])
    assert list(received.values()) == events
    assert [event.metadata for event in received.values()] == [event.metadata for event in events]


async def test_what_is_read_back_has_its_fields_and_metadata_too(new_store, autojump_clock):
    events = [Noted(n, str(n), metadata={"test": f"{n} é\n"}) for n in range(100)]
    async with new_store() as store:
        await store.append(events)
    received = []

    async def handler(event):
        received.append(event)

    bus = EventBus(new_store())
    bus.group("all", start="beginning", workers=1).subscribe(Noted, handler)
    async with bus:
        pass
    assert received == events
    assert [event.metadata for event in received] == [event.metadata for event in events]


async def test_fifty_workers_share_the_events_and_each_is_handled_once(any_store, autojump_clock):
    received, at_once, most = Counter(), 0, 0

    async def handler(event):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await trio.sleep(0.01)
        received[event.number] += 1
        at_once -= 1

    async with handling(any_store(), handler, workers=50) as bus:
        await bus.publish_many([Noted(n) for n in range(1000)])
    assert received == Counter(range(1000))
    assert most == 50


async def test_what_twenty_publishers_publish_at_once_keeps_the_order_of_each(
    any_store, autojump_clock
):
    received = defaultdict(list)

    async def handler(event):
        if event.number % 7 == 0:
            await trio.sleep(0.01)
        received[event.key].append(event.number)

    async def publish(key):
        for number in range(0, 30, 3):
            await bus.publish(Noted(number, key))
            await bus.publish_many([Noted(number + 1, key), Noted(number + 2, key)])

    async with handling(any_store(), handler, buffer=10) as bus, trio.open_nursery() as nursery:
        for key in range(20):
            nursery.start_soon(publish, str(key))
    assert received == {str(key): list(range(30)) for key in range(20)}


async def test_what_a_handler_fails_for_comes_again_and_nothing_else_does(
    any_store, autojump_clock
):
    received, refused = Counter(), Counter()

    async def handler(event):
        if sum(refused.values()) < 2:
            refused[event.number] += 1
            raise OSError("not now")
        received[event.number] += 1

    async with handling(any_store(), handler) as bus:
        await bus.publish_many([Noted(n, "a") for n in range(100)])
    assert received == Counter(range(100))
    assert refused == {0: 2}


async def test_nothing_of_an_aggregate_is_delivered_while_one_of_it_is_unacknowledged(
    any_store, autojump_clock
):
    received, acknowledge = [], trio.Event()

    async def handler(event):
        received.append((event.key, event.number))
        if event.number == 0:
            await acknowledge.wait()

    async with handling(any_store(), handler) as bus:
        await bus.publish_many([Noted(0, "a"), Noted(1, "a"), Noted(2, "b")])
        await trio.sleep(100)
        before = sorted(received)
        acknowledge.set()
        await bus.wait_idle()
        await trio.sleep(100)
    assert before == [("a", 0), ("b", 2)]
    assert received[2:] == [("a", 1)]


@pytest.mark.parametrize("ends", ["is stopped", "is cancelled", "crashes"])
async def test_nothing_is_lost_when_a_subscriber_closes_and_another_goes_on(
    new_store, autojump_clock, ends
):
    async with handling(new_store(), Received()):
        pass  # from here on the group is known
    async with new_store() as store:
        await store.append([Noted(n, str(n % 5)) for n in range(200)])
    received, lives = defaultdict(list), 0

    async def handler(event):
        await trio.sleep(1)
        received[event.key].append(event.number)

    while sum(map(len, received.values())) < 200:
        lives += 1
        with trio.CancelScope() as scope:
            async with handling(new_store(), handler, buffer=10) as bus:
                await trio.sleep(10.5)
                if ends == "is stopped":
                    await bus.stop(drain=False)
                elif ends == "is cancelled":
                    scope.cancel()
                else:
                    await crash(bus)
    assert lives == 5 if ends != "crashes" else lives >= 5
    if ends == "crashes":  # what was not recorded may come again, in its order
        received = {key: sorted(set(numbers)) for key, numbers in received.items()}
    assert received == {str(key): list(range(key, 200, 5)) for key in range(5)}


async def test_of_ten_that_open_a_store_at_once_one_has_it_and_nothing_is_lost(
    new_store, autojump_clock
):
    opened, refused, received = [], [], Received()

    async def open_and_close(number):
        try:
            async with handling(new_store(), received) as bus:
                opened.append(number)
                await bus.publish(Noted(number))
        except StoreInUse:
            refused.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(open_and_close, number)
    assert sorted(opened + refused) == list(range(10))
    assert opened
    async with handling(new_store(), received) as bus:
        await bus.publish_many([Noted(n) for n in range(10, 60)])
    assert sorted(received) == sorted([*opened, *range(10, 60)])


async def test_of_ten_that_stop_a_bus_at_once_one_does_and_nothing_is_lost(
    any_store, autojump_clock
):
    received, reports, refused = Received(), [], []

    async def stop():
        try:
            reports.append(await bus.stop())
        except BusClosed as error:
            refused.append(error)

    async with handling(any_store(), received, workers=1) as bus:
        await bus.publish_many([Noted(n, "a") for n in range(50)])
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(stop)
    assert (len(reports), len(refused)) == (1, 9)
    assert dict(reports[0].settled) == {"default": 50}
    assert received == list(range(50))


async def test_a_subscriber_goes_on_after_a_hundred_errors(any_store, autojump_clock):
    received, calls = Counter(), Counter()

    async def handler(event):
        calls[event.number] += 1
        if calls[event.number] <= 10:
            raise OSError("not now")
        received[event.number] += 1

    async with handling(any_store(), handler) as bus:
        await bus.publish_many([Noted(n, str(n % 5)) for n in range(50)])
        await bus.wait_idle()
        assert bus.statistics().failed_attempts == 500
        assert await bus.dead_letters.list() == []
    assert received == Counter(range(50))


async def test_errors_of_one_life_are_made_good_in_the_next(new_store, autojump_clock):
    async def fails(event):
        raise OSError("not in this life")

    for life in range(3):
        async with handling(new_store(), fails) as bus:
            if life == 0:
                await bus.publish_many([Noted(n, "a") for n in range(50)])
            await trio.sleep(1)
            await bus.stop(drain=False)
    received = Received()
    async with handling(new_store(), received) as bus:
        await bus.wait_idle()
        assert await bus.dead_letters.list() == []
    assert received == list(range(50))


async def test_each_group_receives_everything_in_whichever_life_it_is_there(
    new_store, autojump_clock
):
    received = {"one": Received(), "two": Received()}

    def bus(*names):
        bus = EventBus(new_store())
        for name in names:
            bus.group(name, workers=1).subscribe(Noted, received[name], name="handler")
        return bus

    async with bus("one", "two"):
        pass
    async with bus() as publisher:
        await publisher.publish_many([Noted(n) for n in range(50)])
    async with bus("one"):
        pass
    assert {name: len(found) for name, found in received.items()} == {"one": 50, "two": 0}
    async with bus("two"):
        pass
    async with bus("one", "two"):
        pass
    assert received == {"one": list(range(50)), "two": list(range(50))}


@pytest.mark.parametrize("after", [0, 1, 5, 20, 60])
async def test_nothing_accepted_is_lost_when_the_bus_is_closed_under_load(
    any_store, autojump_clock, after
):
    accepted, received = set(), Received()

    async def publish(first):
        with suppress(BusClosed):
            for number in range(first, first + 100):
                await bus.publish(Noted(number, str(first)))
                accepted.add(number)

    async with handling(any_store(), received, buffer=5) as bus, trio.open_nursery() as nursery:
        for first in range(0, 2000, 100):
            nursery.start_soon(publish, first)
        for _ in range(after):
            await trio.lowlevel.checkpoint()
        await bus.stop()
    assert len(received) == len(set(received))
    assert set(received) == accepted
    assert len(accepted) < 2000


async def test_types_do_not_mix(any_store, autojump_clock):
    notes, others = Received(), Received()
    bus = EventBus(any_store(), workers=1, buffer=2)
    bus.subscribe(Noted, notes, name="notes")
    bus.group("others", workers=1, buffer=2).subscribe(Other, others)
    async with bus:
        for number in range(0, 100, 2):
            await bus.publish_many([Noted(number), Other(number=number + 1)])
    assert notes == list(range(0, 100, 2))
    assert others == list(range(1, 100, 2))


_told: ContextVar[str] = ContextVar("told", default="nobody")


async def test_neither_the_scope_nor_the_context_of_a_publisher_reaches_the_handler(
    any_store, autojump_clock
):
    seen = []

    async def handler(event):
        await trio.sleep(10)
        seen.append((event.number, _told.get()))

    async with handling(any_store(), handler) as bus:
        _told.set("the publisher")
        with trio.CancelScope() as scope:
            await bus.publish(Noted(1))
            scope.cancel()
            await trio.sleep_forever()
        assert scope.cancelled_caught
    assert seen == [(1, "nobody")]


async def test_a_handler_is_cancelled_when_its_bus_is_closed_and_called_again_in_the_next_life(
    new_store, autojump_clock
):
    seen = []

    async def handler(event):
        try:
            await trio.sleep(10)
        except trio.Cancelled:
            seen.append("cancelled")
            raise
        seen.append((event.number, current_delivery().attempt))

    async with handling(new_store(), handler) as bus:
        await bus.publish(Noted(1))
        await trio.sleep(1)
        await bus.stop(drain=False)
        assert seen == ["cancelled"]
    async with handling(new_store(), handler):
        pass
    assert seen == ["cancelled", (1, 1)]


async def test_a_listener_that_is_cancelled_takes_nothing_from_the_next(any_store, autojump_clock):
    received, heard = Received(), []
    async with handling(any_store(), received, workers=1) as bus:
        with trio.CancelScope() as scope:
            async with bus.listen(Noted) as events:
                await bus.publish(Noted(0))
                scope.cancel()
                async for _ in events:
                    raise AssertionError("it was cancelled")
        async with bus.listen(Noted) as events:
            await bus.publish_many([Noted(n) for n in range(1, 20)])
            async for event in events:
                heard.append(event.number)
                if event.number == 19:
                    break
    assert heard == list(range(1, 20))
    assert received == list(range(20))


async def test_publishers_that_try_again_lose_nothing_when_the_bus_crashes_under_them(
    new_store, autojump_clock
):
    received, accepted, buses = Counter(), set(), []
    enough = {250 * part: trio.Event() for part in range(1, 5)}

    async def handler(event):
        received[event.number] += 1

    async def publish(first):
        for number in range(first, first + 20):
            while number not in accepted:
                with suppress(BusClosed, OutcomeUnknown, StoreError):
                    await buses[-1].publish(Noted(number, str(first), event_id=UUID(int=number)))
                    accepted.add(number)
                    if len(accepted) in enough:
                        enough[len(accepted)].set()
                await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        for life in range(4):
            async with handling(new_store(), handler) as bus:
                buses.append(bus)
                if life == 0:
                    for first in range(0, 1000, 20):
                        nursery.start_soon(publish, first)
                await enough[250 * (life + 1)].wait()
                if life < 3:
                    await crash(bus)
    assert set(received) == set(range(1000))
    async with new_store() as store:
        numbers = [stored.event.number async for stored in store.read()]
    assert sorted(numbers) == list(range(1000))


async def test_every_new_group_receives_the_old_events_and_then_the_new_ones(
    new_store, autojump_clock
):
    groups = []
    async with EventBus(new_store()) as bus:
        await bus.publish(Noted(0))
        for number in range(1, 4):
            await bus.publish(Noted(number))
            received = Received()
            groups.append(received)
            bus.group(f"group {number}", start="beginning", workers=1).subscribe(Noted, received)
            await bus.wait_idle()
            assert groups == [list(range(number + 1))] * number


async def test_who_subscribes_while_others_publish_gets_all_that_is_published_from_then_on(
    any_store, autojump_clock
):
    published, received = [], {}

    async def publish(first):
        for number in range(first, first + 30):
            published.append(number)
            await bus.publish(Noted(number, str(first)))

    async def subscribe(name):
        for _ in range(int(name) * 3):
            await trio.lowlevel.checkpoint()
        received[name] = Received()
        bus.group(name, workers=2, buffer=20).subscribe(Noted, received[name])
        received[name].before = set(published)

    async with EventBus(any_store()) as bus, trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(publish, number * 100)
            nursery.start_soon(subscribe, str(number))
    for found in received.values():
        assert len(found) == len(set(found))
        assert set(found) >= set(published) - found.before
        for first in range(0, 1000, 100):
            own = [number for number in found if number // 100 == first // 100]
            assert own == sorted(own)
