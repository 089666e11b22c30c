"""Many aggregates, large events, many subscriptions; clocks that are set; SQLite interrupted."""

import time
from collections import defaultdict
from typing import Any, ClassVar

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests.events import Noted
from tests.promises.hostile import handling
from tests.promises.kinds import KINDS, Reopened, reopened
from triobus import (
    DomainEvent,
    EventBus,
    EventNotEncodable,
    MemoryEventStore,
    Retry,
    SqliteEventStore,
    StoreIOError,
)

# Many and much


@attrs.frozen
class Long(DomainEvent):
    number: int
    text: str


@pytest.mark.parametrize(
    ("store", "count"),
    [(None, 100_000), (MemoryEventStore(), 10_000)],  # tests/proofs/test_load.py has as many stored
    ids=["none", "memory"],
)
async def test_a_hundred_thousand_aggregates_keep_their_order_and_leave_nothing_behind(
    autojump_clock: MockClock, store: MemoryEventStore | None, count: int
) -> None:
    last: dict[str, int] = defaultdict(int)

    async def handler(event: Noted) -> None:
        assert event.key is not None
        assert event.number == last[event.key] + 1
        last[event.key] = event.number
        if event.key.endswith("99"):
            await trio.lowlevel.checkpoint()

    bus = handling(store, handler)
    async with bus:
        for number in (1, 2):
            await bus.publish_many([Noted(number, str(key)) for key in range(count)])
        await bus.wait_idle()
        lanes = bus._life.shells["default"].lanes
        assert len(lanes._lanes) == 0
        assert await bus.dead_letters.list() == []
    assert len(last) == count
    assert set(last.values()) == {2}


async def test_an_event_of_1_mib_is_kept_and_one_byte_more_is_refused_and_not_delivered(
    new_store: Reopened, autojump_clock: MockClock
) -> None:
    handled = []

    async def handler(event: Long) -> None:
        handled.append((event.number, len(event.text)))

    async with new_store() as store:
        room = 1_048_576 - len(store._codec.encode(Long(1, "")))
    async with handling(new_store(), handler, types=Long) as bus:
        await bus.publish(Long(1, "x" * room))
        with pytest.raises(EventNotEncodable, match="1,048,577"):
            await bus.publish(Long(2, "x" * (room + 1)))
        await bus.publish(Long(3, "x"))
    assert sorted(handled) == [(1, room), (3, 1)]
    async with new_store() as store:
        found = [(s.event.number, len(s.event.text)) async for s in store.read()]
    assert found == [(1, room), (3, 1)]


async def test_an_aggregate_id_is_kept_whole_or_refused_however_long_it_is(new_store: Reopened):
    async with new_store() as store:
        for length in (1, 100, 2000, 1_000_000):
            key = "x" * length
            try:
                await store.append([Noted(1, key), Noted(2, key)])
            except EventNotEncodable as error:
                assert "PostgresEventStore takes at most 2,000" in str(error)  # noqa: PT017  # only some do
                assert length > 2000
            else:
                found = [s.sequence async for s in store.read(aggregate_id=key)]
                assert found == [1, 2]


@pytest.mark.parametrize("store", [None, MemoryEventStore()], ids=["none", "memory"])
async def test_ten_thousand_subscriptions_are_called_in_their_order(
    autojump_clock: MockClock, store: MemoryEventStore | None
) -> None:
    called = []
    bus = EventBus(store)

    def subscribe(number: int) -> Any:
        async def handler(event: Noted) -> None:
            called.append(number)

        return bus.subscribe(Noted, handler, name=str(number), priority=number % 3)

    subscriptions = [subscribe(number) for number in range(10_000)]
    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        assert called == sorted(range(10_000), key=lambda number: (-(number % 3), number))
        called.clear()
        for subscription in subscriptions[10:]:
            subscription.unsubscribe()
        await bus.publish(Noted(2))
    assert called == [2, 5, 8, 1, 4, 7, 0, 3, 6, 9]


# Clocks that are set


class Hurried(trio.abc.Clock):
    """A real clock that runs a thousand times as fast: no virtual time, and no long test."""

    RATE: ClassVar[float] = 1000

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return time.perf_counter() * self.RATE

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return (deadline - self.current_time()) / self.RATE


@pytest.mark.parametrize("days", [-1000, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_a_retry_keeps_its_time_though_the_clock_of_the_system_is_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, kind: str, days: int
) -> None:
    """While the program runs its own clock counts; a restart waits for the delay again, at most."""
    new_store, shift = reopened(kind, tmp_path), 0.0
    real_time, asked = time.time, []

    def set_time() -> float:
        asked.append(shift)
        return real_time() * Hurried.RATE + shift

    monkeypatch.setattr(time, "time", set_time)
    attempts: list[float] = []
    again = trio.Event()

    async def fails(event: Noted) -> None:
        attempts.append(trio.current_time())
        if len(attempts) == 2:
            again.set()
        raise OSError("not now")

    def bus(attempts: int) -> EventBus:
        bus = EventBus(new_store())
        retry = Retry(attempts=attempts, delay=100, factor=1, jitter=0, max_delay=100)
        bus.subscribe(Noted, fails, name="handler", retry=retry)
        return bus

    async def main() -> None:
        nonlocal shift
        async with bus(3) as first:
            await first.publish(Noted(1, "a"))
            await trio.sleep(20)
            shift = days * 86400.0
            await again.wait()
            await first.stop(drain=False)
        shift = 2 * days * 86400.0
        started = trio.current_time()
        async with bus(3) as second:
            await second.wait_idle()
            (letter,) = await second.dead_letters.list()
        assert letter.attempts == 3
        assert 100 <= attempts[1] - attempts[0] < 2000
        waited = attempts[2] - started
        assert (waited >= 100) == (days < 0)
        assert waited < 3000

    trio.run(main, clock=Hurried())
    assert {0.0, days * 86400.0, 2 * days * 86400.0} <= set(asked)


# SQLite interrupted


async def test_a_commit_that_sqlite_interrupts_fails_its_publish_alone(
    tmp_path: Any, autojump_clock: MockClock
) -> None:
    store, handled, interrupted = SqliteEventStore(tmp_path / "events.db"), [], []

    async def handler(event: Noted) -> None:
        handled.append(event.number)

    def interrupt() -> int:
        interrupted.append(1)
        return 1

    async with handling(store, handler) as bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        connection = store._database.connection
        assert connection is not None
        await store._worker.run(connection.set_progress_handler, interrupt, 1)
        with pytest.raises(StoreIOError, match="interrupted"):
            await bus.publish(Noted(2))
        assert interrupted
        await store._worker.run(connection.set_progress_handler, None, 0)
        assert (await bus.publish(Noted(3))).position == 2
    assert handled == [1, 3]
