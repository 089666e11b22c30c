"""What a store adds to a group: the log comes in, and what is finished goes out.

A group that has caught up is given events as they are published. One that is behind reads them in
batches, as there is room, until it has caught up; both happen in plain synchronous code and begin
where the other ended, so that the change leaves no gap and repeats nothing.

When the room is full of events that line up behind aggregates which are busy or wait for a retry,
and workers have nothing to do, these events are given up and read again when their turn comes. What
waits for a retry takes no room, and beyond a few its event is given up too.

Reading on in the log, bringing on aggregates whose lane has become free, and reading back retries
that are due take turns, so that neither a hot aggregate nor the rest can starve the other.
"""

import itertools
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence, Set
from datetime import datetime
from typing import Any

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from triobus._durability.acknowledgement import Acknowledgements
from triobus._durability.alarm import Alarm
from triobus._durability.effects import call_in_commit
from triobus._durability.evicted import Evicted
from triobus._durability.lanes import StoredLanes
from triobus._durability.plans import Plans
from triobus._durability.suspects import Suspects
from triobus._durability.unreadable import unreadable
from triobus._errors import EventNotDecodable, StoreError, StoreIOError
from triobus._events import DomainEvent
from triobus._events.batch import runs
from triobus._groups.delivery import Bundle, Completion, InFlight, Replayed
from triobus._groups.effects import Effect, Effected
from triobus._groups.subscriptions import Group, GroupOptions
from triobus._groups.workers import GroupShell
from triobus.stores import EventStore
from triobus.stores._commits import Submission
from triobus.stores._reading import BATCH
from triobus.stores._values import GroupRow, Reset, Row, Selection

logger = logging.getLogger("triobus")

