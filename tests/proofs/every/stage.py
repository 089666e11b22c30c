"""Where one public call is made once, to be cancelled alone or together with its bus."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Literal

import attrs
import trio

from tests.events import Noted
from tests.proofs.every.checks import Violation
from tests.proofs.every.program import Kind, Program
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
        demand(stage.letters == dead, f"dead letters {stage.letters}, and {dead} after a restart")


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


def demand(is_kept: bool, message: str) -> None:
    if not is_kept:
        raise Violation(message)
