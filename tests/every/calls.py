"""Every public call that is awaited, ready to be cancelled: alone, or together with its bus.

Before a call on a bus number 1 has been handled, and number 2 has become a dead letter; a store
that is called without a bus has both numbers.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Literal

import attrs
import trio

from tests.events import Noted
from tests.every.checks import Violation
from tests.every.program import Kind, Program
from triobus import BusClosed, EventBus, EventStore, Retry, StoreClosed

Setting = Literal["bus", "store", "nothing"]
"""What is there before a call."""


def make_bus(program: Program) -> EventBus:
    """Return a bus whose only group handles all that its store has, and fails number 2 once."""
    bus = program.bus()
    group = bus.group("all", workers=2, buffer=2, start="beginning")
    group.subscribe(Noted, program.handler(fails={2: 1}), name="it", retry=Retry(attempts=1))
    return bus


@attrs.define(eq=False)
class Stage:
    """Where one call is made once."""

    program: Program
    bus: EventBus = attrs.field(init=False)
    store: EventStore = attrs.field(init=False)
    is_done: bool = False
    """Whether the call returned."""
    closed: tuple[type[Exception], ...] = ()
    """What a call may get because its bus is cancelled beside it."""
    heard: list[int] = attrs.field(factory=list)
    letters: list[int] | None = None
    """The numbers of the dead letters that are left, if the bus has lived on."""

    async def play(self, call: "Call", *, is_alone: bool) -> None:
        """Make a call, which may be cancelled alone or with all that is around it."""
        if call.setting == "bus":
            await self._play_on_bus(call, is_alone=is_alone)
        elif call.setting == "store":
            await self._play_on_store(call)
        else:
            await call.make(self)
            self.is_done = True

    async def _play_on_bus(self, call: "Call", *, is_alone: bool) -> None:
        self.bus = make_bus(self.program)

        async def run(*, task_status: trio.TaskStatus[EventBus]) -> None:
            with trio.CancelScope(shield=is_alone):
                await self.bus.run(task_status=task_status)

        async with trio.open_nursery() as nursery:
            with trio.CancelScope(shield=True):
                await nursery.start(run)
                await self._prepare()
            if not is_alone:
                self.closed = (BusClosed, StoreClosed)
            try:
                with suppress(*self.closed):
                    await call.make(self)
                    self.is_done = True
            finally:
                with trio.CancelScope(shield=True), suppress(BusClosed, StoreClosed):
                    await self._end()

    async def _prepare(self) -> None:
        with suppress(BusClosed):
            await self.program.publish(self.bus, 1, "a")
            await self.program.publish(self.bus, 2, "b")
            await self.bus.wait_idle()

    async def _end(self) -> None:
        await self.bus.wait_idle()
        letters = await self.bus.dead_letters.list()
        self.letters = [letter.event.number for letter in letters]
        await self.bus.stop()

    async def _play_on_store(self, call: "Call") -> None:
        store = self.program.reopened()
        assert store is not None
        self.store = store
        with trio.CancelScope(shield=True):
            await store.__aenter__()
            with self.program.publishing([1, 2]):
                await store.append([self.program.event(1, "a"), self.program.event(2, "b")])
        try:
            await call.make(self)
            self.is_done = True
        finally:
            if call.name != "store close":
                await store.__aexit__(None, None, None)

    async def publish_soon(self, *numbers: int) -> None:
        """Publish when everybody waits, whoever is cancelled."""
        with trio.CancelScope(shield=True), suppress(BusClosed):
            await trio.testing.wait_all_tasks_blocked()
            for number in numbers:
                await self.program.publish(self.bus, number, "a")


async def check_call(call: "Call", stage: Stage) -> None:
    """Check what a call promises, and that the store knows the same dead letters as its bus did."""
    await call.check(stage)
    if stage.letters is not None and stage.program.kind != "none":
        dead = stage.program.dead
        _demand(stage.letters == dead, f"dead letters {stage.letters}, and {dead} after a restart")


async def _nothing(stage: Stage) -> None:
    """Nothing beyond what always holds."""


@attrs.frozen
class Call:
    """One public call."""

    name: str
    make: Callable[[Stage], Awaitable[None]]
    setting: Setting = "bus"
    check: Callable[[Stage], Awaitable[None]] = _nothing

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The stores with which it can be made."""
        is_of_store = self.name.startswith("store")
        return ("memory", "sqlite") if is_of_store else ("none", "memory", "sqlite")


# Calls on a bus


async def _publish(stage: Stage) -> None:
    await stage.program.publish(stage.bus, 3, "a")


async def _publish_many(stage: Stage) -> None:
    await stage.program.publish_many(stage.bus, [3, 4, 5], "a")


async def _publish_and_wait(stage: Stage) -> None:
    event = stage.program.event(3, "a")
    with stage.program.publishing([3], may_stay=True):
        outcome = await stage.bus.publish_and_wait(event)
    assert outcome.results == {"it": 3}


async def _wait_idle(stage: Stage) -> None:
    await stage.program.publish(stage.bus, 3, "a")
    await stage.bus.wait_idle()
    found = stage.bus.statistics()
    assert (found.queued, found.in_flight) == (0, 0)
    assert 3 in stage.program.numbers_finished()


