"""The use that one bus makes of its store: its writer, and what is recorded beside the events.

A commit that stores events takes along what the groups have finished. When no publisher comes, the
groups signal the writer themselves.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from triobus._durability.catch_up import CatchUp
from triobus._durability.dead_letters import StoredDeadLetters
from triobus._durability.hand_over import HandOver, events_of
from triobus._durability.schedule import StoredSchedule
from triobus._durability.suspects import Suspects, blamed_alone
from triobus._errors import BusClosed, StoreError, StoreInUse
from triobus._events import DomainEvent
from triobus._events.moments import Moment
from triobus._groups.instruments import Instruments
from triobus._groups.subscriptions import GroupOptions
from triobus.stores import EventStore
from triobus.stores._commits import CommitQueue, Submission
from triobus.stores._transaction import Call
from triobus.stores._values import Changes, GroupRow, Release, Reset, Schedule, Snapshot

logger = logging.getLogger("triobus")

_NO_CHANGES = Changes()


@attrs.define(eq=False)
class Recorder:
    """The use that one bus makes of a store."""

    store: EventStore
    _tell: Callable[[Sequence[DomainEvent], int, bool], None]
    _instruments: Instruments
    letters: StoredDeadLetters = attrs.field(init=False)
    schedule: StoredSchedule = attrs.field(init=False)
    catch_ups: dict[str, CatchUp] = attrs.field(factory=dict, init=False)
    """By the name of the group."""
    _hand_over: HandOver = attrs.field(init=False)
    failure: StoreError | None = attrs.field(default=None, init=False)
    """Why the last commit failed, if it did."""
    is_attached: bool = attrs.field(default=False, init=False)
    is_halted: bool = attrs.field(default=False, init=False)
    _stored: dict[str, GroupRow] = attrs.field(factory=dict, init=False)
    _is_suspicious: bool = attrs.field(default=False, init=False)
    """Whether the last bus that used the store had no clean end."""
    _last_before: int = attrs.field(default=0, init=False)
    """The position of the last event at the start."""
    _alone: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    """Who has it is handled alone among those in which the process died."""
    _is_changed: bool = attrs.field(default=False, init=False)
    """Whether there is something to be recorded."""
    _attending: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _is_storing: bool = attrs.field(default=False, init=False)
    """Whether what was collected is on its way."""
    _waiting: list[Callable[[], None]] = attrs.field(factory=list, init=False)
    """What is called when all is recorded that is finished by now."""
    _going: int = attrs.field(default=0, init=False)
    """How many of these, the first ones, the commit under way is for."""
    _began: float = attrs.field(default=0.0, init=False)
    """When that commit began, if an instrument wants to know."""

    def __attrs_post_init__(self) -> None:
        self.letters = StoredDeadLetters(self.store, self.on_change, self.flush_letters)
        self.schedule = StoredSchedule(self.store)
        self._hand_over = HandOver(self.store, self._tell, self.catch_ups)

    @property
    def _commits(self) -> CommitQueue:
        return self.store._commits

    # Starting and stopping

    async def attach(self) -> None:
        """Open the store, become its only writer and take up what is in it. Raises `StoreError`."""
        await self.store.__aenter__()
        try:
            # What is appended before is in the snapshot, and what comes after it is handed over.
            async with self._commits.paused():
                if self._commits.user is not None:
                    raise StoreInUse(
                        f"{self.store!r} is used by another bus of this program: give each bus a "
                        "store of its own"
                    )
                self._take_over(await self.store._claim())
        except BaseException:
            self.is_attached = False
            await self.store.__aexit__(None, None, None)
            raise

    @enable_ki_protection
    def _take_over(self, snapshot: Snapshot) -> None:
        """Go on from what is in the store."""
        self.is_attached = True
        if self.is_halted:
            self._commits.halt()
        self._hand_over.begin(snapshot.last)
        self.letters.restore(snapshot.letters, snapshot.last_letter)
        self.schedule.restore(snapshot.scheduled, snapshot.next_due)
        groups = blamed_alone(snapshot.groups) if snapshot.is_unclean else snapshot.groups
        self._stored = {record.name: record for record in groups}
        self._is_suspicious = snapshot.is_unclean
        self._last_before = snapshot.last
        for catch_up in self.catch_ups.values():
            self._take_up(catch_up)
        _log_groups(snapshot, self.catch_ups.values())
        # Last: a store whose user did not get so far would wait for its writer for ever.
        self._commits.serve(self)

    async def detach(self) -> None:
        """Record what is finished, and close the store. Not to be cancelled; raises `StoreError`.

        Does nothing the second time.
        """
        if not self.is_attached:
            return
        self.is_attached = self.letters.is_current = False
        self._attending.cancel()
        with trio.CancelScope(shield=True):
            try:
                # Also when nothing has changed, for it ends behind all tasks that publish.
                await self._commits.release()
            finally:
                if self.is_halted:
                    await self.store._vanish()
                else:
                    await self.store.__aexit__(None, None, None)

    def forget(self) -> None:
        """Let go of what the groups had in memory, when the bus has ended."""
        for catch_up in self.catch_ups.values():
            catch_up.lanes.forget()

    def halt(self) -> None:
        """Store nothing from here on, and leave what is stored as a killed process would."""
        self.is_halted = True
        if self.is_attached:  # before that it may be another bus's
            self._commits.halt()

    def add(self, options: GroupOptions) -> CatchUp:
        """Return what brings the store's log to one more group."""
        catch_up = CatchUp(
            options,
            self.store,
            self.on_change,
            self._check_attached,
            self._on_own_change,
            self.when_recorded,
        )
        self.catch_ups[options.group.name] = catch_up
        if self.is_attached:
            self._take_up(catch_up)
        return catch_up

    def _take_up(self, catch_up: CatchUp) -> None:
        catch_up.last = self._hand_over.reach
        record = self._stored.pop(catch_up.group.name, None)
        if record is not None:
            catch_up.restore(record, self._suspects_of(catch_up) if self._is_suspicious else None)
        self.on_subscriptions(catch_up)

    def _suspects_of(self, catch_up: CatchUp) -> Suspects:
        return Suspects(
            self._last_before,
            catch_up.options.workers,
            self._alone,
            catch_up.acknowledgements.record_begun,
            self.flush_now,
        )

    def on_subscriptions(self, catch_up: CatchUp) -> None:
        """A subscription of a group has come or gone."""
        catch_up.plans.forget()
        if self.is_attached:
            catch_up.activate()

    def reasons(self) -> Iterable[str]:
        """Yield a sentence for everything that is not as it should be."""
        if self.failure is not None:
            yield f"the last commit failed: {self.failure}."
        for name, catch_up in self.catch_ups.items():
            if catch_up.failure is not None:
                yield f"group {name!r} could not read on, and tries again: {catch_up.failure}."
        if self.schedule.damaged:
            count = self.schedule.damaged
            yield f"scheduled events that cannot be read: {count}; see 'triobus verify'."
        warning = self.store._warning
        if warning is not None:
            yield warning

    # Recording

    @property
    def is_pending(self) -> bool:
        """Whether there is, or it is on its way, and it still can be recorded."""
        return self.is_attached and (self._is_storing or self._is_changed)

    def on_change(self) -> None:
        """There is something to be recorded."""
        self._is_changed = True
        if self.is_attached:
            self._commits.signal()

    def when_recorded(self, function: Callable[[], None]) -> None:
        """Call a function when all is recorded that is finished by now: never, after a crash."""
        if self.is_pending:
            self._waiting.append(function)
        else:
            function()

    def _check_attached(self) -> None:
        if not self.is_attached:
            raise BusClosed("reset(): the bus does not run: start it, and pause the group then")

    def _on_own_change(self) -> None:
        """There is something to be recorded, which the next commit takes along."""
        self._is_changed = True

    @enable_ki_protection
    async def run(self) -> None:
        """Store what is published, and record what is finished, until it is detached."""
        await self._commits.run()

    @property
    def is_attended(self) -> bool:
        """Whether other programs may store something, too."""
        return self.store._is_attended

    async def attend(self) -> None:
        """Hear of what others store, until the bus is detached.

        Raises `StoreError` if the store was lost to another bus.
        """
        with self._attending:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hand_over.run)
                nursery.start_soon(self.store._attend, self._on_others)

    @enable_ki_protection
    def _on_others(self, last: int, due: float | None) -> None:
        """The log ends there at least, and what others have scheduled is due then."""
        self._hand_over.on_news(last)
        if due is not None:
            self.schedule.on_stored([due])

    async def flush(self) -> None:
        """Wait until everything that is finished is recorded. Raises `StoreError`, `BusClosed`."""
        await trio.lowlevel.checkpoint()
        while self.is_pending:
            await self._commits.flush()

    async def flush_now(self) -> None:
        """Wait until what was noted so far is recorded, whatever is noted meanwhile.

        Raises `StoreError`, and `BusClosed` when the bus is crashed.
        """
        await trio.lowlevel.checkpoint()
        await self._commits.flush()

    async def flush_letters(self) -> None:
        """Wait until what was done to the dead letters is recorded, whatever is done meanwhile.

        Raises `StoreError`, and `BusClosed` if it never will be.
        """
        await trio.lowlevel.checkpoint()
        if self._is_storing or (self.is_attached and self.letters.is_changed):
            await self._commits.flush()
        if self.letters.is_changed and not self.is_attached:
            raise BusClosed(
                "the bus has stopped, and what is done to its dead letters is recorded no more: do "
                "it again when it runs"
            )

    async def cut(self) -> None:
        """Wait for those who are storing events; what outsiders store then is the next life's."""
        with suppress(StoreError, BusClosed):  # `detach` tries again, and raises
            await self._commits.flush()
        self._hand_over.is_cutting = True

    # What the commits ask

    def moment(self) -> Moment:
        """Return the present moment on the clock of the bus."""
        return self.schedule.moment()

    def take_changes(self) -> Changes:
        """Return what the groups have come to since the last time."""
        self._is_storing, self._is_changed = self._is_changed, False
        self._going = len(self._waiting)
        if self._instruments.committed:
            self._began = trio.current_time()
        return self._collected() if self._is_storing else _NO_CHANGES

    def _collected(self) -> Changes:
        groups = {
            name: catch_up.acknowledgements.take_change()
            for name, catch_up in self.catch_ups.items()
            if catch_up.acknowledgements.is_changed
        }
        return Changes(groups, self.letters.take_change())

    def give_back(
        self, changes: Changes, submissions: Sequence[Submission], error: BaseException
    ) -> None:
        """These changes are not stored, because of an error.

        They are not tried again until something happens that may go better.
        """
        self._tell_committed(changes, submissions, error)
        self._is_changed = self._is_changed or self._is_storing
        self._is_storing = False
        if isinstance(error, StoreError):
            self.failure = error
            if changes.groups or changes.letters:
                logger.warning("what is finished could not be recorded yet: %s", error)
        for name, change in changes.groups.items():
            self.catch_ups[name].acknowledgements.give_back(change)
        self.letters.give_back(dict(changes.letters))

    def committed(
        self,
        changes: Changes,
        submissions: Sequence[Submission],
        recorded: Any = None,  # noqa: ARG002  # of segments, which a store with one bus has not
    ) -> None:
        """Progress is stored, and events are in the log: hand them over to the groups."""
        self.failure = None
        self._is_storing = False
        for name, change in changes.groups.items():
            self.catch_ups[name].acknowledgements.progress.on_stored(change.progress)
            self.catch_ups[name].on_recorded()
            for watcher in self._instruments.recorded:
                watcher.recorded(name, change.progress.offset, change.progress.ranges)
        for submission in submissions:
            self._on_stored(submission)
        self._on_settled(submissions)
        self._tell_committed(changes, submissions, None)
        self._tell_recorded()
        if submissions:
            dues = [due for submission in submissions for due in submission.dues]
            self.schedule.on_stored(dues)
            self._hand_over.all(submissions)

    def _tell_recorded(self) -> None:
        """Call those that wait until something is recorded which is recorded now."""
        count = self._going if self._is_changed else len(self._waiting)
        told, self._waiting, self._going = self._waiting[:count], self._waiting[count:], 0
        for function in told:
            function()

    def _tell_committed(
        self, changes: Changes, submissions: Sequence[Submission], error: BaseException | None
    ) -> None:
        """Let instruments know of a commit."""
        is_commit = changes != _NO_CHANGES or any(each.item for each in submissions)
        if not (is_commit and self._instruments.committed):
            return
        found = events_of(self.store, submissions, is_stored=error is None)
        self._instruments.call("committed", found, trio.current_time() - self._began, error)

    def _on_settled(self, submissions: Sequence[Submission]) -> None:
        """Know what transactional handlers have settled, all together as the store put it."""
        positions: dict[str, list[int]] = {}
        for submission in submissions:
            if isinstance(submission.item, Call):
                for each in submission.item.settled:
                    if each.attempts is None and each.letter_id is None:
                        positions.setdefault(each.group, []).append(each.position)
        for name, some in positions.items():
            self.catch_ups[name].acknowledgements.on_settled(some)

    def _on_stored(self, submission: Submission) -> None:
        """Go on from what is stored beside events."""
        item = submission.item
        if isinstance(item, Call):
            if item.on_stored is not None:
                item.on_stored()
        elif isinstance(item, Schedule) and submission.result.is_new:
            submission.dues = [item.due_at]
        elif isinstance(item, Release):
            self.schedule.released(submission.result)
        elif isinstance(item, Reset):
            self.letters.forget_group(item.group)
            self.catch_ups[item.group].begin_anew(submission.result.offset)
            for watcher in self._instruments.reset:
                watcher.reset(item.group, submission.result.offset)


def _log_groups(snapshot: Snapshot, catch_ups: Iterable[CatchUp]) -> None:
    """Log where groups go on, and what the store has for handlers that are not there."""
    groups = [catch_up.group for catch_up in catch_ups]
    known = {group.name: {s.name for s in group.subscriptions} for group in groups}
    used = {(key.group, key.subscription) for key in snapshot.letters}
    for record in snapshot.groups:
        used |= {(record.name, row.subscription) for row in record.attempts}
    stored = {record.name for record in snapshot.groups} | {group for group, _ in used}
    gone = [f"group {group!r}" for group in sorted(stored - known.keys())]
    gone += [
        f"subscription {name!r} of group {group!r}"
        for group, name in sorted(used)
        if group in known and name not in known[group]
    ]
    if gone:
        logger.warning(
            "the store has progress or dead letters of what the program has not, or not yet: "
            "%s. What is theirs is kept, and goes on when they are there again",
            ", ".join(gone),
        )
    for record in snapshot.groups:
        if record.name in known:
            logger.info(
                "group %r goes on behind position %d of %d; a subscription that is new in it "
                "gets nothing before, for which a new group is there",
                record.name,
                record.offset,
                snapshot.last,
            )
