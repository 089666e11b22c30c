"""Cancellation, at every moment at which it can come: done, or not begun, and always counted."""

import attrs
import pytest
import trio
from trio.testing import assert_checkpoints

from tests.events import Noted, Other
from tests.every_step import at_every_step
from tests.settled import settled
from triobus import BusClosed, EventBus, Retry

# Checkpoints


async def test_everything_public_that_is_awaited_is_a_checkpoint(new_bus, autojump_clock):
    bus = new_bus(workers=1)

    @bus.subscribe(Other, retry=Retry(attempts=1))
    async def fails(event):
        raise OSError

    async with trio.open_nursery() as nursery:
        with assert_checkpoints():
            await nursery.start(bus.run)
        with assert_checkpoints():
            await bus.publish(Noted(1))
        with assert_checkpoints():
            await bus.publish(Other())
        with assert_checkpoints():
            await bus.publish_many([])
        with assert_checkpoints():
            await bus.publish_many([Noted(2), Other()])
        with assert_checkpoints():
            await bus.publish_and_wait(Noted(3))
        with assert_checkpoints():
            await bus.wait_idle()
        with assert_checkpoints():
            await bus.dead_letters.list()
        with assert_checkpoints():
            await bus.dead_letters.replay([])
        with assert_checkpoints():
            await bus.dead_letters.replay(group="default")
        with assert_checkpoints():
            await bus.dead_letters.discard([])
        listening = bus.listen(Noted)
        with assert_checkpoints():
            events = await listening.__aenter__()
        await bus.publish(Noted(4))
        with assert_checkpoints():
            await events.__anext__()
        await listening.__aexit__(None, None, None)
        nursery.start_soon(publish_when_blocked, bus, Noted(5))
        with assert_checkpoints():
            await bus.wait_for(Noted)
        with assert_checkpoints():
            await bus.stop()


async def test_entering_and_leaving_an_idle_bus_are_checkpoints(new_bus, autojump_clock):
    bus = new_bus()
    with assert_checkpoints():
        await bus.__aenter__()
    with assert_checkpoints():
        await bus.__aexit__(None, None, None)


async def publish_when_blocked(bus, event):
    await settled()
    await bus.publish(event)


# Every step


@attrs.define(eq=False)
class Record:
    """What publishers and handlers have seen of one run."""

    bus: EventBus
    accepted: list[tuple[str, int]] = attrs.field(factory=list)
    raised: list[tuple[str, int]] = attrs.field(factory=list)
    begun: list[tuple[str, int]] = attrs.field(factory=list)
    finished: list[tuple[str, int]] = attrs.field(factory=list)
    heard: list[int] = attrs.field(factory=list)
    is_bus_cancelled: bool = True

    async def handle(self, event):
        self.begun.append((event.key, event.number))
        await trio.lowlevel.checkpoint()
        self.finished.append((event.key, event.number))

    async def publish(self, key, number):
        await self._note(self.bus.publish(Noted(number, key)), [(key, number)])

    async def publish_many(self, key, numbers):
        events = [Noted(number, key) for number in numbers]
        await self._note(self.bus.publish_many(events), [(key, number) for number in numbers])

    async def _note(self, publishing, published):
        try:
            await publishing
        except BaseException:
            self.raised.extend(published)
            raise
        self.accepted.extend(published)


def check(record):
    """What has to be true of a run in which every event is handled in one attempt."""
    statistics = record.bus.statistics()
    assert len(set(record.begun)) == len(record.begun), "an event was handled twice"
    assert set(record.begun) <= set(record.accepted), "an event was handled and not accepted"
    assert not set(record.begun) & set(record.raised), "publish raised and the event was handled"
    assert statistics.published == len(record.accepted)
    assert statistics.handled == len(record.finished)
    waiting = statistics.queued + statistics.in_flight + statistics.waiting_for_retry
    assert statistics.handled + waiting == statistics.published
    assert (statistics.running, statistics.worker_count) == (False, 0)
    for key in {key for key, _ in record.accepted}:
        begun = [event for event in record.begun if event[0] == key]
        accepted = [event for event in record.accepted if event[0] == key]
        assert begun == accepted[: len(begun)], "out of order"
    if not record.is_bus_cancelled:
        assert sorted(record.finished) == sorted(record.accepted), "an accepted event was lost"


async def within(record, scope, body):
    """Run a body under the scope: with the bus, or inside a bus that is not cancelled with it."""
    if record.is_bus_cancelled:
        with scope:
            async with record.bus:
                await body()
    else:
        async with record.bus:
            with scope:
                await body()


def recording(is_bus_cancelled=True, handler=None, **options):
    def make():
        record = Record(EventBus(**options), is_bus_cancelled=is_bus_cancelled)
        record.bus.subscribe(Noted, record.handle)
        return record

    return make


