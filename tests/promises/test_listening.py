"""Listening without a handler: `listen` and `wait_for`."""

import pytest
import trio

from tests.events import Noted, Other, SpecialNoted
from tests.settled import settled
from triobus import (
    BusClosed,
    BusFull,
    DomainEvent,
    EventBus,
    InvalidEvent,
    InvalidOption,
    MemoryEventStore,
    Retry,
    WouldDeadlock,
)


async def take(events, count):
    """Take that many events from a listener, and return their numbers."""
    taken = []
    async for event in events:
        taken.append(event.number)
        if len(taken) == count:
            break
    return taken


async def collect(events, into):
    async for event in events:
        into.append(event.number)


# listen


async def test_a_listener_without_types_hears_every_event_in_the_order_of_publication(
    autojump_clock,
):
    async with EventBus() as bus, bus.listen() as events:
        await bus.publish(Noted(1))
        await bus.publish_many([Other(2), SpecialNoted(3)])
        bus.publish_nowait(Noted(4))
        await bus.publish_and_wait(Other(5))
        with trio.fail_after(60):
            assert await take(events, 5) == [1, 2, 3, 4, 5]


async def test_a_loop_that_publishes_more_than_its_own_listener_holds_is_told_so(autojump_clock):
    published = []
    async with EventBus() as bus, bus.listen(Noted, buffer=3) as events:
        await bus.publish(Noted(0))
        with trio.fail_after(60), pytest.raises(WouldDeadlock, match="this very task reads"):
            async for event in events:
                while True:
                    await bus.publish(Noted(event.number + 1))
                    published.append(event.number + 1)
    assert published == [1, 1, 1]
    assert bus.statistics().published == 4


async def test_a_loop_may_publish_what_another_task_reads_from_the_same_listener(
    new_bus, autojump_clock
):
    seen = []
    async with (
        new_bus() as bus,
        bus.listen(Noted, buffer=1) as events,
        trio.open_nursery() as nursery,
    ):
        await bus.publish(Noted(0))
        await anext(events)
        nursery.start_soon(collect, events, seen)
        await settled()
        for number in range(5):
            await bus.publish(Noted(number))
        await settled()
        nursery.cancel_scope.cancel()
    assert seen == [0, 1, 2, 3, 4]


async def test_a_listener_shows_on_one_line_what_it_hears_and_holds(new_bus, autojump_clock):
    async with new_bus() as bus:
        async with bus.listen(Noted, Other) as events:
            await bus.publish_many([Noted(1), Other(2)])
            assert repr(events) == "<Listener to Noted, Other, 2 events to be taken>"
            await anext(events)
        assert repr(events) == "<Listener to Noted, Other, 1 events to be taken, ended>"


async def test_a_listener_hears_its_types_with_their_subclasses_and_no_others(
    new_bus, autojump_clock
):
    async with (
        new_bus() as bus,
        bus.listen(Noted) as notes,
        bus.listen(SpecialNoted) as special,
        bus.listen(SpecialNoted, Other) as both,
        bus.listen(DomainEvent) as everything,
    ):
        await bus.publish_many([Noted(1), SpecialNoted(2), Other(3)])
        with trio.fail_after(60):
            assert await take(notes, 2) == [1, 2]
            assert await take(special, 1) == [2]
            assert await take(both, 2) == [2, 3]
            assert await take(everything, 3) == [1, 2, 3]


async def test_a_listener_hears_nothing_from_before_it_came_and_none_twice(new_bus, autojump_clock):
    async with new_bus() as bus:
        await bus.publish(Noted(1))
        async with bus.listen(Noted) as events:
            await bus.publish(Noted(2))
            assert await take(events, 1) == [2]
            await bus.publish(Noted(3))
            assert await take(events, 1) == [3]
        async with bus.listen(Noted) as events:
            await bus.publish(Noted(4))
            assert await take(events, 1) == [4]


async def test_a_listener_hears_an_event_when_it_is_accepted_whatever_its_handlers_do(
    new_bus, autojump_clock
):
    bus = new_bus()

    @bus.subscribe(Noted, retry=Retry(attempts=1))
    async def fails(event):
        raise OSError

    async with bus, bus.listen(Noted) as events:
        await bus.publish_and_wait(Noted(1))
        assert await take(events, 1) == [1]
        assert bus.statistics().dead_lettered == 1


