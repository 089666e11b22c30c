"""`explore` with replayed, discarded and held dead letters finds no promise broken falsely."""

from typing import ClassVar

import attrs
import pytest
import trio

from tests.kit.scenarios import Ordered
from triobus import DomainEvent, EventBus, Retry, UnknownDeadLetter
from triobus.testing import Faults, FlakyHandler, explore

NEVER = Retry(attempts=1)


def failing_bus(failures, *, hold=False, retry=NEVER, **options):
    bus = EventBus(workers=2, **options)
    handler = FlakyHandler(failures=failures)
    bus.subscribe(Ordered, handler, name="it", retry=retry, hold=hold)
    return bus


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("failures", [1, 2, 4])
def test_replays_that_succeed_and_that_fail_again_keep_every_promise(failures, hold):
    async def scenario():
        bus = failing_bus(failures, hold=hold)
        async with bus:
            await bus.publish_many([Ordered("Ada", number) for number in range(3)])
            await bus.wait_idle()
            while await bus.dead_letters.list():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(bus.publish, Ordered("Ada", 9))
                    await bus.dead_letters.replay(group="default")

    assert explore(scenario, seeds=20).seeds == 20


def test_replays_with_retries_of_their_own_keep_every_promise():
    async def scenario():
        async with failing_bus(5, retry=Retry(attempts=2, delay=1)) as bus:
            await bus.publish_many([Ordered("Ada", 1), Ordered("Bob", 2)])
            await bus.wait_idle()
            while await bus.dead_letters.list():
                await bus.dead_letters.replay(group="default")

    explore(scenario, seeds=20)


def test_letters_that_are_discarded_while_they_are_replayed_keep_every_promise():
    async def scenario():
        bus = failing_bus(6, retry=Retry(attempts=2, delay=1))
        async with bus:
            await bus.publish_many([Ordered("Ada", 1), Ordered("Ada", 2)])
            await bus.wait_idle()
            letters = await bus.dead_letters.list()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(discard, bus, letters[0].id)
                await bus.dead_letters.replay([letter.id for letter in letters])

    async def discard(bus, letter_id):
        await trio.sleep(0.5)
        try:
            await bus.dead_letters.discard(letter_id)
        except UnknownDeadLetter:
            assert letter_id not in [letter.id for letter in await bus.dead_letters.list()]

    explore(scenario, seeds=20)


@pytest.mark.parametrize("hold", [False, True])
def test_replays_with_a_store_and_crashes_keep_every_promise(hold):
    async def scenario(world):
        bus = failing_bus(3, hold=hold, store=world.store())
        async with bus:
            for number in range(3):
                event_id = world.event_id(str(number))
                await bus.publish(Ordered("Ada", number, event_id=event_id))
            await bus.wait_idle()
            while await bus.dead_letters.list():
                await bus.dead_letters.replay(group="default")

    assert explore(scenario, seeds=30).crashes > 0


def test_a_retry_whose_subscription_goes_is_not_said_to_be_overtaken():
    async def scenario():
        bus = EventBus()
        retry = Retry(attempts=2, delay=5, jitter=0)
        leaving = bus.subscribe(Ordered, FlakyHandler(failures=9), name="leaving", retry=retry)
        bus.subscribe(Ordered, FlakyHandler(failures=0), name="staying", priority=-1)
        async with bus:
            await bus.publish(Ordered("Ada", 1))
            await trio.sleep(1)
            leaving.unsubscribe()
            await bus.publish(Ordered("Ada", 2))

    explore(scenario, seeds=5, faults=Faults(handler_failures=0))


def test_a_subscription_that_takes_the_name_of_another_is_not_said_to_have_lost_its_events():
    async def scenario():
        bus = EventBus()
        retry = Retry(attempts=2, delay=5, jitter=0)
        first = bus.subscribe(Ordered, FlakyHandler(failures=9), name="it", retry=retry)
        async with bus:
            await bus.publish(Ordered("Ada", 1))
            await trio.sleep(1)
            first.unsubscribe()
            bus.subscribe(Ordered, FlakyHandler(failures=0), name="it")
            await bus.publish(Ordered("Ada", 2))

    explore(scenario, seeds=5, faults=Faults(handler_failures=0))


@attrs.frozen
class Once(DomainEvent):
    event_type: ClassVar[str] = "read once"
    number: int


def test_events_that_cannot_be_read_any_more_are_counted_as_what_they_are():
    timelines = []

    async def scenario(world):
        async with world.store() as store:
            await store.append([Once(1)])
        # Two classes of one type in two modules: nobody knows which of them is meant.
        names = {"__module__": "elsewhere", "event_type": "read once"}
        another = attrs.frozen(type("Once", (DomainEvent,), names))
        bus = EventBus(store=world.store())
        group = bus.group("all", start="beginning")
        group.subscribe(DomainEvent, FlakyHandler(failures=0), name="x")
        async with bus:
            await bus.wait_idle()
            (letter,) = await bus.dead_letters.list()
            assert await bus.dead_letters.replay(letter.id) == 0
        timelines.append(world.timeline())
        assert another in DomainEvent.__subclasses__()

    explore(scenario, seeds=1, faults=Faults(handler_failures=0, crashes=0))
    assert timelines[0].count("all/x dead letter after attempt 1: EventNotDecodable") == 2
