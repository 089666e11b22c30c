"""How a bus without a store accepts events: straight into its groups, as soon as there is room."""

from collections.abc import Callable, Iterable, Sequence, Set
from datetime import datetime
from itertools import repeat
from typing import Any
from uuid import UUID

import attrs
import trio
from trio.lowlevel import cancel_shielded_checkpoint

from triobus._bus.routing import Routing, describe_full
from triobus._bus.schedule import MemorySchedule
from triobus._errors import BusFull, InvalidOption
from triobus._events import DomainEvent, Published, published
from triobus._events.batch import Batch
from triobus._groups.bundling import BundlingLanes
from triobus._groups.dead_letters import DeadLetterKeeper, MemoryDeadLetters
from triobus._groups.delivery import Bundle, InFlight, Replayed
from triobus._groups.effects import Effect, Effected
from triobus._groups.listeners import Inbox, Listener
from triobus._groups.outcome import Outcome, PendingOutcome
from triobus._groups.subscriptions import Group, GroupOptions
from triobus._groups.workers import GroupLog, GroupShell


@attrs.define(eq=False)
class MemoryGroupLog:
    """What a group without a store has: nothing is to be read or recorded, and publishers wait."""

    lanes: BundlingLanes
    buffer: float
    _routing: Routing
    unread: int = attrs.field(default=0, init=False)
    runs: tuple[()] = attrs.field(default=(), init=False)
    advance: Callable[[InFlight], bool] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.advance = self.lanes.advance

    @property
    def lag(self) -> int:
        """Events that are not settled."""
        return self.lanes.unsettled

    def serve(self, shell: GroupShell) -> None:
        """Publishers bring the events."""

    def when_recorded(self, function: Callable[[], None]) -> None:
        """Nothing is recorded."""
        function()

    def record_attempts(self, delivery: InFlight, index: int, attempts: int, delay: float) -> None:
        """They are in memory already."""

    def on_room(self, shell: GroupShell) -> None:
        """Accept what waits for room, or for a free worker."""
        self._routing.admit(shell)

    def on_due(self) -> None:
        """Nothing is ever read back."""

    async def event_at(self, position: int | None) -> Any:
        """Every event is in memory."""
        raise AssertionError(position)

    async def withdraw(self, numbers: Set[int]) -> list[InFlight | Bundle]:
        """Return deliveries that wait for a retry, which all are in memory."""
        return self.lanes.withdraw(numbers)

    async def pause(self) -> None:
        """Nobody shares the group."""

    async def resume(self) -> None:
        """Nobody shares the group."""

    async def have(self, _: Sequence[Effect]) -> Sequence[Effected]:
        """Nothing is ever committed."""
        raise no_transactions()

    async def reset(self, _: int | datetime | None, __: Callable[[Any], object] | None) -> None:
        """Nothing is kept to which a group could go back."""
        raise InvalidOption(
            "reset(): a bus without a store keeps no log to go back in; give it one, such as "
            "EventBus(SqliteEventStore('orders.db'))"
        )

    def replay(self, given: Replayed) -> None:
        """Put a replay into its lane."""
        self.lanes.add(*given)