async def test_publishers_wait_while_a_listener_holds_a_full_buffer(autojump_clock):
    accepted = []

    async def publish():
        await bus.publish(Noted(3))
        accepted.append(3)

    async with (
        EventBus() as bus,
        trio.open_nursery() as nursery,
        bus.listen(Noted, buffer=2) as events,
    ):
        await bus.publish(Noted(1))
        await bus.publish(Noted(2))
        with pytest.raises(BusFull, match="a listener holds 2 events and its buffer is 2"):
            bus.publish_nowait(Noted(99))
        nursery.start_soon(publish)
        await bus.publish(Other(100))  # nobody listens to it, so it waits for nobody
        await settled()
        assert accepted == []
        assert await take(events, 1) == [1]
        await settled()
        assert accepted == [3]
        assert await take(events, 2) == [2, 3]


async def test_a_listener_that_leaves_holds_up_nobody_any_more(autojump_clock):
    async with EventBus() as bus, trio.open_nursery() as nursery:
        async with bus.listen(Noted, buffer=1):
            await bus.publish(Noted(1))
            nursery.start_soon(bus.publish, Noted(2))
            nursery.start_soon(bus.publish_many, [Noted(3), Noted(4)])
            await settled()
            assert bus.statistics().published == 1
        await settled()
        assert bus.statistics().published == 4


async def test_a_handler_may_publish_to_a_full_listener(new_bus, autojump_clock):
    bus = new_bus(workers=1)

    @bus.subscribe(Other)
    async def spread(event):
        for number in range(5):
            await bus.publish(Noted(number))

    async with bus, bus.listen(Noted, buffer=1) as events:
        with trio.fail_after(60):
            await bus.publish_and_wait(Other())
            assert await take(events, 5) == [0, 1, 2, 3, 4]


async def test_two_tasks_that_share_a_listener_get_every_event_once(new_bus, autojump_clock):
    first, second = [], []
    async with new_bus() as bus, trio.open_nursery() as nursery, bus.listen(Noted) as events:
        nursery.start_soon(collect, events, first)
        nursery.start_soon(collect, events, second)
        for number in range(50):
            await bus.publish(Noted(number))
        await settled()
        assert sorted(first + second) == list(range(50))
        assert first == sorted(first)
        assert second == sorted(second)


async def test_a_listener_ends_when_the_bus_has_stopped_after_what_is_there(
    new_bus, autojump_clock
):
    heard = []
    bus = new_bus()
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        async with bus.listen(Noted) as events:
            await bus.publish_many([Noted(1), Noted(2)])
            await bus.stop()
            with trio.fail_after(60):
                await collect(events, heard)
                await collect(events, heard)  # and it stays at its end
    assert heard == [1, 2]


async def test_a_listener_that_waits_for_an_event_is_ended_by_the_stop(new_bus, autojump_clock):
    heard = []
    bus = new_bus()

    async def listen(task_status):
        async with bus.listen(Noted) as events:
            task_status.started()
            await collect(events, heard)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(bus.run)
            await nursery.start(lambda task_status: listen(task_status))
            await bus.publish(Noted(1))
            await settled()
            await bus.stop()
    assert heard == [1]


async def test_a_listener_hears_what_handlers_publish_while_the_bus_drains(new_bus, autojump_clock):
    bus = new_bus()

    @bus.subscribe(Other)
    async def follow(event):
        await bus.publish(Noted(event.number))

    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        async with bus.listen(Noted) as events:
            await bus.publish(Other(1))
            await bus.stop()
            heard = []
            await collect(events, heard)
    assert heard == [1]


async def test_a_cancelled_listener_has_taken_no_event(new_bus, autojump_clock):
    async with new_bus() as bus, bus.listen(Noted) as events:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(take, events, 1)
                await settled()
                scope.cancel()
        await bus.publish(Noted(1))
        assert await take(events, 1) == [1]


async def test_listening_asks_for_event_types_and_for_a_buffer_that_can_hold_one(
    new_bus, autojump_clock
):
    async with new_bus() as bus:
        with pytest.raises(InvalidEvent, match="no event type"):
            async with bus.listen(int):
                pass
        for buffer in (0, -1, 1.5):
            with pytest.raises(InvalidOption, match=f"buffer={buffer}"):
                async with bus.listen(Noted, buffer=buffer):
                    pass


async def test_listening_after_the_stop_raises_bus_closed(new_bus, autojump_clock):
    async with new_bus() as bus:
        pass
    with pytest.raises(BusClosed, match="has stopped"):
        async with bus.listen():
            pass


# wait_for


