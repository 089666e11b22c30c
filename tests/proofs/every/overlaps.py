"""Scenarios in which one public call comes in the middle of another."""

import attrs
import trio

from tests.events import Noted
from tests.proofs.every.program import Program
from tests.proofs.every.scenario import Scenario, scenario
from triobus import BusClosed, EventBus, OutcomeUnknown, Retry, StoreClosed, UnknownDeadLetter
from triobus.testing import crash

NEVER = Retry(attempts=1)
MUCH_LATER = Retry(attempts=2, delay=10, max_delay=10, jitter=0)
_MOST = 25


async def _publish_or_be_late(program: Program, bus: EventBus, number: int, key: str) -> None:
    try:
        await program.publish(bus, number, key)
    except (BusClosed, OutcomeUnknown):
        assert not bus.statistics().running


# Starting


def _two_groups(program: Program) -> EventBus:
    bus = program.bus(workers=1)
    bus.subscribe(Noted, program.handler(), name="it")
    bus.group("mail", workers=1).subscribe(Noted, program.handler("mail"), name="it")
    return bus


@scenario(_two_groups)
async def stopped_while_it_starts(program: Program, bus: EventBus) -> None:
    """A stop comes while the workers are started."""

    async def stop() -> None:
        while True:
            try:
                await bus.stop()
            except BusClosed:
                await trio.lowlevel.checkpoint()
            else:
                return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop)
        async with bus:
            await _publish_or_be_late(program, bus, 1, "a")
        nursery.cancel_scope.cancel()  # the block can be left before the stop finds the bus running
    assert program.numbers_finished() == program.numbers_finished("mail") == [*program.accepted]


@scenario(_two_groups)
async def grouped_while_it_starts(program: Program, bus: EventBus) -> None:
    """A group is made while the workers are started."""

    async def make_group() -> None:
        await trio.lowlevel.checkpoint()
        late = bus.group("late", workers=1)
        late.subscribe(Noted, program.handler("late"), name="it")
        made.set()

    made = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(make_group)
        async with bus:
            await made.wait()
            await program.publish(bus, 1, "a")
            await bus.wait_idle()
            assert program.numbers_finished("late") == [1]


def _from_the_beginning(program: Program) -> EventBus:
    bus = program.bus()
    group = bus.group("all", workers=1, start="beginning")
    group.subscribe(Noted, program.handler("default"), name="it")
    return bus


@scenario(_from_the_beginning, kind="memory")
async def appended_while_it_starts(program: Program, bus: EventBus) -> None:
    """Events are appended to the open store while its bus starts."""
    store = bus.store
    assert store is not None

    async def append() -> None:
        for number in range(1, 7):
            await program.append(store, number, "a")

    async with store, trio.open_nursery() as nursery:
        nursery.start_soon(append)
        await trio.lowlevel.checkpoint()
        async with bus:
            await program.publish(bus, 9, "a")
            while len(program.appended) < 6:
                await trio.lowlevel.checkpoint()
            await bus.wait_idle()
            logged = [(s.event.number, s.position) async for s in store.read()]
    told = {**program.appended, **program.accepted}
    assert sorted(told.items()) == sorted(logged)
    assert program.numbers_finished() == [number for number, _ in logged]


# Waiting and stopping


def _takes_long(program: Program) -> EventBus:
    async def take_long(_: Noted) -> None:
        await trio.sleep(5)

    bus = program.bus(workers=1)
    bus.subscribe(Noted, program.handler(then=take_long), name="it")
    return bus


@scenario(_takes_long)
async def grouped_while_one_waits(program: Program, bus: EventBus) -> None:
    """A group is made while somebody waits until nothing is left, and has the last event."""

    async def take_longer(_: Noted) -> None:
        await trio.sleep(50)

    async with bus:
        async with trio.open_nursery() as nursery:
            await program.publish(bus, 1, "a")
            nursery.start_soon(bus.wait_idle)
            await trio.sleep(1)
            late = bus.group("late", workers=1)
            late.subscribe(Noted, program.handler("late", then=take_longer), name="it")
            await program.publish(bus, 2, "a")
        assert program.numbers_finished("late") == [2]