async def _stop(stage: Stage) -> None:
    await stage.program.publish(stage.bus, 3, "a")
    report = await stage.bus.stop()
    assert report.left == {"default": 0, "all": 0}


async def _check_stop(stage: Stage) -> None:
    if stage.is_done:
        _demand(3 in stage.program.numbers_finished(), "stopped before it was drained")


async def _run(stage: Stage) -> None:
    bus = make_bus(stage.program)
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await stage.program.publish(bus, 3, "a")
        await bus.stop()


async def _block(stage: Stage) -> None:
    bus = make_bus(stage.program)
    async with bus:
        await stage.program.publish(bus, 3, "a")
    assert stage.program.numbers_finished() == [3]


async def _listen(stage: Stage) -> None:
    async with stage.bus.listen(Noted, buffer=1) as events, trio.open_nursery() as nursery:
        nursery.start_soon(stage.publish_soon, 3, 4)
        try:
            while len(stage.heard) < 2:
                stage.heard.append((await anext(events)).number)
        finally:
            with trio.CancelScope(shield=True), suppress(StopAsyncIteration):
                while len(stage.heard) < 2:
                    stage.heard.append((await anext(events)).number)


async def _check_heard(stage: Stage) -> None:
    published = [number for number in (3, 4) if number in stage.program.accepted]
    _demand(stage.heard == published[: len(stage.heard)], f"heard {stage.heard}")
    if stage.letters is not None:
        _demand(stage.heard == published, f"heard {stage.heard} of {published}")


async def _wait_for(stage: Stage) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.publish_soon, 3, 4)
        with suppress(*stage.closed):
            event = await stage.bus.wait_for(Noted, where=lambda event: event.number == 4)
            stage.heard.append(event.number)


# Dead letters


async def _list(stage: Stage) -> None:
    (letter,) = await stage.bus.dead_letters.list()
    assert letter.event.number == 2


async def _replay(stage: Stage) -> None:
    assert await stage.bus.dead_letters.replay(group="all") == 1


async def _check_replay(stage: Stage) -> None:
    is_handled = 2 in stage.program.numbers_finished()
    if stage.is_done:
        _demand(is_handled, "replay() returned, and nothing was handled")
    if stage.letters is not None:
        _demand(is_handled != (2 in stage.letters), "handled, and still a dead letter, or neither")


async def _discard(stage: Stage) -> None:
    (letter,) = await stage.bus.dead_letters.list()
    stage.program.gone.add(2)
    assert await stage.bus.dead_letters.discard(letter.id) == 1


async def _check_discard(stage: Stage) -> None:
    if stage.letters is not None:
        _demand(not (stage.is_done and stage.letters), "discard() returned, and it is there")


# Calls on a store


async def _append(stage: Stage) -> None:
    events = [stage.program.event(3, "a"), stage.program.event(4, "a")]
    with stage.program.publishing([3, 4]):
        await stage.store.append(events)


async def _read(stage: Stage) -> None:
    assert [stored.event.number async for stored in stage.store.read()] == [1, 2]


async def _get(stage: Stage) -> None:
    stored = await stage.store.get(stage.program.world.event_id("1"))
    assert stored is not None
    assert (stored.event.number, stored.position) == (1, 1)


async def _statistics(stage: Stage) -> None:
    assert (await stage.store.statistics()).events == 2


async def _open(stage: Stage) -> None:
    store = stage.program.reopened()
    assert store is not None
    try:
        await store.__aenter__()
    except trio.Cancelled:
        with trio.CancelScope(shield=True):
            await _check_closed(store)
        raise
    with trio.CancelScope(shield=True):
        assert (await store.statistics()).events == 0
        await store.__aexit__(None, None, None)


async def _close(stage: Stage) -> None:
    await stage.store.__aexit__(None, None, None)
    with trio.CancelScope(shield=True):
        await _check_closed(stage.store)


async def _check_closed(store: EventStore) -> None:
    try:
        await store.statistics()
    except StoreClosed:
        return
    raise Violation(f"{store} is open")


def _demand(is_kept: bool, message: str) -> None:
    if not is_kept:
        raise Violation(message)


CALLS = (
    Call("publish", _publish),
    Call("publish_many", _publish_many),
    Call("publish_and_wait", _publish_and_wait),
    Call("wait_idle", _wait_idle),
    Call("stop", _stop, check=_check_stop),
    Call("run", _run, "nothing"),
    Call("async with bus", _block, "nothing"),
    Call("listen", _listen, check=_check_heard),
    Call("wait_for", _wait_for),
    Call("dead_letters.list", _list),
    Call("dead_letters.replay", _replay, check=_check_replay),
    Call("dead_letters.discard", _discard, check=_check_discard),
    Call("store append", _append, "store"),
    Call("store read", _read, "store"),
    Call("store get", _get, "store"),
    Call("store statistics", _statistics, "store"),
    Call("store open", _open, "nothing"),
    Call("store close", _close, "store"),
)
