"""Group commit: what is to be stored while a commit is on its way shares the next transaction.

There is no task for it. Of those that wait one leads: it takes everything that is there, stores it
in one call and tells the others, the next of whom leads what has come meanwhile. What the groups of
a bus have finished is taken along by whoever leads; only when nobody does, the bus itself comes.
"""

import copy
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import attrs
import trio
from trio.lowlevel import Abort, cancel_shielded_checkpoint, enable_ki_protection

from triobus._errors import BusClosed, OutcomeUnknown, StoreError
from triobus._events.batch import Batch
from triobus.stores._values import Append, Changes, Placement, Transaction

_NO_CHANGES = Changes()


@attrs.define(eq=False)
class Entry:
    """Events on their way into the log."""

    batch: Batch
    append: Append | None
    """None for one that only wants to know when what the groups have finished is stored."""
    task: trio.lowlevel.Task | None = None
    is_taken: bool = False
    """Whether it is in the commit that is on its way, or in one that is over."""
    is_leading: bool = False
    is_apart: bool = False
    """Whether it shares its turn with no other, for it stores nothing."""
    placements: Sequence[Placement] = ()
    error: BaseException | None = None


class Observer(Protocol):
    """A bus, as the journal sees it. None of it waits."""

    def collect(self) -> Changes:
        """Return what the groups have come to since the last time."""

    def recorded(self, changes: Changes) -> None:
        """What was collected is stored."""

    def give_back(self, changes: Changes, error: BaseException) -> None:
        """What was collected is not stored, because of an error."""

    def released(self) -> None:
        """Nobody is left to take along what the groups come to."""

    def committed(self, entries: Sequence[Entry]) -> None:
        """Events have found their places in the log, in this order."""


@attrs.define(eq=False)
class Journal:
    """Stores what comes from many tasks, in the order in which it comes."""

    _commit: Callable[[Transaction], Awaitable[list[list[Placement] | Exception]]]
    _check_process: Callable[[], None]
    """Raises in a forked child, where whoever leads would never be done."""
    observer: Observer | None = None
    """The bus that uses the store."""
    is_busy: bool = False
    """Whether somebody leads, who will take along what there is."""
    is_halted: bool = False
    _pending: dict[Entry, None] = attrs.field(factory=dict)

    @enable_ki_protection
    async def submit(self, entry: Entry) -> Sequence[Placement]:
        """Store an entry's events, and return where they are.

        Cancelled before the entry is in a commit, nothing is stored; after that it has no effect.
        """
        self._check_process()
        await self._wait_for_turn(entry)
        if entry.is_leading:
            await self._lead()
        if entry.error is not None:
            raise entry.error
        return entry.placements

    @asynccontextmanager
    async def quiet(self) -> AsyncIterator[None]:
        """Wait for a turn in which nothing is stored while the block runs; then others go on.

        Cancelled while it waits, it has had no turn. Raises `BusClosed` after a simulated crash.
        """
        self._check_process()
        entry = Entry(Batch([]), None, is_apart=True)
        await self._wait_for_turn(entry)
        if entry.error is not None:
            raise entry.error
        del self._pending[entry]
        try:
            yield
        finally:
            self._pass_on()

    async def _wait_for_turn(self, entry: Entry) -> None:
        """Return when the entry leads, or is stored or refused by another that does."""
        if self.is_halted:
            raise _halted()
        self._pending[entry] = None
        if not self.is_busy:
            self.is_busy = entry.is_leading = True
            return
        entry.task = trio.lowlevel.current_task()

        def abort(_: object) -> Abort:
            if entry.is_taken:
                return Abort.FAILED
            del self._pending[entry]
            return Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def flush(self) -> None:
        """Store what the groups have finished. Raises `StoreError`."""
        await self.submit(Entry(Batch([]), None))

    def halt(self) -> None:
        """Store nothing any more; what is in the commit under way may be stored or not."""
        self.is_halted = True
        for entry in self._pending:
            entry.error = _halted()
            if not entry.is_leading:
                assert entry.task is not None
                trio.lowlevel.reschedule(entry.task)
        self._pending.clear()

    @enable_ki_protection
    async def _lead(self) -> None:
        # Whoever is about to come, because the last commit has let them go on, comes now.
        await cancel_shielded_checkpoint()
        if self.is_halted:
            return
        entries = [entry for entry in self._pending if not entry.is_apart]
        for entry in entries:
            del self._pending[entry]
            entry.is_taken = True
        try:
            await self._carry_out(entries)
        finally:
            # Whatever was raised, nobody who waits may be forgotten.
            for entry in entries:
                if not entry.is_leading:
                    assert entry.task is not None
                    trio.lowlevel.reschedule(entry.task)
            self._pass_on()

    async def _carry_out(self, entries: Sequence[Entry]) -> None:
        """Store entries, and hand them over. Raises what the observer raises, and nothing else."""
        changes = _NO_CHANGES
        try:
            if self.observer is not None:
                changes = self.observer.collect()
            await self._store(entries, changes)
        except BaseException as error:  # noqa: BLE001  # each of them gets it
            for entry in entries:
                entry.error = _copied(error) if isinstance(error, StoreError) else error
            if self.observer is not None:
                self.observer.give_back(changes, error)
        else:
            if self.is_halted:
                for entry in entries:
                    entry.error = _outcome_unknown()
            elif self.observer is not None:
                self.observer.recorded(changes)
                self.observer.committed([e for e in entries if e.append and e.error is None])

    def _pass_on(self) -> None:
        """Let the next one lead that waits."""
        self.is_busy = bool(self._pending)
        if self._pending:
            heir = next(iter(self._pending))
            heir.is_leading = True
            assert heir.task is not None
            trio.lowlevel.reschedule(heir.task)
        elif self.observer is not None:
            self.observer.released()

    async def _store(self, entries: Sequence[Entry], changes: Changes) -> None:
        """Commit, and tell every entry where its events are or why they are not."""
        storing = [entry for entry in entries if entry.append is not None]
        appends = [entry.append for entry in storing if entry.append is not None]
        if not (appends or changes.groups or changes.letters):
            return
        results = await self._commit(Transaction(appends, changes))
        for entry, result in zip(storing, results, strict=True):
            if isinstance(result, Exception):
                entry.error = result
            else:
                entry.placements = result


def _halted() -> BusClosed:
    return BusClosed("the bus was crashed before the event was stored: it was not accepted")


def _outcome_unknown() -> OutcomeUnknown:
    return OutcomeUnknown(
        "the bus was crashed while the event was being stored: publish the same event again, when "
        "the store is open again"
    )


def _copied(error: StoreError) -> StoreError:
    """Return an error of its own for each task that raises it, and adds its traceback."""
    copied = copy.copy(error)
    copied.__cause__ = error.__cause__
    return copied
