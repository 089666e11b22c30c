"""What every call gets at every moment of a bus's life: the table of states, cell by cell."""

from contextlib import asynccontextmanager, suppress

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.events import Noted
from tests.every_step import at_every_step
from triobus import EventBus, MemoryEventStore, TriobusError
from triobus.testing import crash, hold_clock

STATES = ("new", "starting", "running", "draining", "ending", "stopped")


class SlowStore(MemoryEventStore):
    """A store that is being opened until its gate is open."""

    def __init__(self):
        super().__init__()
        self.gate = trio.Event()

    async def _claim(self):
        await self.gate.wait()
        return await super()._claim()


class Place:
    """A bus in some state, and what holds it there."""

    def __init__(self, *, is_stored):
        self.store = SlowStore() if is_stored else None
        self.bus = EventBus(self.store, workers=1)
        self.gate = trio.Event()
        self.bus.subscribe(Noted, self.handle, name="it")

    async def handle(self, event):
        if event.number == 1:
            with trio.CancelScope(shield=True):
                await self.gate.wait()

    async def live(self):
        with suppress(TriobusError):  # it was crashed while it started
            async with self.bus:
                await trio.sleep_forever()

    @asynccontextmanager
    async def reach(self, state):
        """Hold the bus in a state while the block runs, and then bring it to its end."""
        async with trio.open_nursery() as nursery:
            if state != "new":
                nursery.start_soon(self.live)
                await wait_all_tasks_blocked()
            if state != "starting" and self.store is not None:
                self.store.gate.set()
            await wait_all_tasks_blocked()
            if state in ("draining", "ending"):
                await self.bus.publish(Noted(1))
                await wait_all_tasks_blocked()
                nursery.start_soon(self.stop, state == "draining")
                await wait_all_tasks_blocked()
            elif state == "stopped":
                await self.bus.stop()
            try:
                assert state_of(self.bus) == state
                yield
            finally:
                self.gate.set()
                if self.store is not None:
                    self.store.gate.set()
                nursery.cancel_scope.cancel()

    async def stop(self, drain):
        with suppress(TriobusError):  # it was crashed meanwhile
            await self.bus.stop(drain=drain)


def state_of(bus):
    """Return the state that a bus says it is in."""
    return repr(bus).rpartition(", groups: ")[0].rpartition(", ")[2]


async def started(place):
    async with place.bus:
        return state_of(place.bus)


async def publish(place):
    return (await place.bus.publish(Noted(2))).is_new


async def publish_many(place):
    return len(await place.bus.publish_many([Noted(2), Noted(3)]))


async def publish_and_wait(place):
    return (await place.bus.publish_and_wait(Noted(2))).results


async def publish_nowait(place):
    return place.bus.publish_nowait(Noted(2)).is_new


async def publish_from_thread(place):
    async with hold_clock():
        published = await trio.to_thread.run_sync(place.bus.publish_from_thread, Noted(2))
    return published.is_new


async def stop(place):
    return (await place.bus.stop()).left


async def crashed(place):
    return await crash(place.bus)


async def wait_idle(place):
    return await place.bus.wait_idle()


async def wait_for(place):
    return await place.bus.wait_for(Noted)


async def listen(place):
    async with place.bus.listen(Noted):
        return "listens"


async def group(place):
    return place.bus.group("late").name


async def subscribe(place):
    return place.bus.subscribe(Noted, place.handle, name="late").name


async def unsubscribe(place):
    return place.bus.subscribe(Noted, place.handle, name="short").unsubscribe()


async def statistics(place):
    return place.bus.statistics().running


async def health(place):
    return place.bus.health().status


async def set_store(place):
    place.bus.store = MemoryEventStore()


async def letters_list(place):
    return await place.bus.dead_letters.list()


async def letters_replay(place):
    return await place.bus.dead_letters.replay()


async def letters_discard(place):
    return await place.bus.dead_letters.discard([])


async def append(place):
    return len(await place.store.append([Noted(2)]))


async def read(place):
    return [stored.event.number async for stored in place.store.read(limit=1)]


async def get(place):
    return await place.store.get(Noted(2).event_id)


async def store_statistics(place):
    return (await place.store.statistics()).events >= 0


NOT_STARTED = "BusClosed: it has not been started"
NOT_YET = "BusClosed: it has not been started yet"
IS_STOPPING = "BusClosed: it is stopping"
HAS_STOPPED = "BusClosed: it has stopped"
RUNS = "BusAlreadyStarted"
CLOSED = "StoreClosed"
UNUSED = "BusClosed: dead_letters.discard(): the bus does not use its store"
WAITS = "waits"


def in_running(answer):
    """Return the answers of a call that is for a bus that runs."""
    return (NOT_STARTED, NOT_YET, answer, IS_STOPPING, IS_STOPPING, HAS_STOPPED)


