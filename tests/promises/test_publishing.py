"""Publishing: what acceptance means, who waits for room, what an event inherits."""

import math
from enum import StrEnum

import attrs
import pytest
import trio

from tests.events import Noted, Other
from tests.settled import settled
from triobus import (
    BusClosed,
    BusFull,
    DomainEvent,
    EventBus,
    InvalidEvent,
    Outcome,
    Published,
    Retry,
    WouldDeadlock,
)


@attrs.define(eq=False)
class Gated:
    """A handler that notes every event it begins, and finishes as many as it has permits for."""

    begun: list[int] = attrs.field(factory=list)
    permits: trio.Semaphore = attrs.field(factory=lambda: trio.Semaphore(0))

    async def __call__(self, event):
        self.begun.append(event.number)
        await self.permits.acquire()

    def let_through(self, count):
        for _ in range(count):
            self.permits.release()


async def fill(bus, count):
    """Publish 1 to `count` so that the only worker has 1 and the others are held."""
    for number in range(1, count + 1):
        await bus.publish(Noted(number))
        await settled()


async def publish_and_note(bus, number, accepted):
    await bus.publish(Noted(number))
    accepted.append(number)


# Acceptance


async def test_publish_returns_when_the_event_is_accepted_and_does_not_wait_for_handlers(
    autojump_clock,
):
    gated = Gated()
    bus = EventBus()
    bus.subscribe(Noted, gated)
    async with bus:
        event = Noted(1)
        assert await bus.publish(event) == Published(event.event_id, None)
        assert (bus.statistics().published, bus.statistics().handled) == (1, 0)
        gated.let_through(1)
    assert gated.begun == [1]
    assert (bus.statistics().published, bus.statistics().handled) == (1, 1)


async def test_an_event_without_a_subscriber_is_accepted_and_counted(autojump_clock):
    bus = EventBus(buffer=1)
    bus.subscribe(Other, Gated())
    async with bus:
        events = [Noted(number) for number in range(5)]
        published = [await bus.publish(event) for event in events]
    assert published == [Published(event.event_id, None) for event in events]
    assert (bus.statistics().published, bus.statistics().handled) == (5, 0)
    assert bus.statistics().groups["default"].published == 0


async def test_publishing_in_a_cancelled_scope_raises_and_delivers_nothing(new_bus, autojump_clock):
    gated = Gated()
    bus = new_bus()
    bus.subscribe(Noted, gated)
    async with bus:
        with trio.CancelScope() as scope:
            scope.cancel()
            await bus.publish(Noted(1))
        assert scope.cancelled_caught
        with trio.CancelScope() as scope:
            scope.cancel()
            await bus.publish_many([Noted(2), Noted(3)])
        assert scope.cancelled_caught
        with trio.CancelScope() as scope:
            scope.cancel()
            await bus.publish_and_wait(Noted(4))
        assert scope.cancelled_caught
    assert gated.begun == []
    assert bus.statistics().published == 0


PUBLISH = {
    "publish": lambda bus: bus.publish(Noted(1)),
    "publish_many": lambda bus: bus.publish_many([Noted(1)]),
    "publish_and_wait": lambda bus: bus.publish_and_wait(Noted(1)),
}


@pytest.mark.parametrize("call", PUBLISH)
async def test_publishing_before_the_start_and_after_the_stop_raises_bus_closed(
    new_bus, autojump_clock, call
):
    bus = new_bus()
    bus.subscribe(Noted, seen := Gated())
    with pytest.raises(BusClosed, match="has not been started") as caught:
        await PUBLISH[call](bus)
    assert isinstance(caught.value, trio.ClosedResourceError)
    async with bus:
        pass
    with pytest.raises(BusClosed, match="has stopped"):
        await PUBLISH[call](bus)
    assert seen.begun == []
    assert bus.statistics().published == 0


async def test_publish_nowait_before_the_start_and_after_the_stop_raises_bus_closed(autojump_clock):
    bus = EventBus()
    bus.subscribe(Noted, seen := Gated())
    with pytest.raises(BusClosed, match="has not been started"):
        bus.publish_nowait(Noted(1))
    async with bus:
        pass
    with pytest.raises(BusClosed, match="has stopped"):
        bus.publish_nowait(Noted(1))
    assert seen.begun == []
    assert bus.statistics().published == 0


@attrs.frozen
class Misnumbered(DomainEvent):
    number: int

    @property
    def aggregate_id(self):
        return self.number