@attrs.define(eq=False)
class MemoryLog:
    """Gives events straight to groups and listeners; publishers wait until these have room."""

    _routing: Routing
    schedule: MemorySchedule = attrs.field(init=False)
    where: str = attrs.field(default="in memory", init=False)
    letters: DeadLetterKeeper = attrs.field(factory=MemoryDeadLetters, init=False)
    is_pending: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.schedule = MemorySchedule(self._accept, self._routing.commit)

    async def open(self) -> None:
        """Nothing is to be opened."""
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        """Nothing is to be closed."""
        await cancel_shielded_checkpoint()

    is_attended: bool = attrs.field(default=False, init=False)

    async def attend(self) -> None:
        """Nobody else stores anything."""

    async def run(self) -> None:
        """Nothing is to be done."""

    def halt(self) -> None:
        """Nothing is recorded anyway."""

    def add(self, options: GroupOptions) -> GroupLog:
        """Return what a group needs that gets what is published from here on."""
        return MemoryGroupLog(
            BundlingLanes(is_ordered=options.is_ordered, is_total=options.workers == 1),
            options.buffer,
            self._routing,
        )

    def check_types(self, types: Iterable[type[DomainEvent]]) -> None:
        """Every class will do: nothing is kept."""

    def resubscribed(self, name: str) -> None:
        """Let those go on who wait for room in a group that does not want their events any more."""
        self._routing.admit(self._routing.shells[name])

    def listen(self, inbox: Inbox) -> Listener[Any]:
        """Return a listener for which publishers wait."""
        self._routing.listen(inbox, inbox.offer)
        return Listener(inbox, inbox.receive)

    async def publish(self, event: DomainEvent, expected_sequence: int | None) -> Published:
        """Accept an event as soon as there is room. Cancelled while it waits, it is not."""
        if expected_sequence is not None:
            raise _no_sequences(expected_sequence)
        shells = self._routing.accept(event)
        if shells is None:
            await self._publish_batch(Batch([event]))
        else:
            await cancel_shielded_checkpoint()
            # For a worker that takes two events is woken half as often as for one each.
            for shell in shells:
                if shell.free and shell.lanes.held:
                    shell.wake()
        return Published(event.event_id, None)

    async def publish_many(
        self, events: Sequence[DomainEvent], expected_sequence: int | None
    ) -> list[Published]:
        """Accept events as soon as there is room for all of them."""
        if expected_sequence is not None:
            raise _no_sequences(expected_sequence)
        batch = Batch(list(events))
        await self._publish_batch(batch)
        return published(batch.events, repeat(None))

    async def publish_and_wait(self, event: DomainEvent, completion: PendingOutcome) -> Outcome:
        """Accept an event, and wait for all its handlers."""
        await self._publish_batch(Batch([event], completion))
        return await completion.wait()

    def publish_nowait(self, event: DomainEvent) -> Published:
        """Accept an event, or raise `BusFull`."""
        shells = self._routing.accept(event)
        if shells is None:
            batch = Batch([event])
            is_inside = self._routing.enter(batch)
            full = None if is_inside else self._routing.first_full(batch)
            if full is not None:
                raise BusFull(describe_full(full))
            self._routing.commit(batch)
        else:
            for shell in shells:
                shell.wake()
        return Published(event.event_id, None)

    async def publish_later(self, event: DomainEvent, due_at: float) -> Published:
        """Keep an event until it is due."""
        batch = Batch([event])
        self._routing.enter(batch)
        is_new = self.schedule.add(batch, due_at)
        await cancel_shielded_checkpoint()
        return Published(event.event_id, None, is_new)

    async def cancel_scheduled(self, event_id: UUID) -> bool:
        """Take back an event that is not due yet."""
        was_there = self.schedule.cancel(event_id)
        await cancel_shielded_checkpoint()
        return was_there

    def left(self, group: Group) -> int:
        """Return how many events that are not due would have gone to a group."""
        return sum(bool(group._plan_for(type(event))) for event in self.schedule.events)

    async def _publish_batch(self, batch: Batch) -> None:
        is_inside = self._routing.enter(batch)
        await self._accept(batch, is_inside=is_inside)

    async def _accept(self, batch: Batch, *, is_inside: bool = False) -> None:
        full = None if is_inside else self._routing.first_full(batch)
        if full is None:
            self._routing.commit(batch)
            await cancel_shielded_checkpoint()
            return
        self._routing.check_not_waiting_for_itself(full)
        await self._routing.wait_for_room(full, batch)

    async def cut(self) -> None:
        """No publisher from outside is let in any more, anyway."""

    async def flush(self) -> None:
        """Nothing is recorded."""

    def check_process(self) -> None:
        """Nothing but the bus itself is of no use in a forked child."""

    def reasons(self) -> Iterable[str]:
        """Nothing can be wrong with it."""
        return ()


def no_transactions() -> InvalidOption:
    """Return the error of a transactional handler of a bus that has no store."""
    return InvalidOption(
        "transactional=True: a bus without a store commits nothing; give it one, such as "
        "EventBus(SqliteEventStore('orders.db'))"
    )


def _no_sequences(expected_sequence: int) -> InvalidOption:
    return InvalidOption(
        f"expected_sequence={expected_sequence!r}: a bus without a store knows no "
        "sequences; give it one: EventBus(store=...)"
    )