async def test_wait_for_returns_the_next_event_of_a_type(new_bus, autojump_clock):
    found = []

    async def wait(types):
        found.append(await bus.wait_for(types))

    async with new_bus() as bus:
        await bus.publish(Noted(0))  # too early to be the next one
        async with trio.open_nursery() as nursery:
            for types in (Noted, SpecialNoted, (Other, SpecialNoted), DomainEvent):
                nursery.start_soon(wait, types)
            await settled()
            events = [Other(1), SpecialNoted(2), Noted(3)]
            for event in events:
                await bus.publish(event)
    assert sorted(event.number for event in found) == [1, 1, 2, 2]


async def test_wait_for_returns_the_very_event_that_where_wants_and_calls_it_no_more(
    new_bus, autojump_clock
):
    asked = []

    def where(event):
        asked.append(event.number)
        return event.number == 2

    async with new_bus() as bus, trio.open_nursery() as nursery:

        async def publish():
            await settled()
            await bus.publish_many([Noted(1), wanted, Noted(3)])
            await bus.publish(Noted(4))

        wanted = Noted(2)
        nursery.start_soon(publish)
        assert await bus.wait_for(Noted, where) is wanted
    assert asked == [1, 2]


async def test_an_error_in_where_goes_to_the_one_who_waits_and_not_to_the_publisher(
    new_bus, autojump_clock
):
    caught = []

    def where(event):
        raise LookupError("in where")

    async def wait():
        with pytest.raises(LookupError, match="in where") as error:
            await bus.wait_for(Noted, where)
        caught.append(error)

    async with new_bus() as bus, trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await settled()
        await bus.publish(Noted(1))
        await bus.publish(Noted(2))
    assert len(caught) == 1
    assert bus.statistics().published == 2


async def test_wait_for_can_be_given_up_with_fail_after(new_bus, autojump_clock):
    async with new_bus() as bus:
        with pytest.raises(trio.TooSlowError), trio.fail_after(30):
            await bus.wait_for(Noted)
        assert trio.current_time() == 30
        await bus.publish(Noted(1))


async def test_wait_for_never_holds_up_a_publisher(autojump_clock):
    async with EventBus() as bus, trio.open_nursery() as nursery:
        nursery.start_soon(bus.wait_for, Noted, lambda event: event.number == 5000)
        await settled()
        for number in range(5001):
            bus.publish_nowait(Noted(number))


async def test_wait_for_raises_bus_closed_when_the_bus_stops_first(new_bus, autojump_clock):
    bus = new_bus()
    caught = []

    async def wait():
        with pytest.raises(BusClosed, match="before an event came"):
            await bus.wait_for(Noted)
        caught.append(True)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(bus.run)
            nursery.start_soon(wait)
            await settled()
            await bus.stop()
    assert caught == [True]
    with pytest.raises(BusClosed, match="has stopped"):
        await bus.wait_for(Noted)


async def test_wait_for_asks_for_an_event_type_and_a_function(new_bus, autojump_clock):
    async with new_bus() as bus:
        with pytest.raises(InvalidEvent, match="no event type"):
            await bus.wait_for(int)
        with pytest.raises(InvalidOption, match="where=3"):
            await bus.wait_for(Noted, 3)
        with pytest.raises(InvalidOption, match="is true whatever the event is"):
            await bus.wait_for(Noted, is_wanted)


async def is_wanted(event):
    return False


async def odd(error, bus, caught):
    def where(event):
        if isinstance(error, BaseException):
            raise error
        return is_wanted(event)

    try:
        await bus.wait_for(Noted, where)
    except BaseException as raised:  # noqa: BLE001  # it is what the test is about
        caught.append(raised)


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), "awaitable"]
)
@pytest.mark.parametrize("store", [None, MemoryEventStore], ids=["none", "memory"])
async def test_whatever_a_predicate_raises_reaches_who_wrote_it_and_nobody_else(store, error):
    caught, heard = [], []

    async def hear():
        heard.append(await bus.wait_for(Noted))

    async with EventBus(store and store()) as bus:
        bus.subscribe(Noted, heard.append)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(odd, error, bus, caught)
                nursery.start_soon(hear)
                await settled()
                await bus.publish_many([Noted(1), Noted(1)])
            await bus.wait_idle()
    assert [event.number for event in heard] == [1, 1, 1]
    (found,) = caught
    if error == "awaitable":
        assert isinstance(found, InvalidOption)
        assert "where returned 'coroutine', which is to be awaited" in str(found)
    else:
        assert found is error