@scenario(_takes_long, kind="memory", is_lossless=False)
async def waited_for_while_a_stop_is_cancelled(program: Program, bus: EventBus) -> None:
    """A stop is cancelled; whoever waits for an event, or until all is done, is told."""

    async def wait_for() -> None:
        try:
            await bus.wait_for(Noted, where=lambda event: event.number == 7)
        except BusClosed:
            told.append("wait_for")

    async def ask() -> None:
        event = program.event(2, "a")
        try:
            with program.publishing([2], may_stay=True):
                await bus.publish_and_wait(event)
        except BusClosed:
            told.append("publish_and_wait")

    told: list[str] = []
    async with bus, trio.open_nursery() as nursery:
        await program.publish(bus, 1, "a")
        nursery.start_soon(wait_for)
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await bus.stop()
    assert "wait_for" in told


@scenario(_takes_long, kind="memory", is_lossless=False)
async def left_while_one_appends(program: Program, bus: EventBus) -> None:
    """The block is left while another task goes on appending to the store."""
    store = bus.store
    assert store is not None
    is_left = False

    async def append() -> None:
        for number in range(1, _MOST):
            if is_left:
                return
            await program.append(store, number, "a")
            await trio.sleep(1)
        raise AssertionError("the block has not ended while events were appended")

    async with store, trio.open_nursery() as nursery:
        async with bus:
            nursery.start_soon(append)
            await trio.sleep(2)
        is_left = True


# Subscriptions and dead letters


def _one_retries_for_long(program: Program) -> EventBus:
    bus = program.bus(workers=2)
    program.subscriptions["it"] = bus.subscribe(
        Noted, program.handler(fails={1: 2}), name="it", retry=MUCH_LATER
    )
    bus.subscribe(Noted, program.handler("rest"), name="rest", priority=-1)
    return bus


@scenario(_one_retries_for_long, is_lossless=False)
async def unsubscribed_while_a_retry_waits(program: Program, bus: EventBus) -> None:
    """A subscription goes while its retry waits: its aggregate goes on at once."""
    async with bus:
        await program.publish(bus, 1, "a")
        await trio.sleep(1)
        program.subscriptions["it"].unsubscribe()
        await program.publish(bus, 2, "a")
        await bus.wait_idle()
        assert trio.current_time() < 5, "the aggregate was held up by one that has gone"
        assert program.numbers_finished("rest") == [1, 2]


def _replays_for_long(program: Program) -> EventBus:
    bus = program.bus(workers=2)
    retry = Retry(attempts=2, delay=10, max_delay=10, jitter=0)
    bus.subscribe(Noted, program.handler(fails={1: 4}), name="it", retry=retry)
    return bus


@scenario(_replays_for_long, is_lossless=False)
async def discarded_while_its_retry_waits(program: Program, bus: EventBus) -> None:
    """A dead letter is discarded while the retry of its replay waits: its aggregate goes on."""

    async def replay() -> None:
        assert await bus.dead_letters.replay(letter.id) == 0

    async with bus:
        await program.publish(bus, 1, "a")
        await bus.wait_idle()
        (letter,) = await bus.dead_letters.list()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(replay)
            await trio.sleep(1)
            program.gone.add(1)
            try:
                assert await bus.dead_letters.discard(letter.id) == 1
            except UnknownDeadLetter:
                raise AssertionError("a dead letter went by itself") from None
            began = trio.current_time()
            await program.publish(bus, 2, "a")
            await bus.wait_idle()
            assert trio.current_time() < began + 5, "the aggregate was held up by what is gone"
    assert program.numbers_finished() == [2]


@scenario(_replays_for_long)
async def replayed_in_vain(program: Program, bus: EventBus) -> None:
    """A replay fails again, with a later event of its aggregate behind it."""
    async with bus:
        await program.publish(bus, 1, "a")
        await bus.wait_idle()
        (letter,) = await bus.dead_letters.list()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(program.publish, bus, 2, "a")
            assert await bus.dead_letters.replay(letter.id) == 0
        (again,) = await bus.dead_letters.list()
        assert (again.id, again.attempts) == (letter.id, 4)
        assert await bus.dead_letters.replay(letter.id) == 1
    assert program.numbers_finished() == [2, 1]


