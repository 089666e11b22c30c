"""The core of a group against a model that is too simple to be wrong.

The model keeps all deliveries in one list and searches it from the front. The core keeps queues,
linked lists and heaps, and has to come to the same decisions.
"""

import math
from typing import Any, Literal
from uuid import UUID

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.events import Noted, Other, SpecialNoted
from tests.unit.lanes import handle, lanes_with, number_of
from triobus import DomainEvent, EventBus, Group, Retry
from triobus._groups.delivery import InFlight, Lanes


@attrs.define(eq=False)
class Entry:
    """One delivery as the model sees it."""

    event_id: UUID
    key: str | None
    names: list[str]
    state: Literal["ready", "in flight", "waiting", "finished"] = "ready"
    step: int = 0
    attempt: int = 0
    due: float = 0.0
    delivery: InFlight | None = None


@attrs.define(eq=False)
class Model:
    """One group: a list of all that was ever added."""

    is_ordered: bool
    entries: list[Entry] = attrs.field(factory=list)

    def count(self, state: str) -> int:
        return sum(entry.state == state for entry in self.entries)

    def free(self, entry: Entry) -> bool:
        """Whether everything before it in its aggregate is finished."""
        if entry.key is None or not self.is_ordered:
            return True
        before = self.entries[: self.entries.index(entry)]
        return all(other.state == "finished" for other in before if other.key == entry.key)

    def oldest_ready(self) -> Entry | None:
        for entry in self.entries:
            if entry.state == "ready" and self.free(entry):
                return entry
        return None

    def of(self, delivery: InFlight) -> Entry:
        return next(e for e in self.entries if e.event_id == delivery.event.event_id)


def _has_something_in_flight(machine: Any) -> bool:
    # No lambda: older versions of Hypothesis look for its text at every step.
    return bool(machine.in_flight(0) or machine.in_flight(1))


