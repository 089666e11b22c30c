"""The public calls that can overlap. A new one is one function and one entry of `CALLS`."""

from collections.abc import Awaitable, Callable
from typing import Any, Literal

import attrs
import trio

from tests.events import Noted
from tests.proofs.overlaps.ledger import Heard, number_of
from tests.proofs.overlaps.situations import ALL
from tests.proofs.overlaps.stage import BodyFailed, Kind, Stage
from triobus import (
    BusAlreadyStarted,
    BusClosed,
    BusFull,
    EventStore,
    StoreInUse,
    UnknownDeadLetter,
)
from triobus.testing import crash

STORED = ALL[1:]
SAME = 50
"""The number that is published again and again."""


@attrs.define(eq=False)
class Role:
    """One of the two calls, as it is made."""

    name: Literal["A", "B"]
    call: "Call"
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    begun: trio.Event = attrs.field(factory=trio.Event)
    over: trio.Event = attrs.field(factory=trio.Event)
    error: BaseException | None = None
    is_done: bool = False
    task: Any = None
    in_thread: bool = False
    """Whether a real thread has a part in it, which virtual time does not wait for."""

    @property
    def base(self) -> int:
        """Return the first of the numbers that are its own."""
        return 100 if self.name == "A" else 200

    async def play(self, stage: Stage) -> None:
        """Make the call."""
        self.task = trio.lowlevel.current_task()
        self.begun.set()
        try:
            with self.scope:
                await self.call.make(stage, self)
                self.is_done = True
        except Exception as error:  # noqa: BLE001  # the checker judges it
            self.error = error
        except BaseExceptionGroup as error:  # the same
            self.error = error
        finally:
            self.over.set()


# The life of the bus


async def _start(stage: Stage, role: Role) -> None:
    await stage.host("block").begin()


async def _run(stage: Stage, role: Role) -> None:
    await stage.host("run").begin()


async def _leave(stage: Stage, role: Role) -> None:
    if stage.hosts:
        await stage.hosts[0].leave()


async def _raise(stage: Stage, role: Role) -> None:
    if stage.hosts:
        await stage.hosts[0].leave(is_failing=True)


def _stop(**options: Any) -> "Make":
    async def stop(stage: Stage, role: Role) -> None:
        report = await stage.bus.stop(**options)
        stage.ledger.demand(
            set(report.left) == set(report.settled) >= {"default", "all", "gone"},
            f"the report of stop() tells of {sorted(report.left)} and {sorted(report.settled)}",
        )

    return stop


async def _publish_and_stop(stage: Stage, role: Role) -> None:
    await _publish_many(stage, role)
    await stage.bus.stop()


async def _crash(stage: Stage, role: Role) -> None:
    was_crashed, stage.ledger.is_crashed = stage.ledger.is_crashed, True
    try:
        await crash(stage.bus)
    except BusClosed:
        stage.ledger.is_crashed = was_crashed
        raise


async def _restart(stage: Stage, role: Role) -> None:
    await stage.bus.stop()
    for host in stage.hosts:
        await host.leave()
    await stage.host("block").begin()


async def _subscribe_and_crash(stage: Stage, role: Role) -> None:
    await _group_subscribed(stage, role)
    with trio.move_on_after(0.5):
        await stage.late_handling.wait()
    await _crash(stage, role)


# Groups and subscriptions


async def _group(stage: Stage, role: Role) -> None:
    await trio.lowlevel.checkpoint()
    _late(stage, role)


def _late(stage: Stage, role: Role) -> Any:
    name = f"late {role.name}"
    group = stage.bus.group(name, workers=1)
    stage.workers[name] = 1
    stage.extra[name] = []
    return group


async def _group_subscribed(stage: Stage, role: Role) -> None:
    await trio.lowlevel.checkpoint()
    group = _late(stage, role)
    group.subscribe(Noted, stage.handler(group.name, "late"), name="late")
    stage.extra[group.name].append("late")
    stage.ledger.subscribed[group.name, "late"] = stage.ledger.now()