@attrs.frozen
class Unnameable(DomainEvent):
    @property
    def aggregate_id(self):
        raise LookupError("no name for it")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("a string", "type 'str' is no event"),
        (Noted, "type 'type' is no event"),
        (None, "type 'NoneType' is no event"),
        (Misnumbered(7), "Misnumbered.aggregate_id is 7: return a string"),
    ],
)
async def test_what_is_no_proper_event_is_refused_by_every_way_of_publishing(
    autojump_clock, wrong, message
):
    bus = EventBus()
    seen = []

    @bus.subscribe(DomainEvent)
    async def note(event):
        seen.append(event)

    async with bus:
        with pytest.raises(InvalidEvent, match=message):
            await bus.publish(wrong)
        with pytest.raises(InvalidEvent, match=message):
            await bus.publish_many([Noted(1), wrong])
        with pytest.raises(InvalidEvent, match=message):
            bus.publish_nowait(wrong)
        with pytest.raises(InvalidEvent, match=message):
            await bus.publish_and_wait(wrong)
    assert seen == []
    assert bus.statistics().published == 0


async def test_an_error_in_aggregate_id_goes_to_the_publisher_and_nothing_is_accepted(
    autojump_clock,
):
    bus = EventBus()
    seen = []

    @bus.subscribe(DomainEvent)
    async def note(event):
        seen.append(event)

    async with bus:
        with pytest.raises(LookupError, match="no name for it"):
            await bus.publish(Unnameable())
        with pytest.raises(LookupError, match="no name for it"):
            await bus.publish_many([Noted(1), Unnameable()])
        with pytest.raises(LookupError, match="no name for it"):
            bus.publish_nowait(Unnameable())
    assert seen == []
    assert bus.statistics().published == 0


async def test_an_aggregate_id_may_be_of_a_class_derived_from_str(autojump_clock):
    class Desk(StrEnum):
        ONE = "one"

    gated = Gated()
    bus = EventBus(workers=2)
    bus.subscribe(Noted, gated)
    async with bus:
        await bus.publish_many([Noted(1, Desk.ONE), Noted(2, "one")])
        await settled()
        assert gated.begun == [1]  # one aggregate, so one at a time
        gated.let_through(2)
    assert gated.begun == [1, 2]


# Room


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


# Many at once


async def test_publish_many_delivers_all_in_their_order_and_returns_what_publish_would(
    autojump_clock,
):
    gated = Gated()
    gated.let_through(20)
    bus = EventBus(workers=1)
    bus.subscribe(Noted, gated)
    async with bus:
        events = [Noted(number) for number in range(20)]
        published = await bus.publish_many(events)
    assert published == [Published(event.event_id, None) for event in events]
    assert gated.begun == list(range(20))


async def test_publish_many_takes_any_iterable_a_generator_too(new_bus, autojump_clock):
    gated = Gated()
    gated.let_through(3)
    bus = new_bus(workers=1)
    bus.subscribe(Noted, gated)
    async with bus:
        published = await bus.publish_many(Noted(number) for number in range(3))
    assert len(published) == 3
    assert gated.begun == [0, 1, 2]


async def test_publish_many_of_nothing_returns_nothing_on_a_full_bus_too(new_bus, autojump_clock):
    gated = Gated()
    bus = new_bus(workers=1, buffer=1)
    bus.subscribe(Noted, gated)
    async with bus:
        await fill(bus, 2)
        assert await bus.publish_many([]) == []
        assert bus.statistics().published == 2
        gated.let_through(2)


async def test_publish_many_waits_until_all_fit_and_delivers_none_before(autojump_clock):
    gated = Gated()
    bus = EventBus(workers=1, buffer=3)
    bus.subscribe(Noted, gated)
    async with bus, trio.open_nursery() as nursery:
        await fill(bus, 3)  # one in flight, two held
        nursery.start_soon(bus.publish_many, [Noted(4), Noted(5), Noted(6)])
        await settled()
        assert bus.statistics().published == 3
        gated.let_through(1)
        await settled()
        assert bus.statistics().published == 3
        gated.let_through(1)
        await settled()
        assert bus.statistics().published == 6
        gated.let_through(4)
    assert gated.begun == [1, 2, 3, 4, 5, 6]


async def test_nothing_overtakes_a_batch_that_waits_though_it_would_fit(autojump_clock):
    gated = Gated()
    bus = EventBus(workers=1, buffer=2)
    bus.subscribe(Noted, gated)
    async with bus, trio.open_nursery() as nursery:
        await fill(bus, 2)  # there is room for one more, and not for two
        nursery.start_soon(bus.publish_many, [Noted(3), Noted(4)])
        await settled()
        nursery.start_soon(bus.publish, Noted(5))
        await settled()
        with pytest.raises(BusFull):
            bus.publish_nowait(Noted(99))
        gated.let_through(5)
    assert gated.begun == [1, 2, 3, 4, 5]


