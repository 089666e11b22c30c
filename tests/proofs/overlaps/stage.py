"""Where two calls meet: a bus in some situation, its hosts, and a world without threads."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any, Literal

import attrs
import trio

from tests.events import Noted
from tests.proofs.overlaps.ledger import Finish, Ledger, Sub
from triobus import (
    EventBus,
    EventStore,
    MemoryEventStore,
    Retry,
    SqliteEventStore,
    TriobusError,
    current_delivery,
)

Kind = Literal["none", "memory", "file", "sqlite-memory"]
Behaviour = Literal["plain", "slow", "long", "retried", "dead"]
"""What handlers make of a number: `slow` takes a second, `long` twenty, `retried` fails once."""

WORKERS = {"default": 2, "all": 2, "gone": 1}
"""The groups of every bus and their workers."""
NO_RETRY = Retry(attempts=2, delay=5, jitter=0)


class BodyFailed(Exception):
    """What the body of a block raises when it is told to."""


@attrs.define(eq=False)
class Host:
    """A task that runs a bus, as a block or in a nursery, until it is told to leave."""

    stage: "Stage"
    form: Literal["block", "run"]
    bus: EventBus
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    leaving: trio.Event = attrs.field(factory=trio.Event)
    is_failing: bool = False
    """Whether the body raises when it leaves."""
    begun: trio.Event = attrs.field(factory=trio.Event)
    over: trio.Event = attrs.field(factory=trio.Event)
    has_entered: bool = False
    """Whether the body has begun."""
    error: BaseException | None = None
    task: Any = None

    async def live(self) -> None:
        """Run the bus."""
        self.task = trio.lowlevel.current_task()
        try:
            with self.scope:
                await (self._run() if self.form == "run" else self._block())
        except Exception as error:  # noqa: BLE001  # the checker judges it
            self.error = error
        except BaseExceptionGroup as error:  # the same
            self.error = error
        finally:
            if self.has_entered:
                with trio.CancelScope(shield=True):
                    await self.stage.probe(self.bus)
            self.begun.set()
            self.over.set()

    async def _block(self) -> None:
        async with self.bus:
            self._begin()
            await self.leaving.wait()
            if self.is_failing:
                raise BodyFailed

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.bus.run)
            self._begin()
            await self.leaving.wait()
            if self.is_failing:
                raise BodyFailed
            await self.stage.stop_if_running(self.bus)

    def _begin(self) -> None:
        if not self.scope.cancel_called:
            self.stage.check_workers(self.bus, "when the block begins")
        self.has_entered = True
        self.begun.set()

    async def leave(self, *, is_failing: bool = False) -> None:
        """Tell it to leave and wait until it has; cancelled, the block is cancelled."""
        self.is_failing = self.is_failing or (is_failing and not self.leaving.is_set())
        self.leaving.set()
        try:
            await self.over.wait()
        except trio.Cancelled:
            self.scope.cancel()
            raise

    async def begin(self) -> None:
        """Start it and wait until its body has begun; raises what the bus has raised before."""
        self.stage.hosts.append(self)
        self.stage.nursery.start_soon(self.live)
        try:
            await self.begun.wait()
        except trio.Cancelled:
            self.scope.cancel()
            raise
        if self.over.is_set() and self.error is not None and not self.is_failing:
            error, self.error = self.error, None
            raise error


@attrs.define(eq=False)
class Stage:
    """One run: a bus of some kind, and what is known about it."""

    kind: Kind
    directory: Path
    random: Random
    nursery: trio.Nursery
    buffer_of_gone: float = 1000
    ledger: Ledger = attrs.field(factory=Ledger)
    behaviours: dict[int, Behaviour] = attrs.field(factory=dict)
    hosts: list[Host] = attrs.field(factory=list)
    store: EventStore | None = None
    bus: EventBus = attrs.field(init=False)
    workers: dict[str, int] = attrs.field(factory=lambda: dict(WORKERS))
    """The groups that the bus has by now, and their workers."""
    extra: dict[str, list[str]] = attrs.field(factory=dict)
    """The subscriptions that were made meanwhile, by group; the next life has them too."""
    gone_sub: Any = None
    """The last subscription of the group "gone"."""
    late_handling: trio.Event = attrs.field(factory=trio.Event)
    """Set when a handler of a group that was made meanwhile has begun."""
    is_probing: bool = False
    """Whether another bus takes the store as soon as the block has ended."""

    @property
    def is_durable(self) -> bool:
        """Whether the next bus finds what this one has left."""
        return self.kind in ("memory", "file")

    # Buses and stores

    def another_store(self) -> EventStore | None:
        """Return the store as another bus would come to it."""
        if self.kind == "file":
            return SqliteEventStore(self.directory / "events.db")
        return self.store

    def make_store(self) -> None:
        """Make the store that the case is about."""
        if self.kind == "memory":
            self.store = MemoryEventStore()
        elif self.kind == "file":
            self.store = self.another_store()
        elif self.kind == "sqlite-memory":
            self.store = SqliteEventStore(":memory:")

    def make_bus(self, store: EventStore | None) -> EventBus:
        """Return a bus with all groups and subscriptions that there are by now."""
        bus = EventBus(store, workers=2)
        bus.subscribe(Noted, self.handler("default", "it"), name="it", retry=NO_RETRY)
        everything = bus.group("all", workers=2, start="beginning")
        everything.subscribe(Noted, self.handler("all", "every"), name="every")
        gone = bus.group("gone", workers=1, buffer=self.buffer_of_gone)
        last = gone.subscribe(Noted, self.handler("gone", "last"), name="last")
        self.gone_sub = self.gone_sub or last
        for group, names in self.extra.items():
            home: Any = bus if group == "default" else bus.group(group, workers=1)
            for name in names:
                home.subscribe(Noted, self.handler(group, name), name=name)
        for sub in (("default", "it"), ("all", "every"), ("gone", "last")):
            self.ledger.subscribed.setdefault(sub, 0)
        return bus

    def handler(self, group: str, name: str) -> Callable[[Noted], Awaitable[int]]:
        """Return a handler that does what the behaviour of a number says."""
        sub: Sub = (group, name)

        async def handle(event: Noted) -> int:
            behaviour = self.behaviours.get(event.number, "plain")
            position = current_delivery().position
            self.ledger.attempts[sub, event.number] += 1
            if group.startswith("late"):
                self.late_handling.set()
            if behaviour in ("slow", "long"):
                await trio.sleep(1 if behaviour == "slow" else 20)
            else:
                await trio.lowlevel.checkpoint()
            fails = {"retried": 1, "dead": 2}.get(behaviour, 0)
            if sub == ("default", "it") and self.ledger.attempts[sub, event.number] <= fails:
                raise OSError(event.number)
            self.ledger.finished.append(Finish(self.ledger.life, sub, event.number, position))
            return event.number

        return handle

    def host(self, form: Literal["block", "run"] = "block") -> Host:
        """Return a host for the bus of the case."""
        return Host(self, form, self.bus)

    async def publish(self, number: int, key: str | None, behaviour: Behaviour = "plain") -> None:
        """Publish one number."""
        self.behaviours.setdefault(number, behaviour)
        event = self.ledger.event(number, key)
        with self.ledger.publishing(number):
            published = await self.bus.publish(event)
            self.ledger.accept(number, published.position)

    async def stop_if_running(self, bus: EventBus) -> None:
        """Stop a bus, unless somebody else has."""
        try:
            await bus.stop()
        except TriobusError:
            if bus.statistics().running:
                raise

    def check_workers(self, bus: EventBus, when: str) -> None:
        """Check that the workers of all groups run, if the bus runs."""
        found = bus.statistics()
        if not found.running:
            return
        running = {name: group.worker_count for name, group in found.groups.items()}
        wanted = {name: self.workers[name] for name in running if name in self.workers}
        self.ledger.demand(
            running == wanted and found.worker_count == sum(wanted.values()),
            f"workers {when}: {running}, and there should be {wanted}",
        )

    async def probe(self, bus: EventBus) -> None:
        """Check that a block has left nothing behind: another bus may have the store at once."""
        if not self.is_probing or self.ledger.is_crashed:
            return
        found = bus.statistics()
        self.ledger.demand(
            bus.health().status == "stopped" and not found.worker_count,
            f"the block has ended: {bus.health().status}, {found.worker_count} workers",
        )
        beside = {path.name for path in self.directory.iterdir()} - {"events.db"}
        self.ledger.demand(
            not beside, f"the block has ended, and beside the store was left {sorted(beside)}"
        )
        if self.is_durable:
            self.ledger.life += 1
            try:
                async with self.make_bus(self.another_store()):
                    pass
            except Exception as error:  # noqa: BLE001  # whatever it is, it is not promised
                self.ledger.problems.append(f"the block has ended, and the next one has {error!r}")

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Make a call that would go to a thread: here, and in virtual time."""
        with trio.CancelScope(shield=True):
            await trio.sleep(self.random.random() * 0.001)
            try:
                return function(*args)
            finally:
                await trio.sleep(self.random.random() * 0.001)
