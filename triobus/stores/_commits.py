"""Group commit: what is to be stored while a commit is under way shares the next transaction.

Everything that is to be stored goes into a memory channel. A bus that uses the store runs the
writer, a task of its own, which takes all that is there, commits it in one call and answers. While
no bus does, the tasks that wait take turns as writers. Commits come one at a time in either case.
"""

import copy
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from math import inf
from types import NoneType
from typing import Any, Protocol

import attrs
import outcome
import trio
from trio.lowlevel import Abort, enable_ki_protection

from triobus._errors import BusClosed, OutcomeUnknown, StoreError
from triobus._events.batch import Batch
from triobus._events.moments import Moment, Moments
from triobus.stores._transaction import NOT_CALLED, Returned
from triobus.stores._values import Append, Changes, Commit, LogPosition, Reached

_NO_CHANGES = Changes()


@attrs.define(eq=False)
class Submission:
    """Events, or something else that is to be stored, on their way."""

    batch: Batch | None
    """The events that go into the log; None for what publishes none."""
    item: Any
    """What is to be done in a commit: an `Append`, or one of the others; None for a submission that
    only waits until what the groups have finished is stored."""
    task: trio.lowlevel.Task | None = None
    """The task that the writer has to wake; None for one that waits for its turn as writer."""
    is_taken: bool = False
    """Whether it is in the commit under way, or in one that is over."""
    is_withdrawn: bool = False
    """Whether its task was cancelled before."""
    positions: Sequence[LogPosition] = ()
    result: Any = None
    """What came of it, unless it is an append."""
    dues: Sequence[float] = ()
    """When events are due that it has scheduled."""
    error: BaseException | None = None
    is_made: bool = True
    """False for a call that was not made, because one before it has failed."""
    is_lost: bool = False
    """Whether the whole commit has failed, and not the submission alone."""

    def withdraw(self, _: object = None) -> Abort:
        """Store nothing of it, unless it is too late for that."""
        if self.is_taken:
            return Abort.FAILED
        self.is_withdrawn = True
        return Abort.SUCCEEDED


class StoreUser(Protocol):
    """A bus, as its store's commits see it. None of it waits."""

    def moment(self) -> Moment:
        """Return the present moment on the clock of the bus."""

    def take_changes(self) -> Changes:
        """Return what the groups have come to since the last time."""

    def give_back(
        self, changes: Changes, submissions: Sequence[Submission], error: BaseException
    ) -> None:
        """These changes, and what was submitted, are not stored, because of an error."""

    def committed(
        self, changes: Changes, submissions: Sequence[Submission], recorded: Any = None
    ) -> None:
        """These changes are stored, and the events have these places in the log, in this order.

        `recorded` says what came of the changes of segments, if there are some.
        """