async def _subscribe(stage: Stage, role: Role) -> None:
    await trio.lowlevel.checkpoint()
    name = f"extra {role.name}"
    stage.bus.subscribe(Noted, stage.handler("default", name), name=name)
    stage.extra.setdefault("default", []).append(name)
    stage.ledger.subscribed["default", name] = stage.ledger.now()


async def _unsubscribe(stage: Stage, role: Role) -> None:
    name = f"short {role.name}"
    stage.ledger.leaving.add(("default", name))
    short = stage.bus.subscribe(Noted, stage.handler("default", name), name=name)
    await trio.lowlevel.checkpoint()
    short.unsubscribe()


async def _unsubscribe_last(stage: Stage, role: Role) -> None:
    await trio.lowlevel.checkpoint()
    stage.ledger.leaving.add(("gone", "last"))
    waiting = set(stage.ledger.waiting)
    stage.gone_sub.unsubscribe()
    if stage.kind == "none":
        await trio.sleep(1)
        still = waiting & stage.ledger.waiting
        stage.ledger.demand(
            not still, f"publishers of {sorted(still)} wait for room where nobody wants them"
        )


# Publishing


async def _publish(stage: Stage, role: Role) -> None:
    for number in range(role.base, role.base + 3):
        await stage.publish(number, "a")


async def _publish_many(stage: Stage, role: Role) -> None:
    numbers = [role.base, role.base + 1, role.base + 2]
    events = [stage.ledger.event(number, "b") for number in numbers]
    with stage.ledger.publishing(*numbers):
        for number, published in zip(numbers, await stage.bus.publish_many(events), strict=True):
            stage.ledger.accept(number, published.position)


async def _publish_same(stage: Stage, role: Role) -> None:
    await stage.publish(SAME, "a")


async def _publish_and_wait(stage: Stage, role: Role) -> None:
    event = stage.ledger.event(role.base, "a")
    with stage.ledger.publishing(role.base, may_stay=True):
        outcome = await stage.bus.publish_and_wait(event)
        stage.ledger.accept(role.base, outcome.position)
    stage.ledger.demand(
        outcome.results.get("it") == role.base and outcome.results.get("every") == role.base,
        f"publish_and_wait() returned, and {outcome.results} are the results",
    )


async def _publish_same_and_wait(stage: Stage, role: Role) -> None:
    event = stage.ledger.event(SAME, "a")
    with stage.ledger.publishing(SAME, may_stay=True):
        outcome = await stage.bus.publish_and_wait(event)
        stage.ledger.accept(SAME, outcome.position)
    stage.ledger.demand(
        stage.ledger.times(("default", "it"), SAME) > 0,
        "publish_and_wait() returned before the event was handled",
    )


async def _publish_nowait(stage: Stage, role: Role) -> None:
    await trio.lowlevel.checkpoint()
    with stage.ledger.publishing(role.base):
        published = stage.bus.publish_nowait(stage.ledger.event(role.base, "a"))
        stage.ledger.accept(role.base, published.position)


async def _publish_from_thread(stage: Stage, role: Role) -> None:
    event = stage.ledger.event(role.base, "a")
    role.in_thread = True
    try:
        with stage.ledger.publishing(role.base):
            stage.ledger.waiting.discard(role.base)  # a thread takes real time
            published = await trio.to_thread.run_sync(stage.bus.publish_from_thread, event)
            stage.ledger.accept(role.base, published.position)
    finally:
        role.in_thread = False


# Waiting and listening


async def _wait_idle(stage: Stage, role: Role) -> None:
    await stage.bus.wait_idle()


async def _wait_for(stage: Stage, role: Role) -> None:
    event = await stage.bus.wait_for(Noted)
    stage.ledger.demand(event.number in stage.ledger.began, f"wait_for() returned {event}")