class CoreMatchesModel(RuleBasedStateMachine):
    """Random programs: publishers, workers, failures and a clock, over two groups at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.number = 0

    @initialize(
        specs=st.lists(
            st.lists(
                st.tuples(
                    st.sampled_from([DomainEvent, Noted, SpecialNoted, Other]),
                    st.integers(-2, 2),  # priority
                    st.integers(1, 3),  # attempts
                ),
                min_size=1,
                max_size=4,
            ),
            min_size=2,
            max_size=2,
        )
    )
    def make_groups(self, specs: list[list[tuple[type[DomainEvent], int, int]]]) -> None:
        bus = EventBus()
        self.groups: list[tuple[Group, Lanes, Model]] = []
        self.specs = specs
        for position, subscriptions in enumerate(specs):
            group = bus.group(f"group {position}")
            for index, (wanted, priority, attempts) in enumerate(subscriptions):
                group.subscribe(
                    wanted,
                    handle,
                    name=str(index),
                    priority=priority,
                    retry=Retry(attempts=attempts, delay=1.0, factor=2.0, jitter=0),
                )
            is_ordered = position == 0
            self.groups.append((group, Lanes(is_ordered=is_ordered), Model(is_ordered)))

    @rule(cls=st.sampled_from([Noted, SpecialNoted]), key=st.sampled_from(["a", "b", "c", None]))
    def publish(self, cls: type[Noted], key: str | None) -> None:
        self.number += 1
        event = cls(self.number, key)
        for (group, lanes, model), spec in zip(self.groups, self.specs, strict=True):
            plan = group._plan_for(cls)
            wanted = [i for i, (base, _, _) in enumerate(spec) if issubclass(cls, base)]
            names = [
                str(i) for priority in (2, 1, 0, -1, -2) for i in wanted if spec[i][1] == priority
            ]
            assert [s.name for s in plan] == names
            if plan:
                lanes.add(event, key, plan)
                model.entries.append(Entry(event.event_id, key, names))

    @rule(which=st.integers(0, 1))
    def take(self, which: int) -> None:
        _, lanes, model = self.groups[which]
        expected = model.oldest_ready()
        delivery = lanes.take()
        if expected is None:
            assert delivery is None
            return
        assert delivery is not None
        entry = model.of(delivery)
        assert entry is expected
        if entry.key is not None and model.is_ordered:
            others = [e for e in model.entries if e.key == entry.key and e is not entry]
            assert not [e for e in others if e.state in ("in flight", "waiting")]
        assert (delivery.attempt, delivery.index) == (entry.attempt, entry.step)
        entry.state = "in flight"
        entry.delivery = delivery

    def in_flight(self, which: int) -> list[Entry]:
        return [e for e in self.groups[which][2].entries if e.state == "in flight"]

    @precondition(_has_something_in_flight)
    @rule(data=st.data(), fails=st.booleans())
    def attempt(self, data: st.DataObject, fails: bool) -> None:
        which = data.draw(st.sampled_from([i for i in (0, 1) if self.in_flight(i)]))
        entry = data.draw(st.sampled_from(self.in_flight(which)))
        _, lanes, _ = self.groups[which]
        delivery = entry.delivery
        assert delivery is not None
        assert delivery.subscription.name == entry.names[entry.step]
        delivery.attempt += 1
        entry.attempt += 1
        if fails:
            allowed = self.specs[which][int(entry.names[entry.step])][2]
            due = lanes.fail(delivery, ValueError("no"), self.now)
            if entry.attempt < allowed:
                entry.due = self.now + [1.0, 2.0][entry.attempt - 1]
                entry.state = "waiting"
                assert due == entry.due
                return
            assert due is None
        entry.attempt = 0
        entry.step += 1
        is_finished = entry.step == len(entry.names)
        assert lanes.advance(delivery) == is_finished
        if is_finished:
            entry.state = "finished"

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for _, lanes, model in self.groups:
            lanes.release(self.now)
            for entry in model.entries:
                if entry.state == "waiting" and entry.due <= self.now:
                    entry.state = "ready"

    @invariant()
    def counters_add_up(self) -> None:
        for _, lanes, model in getattr(self, "groups", []):
            assert lanes.added == len(model.entries)
            assert lanes.finished == model.count("finished")
            assert lanes.in_flight == model.count("in flight")
            assert lanes.waiting == model.count("waiting")
            assert lanes.held == model.count("ready") + model.count("waiting")
            assert lanes.unsettled == len(model.entries) - model.count("finished")
            free = sum(e.state == "ready" and model.free(e) for e in model.entries)
            assert free <= lanes.ready <= model.count("ready")
            due = [e.due for e in model.entries if e.state == "waiting"]
            assert lanes.next_due() == min(due, default=None)

    def teardown(self) -> None:
        """Whatever happened, everything can still be finished, each delivery once."""
        for _, lanes, model in getattr(self, "groups", []):
            lanes.release(math.inf)
            deliveries = [e.delivery for e in model.entries if e.state == "in flight"]
            while deliveries or (delivery := lanes.take()):
                if deliveries:
                    delivery = deliveries.pop()
                assert delivery is not None
                assert model.of(delivery).state != "finished"
                while not lanes.advance(delivery):
                    pass
                model.of(delivery).state = "finished"
            assert model.count("finished") == len(model.entries)
            assert (lanes.unsettled, lanes.held, lanes.ready) == (0, 0, 0)


def test_the_core_decides_as_the_model_does() -> None:
    run_state_machine_as_test(
        CoreMatchesModel,
        settings=settings(
            max_examples=150,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


@given(
    keys=st.lists(st.sampled_from(["a", "b", "c", "d", None]), max_size=40),
    workers=st.integers(1, 5),
    finish=st.lists(st.integers(0, 4), min_size=40, max_size=40),
)
@settings(deadline=None)
def test_workers_that_finish_in_any_order_keep_every_aggregate_in_order(
    keys: list[str | None], workers: int, finish: list[int]
) -> None:
    lanes = lanes_with(*keys)
    busy: list[InFlight] = []
    handled: list[int | None] = []
    for choice in finish:
        while len(busy) < workers and (delivery := lanes.take()) is not None:
            assert delivery.key is None or delivery.key not in [c.key for c in busy]
            busy.append(delivery)
        if busy:
            delivery = busy.pop(choice % len(busy))
            handled.append(number_of(delivery))
            assert lanes.advance(delivery)
    assert sorted(n for n in handled if n is not None) == list(range(len(keys)))
    for key in set(keys) - {None}:
        numbers = [n for n in handled if n is not None and keys[n] == key]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("count", [1, 1000])
def test_counters_of_queued_deliveries(count: int) -> None:
    lanes = lanes_with(*["a"] * count)
    assert (lanes.added, lanes.held, lanes.ready, lanes.unsettled) == (count,) * 4
    assert (lanes.finished, lanes.in_flight, lanes.waiting) == (0, 0, 0)
