"""The scenarios: small enough for every schedule, every step and every bytecode of each.

Each makes its bus, for every life anew, lives with it, and says with `assert` what it expects at
its end.
"""

import math

import trio

from tests.events import Noted
from tests.proofs.every.overlaps import OVERLAPS
from tests.proofs.every.program import Program
from tests.proofs.every.scenario import Scenario, scenario
from triobus import BusClosed, EventBus, OutcomeUnknown, Retry
from triobus.testing import crash

LATER = Retry(delay=1, factor=1, jitter=0)
NEVER = Retry(attempts=1)


# Publishing and handling


def _two_workers(program: Program) -> EventBus:
    bus = program.bus(workers=2)
    bus.subscribe(Noted, program.handler(fails={1: 1}), name="it", retry=LATER)
    return bus


@scenario(_two_workers)
async def retry(program: Program, bus: EventBus) -> None:
    """Two publishers, two workers, one retry, one stop."""
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        async with trio.open_nursery() as publishers:
            publishers.start_soon(program.publish, bus, 1, "a")
            publishers.start_soon(program.publish, bus, 2, "b")
        report = await bus.stop()
    assert (report.settled, report.left) == ({"default": 2}, {"default": 0})
    assert sorted(program.numbers_finished()) == [1, 2]
    statistics = bus.statistics()
    assert (statistics.retries, statistics.failed_attempts) == (1, 1)


def _little_room(program: Program) -> EventBus:
    bus = program.bus(workers=1, buffer=1)
    bus.subscribe(Noted, program.handler(), name="it")
    return bus


@scenario(_little_room)
async def room(program: Program, bus: EventBus) -> None:
    """Publishers wait for room."""
    async with bus, trio.open_nursery() as nursery:
        for number in (1, 2, 3):
            nursery.start_soon(program.publish, bus, number)
    assert sorted(program.numbers_finished()) == [1, 2, 3]


def _publishes_inside(program: Program) -> EventBus:
    async def publish_again(event: Noted) -> None:
        if event.number < 10:
            await program.publish(bus, event.number + 10, event.key)

    bus = program.bus(workers=1, buffer=1)
    bus.subscribe(Noted, program.handler(then=publish_again), name="it")
    return bus


@scenario(_publishes_inside)
async def inside(program: Program, bus: EventBus) -> None:
    """A handler publishes, while there is no room for others."""
    async with bus, trio.open_nursery() as nursery:
        nursery.start_soon(program.publish, bus, 1, "a")
        nursery.start_soon(program.publish, bus, 2, "a")
    assert sorted(program.numbers_finished()) == [1, 2, 11, 12]


def _waits_for_the_last(program: Program) -> EventBus:
    last = trio.Event()

    async def wait(event: Noted) -> None:
        if event.number == 6:
            last.set()
        elif event.number == 5:
            with trio.move_on_after(1):  # in another life the last one may not come
                await last.wait()

    bus = program.bus(workers=2)
    bus.subscribe(Noted, program.handler(then=wait, waits=False), name="it")
    return bus


@scenario(_waits_for_the_last)
async def streaming(program: Program, bus: EventBus) -> None:
    """One publishes all the time; at last a handler waits for the event behind its own."""
    started = trio.current_time()
    async with bus:
        for number in (1, 2, 3, 4, 5, 6):
            await program.publish(bus, number, str(number))
        await bus.wait_idle()
        assert trio.current_time() == started, "nobody took the event behind one that waits"
    assert sorted(program.numbers_finished()) == [1, 2, 3, 4, 5, 6]


# Waiting and listening


def _fails_for_good(program: Program) -> EventBus:
    bus = program.bus(workers=2)
    bus.subscribe(Noted, program.handler(fails={1: 1}), name="it", retry=NEVER)
    return bus


@scenario(_fails_for_good)
async def asking(program: Program, bus: EventBus) -> None:
    """Two ask for the outcome; one event fails for good."""
    outcomes = {}

    async def ask(number: int, key: str) -> None:
        event = program.event(number, key)
        with program.publishing([number], may_stay=True):
            outcomes[number] = await bus.publish_and_wait(event)

    async with bus, trio.open_nursery() as nursery:
        nursery.start_soon(ask, 1, "a")
        nursery.start_soon(ask, 2, "a")
    assert [*outcomes[1].results.items(), *outcomes[2].results.items()] == [("it", 2)]
    assert [*outcomes[1].errors] == ["it"]
    assert not outcomes[2].errors


@scenario(_two_workers)
async def idle(program: Program, bus: EventBus) -> None:
    """One waits until nothing is left, beside another that publishes."""

    async def wait() -> None:
        await bus.wait_idle()
        found = bus.statistics()
        assert (found.queued, found.in_flight, found.waiting_for_retry) == (0, 0, 0)

    async with bus:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(program.publish, bus, 1, "a")
        await bus.wait_idle()
        assert program.numbers_finished() == [1]


