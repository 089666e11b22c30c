"""The kit finds what is wrong: each test breaks a promise of the bus, and the kit says which."""

from heapq import heappush

import attrs
import pytest
import trio

from tests.kit.scenarios import Ordered, durable, in_memory
from tests.planting import instead_of
from triobus import EventBus
from triobus._durability.catch_up import CatchUp
from triobus._durability.progress import Progress
from triobus._groups.delivery import Lanes
from triobus._groups.workers import GroupShell
from triobus.stores._values import ProgressChange
from triobus.testing import (
    ExplorationFailed,
    Faults,
    SlowHandler,
    StepFailed,
    cancel_at_every_step,
    explore,
)


def test_an_acknowledgement_before_the_handler_ends_is_found(monkeypatch):
    @instead_of(monkeypatch, CatchUp, "offer")
    def acknowledge_at_once(offer, self, events, keys, first, watch):
        self.acknowledgements.progress.finish(first, first + len(events) - 1)
        offer(self, events, keys, first, watch)

    monkeypatch.setattr(CatchUp, "_settle", lambda self, delivery: None)
    with pytest.raises(ExplorationFailed, match="is recorded as finished in group 'default'"):
        explore(durable)


def test_a_retry_that_lets_the_next_event_of_its_aggregate_overtake_is_found(monkeypatch):
    @instead_of(monkeypatch, Lanes, "fail")
    def fail_and_let_go(fail, self, delivery, error, now):
        due = fail(self, delivery, error, now)
        if due is not None and delivery.key is not None:
            line = self._lanes[delivery.key]
            if line:
                heappush(self._resumed, line.popleft())
            else:
                del self._lanes[delivery.key]
            delivery.key = None
        return due

    with pytest.raises(ExplorationFailed, match="an event went past one that waits for a retry"):
        explore(in_memory)


def test_two_handlers_at_once_for_one_aggregate_are_found(monkeypatch):
    @instead_of(monkeypatch, Lanes, "add_many")
    def add_without_keys(add_many, self, events, keys, *rest):
        add_many(self, events, [None] * len(events), *rest)

    async def scenario():
        bus = EventBus(workers=2)
        bus.subscribe(Ordered, SlowHandler(seconds=1))
        async with bus:
            await bus.publish_many([Ordered("Ada", number) for number in range(3)])

    with pytest.raises(ExplorationFailed, match="two handlers work on aggregate 'Ada'"):
        explore(scenario, faults=Faults(handler_failures=0))


def test_a_queue_that_takes_the_newest_first_is_found(monkeypatch):
    @instead_of(monkeypatch, Lanes, "add")
    def add_in_front(add, self, *delivery, **options):
        add(self, *delivery, **options)
        self._queue.rotate(1)

    with pytest.raises(ExplorationFailed, match="an earlier event came after a later one of"):
        explore(in_memory)


def test_a_lost_wake_up_is_found(monkeypatch):
    @instead_of(monkeypatch, GroupShell, "wake")
    def wake_unless_the_last_one_sleeps(wake, self):
        if self.free < 2:
            wake(self)

    with pytest.raises(ExplorationFailed, match="ProgramHangs: every task of the program waits"):
        explore(in_memory)


def test_a_drain_that_stops_too_early_is_found(monkeypatch):
    def without_those_that_wait(self):
        return self.lanes.unsettled - self.lanes.waiting

    monkeypatch.setattr(GroupShell, "unsettled", property(without_those_that_wait))
    with pytest.raises(ExplorationFailed, match="an event that was accepted is lost"):
        explore(in_memory, faults=Faults(handler_failures=0.3))


def test_an_offset_that_runs_ahead_is_found(monkeypatch):
    def ahead(self):
        self.is_changed = False
        return ProgressChange(max(self.offset, *self._lasts, 0) if self._lasts else self.offset)

    monkeypatch.setattr(Progress, "take_change", ahead)
    with pytest.raises(ExplorationFailed, match="is recorded as finished in group 'default'"):
        explore(durable)


def test_an_offset_that_goes_back_is_found(monkeypatch):
    @instead_of(monkeypatch, Progress, "take_change")
    def now_and_then_the_old_one(take_change, self):
        change = take_change(self)
        return attrs.evolve(change, offset=0, ranges=()) if change.offset == 3 else change

    with pytest.raises(ExplorationFailed, match=r"the offset of 'default' went back from \d to 0"):
        explore(durable)


def test_a_recovery_that_skips_an_event_is_found(monkeypatch):
    @instead_of(monkeypatch, CatchUp, "restore")
    def skip_one(restore, self, record, suspects):
        restore(self, record, suspects)
        self.read_to += 1

    # Which of the two is seen first depends on the seed that comes first upon it.
    with pytest.raises(ExplorationFailed, match=r"'lag': 1|event .* is lost"):
        explore(durable)


class _Afterthought(EventBus):
    """Its publish can be cancelled after the event was accepted."""

    async def publish(self, event, *, expected_sequence=None):
        published = await super().publish(event, expected_sequence=expected_sequence)
        await trio.lowlevel.checkpoint()
        return published


@attrs.define
class _Ledger:
    """Which events were not accepted, and which were handled."""

    raised: list = attrs.field(factory=list)
    handled: list = attrs.field(factory=list)


async def _publishing(world, bus_class):
    """Only the publisher is cancelled: its bus lives on, and handles what it has accepted."""
    ledger = world.outside["ledger"] = _Ledger()
    bus = bus_class()

    @bus.subscribe(Ordered)
    async def handle(event):
        ledger.handled.append(event.number)

    async def run(task_status=trio.TASK_STATUS_IGNORED):
        with trio.CancelScope(shield=True):
            await bus.run(task_status=task_status)

    async with trio.open_nursery() as nursery:
        with trio.CancelScope(shield=True):
            await nursery.start(run)
        try:
            for number in range(3):
                ledger.raised.append(number)
                await bus.publish(Ordered("Ada", number))
                ledger.raised.remove(number)
        finally:
            with trio.CancelScope(shield=True):
                await bus.stop()


def _check_that_what_raised_is_not_delivered(world):
    ledger = world.outside["ledger"]
    assert not set(ledger.raised) & set(ledger.handled), ledger


def test_a_publish_that_is_delivered_though_it_raised_is_found():
    async def scenario(world):
        await _publishing(world, _Afterthought)

    with pytest.raises(StepFailed, match=r"raised=\[0\], handled=\[0\]") as caught:
        cancel_at_every_step(scenario, _check_that_what_raised_is_not_delivered)
    with pytest.raises(StepFailed) as again:
        cancel_at_every_step(
            scenario, _check_that_what_raised_is_not_delivered, step=caught.value.step
        )
    assert str(again.value) == str(caught.value)


@pytest.mark.parametrize("scenario", [in_memory, durable])
def test_nothing_is_found_in_the_real_bus(scenario, caplog):
    """`python -m tests.proofs explore` looks at many more worlds."""
    assert explore(scenario, seeds=50).seeds == 50
    # Trio disables an instrument that raises, and the kit counts its steps in one.
    assert [
        record.getMessage() for record in caplog.records if record.name.startswith("trio.")
    ] == []


def test_no_step_is_found_at_which_the_real_bus_must_not_be_cancelled():
    async def scenario(world):
        await _publishing(world, EventBus)

    assert cancel_at_every_step(scenario, _check_that_what_raised_is_not_delivered) > 20
