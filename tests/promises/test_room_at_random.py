"""Groups with little room, at random: order, counters and an end, whatever is given up and read."""

import logging
from contextlib import suppress

import attrs
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.events import Noted
from triobus import (
    BusClosed,
    EventBus,
    MemoryEventStore,
    Retry,
    UnknownDeadLetter,
    current_delivery,
)

KEYS = ["a", "b", "c", None]
STEPS = st.lists(
    st.one_of(
        st.lists(st.sampled_from(KEYS), min_size=1, max_size=12),  # what is published
        st.sampled_from([0.0, 0.5, 3.0]),  # the time that passes
        st.sampled_from(["replay", "crash", "stop"]),
    ),
    min_size=1,
    max_size=14,
)


@attrs.define
class Program:
    """A bus whose handler fails as it was told to, and what it has done."""

    store: MemoryEventStore
    workers: int
    buffer: int
    ordering: str
    failures: dict[int, int]
    """How many attempts of an event fail, by its number."""
    published: list[tuple[int, str | None]] = attrs.field(factory=list)
    succeeded: list[tuple[int, str | None, int]] = attrs.field(factory=list)
    failed: dict[int, int] = attrs.field(factory=dict)
    given_up: set[int] = attrs.field(factory=set)
    """What has been a dead letter, be it because the process died in it, and is out of order."""
    life: int = 0

    def bus(self) -> EventBus:
        self.life += 1
        bus = EventBus(self.store)
        group = bus.group(
            "group",
            workers=self.workers,
            buffer=self.buffer,
            ordering=self.ordering,  # type: ignore[arg-type]  # one of the two that there are
            start="beginning",
        )
        group.subscribe(Noted, self.handle, name="handler", retry=Retry(2, delay=1, jitter=0))
        return bus

    async def handle(self, event: Noted) -> None:
        life = self.life
        await trio.lowlevel.checkpoint()
        if self.failed.get(event.number, 0) < self.failures.get(event.number, 0):
            self.failed[event.number] = self.failed.get(event.number, 0) + 1
            raise ConnectionError
        self.succeeded.append((event.number, event.key, life))
        assert current_delivery().event == event

    async def run(self, steps: list[object]) -> None:
        left = list(steps)
        while True:
            bus = self.bus()
            async with trio.open_nursery() as nursery:
                await nursery.start(bus.run)
                end = await self.live(bus, left, nursery)
                self.check_counters(bus)
                if end == "crash":
                    await bus._crash()
                else:
                    await bus.stop(drain=end is None)
                self.check_counters(bus)
                nursery.cancel_scope.cancel()
            if end is None:
                return

    async def live(self, bus: EventBus, left: list[object], nursery: trio.Nursery) -> str | None:
        while left:
            step = left.pop(0)
            if isinstance(step, list):
                first = len(self.published)
                new = [(first + n, key) for n, key in enumerate(step)]
                await bus.publish_many([Noted(number, key) for number, key in new])
                self.published += new
            elif isinstance(step, float):
                await trio.sleep(step)
            elif step == "replay":
                nursery.start_soon(self.replay, bus)
                await trio.lowlevel.checkpoint()
            else:
                return str(step)
            self.check_counters(bus)
        with trio.fail_after(3600):
            await bus.wait_idle()
        while await bus.dead_letters.list():
            with trio.fail_after(3600):
                await self.replay(bus)
                await trio.sleep(1)  # for those of an earlier call, which are not waited for
        statistics = bus.statistics().groups["group"]
        assert (statistics.queued, statistics.in_flight, statistics.lag) == (0, 0, 0)
        assert statistics.published == statistics.handled
        return None

    async def replay(self, bus: EventBus) -> None:
        with suppress(BusClosed, UnknownDeadLetter):
            letters = await bus.dead_letters.list(limit=1000)
            self.given_up.update(letter.event.number for letter in letters)
            await bus.dead_letters.replay(letters)

    def check_counters(self, bus: EventBus) -> None:
        found = bus.statistics().groups["group"]
        parts = (found.queued, found.in_flight, found.waiting_for_retry)
        assert min(parts) >= 0
        assert found.published == found.handled + sum(parts)
        assert found.busy_workers <= self.workers


@pytest.fixture(scope="module")
def quiet():
    """Dead letters by the thousand say nothing that anybody would read."""
    logger = logging.getLogger("triobus")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


@pytest.mark.usefixtures("quiet")
@given(
    steps=STEPS,
    workers=st.integers(1, 3),
    buffer=st.integers(1, 6),
    ordering=st.sampled_from(["aggregate", "aggregate", "none"]),
    failures=st.dictionaries(st.integers(0, 40), st.integers(1, 5), max_size=12),
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_little_room_loses_nothing_and_keeps_the_order_and_the_counters(
    steps, workers, buffer, ordering, failures
):
    program = Program(MemoryEventStore(), workers, buffer, ordering, failures)
    trio.run(program.run, steps, clock=MockClock(autojump_threshold=0))
    done = [number for number, _, _ in program.succeeded]
    assert set(done) == {number for number, _ in program.published}
    if ordering == "aggregate":
        for key in ("a", "b", "c"):
            # What became a dead letter comes later, by its replay; the others in their order.
            first = {
                number: place
                for place, (number, found, _) in reversed([*enumerate(program.succeeded)])
                if found == key and number not in program.given_up
            }
            assert sorted(first) == sorted(first, key=first.__getitem__)