@attrs.define(eq=False)
class CommitQueue:
    """Stores what comes from many tasks, in the order in which it comes."""

    _commit: Callable[[Commit], Awaitable[list[Any]]]
    _check_process: Callable[[], None]
    """Raises in a forked child, where no writer would ever answer."""
    user: StoreUser | None = None
    """The bus that uses the store, and runs the writer."""
    is_halted: bool = False
    _is_signalled: bool = False
    _turn: trio.Lock = attrs.field(factory=trio.Lock)
    """The task that holds it is the writer."""
    _received: list[Submission] = attrs.field(factory=list)
    """What the writer has received and not taken into a commit yet."""
    _writing: trio.CancelScope = attrs.field(factory=lambda: trio.CancelScope(shield=True))
    """The scope of the writer task, which outlives everything else in the nursery of its bus."""
    _ended: trio.Event | None = None
    _send: trio.MemorySendChannel[Submission | None] = attrs.field(init=False)
    _receive: trio.MemoryReceiveChannel[Submission | None] = attrs.field(init=False)
    """None is the signal that groups have finished something."""

    def __attrs_post_init__(self) -> None:
        # Each waiting task has one submission in it, and there is at most one signal.
        self._send, self._receive = trio.open_memory_channel[Submission | None](inf)

    @enable_ki_protection
    async def submit(self, submission: Submission) -> None:
        """Store a submission, which tells then what came of it; raises what it has for an error.

        Cancelled before it is in a commit, nothing is stored; after that it has no effect.
        """
        self._check_process()
        if self.is_halted:
            raise _halted()
        self._send.send_nowait(submission)
        if self.user is None:
            await self._take_turn(submission)
        if not submission.is_taken:
            submission.task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(submission.withdraw)
        if submission.error is not None:
            raise submission.error

    @enable_ki_protection
    async def submit_all(self, submissions: Sequence[Submission]) -> None:
        """Store submissions in one commit, each of which then knows what came of it.

        A bus uses the store. Cancelled before they are in a commit, nothing of them is stored.
        """
        self._check_process()
        if self.is_halted:
            raise _halted()
        for submission in submissions:
            self._send.send_nowait(submission)

        def withdraw(_: object) -> Abort:
            for submission in submissions:
                found = submission.withdraw()
            return found

        submissions[-1].task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(withdraw)

    def moment(self) -> Moment:
        """Return the moment from which delays are counted."""
        return Moments().now() if self.user is None else self.user.moment()

    async def flush(self) -> None:
        """Store what the groups have finished. Raises `StoreError`."""
        await self.submit(Submission(None, None))

    def signal(self) -> None:
        """Let the writer know that the groups have finished something."""
        if not self._is_signalled:
            self._send.send_nowait(None)  # first: an interrupt between the two costs nothing then
            self._is_signalled = True

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Store nothing while the block runs; what is submitted meanwhile comes after it.

        Raises `BusClosed` after a simulated crash.
        """
        self._check_process()
        async with self._turn:
            if self.is_halted:
                raise _halted()
            yield

    def halt(self) -> None:
        """Store nothing any more; what is in the commit under way may be stored or not."""
        self.is_halted = True
        self._refuse_all()

    def _refuse_all(self) -> None:
        for submission in self._take_all():
            submission.error = _halted()
            _wake(submission)

    # The writer

    def serve(self, user: StoreUser) -> None:
        """Be used by a bus, which runs the writer from here on until it calls `release`."""
        self.user = user
        self._writing, self._ended = trio.CancelScope(shield=True), None

    @enable_ki_protection
    async def run(self) -> None:
        """Commit what is submitted until `release` is called: the writer task of a bus."""
        ended = self._ended = trio.Event()
        try:
            with self._writing:
                while True:
                    await self._commit_next()
        finally:
            ended.set()

    async def _commit_next(self) -> None:
        """Wait for something to be submitted, and commit it with all that comes with it."""
        first = await self._receive.receive()
        if first is None:
            # So that the next publisher, which may be about to come, shares the commit.
            self._is_signalled = False
            await trio.lowlevel.checkpoint()
        else:
            self._received.append(first)
        # Tasks that the last commit has let go on, and that submit again, are in time too.
        await trio.lowlevel.checkpoint()
        async with self._turn:
            await self._commit_all()

    @enable_ki_protection
    async def release(self) -> None:
        """End the writer, commit what is left, and be used by no bus any more.

        Not to be cancelled. Raises `StoreError` if what the groups have finished is not stored.
        """
        self._writing.cancel()
        if self._ended is not None:  # else it has not begun, and will not wait for anything
            await self._ended.wait()
        async with self._turn:
            try:
                error = await self._commit_all()
            finally:
                self.user = None
                await self._commit_all()  # what came meanwhile, of which no bus is told
        if error is not None:
            raise error

    async def _take_turn(self, submission: Submission) -> None:
        """Store a submission, by this task or another one whose turn comes before.

        A bus may come meanwhile, whose writer has received the submission and will store it.
        """
        is_interrupted = False
        with trio.CancelScope() as scope:
            while True:
                try:
                    await self._turn.acquire()
                    break
                except BaseException as error:
                    if submission.withdraw() is Abort.SUCCEEDED:
                        raise
                    scope.shield = True  # it is being stored, which takes a moment
                    is_interrupted |= isinstance(error, KeyboardInterrupt)
        try:
            if not submission.is_taken:
                await self._commit_all()
        finally:
            self._turn.release()
            if is_interrupted:  # no shield keeps it off: it comes at the next checkpoint
                signal.raise_signal(signal.SIGINT)

    async def _commit_all(self) -> BaseException | None:
        """Commit everything that is there, and answer; return the error of the commit, if any."""
        if self.is_halted:
            self._refuse_all()
            return None
        submissions, changes, user = self._take_all(), _NO_CHANGES, self.user
        try:
            if user is not None:
                changes = user.take_changes()
            stored, recorded = await self._store(submissions, changes)
        except BaseException as error:  # noqa: BLE001  # each of the tasks that wait gets it
            for submission in submissions:
                submission.error = _copied(error) if isinstance(error, StoreError) else error
                submission.is_lost = True
            if user is not None:
                user.give_back(changes, submissions, error)
            return error
        else:
            if self.is_halted:
                for submission in submissions:
                    unknown = _outcome_unknown() if submission.item else _halted()
                    submission.error = submission.error or unknown
            elif user is not None:
                user.committed(changes, stored, recorded)
            return None
        finally:
            # Whatever was raised, no task that waits may be forgotten.
            for submission in submissions:
                _wake(submission)

    def _take_all(self) -> list[Submission]:
        """Take everything that was submitted, and not withdrawn, into a commit."""
        received, self._received = self._received, []
        with suppress(trio.WouldBlock):
            while True:
                submission = self._receive.receive_nowait()
                if submission is not None:
                    received.append(submission)
                else:
                    self._is_signalled = False
        taken = [submission for submission in received if not submission.is_withdrawn]
        for submission in taken:
            submission.is_taken = True
        return taken

    async def _store(
        self, submissions: Sequence[Submission], changes: Changes
    ) -> tuple[list[Submission], Any]:
        """Commit, tell every submission what came of it, and return those that are stored.

        They are in the order of the positions that their events got. Behind them is returned what
        came of the changes of segments.
        """
        appends = [each for each in submissions if isinstance(each.item, Append)]
        others = [each for each in submissions if not isinstance(each.item, (Append, NoneType))]
        if not (appends or others or changes.groups or changes.letters or changes.segments):
            return [], None
        results = await self._commit(
            Commit([each.item for each in appends], changes, [each.item for each in others])
        )
        recorded = results.pop() if changes.segments else None
        storing = [*appends, *others]
        for submission, result in zip(storing, results, strict=True):
            _answer(submission, result)
        return [each for each in storing if each.error is None and each.is_made], recorded


def _answer(submission: Submission, result: Any) -> None:
    if isinstance(result, outcome.Error):
        submission.error = result.error
    elif isinstance(result, Exception):
        submission.error = result
    elif isinstance(submission.item, Append):
        submission.positions = result
    elif result is NOT_CALLED:
        submission.is_made = False
    else:
        submission.result = result.value if isinstance(result, Returned) else result
        returned = result.call if isinstance(result, Reached) else result
        if isinstance(returned, Returned):
            submission.batch, submission.positions = returned.batch, returned.positions
            submission.dues = returned.dues


def _wake(submission: Submission) -> None:
    if submission.task is not None:
        trio.lowlevel.reschedule(submission.task)


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