both = pytest.mark.parametrize("is_bus_cancelled", [True, False], ids=["all", "publishers"])


@both
def test_publishers_that_wait_for_room_are_cancelled_cleanly_at_every_step(is_bus_cancelled):
    async def publish_two(record, key):
        for number in range(2):
            await record.publish(key, number)

    async def scenario(record, scope):
        async def body():
            async with trio.open_nursery() as nursery:
                for key in "abc":
                    nursery.start_soon(publish_two, record, key)

        await within(record, scope, body)

    make = recording(is_bus_cancelled, workers=2, buffer=1)
    assert at_every_step(make, scenario, check) > 5


@both
def test_batches_are_accepted_whole_or_not_at_all_at_every_step(is_bus_cancelled):
    async def scenario(record, scope):
        async def body():
            async with trio.open_nursery() as nursery:
                for key in "abc":
                    nursery.start_soon(record.publish_many, key, [1, 2, 3])

        await within(record, scope, body)

    make = recording(is_bus_cancelled, workers=1, buffer=3)
    assert at_every_step(make, scenario, check) > 5


def test_a_publisher_that_gives_up_at_any_step_leaves_its_room_to_the_others():
    async def scenario(record, scope):
        async def give_up():
            with scope:
                await record.publish_many("b", [1, 2])
                await record.publish("b", 3)

        async with record.bus, trio.open_nursery() as nursery:
            nursery.start_soon(give_up)
            nursery.start_soon(record.publish_many, "a", [1, 2])
            for key in "cd":
                nursery.start_soon(record.publish, key, 1)

    def check_others(record):
        check(record)
        assert {("a", 1), ("a", 2), ("c", 1), ("d", 1)} <= set(record.finished)

    make = recording(False, workers=1, buffer=2)
    assert at_every_step(make, scenario, check_others) > 5


@both
def test_publish_and_wait_is_cancelled_cleanly_at_every_step(is_bus_cancelled):
    async def scenario(record, scope):
        async def ask(key):
            outcome = await record.bus.publish_and_wait(Noted(1, key))
            assert (key, 1) in record.finished
            assert outcome.errors == {}
            record.accepted.append((key, 1))

        async def body():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, "a")
                nursery.start_soon(ask, "b")

        await within(record, scope, body)

    def check_asked(record):
        statistics = record.bus.statistics()
        assert len(set(record.begun)) == len(record.begun)
        assert len(record.accepted) <= statistics.published <= 2
        assert len(record.finished) == statistics.handled
        assert statistics.groups["default"].lag == statistics.published - statistics.handled
        if not is_bus_cancelled:
            assert statistics.published == statistics.handled == len(record.finished)

    make = recording(is_bus_cancelled, workers=1, buffer=1)
    assert at_every_step(make, scenario, check_asked) > 5


@both
def test_handlers_that_publish_are_cancelled_cleanly_at_every_step(is_bus_cancelled):
    def make():
        record = Record(EventBus(workers=2, buffer=1), is_bus_cancelled=is_bus_cancelled)

        @record.bus.subscribe(Noted)
        async def spread(event):
            record.begun.append((event.key, event.number))
            if event.number < 2:
                await record.publish(event.key, event.number + 1)
            record.finished.append((event.key, event.number))

        return record

    async def scenario(record, scope):
        async def body():
            async with trio.open_nursery() as nursery:
                for key in "ab":
                    nursery.start_soon(record.publish, key, 0)

        await within(record, scope, body)

    def check_order(record):
        record.accepted.sort()  # the root's publisher may note it after the handler noted the next
        check(record)

    assert at_every_step(make, scenario, check_order) > 5


def test_retries_are_cancelled_cleanly_at_every_step():
    def make():
        record = Record(EventBus(workers=1, buffer=1))

        @record.bus.subscribe(Noted, retry=Retry(attempts=2, delay=5, jitter=0))
        async def second_time_right(event):
            record.begun.append((event.key, event.number))
            await trio.lowlevel.checkpoint()
            if record.begun.count((event.key, event.number)) == 1:
                raise OSError
            record.finished.append((event.key, event.number))

        return record

    async def scenario(record, scope):
        async def body():
            for number in range(2):
                await record.publish("a", number)
            await record.publish("b", 0)

        await within(record, scope, body)

    def check_retries(record):
        statistics = record.bus.statistics()
        assert set(record.begun) <= set(record.accepted)
        assert max(map(record.begun.count, record.begun), default=0) <= 2
        assert [event for event in record.begun if event[0] == "a"] in [
            [("a", 0)] * zeros + [("a", 1)] * ones
            for zeros, ones in [(0, 0), (1, 0), (2, 0), (2, 1), (2, 2)]
        ]
        assert statistics.published == len(record.accepted)
        assert statistics.handled == len(record.finished)
        assert statistics.dead_lettered == 0, "cancellation is no failure"
        waiting = statistics.queued + statistics.in_flight + statistics.waiting_for_retry
        assert statistics.handled + waiting == statistics.published

    assert at_every_step(make, scenario, check_retries) > 5


