"""An event that a handler has changed is found: by `explore`, by a recording, by `recorded`."""

import threading

import attrs
import pytest
import trio

from triobus import DomainEvent, EventBus, Retry
from triobus.testing import EventChanged, ExplorationFailed, Faults, explore, record

CALM = Faults(handler_failures=0, crashes=0)


@attrs.frozen
class Packed(DomainEvent):
    items: list
    labels: dict = attrs.field(factory=dict)

    @property
    def aggregate_id(self):
        return "a"


@attrs.frozen
class Locked(DomainEvent):
    lock: object = attrs.field(factory=threading.Lock)


@attrs.frozen
class Doubtful(DomainEvent):
    value: object


class Array:
    """Says neither yes nor no when it is compared, as an array does."""

    def __eq__(self, other):
        return self

    def __bool__(self):
        raise ValueError("the truth value of an array is ambiguous")


async def take_one(event):
    event.items.pop()


def bus_with(handler, **options):
    bus = EventBus(**options)
    bus.subscribe(Packed, handler, name="pack", retry=Retry(attempts=1))
    return bus


def test_explore_fails_when_a_handler_changes_a_list_inside_an_event():
    async def scenario():
        async with bus_with(take_one) as bus:
            await bus.publish(Packed([1, 2]))

    with pytest.raises(
        ExplorationFailed,
        match=r"EventChanged: Packed.items was changed while default/pack had it: it was \[1, 2\] "
        r"and is \[1\]\. An event is a fact",
    ):
        explore(scenario, seeds=1, faults=CALM)


def test_explore_fails_though_the_attempt_that_changed_it_has_failed():
    async def change_and_fail(event):
        event.labels["seen"] = True
        raise OSError

    async def scenario():
        async with bus_with(change_and_fail) as bus:
            await bus.publish(Packed([1]))

    with pytest.raises(ExplorationFailed, match=r"Packed.labels was changed while default/pack"):
        explore(scenario, seeds=1, faults=CALM)


def test_explore_fails_when_a_publisher_changes_what_it_has_published():
    async def see(event):
        await trio.sleep(1)

    async def scenario():
        async with bus_with(see) as bus:
            items = [1]
            await bus.publish(Packed([]))
            await bus.publish(Packed(items))
            items.append(2)

    with pytest.raises(
        ExplorationFailed, match=r"was changed before attempt 1 of default/pack: it was \[1\]"
    ):
        explore(scenario, seeds=1, faults=CALM)


def test_explore_fails_with_a_store_too():
    async def scenario(world):
        async with bus_with(take_one, store=world.store()) as bus:
            await bus.publish(Packed([1, 2]))

    with pytest.raises(ExplorationFailed, match=r"EventChanged: Packed.items was changed"):
        explore(scenario, seeds=1, faults=CALM)


@pytest.mark.parametrize(
    "make", [Locked, lambda: Doubtful(object()), lambda: Doubtful(Array()), lambda: Packed([[1]])]
)
def test_what_cannot_be_compared_or_was_not_changed_is_let_be(make):
    seen = []

    async def scenario():
        bus = EventBus()
        bus.subscribe(DomainEvent, seen.append)
        async with bus:
            await bus.publish(make())

    explore(scenario, seeds=1, faults=CALM)
    assert len(seen) == 1


async def test_a_recording_says_which_event_was_changed_by_whom(autojump_clock):
    bus = bus_with(take_one)
    recording = record(bus)
    async with bus:
        await bus.publish(Packed([1, 2]))
    with pytest.raises(EventChanged, match=r"while default/pack had it.*\n\nWhat happened:"):
        recording.assert_events_unchanged()


async def test_a_recording_of_unchanged_events_says_nothing(autojump_clock):
    async def look(event):
        return len(event.items)

    bus = bus_with(look)
    recording = record(bus)
    async with bus:
        await bus.publish_many([Packed([1, 2]), Packed([])])
    recording.assert_events_unchanged()