def _listen(*, is_slow: bool = False, most: float = float("inf")) -> "Make":
    async def listen(stage: Stage, role: Role) -> None:
        async with stage.bus.listen(Noted, buffer=1 if is_slow else 100) as events:
            heard = Heard(stage.ledger.now())
            stage.ledger.heard.append(heard)
            async for event in events:
                heard.numbers.append(event.number)
                if len(heard.numbers) >= most:
                    return
                if is_slow:
                    await trio.sleep(1)
            heard.ended = stage.ledger.now()

    return listen


# Dead letters and looking


async def _letters(stage: Stage, role: Role) -> None:
    for letter in await stage.bus.dead_letters.list():
        stage.ledger.demand(
            stage.behaviours.get(number_of(letter.event)) == "dead", f"a dead letter {letter}"
        )


async def _replay(stage: Stage, role: Role) -> None:
    letters = await stage.bus.dead_letters.list()
    stage.ledger.replayed.update(number_of(letter.event) for letter in letters)
    await stage.bus.dead_letters.replay([letter.id for letter in letters])


async def _discard(stage: Stage, role: Role) -> None:
    letters = await stage.bus.dead_letters.list()
    stage.ledger.discarded.update(number_of(letter.event) for letter in letters)
    await stage.bus.dead_letters.discard([letter.id for letter in letters])


async def _statistics(stage: Stage, role: Role) -> None:
    for _ in range(5):
        await trio.lowlevel.checkpoint()
        found = stage.bus.statistics()
        for name, group in found.groups.items():
            known = group.handled + group.queued + group.in_flight + group.waiting_for_retry
            stage.ledger.demand(
                group.published == known, f"group {name!r} does not add up: {group}"
            )


async def _health(stage: Stage, role: Role) -> None:
    for _ in range(5):
        await trio.lowlevel.checkpoint()
        found = stage.bus.health()
        stage.ledger.demand(
            found.status != "stopped" or not stage.bus.statistics().running,
            f"{found} while it runs",
        )


# The store


def _store_of(stage: Stage) -> EventStore:
    assert stage.store is not None
    return stage.store


async def _open(stage: Stage, role: Role) -> None:
    async with _store_of(stage):
        await trio.lowlevel.checkpoint()


async def _append(stage: Stage, role: Role) -> None:
    async with _store_of(stage):
        await _append_bare(stage, role)


async def _append_bare(stage: Stage, role: Role) -> None:
    for number in range(role.base, role.base + 4):
        event = stage.ledger.event(number, "a")
        with stage.ledger.publishing(number, by_bus=False):
            (stored,) = await _store_of(stage).append([event])
            stage.ledger.accept(number, stored.position)


async def _append_on(stage: Stage, role: Role) -> None:
    """Append at first now and then, until all else is handled, and then without a pause."""
    host = stage.hosts[0] if stage.hosts else None
    leaving_since = 0
    for number in range(role.base * 10, role.base * 10 + 200):
        event = stage.ledger.event(number, "a")
        with stage.ledger.publishing(number, by_bus=False):
            (stored,) = await _store_of(stage).append([event])
            stage.ledger.accept(number, stored.position)
        if host is None or host.over.is_set() or (number % 1000 > 60 and not leaving_since):
            return
        if number % 1000 < 15:
            await trio.sleep(4)
        elif host.leaving.is_set():
            leaving_since = leaving_since or number
            if number - leaving_since > 100:
                stage.ledger.problems.append("the block does not end while the log grows")
                return


async def _read(stage: Stage, role: Role) -> None:
    async with _store_of(stage) as store:
        positions = [stored.position async for stored in store.read()]
    stage.ledger.demand(
        positions == list(range(1, len(positions) + 1)), f"read() gave positions {positions}"
    )


async def _get(stage: Stage, role: Role) -> None:
    async with _store_of(stage) as store:
        stored = await store.get(stage.ledger.event(1).event_id)
    stage.ledger.demand(
        stored is None or (stored.position, number_of(stored.event)) == (1, 1),
        f"get() gave {stored}",
    )