async def test_a_batch_larger_than_the_buffer_is_let_in_when_nothing_else_is_held(autojump_clock):
    gated = Gated()
    bus = EventBus(workers=1, buffer=2)
    bus.subscribe(Noted, gated)
    async with bus, trio.open_nursery() as nursery:
        await fill(bus, 2)
        nursery.start_soon(bus.publish_many, [Noted(number) for number in range(3, 13)])
        await settled()
        assert bus.statistics().published == 2
        gated.let_through(1)
        await settled()
        assert bus.statistics().published == 12
        assert bus.statistics().queued == 10
        gated.let_through(11)
    assert gated.begun == list(range(1, 13))


# Without waiting


@pytest.mark.parametrize("buffer", [1, 3])
async def test_publish_nowait_accepts_exactly_the_buffer_before_a_worker_could_take_one(
    autojump_clock, buffer
):
    gated = Gated()
    bus = EventBus(workers=1, buffer=buffer)
    bus.subscribe(Noted, gated)
    async with bus:
        await settled()
        for number in range(buffer):
            bus.publish_nowait(Noted(number))
        with pytest.raises(BusFull, match=f"group 'default' holds {buffer} event") as caught:
            bus.publish_nowait(Noted(99))
        assert isinstance(caught.value, trio.WouldBlock)
        assert bus.statistics().published == buffer
        await settled()
        bus.publish_nowait(Noted(buffer))  # the worker has taken one
        with pytest.raises(BusFull):
            bus.publish_nowait(Noted(99))
        gated.let_through(buffer + 1)
    assert gated.begun == list(range(buffer + 1))


async def test_publish_nowait_tells_the_id_of_the_event(autojump_clock):
    bus = EventBus()
    async with bus:
        event = Noted(1)
        assert bus.publish_nowait(event) == Published(event.event_id, None)


# Handlers that publish


async def test_a_handler_may_publish_a_long_chain_to_its_own_full_bus(new_bus, autojump_clock):
    seen = []
    bus = new_bus(workers=1, buffer=1)

    @bus.subscribe(Noted)
    async def count_down(event):
        seen.append(event.number)
        if event.number:
            await bus.publish(Noted(event.number - 1))

    async with bus:
        with trio.fail_after(60):
            await bus.publish(Noted(200))
            await bus.wait_idle()
    assert seen == list(range(200, -1, -1))


async def test_handlers_may_fan_out_on_their_own_full_bus_in_every_way_of_publishing(
    autojump_clock,
):
    seen = []
    bus = EventBus(workers=1, buffer=1)

    @bus.subscribe(Noted)
    async def fan_out(event):
        seen.append(event.number)
        if event.number < 100:
            await bus.publish(Noted(event.number * 10 + 1))
            await bus.publish_many([Noted(event.number * 10 + 2), Noted(event.number * 10 + 3)])
            bus.publish_nowait(Noted(event.number * 10 + 4))

    async with bus:
        with trio.fail_after(60):
            await bus.publish(Noted(1))
            await bus.wait_idle()
    assert seen[:5] == [1, 11, 12, 13, 14]
    assert seen[5:] == [number * 10 + n for number in (11, 12, 13, 14) for n in (1, 2, 3, 4)]


async def test_a_plain_handler_may_publish_to_its_own_full_bus(new_bus, autojump_clock):
    seen = []
    bus = new_bus(workers=1, buffer=1)

    @bus.subscribe(Noted)
    def fan_out(event):
        seen.append(event.number)
        if event.number == 0:
            for number in (1, 2, 3):
                bus.publish_from_thread(Noted(number))

    async with bus:
        with trio.fail_after(60):
            await bus.publish(Noted(0))
            await bus.wait_idle()
    assert seen == [0, 1, 2, 3]


async def test_outsiders_wait_until_a_group_that_its_handlers_overfilled_has_room_again(
    autojump_clock,
):
    begun = []
    accepted = []
    permits = trio.Semaphore(0)
    bus = EventBus(workers=1, buffer=2)

    @bus.subscribe(Noted)
    async def spread(event):
        begun.append(event.number)
        if event.number == 0:
            for number in range(1, 5):
                await bus.publish(Noted(number))
        await permits.acquire()

    async with bus, trio.open_nursery() as nursery:
        await bus.publish(Noted(0))
        await settled()
        assert bus.statistics().queued == 4
        nursery.start_soon(publish_and_note, bus, 5, accepted)
        for _ in range(2):  # then 4, 3 and 2 are held
            await settled()
            assert accepted == []
            permits.release()
        await settled()
        assert accepted == []
        permits.release()
        await settled()
        assert accepted == [5]
        for _ in range(3):
            permits.release()
    assert begun == [0, 1, 2, 3, 4, 5]


