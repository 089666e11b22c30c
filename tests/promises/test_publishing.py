"""Publishing: what acceptance means, of one event, of many, and without waiting."""

from enum import StrEnum

import attrs
import pytest
import trio

from tests.events import Noted, Other
from tests.promises.gated import Gated, fill
from tests.settled import settled
from triobus import BusClosed, BusFull, DomainEvent, EventBus, InvalidEvent, Published

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