ANSWERS = {
    started: ("running", RUNS, RUNS, RUNS, RUNS, "running"),
    publish: in_running(True),
    publish_many: in_running(2),
    publish_and_wait: in_running({"it": None}),
    publish_from_thread: in_running(True),
    stop: in_running({"default": 0}),
    crashed: (NOT_STARTED, WAITS, None, WAITS, WAITS, HAS_STOPPED),
    wait_idle: (None, None, None, WAITS, WAITS, None),
    wait_for: (WAITS, WAITS, WAITS, WAITS, WAITS, HAS_STOPPED),
    listen: (*["listens"] * 5, HAS_STOPPED),
    group: ["late"] * 6,
    subscribe: ["late"] * 6,
    unsubscribe: [None] * 6,
    statistics: (False, False, True, False, False, False),
    health: ("stopped", "stopped", "healthy", "degraded", "degraded", "stopped"),
    set_store: (None, RUNS, RUNS, RUNS, RUNS, None),
    letters_list: [[]] * 6,
    letters_replay: (NOT_STARTED, NOT_YET, 0, 0, IS_STOPPING, HAS_STOPPED),
}
"""What a call returns or raises in each of the states."""
OF_STORES = {
    append: (CLOSED, WAITS, 1, 1, 1, CLOSED),
    read: (CLOSED, [], [], [1], [1], CLOSED),
    get: (CLOSED, None, None, None, None, CLOSED),
    store_statistics: (CLOSED, True, True, True, True, CLOSED),
    letters_discard: (UNUSED, UNUSED, 0, 0, 0, UNUSED),
}
IN_MEMORY = {publish_nowait: in_running(True), letters_discard: [0] * 6}


AT_ONCE = (group, subscribe, unsubscribe, statistics, health, set_store)
"""Calls that cannot be cancelled, for they do not wait."""


def cells(*tables):
    """Yield every state, call and answer."""
    for table in tables:
        for call, answers in table.items():
            for state, answer in zip(STATES, answers, strict=True):
                yield pytest.param(state, call, answer, id=f"{state}-{call.__name__}")


async def answer_of(place, call):
    """Make a call, and return what it returns, which error it raises, or that it waits."""
    try:
        with trio.move_on_after(1):
            return await call(place)
    except TriobusError as error:
        reason = str(error).partition(", for ")[2] or str(error)
        return f"{type(error).__name__}: {reason}"
    return WAITS


def is_answer(found, wanted):
    """Whether an answer is the wanted one; of an error the beginning is given."""
    if isinstance(found, str) and isinstance(wanted, str):
        return found.startswith(wanted)
    return found == wanted and type(found) is type(wanted)


@pytest.mark.parametrize(("state", "call", "answer"), [*cells(ANSWERS, OF_STORES)])
async def test_what_a_call_gets_from_a_bus_with_a_store(state, call, answer, autojump_clock):
    place = Place(is_stored=True)
    async with place.reach(state):
        found = await answer_of(place, call)
    assert is_answer(found, answer), found


@pytest.mark.parametrize(
    ("state", "call", "answer"),
    [cell for cell in cells(ANSWERS, IN_MEMORY) if cell.values[0] != "starting"],
)
async def test_what_a_call_gets_from_a_bus_in_memory(state, call, answer, autojump_clock):
    place = Place(is_stored=False)
    async with place.reach(state):
        found = await answer_of(place, call)
    assert is_answer(found, answer), found


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        pytest.param(call, answers[1], id=call.__name__)
        for call, answers in (ANSWERS | IN_MEMORY).items()
        if call not in (crashed, wait_for, publish_from_thread)  # longer than it starts
    ],
)
async def test_what_a_call_gets_from_a_bus_in_memory_that_is_starting(call, answer, autojump_clock):
    place = Place(is_stored=False)
    place.bus.group("many", workers=50)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(place.live)
        while state_of(place.bus) != "starting":
            await trio.lowlevel.checkpoint()
        assert is_answer(await answer_of(place, call), answer)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("is_stored", "state", "call"),
    [
        pytest.param(is_stored, state, call, id=f"{kind}-{state}-{call.__name__}")
        for kind, is_stored in (("stored", True), ("memory", False))
        for state in STATES
        for call in ANSWERS | OF_STORES
        if call not in (*AT_ONCE, publish_from_thread)  # which takes real time
        and (is_stored or not (call in OF_STORES or state == "starting"))
    ],
)
def test_a_call_that_is_cancelled_at_any_step_leaves_a_bus_that_starts_again(
    is_stored, state, call
):
    async def scenario(place, scope):
        async with place.reach(state):
            with scope:
                await answer_of(place, call)
        assert state_of(place.bus) in ("new", "stopped")
        async with place.bus:
            assert (await place.bus.publish_and_wait(Noted(7))).results["it"] is None
            await place.bus.wait_idle()
            assert place.bus.statistics().queued == 0
        assert place.bus.statistics().worker_count == 0

    at_every_step(lambda: Place(is_stored=is_stored), scenario, lambda place: None)
