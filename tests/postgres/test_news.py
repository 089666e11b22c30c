"""What other programs store reaches a bus by notification, in the order of the log."""

import pytest
import trio

from tests.events import Noted, Other
from tests.promises.stored.buses import Handled, subscribed
from triobus import EventBus


async def test_a_bus_handles_what_other_programs_append_in_order(opened, autojump_clock):
    handled = Handled()
    async with subscribed(opened(), handled) as bus, opened() as other:
        for number in range(0, 30, 3):
            await bus.publish(Noted(number))
            await other.append([Noted(number + 1), Noted(number + 2)])
        await trio.sleep(1)  # the clock does not jump past a notification
        await bus.wait_idle()
        assert handled == [*range(30)]


async def test_an_append_of_another_program_is_handled_before_virtual_time_passes(
    opened, autojump_clock
):
    came = []

    async def handler(event):
        came.append((event.number, trio.current_time()))

    async with subscribed(opened(), handler), opened() as other:
        started = trio.current_time()
        for number in range(5):
            await other.append([Noted(number)])
            await trio.sleep(3600)
    assert came == [(number, started + 3600 * number) for number in range(5)]


@pytest.mark.parametrize("turns", range(4))
async def test_listeners_get_everything_once_and_in_order_whoever_stores_it(
    opened, autojump_clock, turns
):
    got = []
    async with EventBus(opened()) as bus, opened() as other, bus.listen(Noted) as events:

        async def append():
            for number in range(20):
                await other.append([Noted(number, "other"), Other()])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(append)
            for number in range(20):
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                await bus.publish(Noted(number, "own"))
        with trio.move_on_after(60):
            async for event in events:
                got += [(event.key, event.number)]
        log = [(s.event.key, s.event.number) async for s in other.read(types=Noted)]
    assert got == log
    assert len(log) == 40


async def test_a_waiter_finds_what_another_program_has_stored(opened, autojump_clock):
    async with EventBus(opened()) as bus, opened() as other, trio.open_nursery() as nursery:

        async def append():
            await other.append([Noted(1), Noted(2)])

        nursery.start_soon(append)
        found = await bus.wait_for(Noted, where=lambda event: event.number == 2)
        assert found.number == 2


async def test_a_connection_that_listens_is_made_again_and_misses_nothing(
    opened, autojump_clock, beside, schema
):
    handled = Handled()
    async with subscribed(opened(name="it"), handled), opened() as other:
        for number in range(5):
            ended = beside.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = %s AND query LIKE '%%head_1()%%'",
                (schema,),
            )
            assert ended.rowcount == 1
            await other.append([Noted(number)])
            await trio.sleep(60)
    assert handled == [0, 1, 2, 3, 4]


async def test_what_another_program_schedules_is_published_when_it_is_due(opened, autojump_clock):
    came = []

    async def handler(event):
        came.append((event.number, trio.current_time()))

    async with subscribed(opened(), handler), opened() as other:
        started = trio.current_time()
        await other.transact(lambda transaction: transaction.publish(Noted(1), delay=600))
        await trio.sleep(3600)
    assert [(number, round(at - started)) for number, at in came] == [(1, 600)]


async def test_a_large_event_goes_into_no_notification(opened, autojump_clock):
    got = []

    async def handler(event):
        got.append(len(event.metadata["text"]))

    async with subscribed(opened(max_event_bytes=2_000_000), handler), opened() as other:
        text = {"text": "x" * 1000} | {str(n): "y" * 1000 for n in range(60)}
        await other.append([Noted(1, metadata=text)])
        await trio.sleep(1)
    assert got == [1000]
