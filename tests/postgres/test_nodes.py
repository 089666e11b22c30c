"""One bus at a time has a log in PostgreSQL: its lease, its token, and what a zombie cannot do."""

import subprocess
import sys
import textwrap

import pytest
import trio

from tests.events import Noted
from tests.postgres import server
from tests.promises.stored.buses import Handled, subscribed
from triobus import EventBus, StoreInUse, StoreReadOnly


def falls_silent(store):
    """Let a store renew its lease no more, as a process does that hangs."""
    store._driven._node._pulse.stop()


async def test_a_second_bus_is_refused_while_the_lease_of_the_first_is_renewed(opened):
    async with EventBus(opened(lease=0.5, name="the first")):
        with pytest.raises(StoreInUse, match=r"'the first'.*lease is renewed"):
            async with EventBus(opened(lease=0.5)):
                pass


async def test_after_a_clean_end_the_next_bus_has_the_log_at_once(opened):
    for _ in range(2):
        store = opened(lease=3600)
        async with subscribed(store, Handled()) as bus:
            await bus.publish(Noted(1))
            assert not store._driven._node.was_unclean


async def test_a_bus_whose_lease_is_over_is_replaced_and_nothing_that_it_does_is_stored(opened):
    handled, store = Handled(), opened(lease=0.5)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with subscribed(store, Handled()) as zombie:
            await zombie.publish(Noted(1))
            await zombie.wait_idle()
            falls_silent(store)
            async with subscribed(opened(lease=0.5), handled) as bus:
                await bus.publish(Noted(3))
                await bus.wait_idle()
                with pytest.raises(StoreInUse, match="taken over by another bus"):
                    await zombie.publish(Noted(2))
                await trio.sleep(20)  # the bus ends before
    assert caught.group_contains(StoreInUse, match="taken over")
    async with opened() as log:
        assert [s.event.number async for s in log.read()] == [1, 3]
    assert handled == [3]


async def test_a_bus_that_renews_too_late_ends_when_it_finds_that_out(opened):
    store = opened(lease=0.3)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with subscribed(store, Handled()):
            falls_silent(store)
            async with EventBus(opened(lease=3600)):
                store._driven._node._renew()
                await trio.sleep(20)  # the bus ends before
    assert caught.group_contains(StoreInUse)


async def test_a_late_renewal_is_in_time_where_nobody_waits_for_the_log(opened, beside, schema):
    store = opened(lease=0.2)
    async with subscribed(store, Handled()) as bus:
        falls_silent(store)
        beside.execute("SELECT pg_sleep(0.3)")
        assert store._driven._node._renew()
        await bus.publish(Noted(1))


async def test_the_effects_of_a_zombie_are_rolled_back(opened, beside, schema):
    store = opened(lease=0.3)
    beside.execute(f'CREATE SCHEMA IF NOT EXISTS "{schema}_own"')
    beside.execute(f'CREATE TABLE "{schema}_own".effects (number int)')
    has_begun, next_has_it = trio.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()

    def late(event, transaction):
        transaction.execute(f'INSERT INTO "{schema}_own".effects VALUES (%s)', (event.number,))
        token.run_sync_soon(has_begun.set)
        trio.from_thread.run(next_has_it.wait, trio_token=token)

    bus = EventBus(store)
    bus.subscribe(Noted, late, transactional=True)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with bus:
            await bus.publish(Noted(1))
            await has_begun.wait()
            falls_silent(store)
            async with EventBus(opened(lease=0.3)):
                next_has_it.set()
                await trio.sleep(20)  # the bus ends before
    assert caught.group_contains(StoreInUse)
    assert beside.execute(f'SELECT * FROM "{schema}_own".effects').fetchall() == []
    beside.execute(f'DROP SCHEMA "{schema}_own" CASCADE')


async def test_the_token_rises_with_every_owner(opened, beside, schema):
    for token in (1, 2, 3):
        async with EventBus(opened()):
            found = beside.execute(
                f"SELECT token, owner IS NULL FROM \"{schema}\".segments WHERE group_name = ''"
            )
            assert found.fetchall() == [(token, False)]
    found = beside.execute(f'SELECT owner FROM "{schema}".segments').fetchall()
    assert found == [(None,)]
    assert beside.execute(f'SELECT * FROM "{schema}".nodes').fetchall() == []


KILLED = """
import os, signal, sys
import trio
from tests.events import Noted
from triobus import EventBus, PostgresEventStore

bus = EventBus(PostgresEventStore(sys.argv[1], schema=sys.argv[2], lease=0.5))

@bus.subscribe(Noted)
async def dies(event):
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with bus:
        await bus.publish(Noted(1))
        await trio.sleep_forever()

trio.run(main)
"""


async def test_what_a_killed_process_had_not_recorded_is_delivered_again(opened, schema):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), server.dsn(), schema]
    done = subprocess.run(command, check=False)  # noqa: ASYNC221  # nothing else runs here
    assert done.returncode == -9
    handled, store = Handled(), opened(lease=0.5)
    async with subscribed(store, handled, types=Noted) as bus:
        bus.group("more")
        assert store._driven._node.was_unclean
    assert handled == [1]


async def test_a_store_that_only_looks_has_no_bus(opened):
    async with opened():
        pass
    with pytest.raises(StoreReadOnly, match="read_only=True"):
        async with EventBus(opened(read_only=True)):
            pass


async def test_waiting_for_a_lease_to_end_can_be_cancelled(opened):
    async with EventBus(opened(lease=3600)):
        with trio.move_on_after(0.2) as scope:
            async with EventBus(opened(lease=3600)):
                pass
        assert scope.cancelled_caught
