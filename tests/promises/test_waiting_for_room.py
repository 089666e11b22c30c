"""Publishing to a group that is full: who waits, and in which order."""

import math

import pytest
import trio

from tests.events import Noted, Other
from tests.promises.gated import Gated, fill, publish_and_note
from tests.settled import settled
from triobus import BusFull, EventBus


@pytest.mark.parametrize("buffer", [1, 2, 7])
async def test_a_publisher_waits_while_a_group_holds_a_full_buffer(autojump_clock, buffer):
    gated = Gated()
    accepted = []
    bus = EventBus(workers=1, buffer=buffer)
    bus.subscribe(Noted, gated)
    async with bus, trio.open_nursery() as nursery:
        await fill(bus, 1 + buffer)
        nursery.start_soon(publish_and_note, bus, 2 + buffer, accepted)
        await settled()
        statistics = bus.statistics()
        assert accepted == []
        assert (statistics.in_flight, statistics.queued) == (1, buffer)
        assert statistics.published == 1 + buffer
        gated.let_through(1)
        await settled()
        statistics = bus.statistics()
        assert accepted == [2 + buffer]
        assert (statistics.in_flight, statistics.queued) == (1, buffer)
        gated.let_through(1 + buffer)
    assert gated.begun == list(range(1, 3 + buffer))


async def test_publishers_that_wait_are_let_in_one_by_one_in_the_order_they_came(autojump_clock):
    gated = Gated()
    accepted = []
    bus = EventBus(workers=1, buffer=1)
    bus.subscribe(Noted, gated)
    async with bus, trio.open_nursery() as nursery:
        await fill(bus, 2)
        for number in range(3, 8):
            nursery.start_soon(publish_and_note, bus, number, accepted)
            await settled()
        for number in range(3, 8):
            assert accepted == list(range(3, number))
            gated.let_through(1)
            await settled()
        gated.let_through(2)
    assert gated.begun == list(range(1, 8))


async def test_a_publisher_that_is_cancelled_while_it_waits_has_published_nothing(autojump_clock):
    gated = Gated()
    bus = EventBus(workers=1, buffer=1)
    bus.subscribe(Noted, gated)
    async with bus:
        await fill(bus, 2)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bus.publish, Noted(3))
                nursery.start_soon(bus.publish_many, [Noted(4)])
                nursery.start_soon(bus.publish_and_wait, Noted(5))
                await settled()
                scope.cancel()
        assert bus.statistics().published == 2
        gated.let_through(3)
        await bus.publish(Noted(6))
    assert gated.begun == [1, 2, 6]


async def test_a_publisher_that_gives_up_lets_in_the_one_behind_it(autojump_clock):
    gated = Gated()
    accepted = []
    bus = EventBus(workers=1, buffer=2)
    bus.subscribe(Noted, gated)
    async with bus, trio.open_nursery() as nursery:
        await fill(bus, 2)  # there is room for one more, and not for two
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(bus.publish_many, [Noted(3), Noted(4)])
                await settled()
                nursery.start_soon(publish_and_note, bus, 5, accepted)
                await settled()
                assert accepted == []
                scope.cancel()
        await settled()
        assert accepted == [5]
        gated.let_through(3)
    assert gated.begun == [1, 2, 5]


async def test_one_full_group_holds_up_an_event_for_all_groups_and_no_event_for_the_others(
    autojump_clock,
):
    quick, slow = [], Gated()
    accepted = []
    bus = EventBus(workers=1, buffer=1)
    mail = bus.group("mail", workers=1, buffer=1)
    mail.subscribe(Noted, slow)

    @bus.subscribe((Noted, Other))
    async def note(event):
        quick.append(event.number)

    async with bus, trio.open_nursery() as nursery:
        await fill(bus, 2)
        nursery.start_soon(publish_and_note, bus, 3, accepted)
        await settled()
        await bus.publish(Other(100))
        await settled()
        assert accepted == []
        assert quick == [1, 2, 100]
        slow.let_through(1)
        await settled()
        assert accepted == [3]
        assert quick == [1, 2, 100, 3]
        slow.let_through(2)
    assert slow.begun == [1, 2, 3]


async def test_with_two_full_groups_an_event_waits_for_both(autojump_clock):
    first, second = Gated(), Gated()
    accepted = []
    bus = EventBus(workers=1, buffer=1)
    bus.subscribe(Noted, first)
    bus.group("second", workers=1, buffer=1).subscribe(Noted, second)
    async with bus, trio.open_nursery() as nursery:
        await fill(bus, 2)
        nursery.start_soon(publish_and_note, bus, 3, accepted)
        await settled()
        first.let_through(1)
        await settled()
        assert accepted == []
        second.let_through(1)
        await settled()
        assert accepted == [3]
        first.let_through(2)
        second.let_through(2)
    assert (first.begun, second.begun) == ([1, 2, 3], [1, 2, 3])


async def test_a_buffer_of_0_accepts_what_a_free_worker_takes_at_once(autojump_clock):
    gated = Gated()
    accepted = []
    bus = EventBus(workers=2, buffer=0)
    bus.subscribe(Noted, gated)
    async with bus, trio.open_nursery() as nursery:
        bus.publish_nowait(Noted(1))
        bus.publish_nowait(Noted(2))
        with pytest.raises(BusFull):
            bus.publish_nowait(Noted(99))
        await settled()
        with pytest.raises(BusFull):
            bus.publish_nowait(Noted(99))
        nursery.start_soon(publish_and_note, bus, 3, accepted)
        await settled()
        assert accepted == []
        gated.let_through(1)
        await settled()
        assert accepted == [3]
        assert bus.statistics().queued == 0
        gated.let_through(2)
    assert sorted(gated.begun) == [1, 2, 3]


async def test_a_buffer_without_a_limit_never_makes_a_publisher_wait(autojump_clock):
    gated = Gated()
    bus = EventBus(workers=1, buffer=math.inf)
    bus.subscribe(Noted, gated)
    async with bus:
        for number in range(3000):
            bus.publish_nowait(Noted(number))
        assert bus.statistics().queued == 3000
        gated.let_through(3000)
    assert gated.begun == list(range(3000))