async def test_a_handler_of_another_bus_waits_for_room_like_any_outsider(autojump_clock):
    gated = Gated()
    near, far = EventBus(), EventBus(workers=1, buffer=1)
    far.subscribe(Noted, gated)

    @near.subscribe(Other)
    async def forward(event):
        await far.publish(Noted(event.number))

    async with far, near:
        await fill(far, 2)
        await near.publish(Other(3))
        await settled()
        assert (far.statistics().published, near.statistics().in_flight) == (2, 1)
        gated.let_through(3)
    assert gated.begun == [1, 2, 3]


async def test_a_bus_inside_a_handler_may_publish_back_to_the_full_bus_around_it(
    new_bus, autojump_clock
):
    outer, seen = new_bus(workers=1, buffer=1), []

    @outer.subscribe(Noted)
    async def handle(event):
        inner = new_bus()

        @inner.subscribe(Noted)
        async def back(event):
            await outer.publish(Other(event.number))
            await outer.publish(Other(event.number + 1))

        async with inner:
            await inner.publish(Noted(event.number))

    @outer.subscribe(Other)
    async def note(event):
        seen.append(event.number)

    with trio.fail_after(60):
        async with outer:
            await outer.publish(Noted(1))
    assert seen == [1, 2]


# What an event inherits


async def test_an_event_published_in_a_handler_has_the_handled_one_as_cause(autojump_clock):
    seen = {}
    bus = EventBus(workers=1)

    @bus.subscribe(Noted)
    async def follow(event):
        seen[event.number] = event
        if event.number == 0:
            await bus.publish(Noted(1))
            await bus.publish_many([Noted(2)])
            bus.publish_nowait(Noted(3))
        if event.number == 3:
            await bus.publish(Noted(4))

    async with bus:
        root = Noted(0)
        await bus.publish(root)
        await bus.wait_idle()
    assert {n: (e.correlation_id, e.causation_id) for n, e in seen.items()} == {
        0: (None, None),
        1: (root.event_id, root.event_id),
        2: (root.event_id, root.event_id),
        3: (root.event_id, root.event_id),
        4: (root.event_id, seen[3].event_id),
    }


async def test_an_event_inherits_the_correlation_id_that_was_set_and_keeps_ids_of_its_own(
    new_bus, autojump_clock
):
    seen = {}
    bus = new_bus(workers=1)
    ours, theirs, cause = Noted(0).event_id, Noted(0).event_id, Noted(0).event_id

    @bus.subscribe(Noted)
    async def follow(event):
        seen[event.number] = event
        if event.number == 0:
            await bus.publish(Noted(1))
            await bus.publish(Noted(2, correlation_id=theirs))
            await bus.publish(Noted(3, causation_id=cause))

    async with bus:
        root = Noted(0, correlation_id=ours)
        await bus.publish(root)
        await bus.wait_idle()
    assert {n: (e.correlation_id, e.causation_id) for n, e in seen.items()} == {
        0: (ours, None),
        1: (ours, root.event_id),
        2: (theirs, root.event_id),
        3: (ours, cause),
    }


async def test_an_event_published_from_a_plain_handler_has_the_handled_one_as_cause(
    new_bus, autojump_clock
):
    seen = {}
    bus = new_bus()

    @bus.subscribe(Noted)
    def follow(event):
        seen[event.number] = event
        if event.number == 0:
            bus.publish_from_thread(Noted(1))

    async with bus:
        root = Noted(0)
        await bus.publish(root)
        await bus.wait_idle()
    assert (seen[1].correlation_id, seen[1].causation_id) == (root.event_id, root.event_id)


async def test_causes_reach_across_two_buses(new_bus, autojump_clock):
    seen = []
    near, far = new_bus(), new_bus()

    @near.subscribe(Noted)
    async def forward(event):
        await far.publish_and_wait(Other())

    @far.subscribe(Other)
    async def note(event):
        seen.append((event.correlation_id, event.causation_id))

    async with far, near:
        root = Noted(0)
        await near.publish_and_wait(root)
    assert seen == [(root.event_id, root.event_id)]