_REFILL = 32
"""How many events of one aggregate are read at a time: few, for they would only line up again."""
_NEAR = 8
"""How far from each other retries may be in the log to be read back together with what is between
them."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1, 30
"""Seconds after which a read that failed is made again, at the latest."""


@attrs.define(eq=False)
class CatchUp:
    """Brings the log of a store to one group, and knows how far the group is in it."""

    options: GroupOptions
    _store: EventStore
    _on_change: Callable[[], None]
    """Called when there is something to be recorded."""
    _check_attached: Callable[[], None]
    """Raises `BusClosed` while the bus does not use the store."""
    _on_own_change: Callable[[], None]
    """Called when there is something that the next commit can take along, and may wait for it."""
    when_recorded: Callable[[Callable[[], None]], None]
    """Calls a function when all is recorded that is finished by now."""
    shell: GroupShell = attrs.field(init=False)
    """What runs for the group."""
    lanes: StoredLanes = attrs.field(init=False)
    """The lanes of the group."""
    last: int = 0
    """The position of the log's last event."""
    read_to: int = 0
    """Everything up to it is in the lanes, finished or evicted."""
    is_active: bool = False
    """Whether the group takes part: from its first subscription on."""
    is_recorded: bool = False
    """Whether the store knows of the group. Before, it gets nothing: after a crash it would begin
    behind that."""
    failure: StoreError | None = None
    """Why the log could not be read the last time, if it could not."""
    acknowledgements: Any = attrs.field(init=False)
    """What the group has finished: `Acknowledgements`, or where it is shared a `Share`."""
    plans: Plans = attrs.field(init=False)
    _evicted: Evicted = attrs.field(init=False)
    _steps: list[Callable[[], Coroutine[Any, Any, None]]] = attrs.field(init=False)
    """What takes turns; the one that was done last is at the end."""
    _generation: int = 0
    """How often the group has begun anew: what was asked of the log before is of no use then."""
    _alarm: Alarm = attrs.field(factory=Alarm)
    """Rings when there may be something to read, and room for it."""

    def __attrs_post_init__(self) -> None:
        options = self.options
        self.lanes = StoredLanes(is_ordered=options.is_ordered, is_total=options.workers == 1)
        self.acknowledgements = Acknowledgements(self._on_change)
        self.plans = Plans(options.group, self._store, self.lanes, self.acknowledgements)
        self._evicted = Evicted(self.lanes)
        self._steps = [self._read_on, self._refill, self._wake]

    def serve(self, shell: GroupShell) -> None:
        """Bring the log to this group."""
        self.shell = shell

    @property
    def group(self) -> Group:
        """The group itself."""
        return self.options.group

    @property
    def buffer(self) -> float:
        """How many deliveries the group may hold: with none it would read none."""
        return max(self.options.buffer, 1)

    @property
    def runs(self) -> Sequence[Callable[..., Awaitable[None]]]:
        """The task that reads the log."""
        return (self.run,)

    # Where it stands

    @property
    def unread(self) -> int:
        """How many events of the log it has not looked at."""
        return max(self.last - self.read_to, 0) if self.is_active else 0

    @property
    def lag(self) -> int:
        """How many events of the log are not settled."""
        progress = self.acknowledgements.progress
        return self.last - progress.offset - progress.finished if self.is_active else 0

    def restore(self, record: GroupRow, suspects: Suspects | None) -> None:
        """Take up the progress that a store has of the group; `suspects` after an unclean end."""
        self.plans.suspects = suspects
        self.acknowledgements.restore(record)
        self.read_to = record.offset
        self.is_recorded = True

    def activate(self) -> None:
        """Give the group its place in the log, if it has got its first subscription."""
        if not self.is_active and self.group.subscriptions:
            self.is_active = True
            if not self.is_recorded:
                self.read_to = 0 if self.options.start == "beginning" else self.last
                self.acknowledgements.begin(self.read_to)
            self._alarm.ring()

    def is_open(self, event: DomainEvent, position: int, /) -> bool:
        """Whether an event of the log is wanted here and not finished."""
        progress = self.acknowledgements.progress
        return (
            self.is_active
            and progress.offset < position <= self.last
            and bool(self.plans.of_class(type(event)))
            and not progress.is_finished(position)
        )

    # Out: what is finished

    @enable_ki_protection
    def advance(self, delivery: InFlight) -> bool:
        """Go on after a subscription is done; a delivery that is finished will be recorded."""
        is_finished = self.lanes.advance(delivery)
        if is_finished:
            self._settle(delivery)
        return is_finished

    def _settle(self, delivery: InFlight) -> None:
        if self._evicted.on_settled(delivery.key):
            self._alarm.ring()
        if delivery.letter_id is None:
            self.acknowledgements.finish(delivery)

    def record_attempts(self, delivery: InFlight, index: int, attempts: int, delay: float) -> None:
        """Know how far a delivery has come that is not finished."""
        self.acknowledgements.record_attempts(delivery, index, attempts, delay)

    async def event_at(self, position: int | None) -> Any:
        """Return the event at a position of the log, or what stands for one that is unreadable."""
        assert position is not None
        (record,) = await self._store._fetch(position - 1, 1, position)
        try:
            return self._store._decode(record)
        except EventNotDecodable:
            return unreadable(record)

    async def withdraw(self, numbers: Set[int]) -> list[InFlight | Bundle]:
        """Return deliveries that wait for a retry, and that are in flight now."""
        sleeping = self.lanes.sleeping(numbers)
        events = [await self.event_at(asleep.position) for asleep in sleeping]
        found = self.lanes.withdraw(numbers)
        for asleep, event in zip(sleeping, events, strict=True):
            delivery = self.lanes.rouse(asleep, event)
            if delivery is not None:  # else its time has come meanwhile
                found.append(delivery)
        return found

    async def have(self, effects: Sequence[Effect]) -> Sequence[Effected]:
        """Make calls inside one commit that settles what they handle too."""
        return await call_in_commit(
            self._store, self.acknowledgements, effects, self._on_own_change
        )

    @enable_ki_protection
    async def reset(
        self, to: int | datetime | None, transaction: Callable[[Any], object] | None
    ) -> None:
        """Go on from another place in the log, when that is stored; None for its end."""
        self._check_attached()
        call = None if transaction is None else self._store._call(transaction)
        submission = Submission(None, Reset(self.group.name, to, call))
        await self._store._commits.submit(submission)

    def begin_anew(self, offset: int) -> None:
        """The store has another offset for the group, and nothing else of it."""
        self._generation += 1
        waiting = [*self.lanes.reset(), *self._evicted.replays()]
        self._evicted = Evicted(self.lanes)
        self.plans.suspects = None
        self.acknowledgements.reset(offset)
        self.read_to, self.is_recorded = offset, True
        for position, letter_id, completion in waiting:
            if letter_id is not None or position <= offset:
                completion.finished()
            else:
                self.lanes.completions[position] = completion
        self.shell.admits_at = -1
        self._alarm.ring()

    def on_recorded(self) -> None:
        """The store has what was taken, and so it knows the group."""
        if not self.is_recorded or self.failure is not None:
            self.is_recorded = True
            self._alarm.ring()

    # In: events that have just been stored

    def offer(
        self,
        events: Sequence[DomainEvent],
        keys: Sequence[str | None],
        first: int,
        completion: Completion | None,
    ) -> None:
        """Take events that now are in the log, from position `first`, as far as there is room."""
        for run, run_keys in runs(events, keys):
            if self.read_to != first - 1 or not self.is_recorded:
                break
            plan = self.plans.of_class(type(run[0]))
            count = len(run)
            if not plan:
                self.acknowledgements.pass_over(first, first + count - 1)
            else:
                count = int(min(count, self._room_for_new()))
                if count:
                    self._evicted.add(run[:count], run_keys[:count], plan, completion, first)
                    completion = None
            self.read_to += count
            first += count
            if count < len(run):
                break  # what comes behind has its place behind the rest of this
        if completion is not None and events and self.plans.of_class(type(events[0])):
            if first <= self.read_to:
                completion.finished()  # the group was sent past it in the same commit
            else:
                self.lanes.completions[first] = completion
        if self.read_to < self.last:
            self._alarm.ring()
        self._on_read()

    # In: events that are read back

    @enable_ki_protection
    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read what the group is behind, whenever it is and there is room.

        A read that failed is made again when something was stored, or after some time.
        """
        task_status.started()
        pause = _FIRST_PAUSE
        while True:
            step = self._next_step()
            if step is None:
                await self._alarm.sleep()
                continue
            try:
                await step()
                self.failure, pause = None, _FIRST_PAUSE
            except StoreIOError as error:
                self.failure = error
                logger.warning(
                    "group %r could not read on, and tries again: %s", self.group.name, error
                )
                with trio.move_on_after(pause):
                    await self._alarm.sleep()
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _next_step(self) -> Callable[[], Coroutine[Any, Any, None]] | None:
        """Return what is to be read next, if something is and there is room for it."""
        wanted = {
            self._read_on: self.is_active and self.is_recorded and self._is_behind(),
            self._refill: bool(self._evicted.free),
            self._wake: bool(self.lanes.due),
        }
        if not any(wanted.values()):
            return None
        if self.lanes.is_barred:
            return self._refill  # room or not: nothing else is handled before
        if not self._has_room():
            return None
        step = next(step for step in self._steps if wanted[step])
        self._steps.remove(step)
        self._steps.append(step)
        return step

    def _is_behind(self) -> bool:
        return self.read_to < self.last

    def _read_to_of(self, _: str | None) -> int:
        """Return up to where an aggregate was read."""
        return self.read_to

    def on_room(self, shell: GroupShell) -> None:
        """Read on: there is room, or some can be made while a worker has nothing to do."""
        shell.admits_at = -1
        self._alarm.ring()

    async def pause(self) -> None:
        """Nobody shares the group."""

    async def resume(self) -> None:
        """Nobody shares the group."""

    def on_due(self) -> None:
        """There may be retries whose events are to be read back."""
        if self.lanes.due:
            self._alarm.ring()

    def _room(self) -> float:
        return max(self.buffer - self.lanes.held, 0)

    def _room_for_new(self) -> float:
        """Return how many new events may be taken: they leave half of the room to older ones."""
        if self._evicted.free or self.lanes.due:
            return max(math.ceil(self._enough) - self.lanes.held, 0)
        return self._room()

    @property
    def _enough(self) -> float:
        """How many deliveries may be held for something to be read."""
        buffer = self.buffer
        return buffer / 2 if buffer < math.inf else buffer

    def _has_room(self) -> bool:
        """Whether there is room for a batch; if not, some is made or waited for."""
        shell, enough = self.shell, self._enough
        is_stuck = not (self.lanes.ready or self.lanes.is_frozen)
        if self.lanes.held > enough and is_stuck and shell.free:
            self._evicted.evict()
        has_room = self.lanes.held <= enough
        shell.admits_at = -1 if has_room else enough
        return has_room

    async def _read_on(self) -> None:
        """Read what comes next in the log."""
        limit, generation = int(min(self._room(), BATCH)), self._generation
        records = await self._store._fetch(self.read_to, limit, self.last)
        if generation != self._generation:
            return
        for record in records:
            self._take_in(record)
            self.read_to = record.position
        self._on_read()

    def _take_in(self, record: Row) -> None:
        """Queue a delivery of an event that comes next in the log, if it is wanted."""
        position, key = record.position, record.aggregate_id
        if (plan := self.plans.wanted_by(record)) is not None:
            if self.lanes.is_ordered and key in self._evicted:
                self.lanes.add_outside()
            else:
                event, plan, completion = self.plans.taken(record, plan)
                self.lanes.add(event, key, plan, completion, position=position)
                self.plans.restore_delay(self.shell, position, plan)

    async def _refill(self) -> None:
        """Read on for an aggregate whose lane has become free."""
        read_to = self._read_to_of(next(iter(self._evicted.free)))
        key, after, up_to = self._evicted.next(read_to)
        limit = _REFILL if self.lanes.is_barred else int(min(self._room(), _REFILL))
        records: list[Row] = []
        generation = self._generation
        if self.lanes.is_ordered:  # otherwise there are only replays to be brought on
            records = await self._store._fetch(after, limit, up_to, Selection(key))
        if generation != self._generation:
            return
        added = 0
        for record in records:
            if self.acknowledgements.is_finished(record.position):
                continue
            if (plan := self.plans.wanted_by(record)) is None:
                self.lanes.drop()
                continue
            event, plan, completion = self.plans.taken(record, plan)
            self.lanes.take_in(event, key, plan, completion, record.position)
            self.plans.restore_delay(self.shell, record.position, plan)
            added += 1
        last = records[-1].position if records else None
        self._evicted.read_back(key, last, up_to, self._read_to_of(key), added)
        self._on_read()

    async def _wake(self) -> None:
        """Read retries back whose time has come: some that are near to each other in the log."""
        due = self.lanes.due
        some = itertools.islice(due, max(int(min(self._room(), BATCH)), 1))
        first = last = next(some)
        for position in some:
            if not last < position <= last + _NEAR:
                break
            last = position
        generation = self._generation
        records = await self._store._fetch(first - 1, last - first + 1, last)
        if generation != self._generation:
            return
        for record in records:
            asleep = due.get(record.position)
            if asleep is not None:
                event, plan = self.plans.decoded(record, asleep.plan)
                self.lanes.wake(asleep, event, plan)
        self._on_read()

    def _on_read(self) -> None:
        self.shell.wake()
        self.shell.notice_idle()

    def replay(self, given: Replayed) -> None:
        """Put a replay into its lane, behind what has to be read back of it."""
        read_to = self._read_to_of(given[1])
        if not self._evicted.replay(given, read_to):
            self.lanes.add(*given, after=read_to)
