"""What a store adds to a group: the log comes in, and what is finished goes out.

A group that has caught up is given events as they are published. One that is behind reads them in
batches, as there is room, until it has caught up; both happen in plain synchronous code and begin
where the other ended, so that the change leaves no gap and repeats nothing.

When the room is full of events that line up behind aggregates which are busy or wait for a retry,
and workers have nothing to do, these events are given up and read again when their turn comes.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from triobus._alarm import Alarm
from triobus._delivery import Carriage, StoredLanes, Watch
from triobus._errors import EventNotDecodable
from triobus._events import DomainEvent
from triobus._group import GroupShell
from triobus._progress import Progress
from triobus._publishing import runs
from triobus._retry import LONGEST_WISH
from triobus._subscriptions import Subscription
from triobus._threads import is_virtual
from triobus._unreadable import stand_in, unreadable
from triobus.stores import EventStore
from triobus.stores._protocol import BATCH
from triobus.stores._values import Attempts, GroupChange, GroupRecord, Record

_REFILL = 32
"""How many events of one aggregate are read at a time: few, for they would only line up again."""


@attrs.define(eq=False)
class Feed:
    """Brings the log of a store to one group, and knows how far the group is in it."""

    shell: GroupShell
    _store: EventStore
    _on_change: Callable[[], None]
    """Called when there is something to be recorded."""
    _from_beginning: bool
    """Whether a new group begins with the first event of the log, or with the next one."""
    lanes: StoredLanes = attrs.field(init=False)
    """The lanes of the group."""
    last: int = 0
    """The position of the log's last event."""
    progress: Progress = attrs.field(factory=Progress)
    is_active: bool = False
    """Whether the group takes part: from its first subscription on."""
    _is_known: bool = False
    """Whether the store knows how far the group is."""
    read_to: int = 0
    """Everything up to it is in the lanes, finished or skipped."""
    _changed: dict[int, Attempts | None] = attrs.field(factory=dict)
    _recovered: dict[int, Attempts] = attrs.field(factory=dict)
    _watched: dict[int, Watch] = attrs.field(factory=dict)
    _asked: dict[int, list[Watch]] = attrs.field(factory=dict)
    """Who waits for the end of deliveries that others have published."""
    _skipped: dict[str, int] = attrs.field(factory=dict)
    """Aggregates that have a delivery in their lane and more behind it on disk, from a position."""
    _refills: dict[str, None] = attrs.field(factory=dict)
    """Those of them whose lane has become free."""
    _plans: dict[type | str, tuple[Subscription, ...]] = attrs.field(factory=dict)
    _alarm: Alarm = attrs.field(factory=Alarm)
    """Rings when there may be something to read, and room for it."""

    def __attrs_post_init__(self) -> None:
        self.lanes = StoredLanes(is_ordered=self.shell.lanes.is_ordered)

    # Where it stands

    @property
    def unread(self) -> int:
        """How many events of the log it has not looked at; those it skipped are counted as one."""
        return (self.last - self.read_to + bool(self._skipped)) if self.is_active else 0

    @property
    def lag(self) -> int:
        """How many events of the log are not settled."""
        return self.last - self.progress.offset - self.progress.finished if self.is_active else 0

    @property
    def is_changed(self) -> bool:
        """Whether there is something to be recorded."""
        return self.progress.is_changed or bool(self._changed)

    def restore(self, record: GroupRecord) -> None:
        """Take up the progress that a store has of the group."""
        self.progress = Progress.stored(record.offset, record.ranges)
        self._recovered = {row.position: row for row in record.attempts}
        self.read_to = record.offset
        self._is_known = True

    def activate(self) -> None:
        """Give the group its place in the log, if it has got its first subscription."""
        if not self.is_active and self.shell.group.subscriptions:
            self.is_active = True
            if not self._is_known:
                self.read_to = 0 if self._from_beginning else self.last
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

    def settle(self, carriage: Carriage) -> None:
        """Know that a delivery is finished."""
        key = carriage.key
        if self._skipped and key in self._skipped and not self.lanes.has_lane(key):
            assert key is not None
            self._refills[key] = None
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
        assert carriage.position is not None
        carriage.is_recorded = True
        self._changed[carriage.position] = Attempts(
            carriage.position,
            carriage.plan[index].name,
            attempts,
            _wall_time() + delay,
            delay,
            (*carriage.done, *(subscription.name for subscription in carriage.plan[:index])),
        )
        self._on_change()

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
            if self.read_to != first - 1 or self._skipped:
                break
            plan = self._plan_for(type(run[0]))
            count = len(run)
            if not plan:
                self._pass_over(first, first + count - 1)
            else:
                count = int(min(count, self._room()))
                if count:
                    self.lanes.add_many(
                        run[:count], run_keys[:count], plan, watch, itertools.count(first)
                    )
                    watch = None
            self.read_to += count
            first += count
            if count < len(run):
                break  # what comes behind has its place behind the rest of this
        if self.read_to < self.last:
            if watch is not None and self._plan_for(type(events[0])):
                self._watched[first] = watch
            self._alarm.ring()
        self.shell.wake()
        self.shell.notice_quiet()

    def _plan_for(self, cls: type[DomainEvent]) -> tuple[Subscription, ...]:
        plan = self._plans.get(cls)
        if plan is None:
            plan = self._plans[cls] = self.shell.group.plan_for(cls)
        return plan

    # In: events that are read back

    @enable_ki_protection
    async def run(
        self,
        scope: trio.CancelScope,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Read what the group is behind, whenever it is and there is room."""
        with scope:
            task_status.started()
            while True:
                is_wanted = bool(self._refills) or (self.is_active and self.read_to < self.last)
                if not (is_wanted and self._has_room()):
                    await self._alarm.sleep()
                elif self._refills:
                    await self._refill(next(iter(self._refills)))
                else:
                    await self._read_on()

    def notice_room(self) -> None:
        """There is the room that the feed waits for."""
        self.shell.admits_at = -1
        self._alarm.ring()

    def notice_idle(self) -> None:
        """A worker finds nothing ready; if that is for want of room, make some."""
        if self.shell.admits_at >= 0:
            self._alarm.ring()

    def _room(self) -> float:
        return max(self.shell.buffer - self.lanes.held, 0)

    def _has_room(self) -> bool:
        """Whether there is room for a batch; if not, some is made or waited for."""
        shell = self.shell
        enough = shell.buffer / 2 if shell.buffer < float("inf") else shell.buffer
        if self.lanes.held > enough and not self.lanes.ready and shell.is_idle:
            for _, _, key, _, watch, _, position in self.lanes.spill():
                assert key is not None
                assert position is not None
                self._skipped[key] = min(self._skipped.get(key, position), position)
                if watch is not None:
                    self._watched[position] = watch
        has_room = self.lanes.held <= enough
        shell.admits_at = -1 if has_room else enough
        return has_room

    async def _read_on(self) -> None:
        limit = int(min(self._room(), BATCH))
        records = await self._store.fetch(self.read_to, limit, self.last)
        for record in records:
            key = record.aggregate_id
            if not self.progress.is_finished(record.position):
                self._load(record, is_skipped=key is not None and key in self._skipped)
        self.read_to = records[-1].position
        self.shell.wake()
        self.shell.notice_quiet()

    async def _refill(self, key: str) -> None:
        """Read on for an aggregate whose lane has become free."""
        limit = int(min(self._room(), _REFILL))
        up_to = self.read_to
        records = await self._store.fetch(self._skipped[key] - 1, limit, up_to, aggregate_id=key)
        added = self.lanes.added
        for record in records:
            if not self.progress.is_finished(record.position):
                self._load(record, is_skipped=False)
        if records:
            self._skipped[key] = records[-1].position + 1
        else:
            del self._skipped[key]
        if not records or added != self.lanes.added:
            # Otherwise no delivery is there whose end would bring it on.
            del self._refills[key]
        self.shell.wake()
        self.shell.notice_quiet()

    def _load(self, record: Record, *, is_skipped: bool) -> None:
        """Put an event into its lane, or pass it over."""
        position = record.position
        plan = self._plan(record)
        row = self._recovered.get(position)
        done = () if row is None else row.done
        if done:
            plan = tuple(s for s in plan if s.name not in done)
        if row is not None and (row.attempts or row.delay):
            # Its retry goes on, though somebody with a higher priority may have subscribed since.
            plan = tuple(sorted(plan, key=lambda s: s.name != row.subscription))
        if not plan:
            self._recovered.pop(position, None)
            if row is not None:
                self._changed[position] = None
            watch = self._watched.pop(position, None)
            if watch is not None:
                watch.finished()
            self._pass_over(position, position)
            self._answer(position)
            return
        if is_skipped:
            return
        event: Any
        try:
            event = self._store.decode(record)
        except EventNotDecodable as error:
            event = unreadable(record)
            plan = tuple(stand_in(subscription, error) for subscription in plan)
        watch = self._watched.pop(position, None)
        self.lanes.add(event, record.aggregate_id, plan, watch, position=position)
        if row is not None:
            del self._recovered[position]
            is_same = plan[0].name == row.subscription
            # Whatever a damaged store says: its handler may have asked for a delay itself.
            longest = min(row.delay, max(plan[0].retry.longest_delay, LONGEST_WISH))
            wait = min(row.due_at - _wall_time(), longest) if is_same else 0
            due = trio.current_time() + wait if wait > 0 else None
            self.lanes.postpone(row.attempts if is_same else 0, due, done)
            if due is not None:
                self.shell.expect(due)

    def _plan(self, record: Record) -> tuple[Subscription, ...]:
        """Return who wants an event, as far as its type tells."""
        plan = self._plans.get(record.event_type)
        if plan is None:
            classes = self._store.codec.classes(record.event_type) or [DomainEvent]
            wanted = {s for cls in classes for s in self.shell.group.plan_for(cls)}
            plan = self.shell.group.in_order(wanted)
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
