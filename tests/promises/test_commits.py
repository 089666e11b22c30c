"""Commits that many tasks share, with a bus that comes and goes beside them."""

import signal

import attrs
import pytest
import trio
from trio.lowlevel import enable_ki_protection

from tests.events import Noted
from triobus import BusClosed, DomainEvent, EventBus, MemoryEventStore


@attrs.frozen
class Counted(DomainEvent):
    counts: dict[str, int]


class SlowStore(MemoryEventStore):
    """A store whose commits take a second."""

    async def _commit(self, transaction):
        with trio.CancelScope(shield=True):
            await trio.sleep(1)
        return await super()._commit(transaction)


def test_control_c_while_another_task_stores_the_event_is_raised_later_and_not_swallowed():
    seen = []

    @enable_ki_protection
    async def interrupt():
        await trio.sleep(1.5)  # in the second commit, which has taken the main task's event too
        signal.raise_signal(signal.SIGINT)

    async def main():
        async with SlowStore() as store, trio.open_nursery() as nursery:
            nursery.start_soon(store.append, [Noted(1)])
            await trio.sleep(0.1)
            nursery.start_soon(store.append, [Noted(2)])
            await trio.sleep(0.1)
            nursery.start_soon(interrupt)
            seen.extend(await store.append([Noted(3)]))
            await trio.sleep(9)
            raise AssertionError("the interrupt was swallowed")

    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert caught.group_contains(KeyboardInterrupt)
    assert [stored.position for stored in seen] == [3]


async def test_a_publisher_that_waits_for_an_outcome_is_told_when_the_bus_stops_before_it_is_known(
    autojump_clock,
):
    bus = EventBus(SlowStore())
    bus.subscribe(Counted, lambda event: None, name="never", timeout=None)
    group = bus.group("hanging")

    @group.subscribe(Counted)
    async def hang(event):
        await trio.sleep_forever()

    first = Counted({"a": 1, "b": 2})
    again = attrs.evolve(first, counts={"b": 2, "a": 1})  # the same event in another order of JSON
    told = []

    async def ask():
        with pytest.raises(BusClosed):
            await bus.publish_and_wait(again)
        told.append(again)

    async with bus.store, trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await bus.publish(first)
        await trio.sleep(5)
        nursery.start_soon(bus.publish, Counted({}))  # its commit takes a second
        await trio.sleep(0.5)
        nursery.start_soon(ask)
        await trio.sleep(0.1)
        await bus.stop(drain=False)
    assert told == [again]


async def test_a_start_that_fails_in_what_the_store_has_leaves_the_store_usable(autojump_clock):
    class Malformed(MemoryEventStore):
        is_malformed = True

        async def _claim(self):
            snapshot = await super()._claim()
            return attrs.evolve(snapshot, letters=(None,)) if self.is_malformed else snapshot

    async with Malformed() as store:
        with pytest.raises(AttributeError):
            await EventBus(store).__aenter__()
        store.is_malformed = False
        assert [stored.position for stored in await store.append([Noted(1)])] == [1]
        async with EventBus(store) as bus:
            assert (await bus.publish(Noted(2))).position == 2