def test_a_plain_handler_is_waited_for_at_every_step(new_bus):
    def make():
        record = Record(new_bus(workers=2, buffer=1))

        @record.bus.subscribe(Noted)
        def in_a_thread(event):
            record.begun.append((event.key, event.number))
            record.finished.append((event.key, event.number))

        return record

    async def scenario(record, scope):
        async def body():
            await record.publish("a", 0)
            await record.publish("b", 0)

        await within(record, scope, body)

    def check_threads(record):
        statistics = record.bus.statistics()
        assert record.begun == record.finished, "a thread was left behind"
        assert set(record.begun) <= set(record.accepted)
        assert statistics.published == len(record.accepted)
        # A thread that was at work when the bus was cancelled has finished, and its delivery too.
        assert statistics.handled == len(record.finished)

    assert at_every_step(make, scenario, check_threads) > 5


def test_a_listener_is_cancelled_cleanly_at_every_step():
    async def scenario(record, scope):
        async def listen(task_status):
            with scope:
                async with record.bus.listen(Noted, buffer=1) as events:
                    task_status.started()
                    async for event in events:
                        record.heard.append(event.number)
                        await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            await nursery.start(record.bus.run)
            nursery.start_soon(lambda: listen(trio.TASK_STATUS_IGNORED))
            for number in range(4):
                await record.publish("a", number)
            await record.bus.stop()

    def check_heard(record):
        check(record)
        assert len(record.accepted) == 4, "a listener that had left held up a publisher"
        first = record.heard[0] if record.heard else 0
        assert record.heard == list(range(first, first + len(record.heard)))

    make = recording(False, workers=1)
    assert at_every_step(make, scenario, check_heard) > 5


def test_wait_for_is_cancelled_cleanly_at_every_step():
    async def scenario(record, scope):
        async def wait():
            with scope:
                found = await record.bus.wait_for(Noted, lambda event: event.number == 2)
                record.heard.append(found.number)

        async with record.bus, trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await settled()
            for number in range(4):
                await record.publish("a", number)

    def check_found(record):
        check(record)
        assert record.heard in ([], [2])
        assert len(record.accepted) == 4

    make = recording(False, workers=1)
    assert at_every_step(make, scenario, check_found) > 5


def test_a_stop_is_cancelled_cleanly_at_every_step():
    async def scenario(record, scope):
        async def publish():
            for number in range(3):
                try:
                    await record.publish("a", number)
                except BusClosed:
                    return

        async with trio.open_nursery() as nursery:
            await nursery.start(record.bus.run)
            nursery.start_soon(publish)
            with scope:
                await record.bus.stop()
            if record.bus.statistics().running:  # cancelled before it had begun
                await record.bus.stop()

    make = recording(True, workers=1, buffer=1)
    assert at_every_step(make, scenario, check) > 5


def test_a_replay_is_cancelled_cleanly_at_every_step(new_bus):
    def make():
        record = Record(new_bus(workers=1), is_bus_cancelled=False)

        @record.bus.subscribe(Noted, retry=Retry(attempts=1))
        async def wrong_until_later(event):
            await trio.lowlevel.checkpoint()
            if len(record.heard) < 3:
                record.heard.append(event.number)
                raise OSError
            record.finished.append((event.key, event.number))

        return record

    async def scenario(record, scope):
        async with record.bus:
            await record.bus.publish_many([Noted(number, "a") for number in range(3)])
            await record.bus.wait_idle()
            with scope:
                assert await record.bus.dead_letters.replay(group="default") == 3
            await record.bus.wait_idle()
            record.accepted = [
                (letter.event.key, letter.event.number)
                for letter in await record.bus.dead_letters.list()
            ]

    def check_letters(record):
        letters = [("a", 0), ("a", 1), ("a", 2)]
        # Not begun, or done; never lost and never kept beside having been handled.
        assert (record.finished, record.accepted) in (([], letters), (letters, []))

    assert at_every_step(make, scenario, check_letters) > 5


async def test_an_event_accepted_while_parked_workers_are_being_cancelled_is_left_and_counted(
    autojump_clock,
):
    seen = []
    bus = EventBus(workers=2)

    @bus.subscribe(Noted)
    async def note(event):
        seen.append(event.number)

    with trio.CancelScope() as scope:
        async with bus:
            await settled()
            scope.cancel()  # the workers wait no more, and have not run since to know it
            bus.publish_nowait(Noted(1, "a"))
            bus.publish_nowait(Noted(2, "a"))
    statistics = bus.statistics()
    assert (seen, statistics.published, statistics.queued, statistics.in_flight) == ([], 2, 2, 0)
