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
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from triobus._durability.alarm import Alarm
from triobus._durability.lanes import StoredLanes, place_of
from triobus._durability.progress import Progress
from triobus._durability.suspects import Suspects
from triobus._durability.unreadable import stand_in, unreadable
from triobus._errors import EventNotDecodable, StoreError, StoreIOError
from triobus._events import DomainEvent
from triobus._events.batch import runs
from triobus._groups.delivery import Carriage, Watch
from triobus._groups.retry import LONGEST_WISH
from triobus._groups.subscriptions import Group, GroupOptions, Subscription
from triobus._groups.workers import GroupShell, Replayed
from triobus._threads import is_virtual
from triobus.stores import EventStore
from triobus.stores._store import BATCH
from triobus.stores._values import BEGUN, NOT_COUNTED, Attempts, GroupChange, GroupRecord, Record

logger = logging.getLogger("triobus")

_REFILL = 32
"""How many events of one aggregate are read at a time: few, for they would only line up again."""
_NEAR = 8
"""How far from each other retries may be in the log to be read back together with what is between
them."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1, 30
"""Seconds after which a read that failed is made again, at the latest."""


@attrs.define(eq=False)
class Feed:
    """Brings the log of a store to one group, and knows how far the group is in it."""

    options: GroupOptions
    _store: EventStore
    _on_change: Callable[[], None]
    """Called when there is something to be recorded."""
    shell: GroupShell = attrs.field(init=False)
    """What runs for the group."""
    lanes: StoredLanes = attrs.field(init=False)
    """The lanes of the group."""
    last: int = 0
    """The position of the log's last event."""
    progress: Progress = attrs.field(factory=Progress)
    is_active: bool = False
    """Whether the group takes part: from its first subscription on."""
    is_recorded: bool = False
    """Whether the store knows of the group. Before, it gets nothing: after a crash it would begin
    behind that."""
    failure: StoreError | None = None
    """Why the log could not be read the last time, if it could not."""
    _suspects: Suspects | None = None
    """What may have been in hands when the process died, if it did."""
    read_to: int = 0
    """Everything up to it is in the lanes, finished or skipped."""
    _changed: dict[int, Attempts | None] = attrs.field(factory=dict)
    _recovered: dict[int, Attempts] = attrs.field(factory=dict)
    _asked: dict[int, list[Watch]] = attrs.field(factory=dict)
    """Who waits for the end of deliveries that others have published."""
    _skipped: dict[str, int] = attrs.field(factory=dict)
    """Aggregates that have a delivery in their lane and more behind it on disk, from a position."""
    _refills: dict[str, None] = attrs.field(factory=dict)
    """Those of them whose lane has become free."""
    _behind: dict[str, deque[tuple[int, Replayed]]] = attrs.field(factory=dict)
    """Replays of such aggregates, behind what has to be read back up to a position."""
    _steps: list[Callable[[], Coroutine[Any, Any, None]]] = attrs.field(init=False)
    """What takes turns; the one that was done last is at the end."""
    _plans: dict[type | str, tuple[Subscription, ...]] = attrs.field(factory=dict)
    _alarm: Alarm = attrs.field(factory=Alarm)
    """Rings when there may be something to read, and room for it."""

    def __attrs_post_init__(self) -> None:
        options = self.options
        self.lanes = StoredLanes(is_ordered=options.is_ordered, is_total=options.workers == 1)
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
        return self.last - self.read_to if self.is_active else 0

    @property
    def lag(self) -> int:
        """How many events of the log are not settled."""
        return self.last - self.progress.offset - self.progress.finished if self.is_active else 0

    @property
    def is_changed(self) -> bool:
        """Whether there is something to be recorded."""
        return self.progress.is_changed or bool(self._changed)

    def restore(self, record: GroupRecord, suspects: Suspects | None) -> None:
        """Take up the progress that a store has of the group; `suspects` after an unclean end."""
        self._suspects = suspects
        self.progress = Progress.stored(record.offset, record.ranges)
        self._recovered = {row.position: row for row in record.attempts}
        self.read_to = record.offset
        self.is_recorded = True

    def activate(self) -> None:
        """Give the group its place in the log, if it has got its first subscription."""
        if not self.is_active and self.group.subscriptions:
            self.is_active = True
            if not self.is_recorded:
                self.read_to = 0 if self.options.start == "beginning" else self.last
                self.progress = Progress(self.read_to, is_changed=True)
                self._on_change()
            self._alarm.ring()

    def is_open(self, event: DomainEvent, position: int) -> bool:
        """Whether an event of the log is wanted here and not finished."""
        is_ahead = position > self.progress.offset and position <= self.last
        return (
            self.is_active
            and is_ahead
            and bool(self._plan_for(type(event)))
            and not self.progress.is_finished(position)
        )

    def ask(self, position: int, watch: Watch) -> None:
        """Tell a watch when the delivery of an event that is open is finished."""
        self._asked.setdefault(position, []).append(watch)

    def _answer(self, position: int) -> None:
        for watch in self._asked.pop(position, ()):
            watch.finished()

    # Out: what is finished

    @enable_ki_protection
    def advance(self, carriage: Carriage) -> bool:
        """Go on after a subscription is done; a delivery that is finished will be recorded."""
        is_finished = self.lanes.advance(carriage)
        if is_finished:
            self._settle(carriage)
        return is_finished

    def _settle(self, carriage: Carriage) -> None:
        key = carriage.key
        if self._skipped and key in self._skipped and not self.lanes.has_lane(key):
            assert key is not None
            self._refills[key] = None
            self._bar()
            self._alarm.ring()
        if carriage.letter_id is None:
            assert carriage.position is not None
            self.progress.finish(carriage.position)
            if self._asked:
                self._answer(carriage.position)
            if carriage.is_recorded:
                self._changed[carriage.position] = None
            self._on_change()

    def note_attempts(self, carriage: Carriage, index: int, attempts: int, delay: float) -> None:
        """Know how far a delivery has come that is not finished."""
        self._note(carriage, index, attempts, _wall_time() + delay, delay)

    def note_begun(self, carriage: Carriage, *, is_counted: bool) -> None:
        """Know that an attempt is about to be made, counted as if it had been made or not."""
        attempts = carriage.attempt if is_counted else carriage.attempt - 1
        self._note(carriage, carriage.index, attempts, BEGUN if is_counted else NOT_COUNTED)

    def _note(
        self, carriage: Carriage, index: int, attempts: int, due_at: float, delay: float = 0
    ) -> None:
        assert carriage.position is not None
        carriage.is_recorded = True
        self._changed[carriage.position] = Attempts(
            carriage.position,
            carriage.plan[index].name,
            attempts,
            due_at,
            delay,
            (*carriage.done, *(subscription.name for subscription in carriage.plan[:index])),
        )
        self._on_change()

    def note_recorded(self) -> None:
        """Know that the store has what was taken, and so the group."""
        if not self.is_recorded or self.failure is not None:
            self.is_recorded = True
            self._alarm.ring()

    def take_change(self) -> GroupChange:
        """Return what has changed since the last time."""
        changed, self._changed = self._changed, {}
        return GroupChange(self.progress.take_change(), changed)

    def give_back(self, change: GroupChange) -> None:
        """Take a change back, because it could not be stored."""
        self.progress.give_back(change.progress)
        self._changed = {**change.attempts, **self._changed}

    # In: events that have just been stored

    def offer(
        self,
        events: Sequence[DomainEvent],
        keys: Sequence[str | None],
        first: int,
        watch: Watch | None,
    ) -> None:
        """Take events that now are in the log, from position `first`, as far as there is room."""
        for run, run_keys in runs(events, keys):
            if self.read_to != first - 1 or not self.is_recorded:
                break
            plan = self._plan_for(type(run[0]))
            count = len(run)
            if not plan:
                self._pass_over(first, first + count - 1)
            else:
                count = int(min(count, self._room_for_new()))
                if count:
                    self._add(run[:count], run_keys[:count], plan, watch, first)
                    watch = None
            self.read_to += count
            first += count
            if count < len(run):
                break  # what comes behind has its place behind the rest of this
        if self.read_to < self.last:
            if watch is not None and self._plan_for(type(events[0])):
                self.lanes.watches[first] = watch
            self._alarm.ring()
        self.shell.wake()
        self.shell.notice_idle()

    def _add(
        self,
        events: Sequence[DomainEvent],
        keys: Sequence[str | None],
        plan: tuple[Subscription, ...],
        watch: Watch | None,
        first: int,
    ) -> None:
        """Put events into their lanes, except for those that have others before them on disk."""
        if not (self._skipped and self.lanes.is_ordered):
            self.lanes.add_many(events, keys, plan, watch, itertools.count(first))
            return
        for event, key, position in zip(events, keys, itertools.count(first), strict=False):
            if key not in self._skipped:
                self.lanes.add(event, key, plan, watch, position=position)
                continue
            self.lanes.add_outside()
            if watch is not None:
                self.lanes.watches[position] = watch

    def _plan_for(self, cls: type[DomainEvent]) -> tuple[Subscription, ...]:
        plan = self._plans.get(cls)
        if plan is None:
            plan = self._plans[cls] = self.group._plan_for(cls)
        return plan

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
            self._read_on: self.is_active and self.is_recorded and self.read_to < self.last,
            self._refill: bool(self._refills),
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

    def on_room(self, shell: GroupShell) -> None:
        """There is the room that the feed waits for."""
        shell.admits_at = -1
        self._alarm.ring()

    def on_due(self) -> None:
        """There may be retries whose events are to be read back."""
        if self.lanes.due:
            self._alarm.ring()

    def on_idle(self, shell: GroupShell) -> None:
        """A worker finds nothing ready; if that is for want of room, make some."""
        if shell.admits_at >= 0:
            self._alarm.ring()

    def _room(self) -> float:
        return max(self.buffer - self.lanes.held, 0)

    def _room_for_new(self) -> float:
        """Return how many events may be taken as they are published.

        They leave half of the room to what has to be read back, or it would never have a turn.
        """
        if self._refills or self.lanes.due:
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
        if self.lanes.held > enough and not self.lanes.ready and shell.free:
            self._spill()
        has_room = self.lanes.held <= enough
        shell.admits_at = -1 if has_room else enough
        return has_room

    def _spill(self) -> None:
        """Give up what lines up; it is read again, or put into its lane again, in its turn."""
        for key, line in self.lanes.spill():
            replays: list[tuple[int, Replayed]] = []
            for queued in line:
                _, event, _, plan, watch, letter_id, position = queued
                after = place_of(queued)
                if letter_id is not None:
                    assert watch is not None
                    replays.append((after, (event, key, plan, watch, letter_id, position)))
                elif watch is not None:
                    self.lanes.watches[after] = watch
            first = place_of(line[0]) + (line[0][5] is not None)
            self._skipped[key] = min(self._skipped.get(key, first), first)
            if replays:
                self._behind.setdefault(key, deque()).extendleft(reversed(replays))

    async def _read_on(self) -> None:
        """Read what comes next in the log."""
        limit = int(min(self._room(), BATCH))
        for record in await self._store.fetch(self.read_to, limit, self.last):
            if not self.progress.is_finished(record.position):
                plan, row = self._wanted_by(record)
                if not plan:
                    self._pass_over_unwanted(record.position, row)
                elif self.lanes.is_ordered and record.aggregate_id in self._skipped:
                    self.lanes.add_outside()
                else:
                    event, plan = self._decoded(record, plan, row)
                    watch = self.lanes.watches.pop(record.position, None)
                    self.lanes.add(
                        event, record.aggregate_id, plan, watch, position=record.position
                    )
                    self._postpone(record.position, plan, row)
            self.read_to = record.position
        self.shell.wake()
        self.shell.notice_idle()

    async def _refill(self) -> None:
        """Read on for an aggregate whose lane has become free."""
        key = next(iter(self._refills))
        limit = _REFILL if self.lanes.is_barred else int(min(self._room(), _REFILL))
        behind = self._behind.get(key)
        up_to = behind[0][0] if behind else self.read_to
        records: list[Record] = []
        if self.lanes.is_ordered:  # otherwise there are only replays to be brought on
            after = self._skipped[key] - 1
            records = await self._store.fetch(after, limit, up_to, aggregate_id=key)
        was_added = False
        for record in records:
            if not self.progress.is_finished(record.position):
                plan, row = self._wanted_by(record)
                if not plan:
                    self.lanes.drop()
                    self._pass_over_unwanted(record.position, row)
                    continue
                event, plan = self._decoded(record, plan, row)
                watch = self.lanes.watches.pop(record.position, None)
                self.lanes.take_in(event, key, plan, watch, record.position)
                self._postpone(record.position, plan, row)
                was_added = True
        if records:
            self._skipped[key] = records[-1].position + 1
        elif self.lanes.is_ordered and up_to < self.read_to:
            self._skipped[key] = up_to + 1  # for something may have come meanwhile
        else:
            del self._skipped[key]
        was_added |= self._replay_behind(key)
        if was_added or key not in self._skipped:
            # Otherwise no delivery is there whose end would bring it on.
            del self._refills[key]
        self._bar()
        self.shell.wake()
        self.shell.notice_idle()

    def _bar(self) -> None:
        self.lanes.bar(min((self._skipped[key] for key in self._refills), default=None))

    async def _wake(self) -> None:
        """Read retries back whose time has come: some that are near to each other in the log."""
        due = self.lanes.due
        some = itertools.islice(due, max(int(min(self._room(), BATCH)), 1))
        first = last = next(some)
        for position in some:
            if not last < position <= last + _NEAR:
                break
            last = position
        for record in await self._store.fetch(first - 1, last - first + 1, last):
            asleep = due.get(record.position)
            if asleep is not None:
                event, plan = self._decoded(record, asleep.plan)
                self.lanes.wake(asleep, event, plan)
        self.shell.wake()
        self.shell.notice_idle()

    # Replays

    def replay(self, given: Replayed) -> None:
        """Put a replay into its lane, behind what has to be read back of it."""
        key = given[1]
        if key is None or key not in self._skipped:
            self.lanes.add(*given, after=self.read_to)
            return
        self.lanes.add_outside()
        self._behind.setdefault(key, deque()).append((self.read_to, given))

    def _replay_behind(self, key: str) -> bool:
        """Put those replays into their lane that have nothing before them on disk any more.

        Return whether there were any.
        """
        behind = self._behind.get(key)
        before = self.lanes.outside
        while behind and self._skipped.get(key, math.inf) > behind[0][0]:
            _, given = behind.popleft()
            self.lanes.outside -= 1
            self.lanes.add(*given, after=self.read_to)
        if not behind:
            self._behind.pop(key, None)
        return self.lanes.outside < before

    # What is wanted of it

    def _wanted_by(self, record: Record) -> tuple[tuple[Subscription, ...], Attempts | None]:
        """Return who still wants an event, and what is known from before it was read back."""
        plan = self._plan(record)
        row = self._recovered.get(record.position)
        if row is not None:
            if row.done:
                plan = tuple(s for s in plan if s.name not in row.done)
            if (row.attempts or row.delay) and plan and plan[0].name != row.subscription:
                # Its retry goes on, though somebody with a higher priority may have come since.
                plan = tuple(sorted(plan, key=lambda s: s.name != row.subscription))
        return plan, row

    def _pass_over_unwanted(self, position: int, row: Attempts | None) -> None:
        if row is not None:
            self._forget_recovered(position)
            self._changed[position] = None
        watch = self.lanes.watches.pop(position, None)
        if watch is not None:
            watch.finished()
        self._pass_over(position, position)
        self._answer(position)

    def _forget_recovered(self, position: int) -> None:
        del self._recovered[position]
        if not self._recovered:
            self._recovered = {}  # a dictionary keeps the room that it once needed

    def _decoded(
        self, record: Record, plan: tuple[Subscription, ...], row: Attempts | None = None
    ) -> tuple[Any, tuple[Subscription, ...]]:
        """Return an event and who gets it; or what stands for one that cannot be read."""
        try:
            event = self._store.decode(record)
            if self._suspects is not None:
                plan = self._suspects.plan(
                    record.position, record.aggregate_id, plan, row, _wall_time()
                )
            return event, plan
        except EventNotDecodable as error:
            return unreadable(record), tuple(stand_in(s, error) for s in plan)

    def _postpone(
        self, position: int, plan: tuple[Subscription, ...], row: Attempts | None
    ) -> None:
        """Let the delivery that was added last wait for the rest of its delay, if it had one."""
        if row is None:
            return
        self._forget_recovered(position)
        is_same = plan[0].name == row.subscription
        # Whatever a damaged store says: its handler may have asked for a delay itself.
        longest = min(row.delay, max(plan[0].retry.longest_delay, LONGEST_WISH))
        wait = min(row.due_at - _wall_time(), longest) if is_same else 0
        due = trio.current_time() + wait if wait > 0 else None
        self.lanes.postpone(position, row.attempts if is_same else 0, due, row.done)
        if due is not None:
            self.shell.expect(due)

    def _plan(self, record: Record) -> tuple[Subscription, ...]:
        """Return who wants an event, as far as its type tells."""
        plan = self._plans.get(record.event_type)
        if plan is None:
            classes = self._store.codec.classes(record.event_type) or [DomainEvent]
            wanted = {s for cls in classes for s in self.group._plan_for(cls)}
            plan = self.group._in_order(wanted)
            self._plans[record.event_type] = plan
        return plan

    def forget_plans(self) -> None:
        """Find anew who wants what, for a subscription has come or gone."""
        self._plans.clear()

    def _pass_over(self, first: int, last: int) -> None:
        self.progress.finish(first, last)
        self._on_change()


def _wall_time() -> float:
    """Return the time that goes on when the program does not run; virtual if Trio's is."""
    clock = trio.lowlevel.current_clock()
    return clock.current_time() if is_virtual(clock) else time.time()
