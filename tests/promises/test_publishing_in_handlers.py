"""Handlers publish without deadlock on their own full bus, and what their events inherit."""

import trio

from tests.events import Noted, Other
from tests.promises.gated import Gated, fill, publish_and_note
from tests.settled import settled
from triobus import EventBus

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