async def test_an_event_published_outside_a_handler_has_no_cause(new_bus, autojump_clock):
    seen = []
    bus = new_bus()

    @bus.subscribe(Noted)
    async def note(event):
        seen.append(event)

    async with bus:
        await bus.publish_and_wait(Noted(1))
        await bus.publish_and_wait(Noted(2))
    assert [(e.correlation_id, e.causation_id) for e in seen] == [(None, None)] * 2


# The outcome


async def test_publish_and_wait_returns_every_result_and_error_by_subscription(autojump_clock):
    bus = EventBus()
    mail = bus.group("mail")
    broken = ValueError("broken")

    @bus.subscribe(Noted)
    def double(event):
        return event.number * 2

    async def fails(event):
        raise broken

    async def slow(event):
        await trio.sleep(60)
        return "late"

    mail.subscribe(Noted, fails, name="fails", retry=Retry(attempts=3, delay=1, jitter=0))
    mail.subscribe(Noted, slow, name="slow")
    async with bus:
        event = Noted(21)
        started = trio.current_time()
        outcome = await bus.publish_and_wait(event)
        assert trio.current_time() - started == 1 + 2 + 60
    qualified = double.__qualname__
    assert outcome == Outcome(
        event_id=event.event_id,
        position=None,
        results={qualified: 42, "slow": "late"},
        errors={"fails": broken},
    )


async def test_an_outcome_has_no_entry_for_a_handler_whose_where_did_not_match(
    new_bus, autojump_clock
):
    bus = new_bus()

    async def handler(event):
        return event.number

    bus.subscribe(Noted, handler, name="even", where=lambda event: event.number % 2 == 0)
    bus.subscribe(Noted, handler, name="odd", where=lambda event: event.number % 2 == 1)
    async with bus:
        outcome = await bus.publish_and_wait(Noted(3))
    assert (outcome.results, outcome.errors) == ({"odd": 3}, {})


async def test_an_outcome_keeps_apart_groups_with_a_subscription_of_one_name(
    new_bus, autojump_clock
):
    bus = new_bus()

    def answering(answer, delay):
        async def handler(event):
            await trio.sleep(delay)
            return answer

        return handler

    # The group that was made later answers first, which must not change who is called what.
    bus.subscribe(Noted, answering("ours", 2), name="note")
    bus.group("mail").subscribe(Noted, answering("theirs", 1), name="note")
    async with bus:
        outcome = await bus.publish_and_wait(Noted(1))
    assert outcome.results == {"note": "ours", "mail/note": "theirs"}


async def test_the_outcome_of_an_event_without_a_subscriber_is_empty(autojump_clock):
    async with EventBus() as bus:
        event = Noted(1)
        outcome = await bus.publish_and_wait(event)
    assert outcome == Outcome(event_id=event.event_id, position=None, results={}, errors={})


async def test_publish_and_wait_cancelled_while_it_waits_for_handlers_leaves_them_at_work(
    new_bus, autojump_clock
):
    gated = Gated()
    bus = new_bus()
    bus.subscribe(Noted, gated)
    async with bus:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bus.publish_and_wait, Noted(1))
                await settled()
                scope.cancel()
        gated.let_through(1)
    assert gated.begun == [1]
    assert bus.statistics().handled == 1


WAITS_FOR_HANDLERS = {
    "publish_and_wait()": lambda bus: bus.publish_and_wait(Noted(2)),
    "wait_idle()": lambda bus: bus.wait_idle(),
    "stop()": lambda bus: bus.stop(),
    "dead_letters.replay()": lambda bus: bus.dead_letters.replay(group="default"),
}


@pytest.mark.parametrize("call", WAITS_FOR_HANDLERS)
async def test_what_would_wait_for_the_handler_that_calls_it_raises_would_deadlock(
    new_bus, autojump_clock, call
):
    bus = new_bus()
    caught = []

    async def call_it(event):
        try:
            await WAITS_FOR_HANDLERS[call](bus)
        except WouldDeadlock as error:
            caught.append(str(error))

    bus.subscribe(Noted, call_it, name="call_it")
    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        assert bus.statistics().running
    (message,) = caught
    assert message.startswith(f"{call} was called inside the handler 'call_it' of the same bus")
    assert bus.statistics().published == 1


async def test_a_handler_may_wait_for_the_handlers_of_another_bus(new_bus, autojump_clock):
    near, far = new_bus(), new_bus()

    @near.subscribe(Noted)
    async def ask(event):
        await far.wait_idle()
        return (await far.publish_and_wait(Other(event.number))).results

    @far.subscribe(Other)
    async def answer(event):
        return event.number + 1

    async with far, near:
        outcome = await near.publish_and_wait(Noted(1))
    assert outcome.results == {ask.__qualname__: {answer.__qualname__: 2}}