@scenario(_little_room)
async def listening(program: Program, bus: EventBus) -> None:
    """One listens, with little room, and one waits for one event."""
    heard: list[int] = []
    found: list[int] = []

    async def wait() -> None:
        found.append((await bus.wait_for(Noted, where=lambda event: event.number == 2)).number)

    async with bus, bus.listen(Noted, buffer=1) as events, trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(program.publish, bus, 1)
        nursery.start_soon(program.publish, bus, 2)
        async for event in events:
            heard.append(event.number)
            if len(heard) == 2:
                break
    assert (sorted(heard), found) == ([1, 2], [2])
    assert program.numbers_finished() == heard


# Dead letters


@scenario(_fails_for_good)
async def letters(program: Program, bus: EventBus) -> None:
    """A dead letter is replayed, beside a later event of its aggregate."""
    async with bus:
        await program.publish(bus, 1, "a")
        await bus.wait_idle()
        (letter,) = await bus.dead_letters.list()
        assert (letter.event.number, letter.attempts) == (1, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(program.publish, bus, 2, "a")
            assert await bus.dead_letters.replay(letter.id) == 1
        assert await bus.dead_letters.list() == []
    assert sorted(program.numbers_finished()) == [1, 2]


def _holds(program: Program) -> EventBus:
    bus = program.bus(workers=2)
    handler = program.handler(fails={1: 1})
    bus.subscribe(Noted, handler, name="it", retry=NEVER, hold=True)
    return bus


@scenario(_holds)
async def hold(program: Program, bus: EventBus) -> None:
    """What comes after a dead letter follows it, and is replayed in order."""
    async with bus:
        await program.publish_many(bus, [1, 2], "a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.wait_idle)
            nursery.start_soon(program.publish, bus, 3, "b")
        assert [letter.event.number for letter in await bus.dead_letters.list()] == [1, 2]
        assert await bus.dead_letters.replay(group="default") == 2
    assert [n for n in program.numbers_finished() if n != 3] == [1, 2]


# Starting and stopping


@scenario(_little_room)
async def group(program: Program, bus: EventBus) -> None:
    """A group is made while another task publishes."""

    async def make_group() -> None:
        await trio.lowlevel.checkpoint()
        missed.extend(program.accepted)
        mail = bus.group("mail", workers=1)
        mail.subscribe(Noted, program.handler("mail"), name="it")

    async def publish() -> None:
        await program.publish(bus, 1, "a")
        await program.publish(bus, 2, "a")

    missed: list[int] = []
    async with bus, trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        nursery.start_soon(make_group)
    assert program.numbers_finished() == [1, 2]
    wanted = [number for number in (1, 2) if number not in missed]
    # What publish had accepted and not yet returned for was published before the group was.
    assert program.numbers_finished("mail") in (wanted, wanted[1:])


def _may_never_return(program: Program) -> EventBus:
    async def stay(event: Noted) -> None:
        if event.number == 1:
            await trio.sleep(math.inf)

    bus = program.bus(workers=2)
    bus.subscribe(Noted, program.handler(then=stay), name="it")
    return bus


@scenario(_may_never_return, is_lossless=False)
async def timeout(program: Program, bus: EventBus) -> None:
    """A stop ends a handler that would never return."""
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await program.publish(bus, 1, "a")
        async with trio.open_nursery() as both:
            both.start_soon(_publish_or_be_late, program, bus, 2)
            report = await bus.stop(timeout=5)
    settled = len(program.accepted) - 1
    assert (report.settled, report.left) == ({"default": settled}, {"default": 1})
    assert program.numbers_finished() == [2][:settled]


async def _publish_or_be_late(program: Program, bus: EventBus, number: int) -> None:
    try:
        await program.publish(bus, number)
    except BusClosed:
        assert not bus.statistics().running


# With a store


def _one_worker(program: Program) -> EventBus:
    bus = program.bus(workers=1)
    bus.subscribe(Noted, program.handler(), name="it")
    return bus


@scenario(_two_workers, kind="memory")
async def durable(program: Program, bus: EventBus) -> None:
    """Two publishers, a retry and a stop, with a store."""
    async with bus:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(program.publish, bus, 1, "a")
            nursery.start_soon(program.publish, bus, 2, "b")
        await bus.stop()
    assert sorted(program.numbers_finished()) == [1, 2]


@scenario(_one_worker, kind="memory")
async def crashing(program: Program, bus: EventBus) -> None:
    """A bus crashes while somebody publishes, and another one goes on with its store."""

    async def publish() -> None:
        try:
            await program.publish(bus, 1, "a")
        except (BusClosed, OutcomeUnknown):
            assert not bus.statistics().running

    async with bus, trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        nursery.start_soon(crash, bus)
    again = _one_worker(program)
    async with again:
        if not program.accepted:
            program.refused.clear()
            program.unsure.clear()
            await program.publish(again, 1, "a")
    assert set(program.numbers_finished()) == {1}


SCENARIOS: dict[str, Scenario] = {
    found.name: found
    for found in (
        retry,
        room,
        inside,
        streaming,
        asking,
        idle,
        listening,
        letters,
        hold,
        group,
        timeout,
        durable,
        crashing,
        *OVERLAPS,
    )
}
"""By name."""
