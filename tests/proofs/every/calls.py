"""Every public call that is awaited, ready to be cancelled: alone, or together with its bus.

Before a call on a bus number 1 has been handled, and number 2 has become a dead letter; a store
that is called without a bus has both numbers.
"""

from contextlib import suppress

import trio

from tests.events import Noted
from tests.proofs.every.checks import Violation
from tests.proofs.every.stage import Call, Stage, demand, make_bus
from triobus import EventStore, StoreClosed

# Calls on a bus


async def _publish(stage: Stage) -> None:
    await stage.program.publish(stage.bus, 3, "a")


async def _publish_many(stage: Stage) -> None:
    await stage.program.publish_many(stage.bus, [3, 4, 5], "a")


async def _publish_and_wait(stage: Stage) -> None:
    event = stage.program.event(3, "a")
    with stage.program.publishing([3], may_stay=True):
        outcome = await stage.bus.publish_and_wait(event)
    assert outcome.results == {"it": 3}


async def _wait_idle(stage: Stage) -> None:
    await stage.program.publish(stage.bus, 3, "a")
    await stage.bus.wait_idle()
    found = stage.bus.statistics()
    assert (found.queued, found.in_flight) == (0, 0)
    assert 3 in stage.program.numbers_finished()


async def _stop(stage: Stage) -> None:
    await stage.program.publish(stage.bus, 3, "a")
    report = await stage.bus.stop()
    assert report.left == {"default": 0, "all": 0}


async def _check_stop(stage: Stage) -> None:
    if stage.is_done:
        demand(3 in stage.program.numbers_finished(), "stopped before it was drained")


async def _run(stage: Stage) -> None:
    bus = make_bus(stage.program)
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await stage.program.publish(bus, 3, "a")
        await bus.stop()


async def _block(stage: Stage) -> None:
    bus = make_bus(stage.program)
    async with bus:
        await stage.program.publish(bus, 3, "a")
    assert stage.program.numbers_finished() == [3]


async def _listen(stage: Stage) -> None:
    async with stage.bus.listen(Noted, buffer=1) as events, trio.open_nursery() as nursery:
        nursery.start_soon(stage.publish_soon, 3, 4)
        try:
            while len(stage.heard) < 2:
                stage.heard.append((await anext(events)).number)
        finally:
            with trio.CancelScope(shield=True), suppress(StopAsyncIteration):
                while len(stage.heard) < 2:
                    stage.heard.append((await anext(events)).number)


async def _check_heard(stage: Stage) -> None:
    published = [number for number in (3, 4) if number in stage.program.accepted]
    demand(stage.heard == published[: len(stage.heard)], f"heard {stage.heard}")
    if stage.letters is not None:
        demand(stage.heard == published, f"heard {stage.heard} of {published}")


async def _wait_for(stage: Stage) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.publish_soon, 3, 4)
        with suppress(*stage.closed):
            event = await stage.bus.wait_for(Noted, where=lambda event: event.number == 4)
            stage.heard.append(event.number)


# Dead letters


async def _list(stage: Stage) -> None:
    (letter,) = await stage.bus.dead_letters.list()
    assert letter.event.number == 2


async def _replay(stage: Stage) -> None:
    assert await stage.bus.dead_letters.replay(group="all") == 1


async def _check_replay(stage: Stage) -> None:
    is_handled = 2 in stage.program.numbers_finished()
    if stage.is_done:
        demand(is_handled, "replay() returned, and nothing was handled")
    if stage.letters is not None:
        demand(is_handled != (2 in stage.letters), "handled, and still a dead letter, or neither")


async def _discard(stage: Stage) -> None:
    (letter,) = await stage.bus.dead_letters.list()
    stage.program.gone.add(2)
    assert await stage.bus.dead_letters.discard(letter.id) == 1


async def _check_discard(stage: Stage) -> None:
    if stage.letters is not None:
        demand(not (stage.is_done and stage.letters), "discard() returned, and it is there")


# Calls on a store


async def _append(stage: Stage) -> None:
    events = [stage.program.event(3, "a"), stage.program.event(4, "a")]
    with stage.program.publishing([3, 4]):
        await stage.store.append(events)


async def _read(stage: Stage) -> None:
    assert [stored.event.number async for stored in stage.store.read()] == [1, 2]


async def _get(stage: Stage) -> None:
    stored = await stage.store.get(stage.program.world.event_id("1"))
    assert stored is not None
    assert (stored.event.number, stored.position) == (1, 1)


async def _statistics(stage: Stage) -> None:
    assert (await stage.store.statistics()).events == 2


async def _open(stage: Stage) -> None:
    store = stage.program.reopened()
    assert store is not None
    try:
        await store.__aenter__()
    except trio.Cancelled:
        with trio.CancelScope(shield=True):
            await _check_closed(store)
        raise
    with trio.CancelScope(shield=True):
        assert (await store.statistics()).events == 0
        await store.__aexit__(None, None, None)


async def _close(stage: Stage) -> None:
    await stage.store.__aexit__(None, None, None)
    with trio.CancelScope(shield=True):
        await _check_closed(stage.store)


async def _check_closed(store: EventStore) -> None:
    try:
        await store.statistics()
    except StoreClosed:
        return
    raise Violation(f"{store} is open")


CALLS = (
    Call("publish", _publish),
    Call("publish_many", _publish_many),
    Call("publish_and_wait", _publish_and_wait),
    Call("wait_idle", _wait_idle),
    Call("stop", _stop, check=_check_stop),
    Call("run", _run, "nothing"),
    Call("async with bus", _block, "nothing"),
    Call("listen", _listen, check=_check_heard),
    Call("wait_for", _wait_for),
    Call("dead_letters.list", _list),
    Call("dead_letters.replay", _replay, check=_check_replay),
    Call("dead_letters.discard", _discard, check=_check_discard),
    Call("store append", _append, "store"),
    Call("store read", _read, "store"),
    Call("store get", _get, "store"),
    Call("store statistics", _statistics, "store"),
    Call("store open", _open, "nothing"),
    Call("store close", _close, "store"),
)