async def _store_statistics(stage: Stage, role: Role) -> None:
    async with _store_of(stage) as store:
        await store.statistics()


async def _second_bus(stage: Stage, role: Role) -> None:
    other = stage.make_bus(stage.another_store())
    async with other:
        stage.ledger.demand(
            not stage.bus.statistics().running, "two buses run on one store at the same time"
        )


async def _nothing(stage: Stage, role: Role) -> None:
    await trio.lowlevel.checkpoint()


Make = Callable[[Stage, Role], Awaitable[None]]


@attrs.frozen
class Call:
    """One public call."""

    name: str
    make: Make
    needs: Literal["running", "new"] = "running"
    """What the bus is when this call is the first of two."""
    kinds: tuple[Kind, ...] = ALL
    ends: bool = False
    """Whether the bus is closed to others after it, or while it is cancelled."""
    waits: bool = False
    """Whether it waits for something that has to happen before it ends."""
    errors: tuple[type[Exception], ...] = ()
    """What it may raise beside what a bus says that is closed."""

    @property
    def shares(self) -> bool:
        """Whether it may have the store after the block of the bus has ended."""
        return self.name.startswith("store ") or self.name in ("second bus", "stop and start again")


_STARTED = (BusAlreadyStarted, StoreInUse)

CALLS = {
    call.name: call
    for call in (
        Call("nothing", _nothing),
        Call("start", _start, "new", ends=True, errors=_STARTED),
        Call("run", _run, "new", ends=True, errors=_STARTED),
        Call("leave", _leave, ends=True),
        Call("body raises", _raise, ends=True, errors=(BodyFailed,)),
        Call("stop", _stop(), ends=True),
        Call("stop drain=False", _stop(drain=False), ends=True),
        Call("stop drain=running", _stop(drain="running"), ends=True),
        Call("stop timeout=0", _stop(timeout=0), ends=True),
        Call("publish_many and stop", _publish_and_stop, ends=True),
        Call("crash", _crash, ends=True),
        Call("stop and start again", _restart, ends=True, errors=_STARTED),
        Call("group", _group),
        Call("group with subscription", _group_subscribed),
        Call("group with subscription, crash", _subscribe_and_crash, ends=True),
        Call("subscribe", _subscribe),
        Call("unsubscribe", _unsubscribe),
        Call("unsubscribe last", _unsubscribe_last),
        Call("publish", _publish),
        Call("publish_many", _publish_many),
        Call("publish same", _publish_same),
        Call("publish_and_wait", _publish_and_wait),
        Call("publish same and wait", _publish_same_and_wait),
        Call("publish_nowait", _publish_nowait, kinds=("none",), errors=(BusFull,)),
        Call("publish_from_thread", _publish_from_thread),
        Call("wait_idle", _wait_idle),
        Call("wait_for", _wait_for, waits=True),
        Call("listen", _listen(), waits=True),
        Call("listen slow", _listen(is_slow=True), waits=True),
        Call("listen and leave", _listen(most=1), waits=True),
        Call("dead_letters.list", _letters),
        Call("dead_letters.replay", _replay, errors=(UnknownDeadLetter,)),
        Call("dead_letters.discard", _discard, errors=(UnknownDeadLetter,)),
        Call("statistics", _statistics),
        Call("health", _health),
        Call("store open", _open, kinds=STORED),
        Call("store append", _append, kinds=STORED),
        Call("store append bare", _append_bare, kinds=STORED),
        Call("store append on", _append_on, kinds=STORED),
        Call("store read", _read, kinds=STORED),
        Call("store get", _get, kinds=STORED),
        Call("store statistics", _store_statistics, kinds=STORED),
        Call("second bus", _second_bus, kinds=STORED, errors=(StoreInUse,)),
    )
}
