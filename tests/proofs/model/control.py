"""A group that is paused, resumed and reset, with batches or not, and events that come later.

Handlers take no time here and one worker calls them, so that all is certain: after each operation
the model says which events were handled in which order, which became dead letters, and what waits.
The model is one list for the log, one for what is scheduled, and one position.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import attrs
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.events import Noted
from tests.proofs.model.play import KINDS
from tests.proofs.model.stores import Opened, opened
from tests.proofs.proof import Proof
from triobus import EventBus, Group, Retry
from triobus._environment import replace
from triobus.testing._scheduler import scheduled_by

Name = Literal[
    "publish",
    "publish many",
    "publish later",
    "publish it now",
    "take back",
    "pause",
    "resume",
    "reset",
    "sleep",
    "restart",
]
TIMES = (0.0, 1.0, 2.5, 30.0)
GROUP = "it"


@attrs.frozen
class Operation:
    """One thing that is done, and what chooses its arguments."""

    name: Name
    choice: int


@attrs.frozen
class Program:
    """What is done with a bus; it has one group."""

    batch: int | None
    operations: tuple[Operation, ...]
    seed: int


@attrs.frozen(order=True)
class Later:
    """An event that is scheduled."""

    due: float
    order: int
    number: int


def is_bad(number: int) -> bool:
    """Whether the handler refuses an event, always."""
    return number % 4 == 3


@attrs.define(eq=False)
class Model:
    """What must be true."""

    log: list[int] = attrs.field(factory=list)
    scheduled: list[Later] = attrs.field(factory=list)
    offset: int = 0
    """Up to which position the group is done."""
    is_paused: bool = False
    handled: list[int] = attrs.field(factory=list)
    letters: list[int] = attrs.field(factory=list)

    def go_on(self, now: float) -> None:
        """Bring what is due into the log, and handle what the group has still to do."""
        due = sorted(later for later in self.scheduled if later.due <= now)
        self.scheduled = [later for later in self.scheduled if later.due > now]
        self.log += [later.number for later in due]
        if not self.is_paused:
            ready, self.offset = self.log[self.offset :], len(self.log)
            self.handled += [number for number in ready if not is_bad(number)]
            self.letters += [number for number in ready if is_bad(number)]


@attrs.define(eq=False)
class Player:
    """Does the same with a bus and with the model, and compares them after each operation."""

    _program: Program
    _opened: Opened | None
    model: Model = attrs.field(factory=Model, init=False)
    _handled: list[int] = attrs.field(factory=list, init=False)
    _largest: int = attrs.field(default=0, init=False)
    """How many events the handler was given at once, at most."""
    _events: list[Noted] = attrs.field(factory=list, init=False)
    _bus: EventBus = attrs.field(init=False)
    _group: Group = attrs.field(init=False)

    async def play(self) -> None:
        """Play all lives of the program."""
        left = list(self._program.operations)
        while left:
            self._make_bus()
            async with self._bus:
                await self._compare("start")
                while left and not self._ends_life(left[0]):
                    operation = left.pop(0)
                    await getattr(self, "_" + operation.name.replace(" ", "_"))(operation.choice)
                    await self._compare(str(operation))
                await self._bus.stop(timeout=0)
            del left[:1]
            self.model.is_paused = False

    def _ends_life(self, operation: Operation) -> bool:
        return operation.name == "restart" and self._opened is not None

    def _make_bus(self) -> None:
        store = None if self._opened is None else self._opened.store(None)
        bus = self._bus = EventBus(store)
        group = self._group = bus.group(
            GROUP, workers=1, buffer=10_000, batch=self._program.batch, ordering="aggregate"
        )
        if self._program.batch is None:
            group.subscribe(Noted, self._handle, name="one", retry=Retry(attempts=1))
        else:
            group.subscribe(Noted, self._handle_some, name="one", retry=Retry(attempts=1))

    async def _handle(self, event: Noted) -> None:
        await self._handle_some((event,))

    async def _handle_some(self, events: tuple[Noted, ...]) -> None:
        self._largest = max(self._largest, len(events))
        await trio.lowlevel.checkpoint()
        if any(is_bad(event.number) for event in events):
            raise ValueError("bad")
        self._handled += [event.number for event in events]

    async def _compare(self, what: str) -> None:
        """Let all go on, and see that bus and model have come to the same."""
        await wait_all_tasks_blocked()
        model = self.model
        model.go_on(trio.current_time())
        assert self._largest <= (self._program.batch or 1), f"{what}: a batch of {self._largest}"
        assert self._handled == model.handled, f"{what}: handled are {self._handled}"
        found = self._bus.statistics()
        assert found.scheduled == len(model.scheduled), f"{what}: {found.scheduled} are scheduled"
        assert found.groups[GROUP].paused == model.is_paused, f"{what}: paused or not"
        letters = sorted(letter.event.number for letter in await self._bus.dead_letters.list())  # type: ignore[attr-defined]  # they are ours
        assert letters == sorted(model.letters), f"{what}: dead letters are {letters}"
        if self._bus.store is not None:
            stored = [found.event.number async for found in self._bus.store.read()]  # type: ignore[attr-defined]
            assert stored == model.log, f"{what}: the log is {stored}, and not {model.log}"

    # Operations

    def _new(self, choice: int) -> Noted:
        event = Noted(len(self._events), ["x", "y", None][choice % 3])
        self._events.append(event)
        return event

    def _scheduled(self, choice: int) -> Later | None:
        scheduled = self.model.scheduled
        return scheduled[choice % len(scheduled)] if scheduled else None

    async def _publish(self, choice: int) -> None:
        event = self._new(choice)
        await self._bus.publish(event)
        self.model.log.append(event.number)

    async def _publish_many(self, choice: int) -> None:
        events = [self._new(choice + index) for index in range(choice % 7)]
        await self._bus.publish_many(events)
        self.model.log += [event.number for event in events]

    async def _publish_later(self, choice: int) -> None:
        event, delay = self._new(choice), TIMES[choice % len(TIMES)]
        now = trio.current_time()
        published = await self._bus.publish(event, delay=delay)
        assert published.is_new
        if delay:
            assert published.position is None
            self.model.scheduled.append(Later(now + delay, event.number, event.number))
        else:
            self.model.log.append(event.number)

    async def _publish_it_now(self, choice: int) -> None:
        """Publish an event at once that is scheduled, or schedule it again without a store."""
        later = self._scheduled(choice)
        if later is None:
            return
        event = self._events[later.number]
        if self._bus.store is None or choice % 2:
            assert not (await self._bus.publish(event, delay=1)).is_new
            return
        await self._bus.publish(event)
        self.model.scheduled.remove(later)
        self.model.log.append(later.number)

    async def _take_back(self, choice: int) -> None:
        event = self._events[choice % len(self._events)] if self._events else Noted(0)
        kept = [later for later in self.model.scheduled if later.number != event.number]
        was_there = await self._bus.cancel_scheduled(event.event_id)
        assert was_there == (len(kept) < len(self.model.scheduled)), f"{event}: {was_there}"
        self.model.scheduled = kept

    async def _pause(self, _: int) -> None:
        await self._group.pause()
        self.model.is_paused = True

    async def _resume(self, _: int) -> None:
        await self._group.resume()
        self.model.is_paused = False

    async def _reset(self, choice: int) -> None:
        """Begin again from somewhere; the group is paused for it, and paused after it."""
        if self._bus.store is None:
            return
        await self._pause(choice)
        model, last = self.model, len(self.model.log)
        offset = [0, last, choice % (last + 1)][choice % 3]
        await self._group.reset(("beginning", "end", offset)[choice % 3])  # type: ignore[arg-type]
        model.offset, model.letters = offset, []

    async def _sleep(self, choice: int) -> None:
        await trio.sleep(TIMES[choice % len(TIMES)])

    async def _restart(self, _: int) -> None:
        """There is none without a store, which has nothing to go on with."""
        await trio.lowlevel.checkpoint()


def programs() -> st.SearchStrategy[Program]:
    """Draw programs."""
    names: list[Name] = [*Name.__args__, "publish", "publish many", "publish later", "sleep"]  # type: ignore[attr-defined]
    operations = st.builds(Operation, st.sampled_from(names), st.integers(0, 40))
    return st.builds(
        Program,
        batch=st.sampled_from([None, 1, 2, 3, 500]),
        operations=st.one_of(
            st.lists(operations, min_size=1, max_size=10),
            st.lists(operations, min_size=20, max_size=50),  # it rarely draws so many by itself
        ).map(tuple),
        seed=st.integers(0, 2**16),
    )


def play(program: Program, kind: str) -> Model:
    """Play a program; raise `AssertionError` if bus and model differ."""
    with tempfile.TemporaryDirectory(prefix="triobus-") as directory:
        store = opened(kind, Path(directory), program.seed)
        player = Player(program, store)

        async def main() -> None:
            if store is not None:
                replace(instead_of_thread=store.call)
            await player.play()

        with scheduled_by(program.seed):
            trio.run(main, clock=MockClock(autojump_threshold=0))
    return player.model


def explore(kind: str, examples: int, seed: int, *, is_shrinking: bool = True) -> list[Model]:
    """Play so many programs on a kind of store, and return to what each came."""
    played: list[Model] = []

    @seeded(seed)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink] if is_shrinking else [Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(programs())
    def example(program: Program) -> None:
        played.append(play(program, kind))

    example()
    return played


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--examples", type=int, default=1000, metavar="N", help="how many programs (default 1000)"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="what they are drawn from (default: by chance)"
    )


def _prove(options: argparse.Namespace) -> int:
    if options.examples < 1:
        options.refuse("--examples: give at least 1")
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    models, violations, began = list[Model](), 0, time.perf_counter()
    for kind in KINDS:
        print(f"{options.examples} programs, store: {kind}", flush=True)
        try:
            models += explore(kind, options.examples, seed)
        except AssertionError as error:
            violations += 1
            print(f"seed {seed}, store {kind}: {error}", file=sys.stderr)
            print(*getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
    print(
        f"seed {seed}: {len(models)} programs, {sum(len(model.log) for model in models)} events, "
        f"{sum(len(model.handled) for model in models)} handled, {violations} violations, "
        f"in {time.perf_counter() - began:.0f} s"
    )
    return 1 if violations else 0


PROOFS = {
    "control": Proof(
        "pause, resume, reset, batches and scheduled events beside a model of one list",
        _add_options,
        _prove,
    )
}
