"""Plays a program on a real bus, and tells the model what happens."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, ClassVar
from uuid import UUID

import attrs
import trio
from trio.lowlevel import checkpoint

from tests.proofs.model import timing
from tests.proofs.model.facts import Counted, Fact, GroupTerms, LetterTruth, StoreTruth, Terms
from tests.proofs.model.programs import (
    Discard,
    Draft,
    End,
    Listen,
    Look,
    MakeGroup,
    Operation,
    Pause,
    Program,
    Publish,
    PublishAgain,
    PublishLater,
    PublishOther,
    Replay,
    Settle,
    Sleep,
    Step,
    Subscribe,
    Unsubscribe,
    Withdraw,
)
from tests.proofs.model.promises import Promises
from tests.proofs.model.stores import Opened, truth_of
from triobus import (
    BusClosed,
    BusFull,
    DomainEvent,
    EventBus,
    OutcomeUnknown,
    Retry,
    StoreError,
    Subscription,
    UnknownDeadLetter,
    UnknownSubscription,
    current_delivery,
)
from triobus.testing import crash

_PATIENCE = 1e6
_MOST_LETTERS = 1000
_REFUSED = (BusClosed, BusFull, OutcomeUnknown, StoreError)


@attrs.frozen
class Drafted(DomainEvent):
    """An event that says itself what its handlers are to make of it."""

    number: int
    draft_key: str | None
    seconds: float
    steps: int
    failures: int
    victims: int
    error: str
    children: int

    @property
    def aggregate_id(self) -> str | None:
        return self.draft_key


@attrs.frozen
class Plain(Drafted):
    event_type: ClassVar[str] = "plain"


@attrs.frozen
class Special(Plain):
    event_type: ClassVar[str] = "special"


@attrs.frozen
class Other(Drafted):
    event_type: ClassVar[str] = "other"


_CLASSES: dict[str, type[Drafted]] = {"plain": Plain, "special": Special, "other": Other}


def _fact(event: Drafted) -> Fact:
    return Fact(
        event.number,
        event.event_type,
        event.draft_key,
        None if event.causation_id is None else event.causation_id.int,
        None if event.correlation_id is None else event.correlation_id.int,
    )


@attrs.define(eq=False)
class _Place:
    """A group as every life makes it again."""

    terms: GroupTerms
    subscriptions: list[Terms] = attrs.field(factory=list)


@attrs.define(eq=False)
class Player:
    """Plays one program."""

    program: Program
    promises: Promises
    _opened: Opened | None
    """Opens the store of the program, again and again; None for a bus without one."""
    crashes: int = 0
    bus: EventBus = attrs.field(init=False)
    _clients: trio.Nursery = attrs.field(init=False)
    _scope: trio.CancelScope = attrs.field(init=False)
    _places: dict[str, _Place] = attrs.field(factory=dict)
    _subscriptions: dict[str, Subscription] = attrs.field(factory=dict)
    _numbers: "count[int]" = attrs.field(factory=lambda: count(1))
    _names: "count[int]" = attrs.field(factory=count)
    events: dict[int, Drafted] = attrs.field(factory=dict)
    _children: dict[tuple[int, str, int], Drafted] = attrs.field(factory=dict)
    _calls: Counter[tuple[int, str]] = attrs.field(factory=Counter)
    _aside: int = 0
    """Tasks that publish or replay beside the program."""
    _appending: int = 0
    """Tasks that append to the store beside the bus."""
    _calm: trio.Event = attrs.field(factory=trio.Event)
    _is_replaying: bool = False
    _closed_at: float = math.inf
    """When the bus of this life has begun to end: what is due then stays for the next one."""
    pauses: set[str] = attrs.field(factory=set)
    """Groups that are paused, or about to be, by a task beside the program."""

    # Lives

    async def play(self) -> None:
        """Play all lives of the program."""
        default = GroupTerms(
            name="default", workers=self.program.workers, buffer=self.program.buffer
        )
        self._add_place(default, self.program.subscriptions)
        for group in self.program.groups:
            self._add_group(group)
        life: list[Operation] = []
        for operation in (*self.program.operations, End("drain")):
            if isinstance(operation, End):
                await self._live(life, operation)
                life = []
            else:
                life.append(operation)

    def _add_group(self, group: MakeGroup) -> _Place:
        terms = attrs.evolve(group.terms, name=f"g{len(self._places)}")
        return self._add_place(terms, group.subscriptions)

    def _add_place(self, terms: GroupTerms, subscriptions: Sequence[Terms]) -> _Place:
        place = self._places[terms.name] = _Place(terms)
        place.subscriptions.extend(self._named(terms.name, wish) for wish in subscriptions)
        return place

    def _named(self, group: str, terms: Terms) -> Terms:
        return attrs.evolve(terms, group=group, name=f"s{next(self._names)}")

    async def _live(self, operations: Sequence[Operation], end: End) -> None:
        """Live one life: a bus from its start to its end."""
        truth, store = None, None
        if self._opened is not None:
            truth = await self._look()
            store = self._opened.store(self.promises)
        self.promises.life_began(truth)
        default = self._places["default"]
        self.bus = EventBus(store, workers=default.terms.workers, buffer=default.terms.buffer)
        self._closed_at = math.inf
        self._subscriptions.clear()
        for place in self._places.values():
            self._make(place, truth, is_start=True)
        with trio.CancelScope() as self._scope:
            async with self._started():
                async with trio.open_nursery() as self._clients:
                    for operation in operations:
                        await self._do(operation)
                    await self._end(end)
                self._closed_at = min(self._closed_at, trio.current_time())
        await self._look_back(end)

    @asynccontextmanager
    async def _started(self):
        if not self.program.is_run:
            async with self.bus:
                yield
            return
        async with trio.open_nursery() as nursery:
            await nursery.start(self.bus.run)
            yield
            if self.bus.health().status != "stopped":
                await self.bus.stop()

    async def _end(self, end: End) -> None:
        while (self._appending or self.pauses) and end.how in ("drain", "stop"):
            # What is appended while a bus drains is the next life's, and so is what is paused.
            await self._calm.wait()
        now = trio.current_time()
        if end.how != "drain":
            self._closed_at = now
        if end.how == "stop":
            report = await self.bus.stop()
            if self._opened is not None or not self.bus.statistics().scheduled:
                self._check_report(report.left)
        elif end.how == "stop in time":
            self.promises.ending(now + end.seconds)
            await self.bus.stop(timeout=end.seconds)
        elif end.how == "cancel":
            self.promises.ending(now)
            self._scope.cancel()
        elif end.how == "crash":
            self.crashes += 1
            self.promises.ending(now)
            if self._opened is not None:
                self._opened.is_crashed = True
            await crash(self.bus)

    @property
    def _times(self) -> tuple[float, float]:
        """Until when what was due has come, and now."""
        now = trio.current_time()
        return min(self._closed_at, now), now

    def _check_report(self, left: Any) -> None:
        if any(left.values()):
            self.promises.breach(f"the bus has drained, and reports that {left} is left")

    async def _look_back(self, end: End) -> None:
        """See what a life has left."""
        is_drained = end.how in ("drain", "stop")
        if self._opened is not None:
            self._opened.is_crashed = False
            truth = await self._look()
            is_crash = end.how == "crash"
            self.promises.check_store(truth, self._times, is_crash=is_crash, is_drained=is_drained)
            letters: Sequence[LetterTruth] = truth.letters
        elif is_drained:
            letters = await self._listed()
        if is_drained:
            self._check_idle(letters)

    async def _look(self) -> StoreTruth:
        assert self._opened is not None
        async with self._opened.store(None) as store:
            return await truth_of(store)

    def _check_idle(self, letters: Sequence[LetterTruth]) -> None:
        statistics = self.bus.statistics()
        fields = [field.name for field in attrs.fields(Counted)]
        counted = {
            name: Counted(**{field: getattr(group, field) for field in fields})
            for name, group in statistics.groups.items()
        }
        self.promises.check_idle(
            letters, counted, statistics.published, statistics.scheduled, self._times
        )

    # Groups and subscriptions

    def _make(self, place: _Place, truth: StoreTruth | None, *, is_start: bool) -> None:
        """Make a group with its subscriptions."""
        terms = place.terms
        if terms.name != "default":
            self.bus.group(
                terms.name,
                workers=terms.workers,
                buffer=terms.buffer,
                ordering="aggregate" if terms.is_ordered else "none",
                start="beginning" if terms.is_from_beginning else "now",
            )
        self.promises.group_made(terms, truth)
        for wish in place.subscriptions:
            self._subscribe(wish, is_start=is_start)

    def _subscribe(self, terms: Terms, *, is_start: bool) -> None:
        async def handler(event: Drafted) -> str:
            return await self._handle(event, terms)

        subscribe = (
            self.bus.subscribe
            if terms.group == "default"
            else self.bus._life.shells[terms.group].group.subscribe
        )
        self._subscriptions[terms.name] = subscribe(
            tuple(_CLASSES[kind] for kind in sorted(terms.kinds)),
            handler,
            name=terms.name,
            priority=terms.priority,
            retry=Retry(
                attempts=terms.attempts,
                delay=terms.delay,
                factor=terms.factor,
                jitter=0,
                never_on=KeyError,
            ),
            timeout=terms.timeout,
            where=None if terms.parity is None else lambda e: e.number % 2 == terms.parity,
            hold=terms.hold,
        )
        self.promises.subscribed(terms, is_start=is_start)

    # Handlers

    async def _handle(self, event: Drafted, terms: Terms) -> str:
        """What every handler does: tell the model, and what the event asks for."""
        key, delivery, began = (terms.group, terms.name), current_delivery(), trio.current_time()
        self.promises.attempt_began(
            key, _fact(event), delivery.attempt, delivery.position, trio.current_time()
        )
        error: str | None = None
        try:
            await self._work(event, terms)
        except trio.Cancelled:
            now = trio.current_time()
            if terms.timeout is not None and now >= began + terms.timeout:
                self.promises.attempt_ended(key, event.number, "HandlerTimeout", now)
            else:
                self.promises.attempt_was_cancelled(key, event.number, now)
            raise
        except Exception as raised:
            error = type(raised).__name__
            raise
        finally:
            if error is not None:
                self.promises.attempt_ended(key, event.number, error, trio.current_time())
        self.promises.attempt_ended(key, event.number, None, trio.current_time())
        return "handled"

    async def _work(self, event: Drafted, terms: Terms) -> None:
        call = event.number, terms.name
        self._calls[call] += 1
        for _ in range(event.steps):
            await checkpoint()
        if event.seconds:
            await trio.sleep(event.seconds)
        children = [self._child(event, terms.name, index) for index in range(event.children)]
        if len(children) == 1:
            await self.publish(children, "publish")
        elif children:
            await self.publish(children, "many")
        is_victim = event.victims >> int(terms.name[1:]) % 8 & 1
        if is_victim and self._calls[call] <= event.failures:
            await self._fail(event, terms)

    async def _fail(self, event: Drafted, terms: Terms) -> None:
        if event.error == "hangs" and terms.timeout is not None:
            await trio.sleep_forever()
        if event.error == "ExceptionGroup":
            raise ExceptionGroup("several", [ValueError(event.number), OSError(event.number)])
        if event.error == "KeyError":
            raise KeyError(event.number)
        raise ValueError(event.number)

    def _child(self, event: Drafted, name: str, index: int) -> Drafted:
        """Return what a handler publishes: the same event again, if a store would know it."""
        key = event.number, name, index
        child = self._children.get(key)
        if child is None or self._opened is None:
            number = next(self._numbers)
            draft = Draft(
                "other" if index else event.event_type, event.draft_key, 0.0, 0, 0, 0, "KeyError", 0
            )
            child = self._children[key] = self._event(draft, number)
        return child

    def _event(self, draft: Draft, number: int) -> Drafted:
        event = _CLASSES[draft.kind](
            number=number,
            draft_key=draft.key,
            seconds=draft.seconds,
            steps=draft.steps,
            failures=draft.failures,
            victims=draft.victims,
            error=draft.error,
            children=draft.children,
            event_id=UUID(int=number),
        )
        self.events[number] = event
        return event

    # Publishing

    async def publish(self, events: Sequence[Drafted], how: str) -> None:
        """Publish, and tell the model how that ended."""
        numbers = [event.number for event in events]
        self.promises.publishing([self._expected(event) for event in events])
        try:
            positions = await self._publish_as(events, how)
        except BaseException as error:
            is_certain = how != "wait" and not isinstance(error, OutcomeUnknown)
            self.promises.not_published(numbers, is_certain=is_certain)
            raise
        self.promises.published(numbers, positions, trio.current_time())

    async def _publish_as(self, events: Sequence[Drafted], how: str) -> list[int | None]:
        if how == "append":
            return await self._append(events)
        if how == "many":
            return [place.position for place in await self.bus.publish_many(events)]
        (event,) = events
        if how == "nowait":
            return [self.bus.publish_nowait(event).position]
        if how == "at once":
            return [(await self.bus.publish(event, delay=0)).position]
        if how == "publish":
            return [(await self.bus.publish(event)).position]
        outcome = await self.bus.publish_and_wait(event)
        self.promises.outcome(event.number, outcome.results, outcome.errors)
        return [outcome.position]

    async def _append(self, events: Sequence[Drafted]) -> list[int | None]:
        assert self.bus.store is not None
        self._appending += 1
        try:
            return [stored.position for stored in await self.bus.store.append(events)]
        finally:
            self._appending -= 1

    def _expected(self, event: Drafted) -> Fact:
        """Return the event as handlers are to see it: with its cause, if a handler publishes it."""
        fact = _fact(event)
        try:
            cause = current_delivery().event
        except LookupError:
            return fact
        assert isinstance(cause, Drafted)
        origin = cause.number if cause.correlation_id is None else cause.correlation_id.int
        return attrs.evolve(fact, cause=cause.number, origin=origin)

    # Operations

    async def _do(self, operation: Operation) -> None:
        match operation:
            case Publish():
                await self._do_publish(operation)
            case PublishLater():
                await timing.publish_later(self, operation)
            case Withdraw():
                await self._refusable(timing.withdraw, self, operation.choice)
            case Pause():
                if (name := timing.next_to_pause(self, operation)) is not None:
                    self.pauses.add(name)
                    await self._spawn_or_wait(True, timing.pause, self, name, operation)
            case PublishAgain():
                if self._opened is not None and self.events:
                    events = list(self.events.values())
                    event = events[-1 - operation.choice % len(events)]
                    if event.children is not None and event not in self._children.values():
                        await self._refusable(self.publish, [event], "publish")
            case PublishOther():
                await self._refusable(self._publish_other, operation.choice)
            case Look():
                await self._spawn_or_wait(True, self._look_beside, operation.choice)
            case Listen():
                self._clients.start_soon(self._refusable, self._listen, operation)
            case Sleep():
                await trio.sleep(operation.seconds)
                self.promises.check_no_stall(trio.current_time())
            case Step():
                for _ in range(operation.count):
                    await checkpoint()
            case Settle():
                await self._settle()
            case Replay():
                await self._spawn_or_wait(operation.is_aside, self._replay, operation)
            case Discard():
                await self._refusable(self._discard, operation)
            case _:
                await self._change(operation)

    async def _change(self, operation: Operation) -> None:
        """Change who is there."""
        if isinstance(operation, MakeGroup):
            if len(self._places) < 4:
                truth = None
                if self._opened is not None:
                    truth = StoreTruth((), (), {}, ())
                self._make(self._add_group(operation), truth, is_start=False)
        elif isinstance(operation, Subscribe):
            places = list(self._places.values())
            place = places[operation.choice % len(places)]
            terms = self._named(place.terms.name, operation.terms)
            place.subscriptions.append(terms)
            self._subscribe(terms, is_start=False)
        elif isinstance(operation, Unsubscribe):
            names = sorted(self._subscriptions)
            if names:
                name = names[operation.choice % len(names)]
                subscription = self._subscriptions.pop(name)
                place = self._places[subscription.group]
                place.subscriptions = [wish for wish in place.subscriptions if wish.name != name]
                subscription.unsubscribe()
                self.promises.groups[subscription.group].unsubscribe(name)

    async def _do_publish(self, operation: Publish) -> None:
        how = operation.how
        if how == "nowait" and self._opened is not None:
            how = "publish"
        if how == "append" and self._opened is None:
            how = "many"
        events = [self._event(draft, next(self._numbers)) for draft in operation.drafts]
        await self.call(operation.is_aside, operation.cancelled_after, self.publish, events, how)

    async def call(
        self,
        is_aside: bool,
        cancelled_after: int | None,
        function: Callable[..., Any],
        *args: Any,
    ) -> None:
        """Make a call, perhaps in a task of its own, perhaps cancelled after some checkpoints."""
        if cancelled_after is None:
            await self._spawn_or_wait(is_aside, function, *args)
            return
        scope = trio.CancelScope()

        async def cancelled() -> None:
            with scope:
                await function(*args)

        async def cancel() -> None:
            for _ in range(cancelled_after):
                await checkpoint()
            scope.cancel()

        await self._spawn_or_wait(True, cancelled)
        await self._spawn_or_wait(True, cancel)

    def fact_of(self, event: Drafted) -> Fact:
        """Return what the promises are to know of an event."""
        return _fact(event)

    def drafted(self, draft: Draft) -> Drafted:
        """Return a new event."""
        return self._event(draft, next(self._numbers))

    async def _publish_other(self, choice: int) -> None:
        """Publish other content under an id that the log has: it must be refused."""
        known = [n for n, known in self.promises.known.items() if known.returned is not None]
        events = [self.events[number] for number in known if number in self.events]
        if self._opened is None or not events:
            return
        event = events[choice % len(events)]
        try:
            await self.bus.publish(attrs.evolve(event, steps=event.steps + 1))
        except ValueError:
            await checkpoint()
        else:
            self.promises.breach(f"{event.number} was accepted again with other content")

    async def _look_beside(self, choice: int) -> None:
        """Read the store beside its bus, and compare that with what publishers were told."""
        store = self.bus.store
        if store is None:
            return
        found = [(s.position, s.event) async for s in store.read()]
        places = [(position, event.number) for position, event in found]  # type: ignore[attr-defined]  # they are ours
        self.promises.read(places)
        if found:
            position, event = found[choice % len(found)]
            stored = await store.get(event.event_id)
            if stored is None or stored.position != position:
                self.promises.breach(f"get() says {stored}, and it was read at {position}")
        if (await store.statistics()).events < len(found):
            self.promises.breach(f"the store counts fewer events than the {len(found)} read")

    async def _listen(self, operation: Listen) -> None:
        """Listen slowly: nothing is heard twice, nor before it was published."""
        heard: list[int] = []
        with trio.move_on_after(operation.seconds):
            async with self.bus.listen(Drafted, buffer=1) as events:
                async for event in events:
                    heard.append(event.number)
                    self.promises.heard(heard)
                    await trio.sleep(operation.pace)

    async def _spawn_or_wait(
        self, is_aside: bool, function: Callable[..., Any], *args: Any
    ) -> None:
        if not is_aside:
            await self._refusable(function, *args)
            return
        if self._aside == 0:
            self._calm = trio.Event()
        self._aside += 1

        async def aside() -> None:
            try:
                await self._refusable(function, *args)
            finally:
                self._aside -= 1
                if self._aside == 0:
                    self._calm.set()

        self._clients.start_soon(aside)

    async def _refusable(self, function: Callable[..., Any], *args: Any) -> None:
        try:
            await function(*args)
        except _REFUSED:
            await checkpoint()

    async def _settle(self) -> None:
        """Wait until nothing is left, and look at everything."""
        if self._aside:
            await self._calm.wait()
        await self.bus.wait_idle()
        self._check_idle(await self._listed())
        if self.bus.store is not None:
            truth = await truth_of(self.bus.store)
            self.promises.check_store(truth, self._times, is_crash=False, is_drained=True)

    async def _listed(self) -> list[LetterTruth]:
        return [
            LetterTruth(
                letter.id,
                letter.group,
                letter.subscription,
                letter.event.number,
                letter.attempts,
                letter.error_type.partition("(")[0],  # of a group, without its leaves
            )
            for letter in await self.bus.dead_letters.list(limit=_MOST_LETTERS)
        ]

    async def _replay(self, operation: Replay) -> None:
        if self._is_replaying:
            return
        self._is_replaying = True
        try:
            listed = await self._listed()
            self.promises.listed(listed, is_idle=False)
            start = operation.choice % max(len(listed), 1)
            chosen = [x for x in listed if x.name in self._subscriptions]
            chosen = chosen[start : start + operation.count + 1]
            letters = self.promises.replaying([(x.group, x.name, x.number) for x in chosen])
            try:
                count = await self.bus.dead_letters.replay([letter.id for letter in chosen])
            except (UnknownDeadLetter, UnknownSubscription):
                self.promises.not_replayed(letters)
            else:
                self.promises.replayed(letters, count)
        finally:
            self._is_replaying = False

    async def _discard(self, operation: Discard) -> None:
        listed = await self._listed()
        self.promises.listed(listed, is_idle=False)
        if listed:
            letter = listed[operation.choice % len(listed)]
            key = letter.group, letter.name, letter.number
            self.promises.discarding(key)
            try:
                await self.bus.dead_letters.discard(letter.id)
            except UnknownDeadLetter:
                return
            self.promises.discarded(key)