def _little_room_twice(program: Program) -> EventBus:
    async def take_long(_: Noted) -> None:
        await trio.sleep(100)

    bus = program.bus(workers=1)
    bus.subscribe(Noted, program.handler(), name="it")
    mail = bus.group("mail", workers=1, buffer=1)
    program.subscriptions["mail"] = mail.subscribe(
        Noted, program.handler("mail", then=take_long), name="mail"
    )
    return bus


@scenario(_little_room_twice)
async def unsubscribed_while_one_waits_for_room(program: Program, bus: EventBus) -> None:
    """The last subscription of a full group goes: whoever waits for room there is let in."""
    async with bus, trio.open_nursery() as nursery:
        for number in (1, 2, 3, 4):
            nursery.start_soon(program.publish, bus, number, str(number))
        await trio.sleep(1)
        program.subscriptions["mail"].unsubscribe()
        await trio.sleep(20)
        assert len(program.accepted) == 4, f"only {[*program.accepted]} were let in"


# The same event again


@scenario(_takes_long, kind="memory")
async def asked_for_while_it_is_handled(program: Program, bus: EventBus) -> None:
    """Whoever publishes and waits for an event that is being handled waits until it is."""
    async with bus:
        await program.publish(bus, 1, "a")
        await bus.publish_and_wait(program.event(1, "a"))
        assert program.numbers_finished() == [1], "it returned before the handler had finished"


@scenario(_two_groups, kind="memory")
async def published_with_other_content(program: Program, bus: EventBus) -> None:
    """An id that the log has comes again with other content: refused, and nothing is handled."""
    async with bus:
        await program.publish(bus, 1, "a")
        other = attrs.evolve(program.event(1, "a"), number=99)
        try:
            await bus.publish(other)
        except ValueError:
            assert (await bus.publish(program.event(1, "a"))).position == program.accepted[1]
        else:
            raise AssertionError("another event of the same id was taken for the one in the log")
    assert program.numbers_finished() == [1]


# Listening, crashing


@scenario(_two_groups, kind="memory")
async def heard_slowly_while_it_stops(program: Program, bus: EventBus) -> None:
    """A slow listener hears all that was published before the stop."""
    async with bus, bus.listen(Noted, buffer=1) as events:
        for number in (1, 2, 3, 4, 5):
            await program.publish(bus, number, "a")
        await bus.stop()
        heard = [event.number async for event in events]
    assert heard == [1, 2, 3, 4, 5]


def _mail_comes_late(program: Program) -> EventBus:
    bus = program.bus(workers=1)
    bus.subscribe(Noted, program.handler(), name="it")
    return bus


@scenario(_mail_comes_late, kind="sqlite", is_lossless=False)
async def crashed_after_a_late_group(program: Program, bus: EventBus) -> None:
    """A group comes while a commit is under way; what it has begun comes again after a crash."""

    async def take_long(_: Noted) -> None:
        await trio.sleep(5)

    async def publish() -> None:
        try:
            await program.publish(bus, 1, "a")
            await trio.lowlevel.checkpoint()
            await crash(bus)
        except (BusClosed, OutcomeUnknown, StoreClosed):
            assert not bus.statistics().running

    async with bus, trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        await trio.lowlevel.checkpoint()
        late = bus.group("late", workers=1)
        late.subscribe(Noted, program.handler("late", then=take_long), name="it")
    begun = [call.number for call in program.begun if call.group == "late"]
    again = _mail_comes_late(program)
    again.group("late", workers=1).subscribe(Noted, program.handler("late"), name="it")
    async with again:
        await program.publish(again, 2, "a")
        await again.wait_idle()
    assert set(begun) <= set(program.numbers_finished("late")), "begun, and never delivered again"


OVERLAPS: tuple[Scenario, ...] = (
    stopped_while_it_starts,
    grouped_while_it_starts,
    appended_while_it_starts,
    grouped_while_one_waits,
    waited_for_while_a_stop_is_cancelled,
    left_while_one_appends,
    unsubscribed_while_a_retry_waits,
    discarded_while_its_retry_waits,
    replayed_in_vain,
    unsubscribed_while_one_waits_for_room,
    asked_for_while_it_is_handled,
    published_with_other_content,
    heard_slowly_while_it_stops,
    crashed_after_a_late_group,
)
