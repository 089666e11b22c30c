"""Functions that are called inside a commit: what they do is stored with it or not at all.

A handler with `transactional=True` is called so, and what `store.transact` is given. The kind of
store says what a transaction can do beside publishing.
"""

import contextvars
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import attrs

from triobus._errors import InvalidHandler, StatementRefused
from triobus._events import DomainEvent, EventCodec, with_cause
from triobus._events.batch import Batch
from triobus._events.causes import Delivery, publishing_inside
from triobus._events.moments import Moment, check_due
from triobus.stores._duplicates import Differs, check_same
from triobus.stores._values import Append, LogPosition, NewRow, Schedule, Settled, Waiting

in_transaction: ContextVar[bool] = ContextVar("triobus transaction", default=False)
"""Whether a commit waits for the function that is calling."""

Place = Callable[[Append], Sequence[LogPosition] | Exception]
"""Puts events into the log, or says why not."""
Keep = Callable[[Schedule], Waiting | Exception]
"""Keeps an event until it is due, or says why not."""


@attrs.define(eq=False)  # frozen, making one would take twice as long
class Call:
    """A function that is to be called inside a commit."""

    function: Callable[["Transaction"], Any]
    codec: EventCodec
    rows_of: Callable[[Batch], list[NewRow]]
    """Makes of events what goes into the log."""
    moment: Moment
    """From which the delays of what is published are counted."""
    deliveries: Sequence[Delivery] = ()
    """What a transactional handler handles."""
    cause: DomainEvent | None = None
    """What caused the events that are published in it."""
    settled: Sequence[Settled] = ()
    """What is on record once it has succeeded."""
    on_stored: Callable[[], None] | None = None
    """Called when the commit has succeeded, before the events are handed over."""
    timeout: float | None = None
    """Seconds after which a statement that still runs is interrupted."""
    is_inside: bool = False
    """Whether a handler of the bus waits for it."""
    chain: object = None
    """Calls of one chain are not made after one of it has failed in the same commit."""
    context: contextvars.Context = attrs.field(factory=contextvars.copy_context)

    def run(self, transaction: "Transaction") -> Any:
        """Call the function, and close the transaction to it."""
        try:
            result = self.context.run(self._run, transaction)
            transaction._check_whole()
        finally:
            transaction._end()
        if result is not None and inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise InvalidHandler(
                "what was called inside a transaction returned an awaitable, which is not awaited: "
                "give a plain function"
            )
        return result

    def _run(self, transaction: "Transaction") -> Any:
        in_transaction.set(True)
        return self.function(transaction)


class NotCalled:
    """What came of a call that was not made: one before it, of its chain, has failed."""


NOT_CALLED = NotCalled()


@attrs.frozen(eq=False)
class Returned:
    """What a call that succeeded has returned and published."""

    value: Any
    batch: Batch | None = None
    positions: Sequence[LogPosition] = ()
    dues: Sequence[float] = ()
    """When the events are due that were scheduled."""


class Transaction(ABC):
    """What a transactional handler, or a function that `store.transact` calls, is given.

    All that is done with it is stored with the commit that it is a part of, or not at all. It is of
    use until the function returns, in the thread that has called it. The store does nothing else
    meanwhile, so ask nothing of the network there.
    """

    def __init__(self, call: Call, *, is_read_only: bool = False) -> None:
        self._call = call
        self._is_read_only = is_read_only
        self._batch: Batch | None = None
        """What is published, and goes into the log at once."""
        self._rows: list[NewRow] = []
        self._later: list[tuple[DomainEvent, Schedule]] = []
        self._is_over = False

    @property
    def delivery(self) -> Delivery | None:
        """The delivery that is being handled, the first one of a batch; None in `transact`."""
        return self._call.deliveries[0] if self._call.deliveries else None

    @abstractmethod
    def execute(self, statement: str, parameters: Any = (), /) -> Any:
        """Execute an SQL statement on the program's own tables, and return the driver's cursor.

        It raises what the driver raises, and `StatementRefused` for a statement that would write to
        triobus's tables, or that would end, leave or rearrange the transaction.
        """

    @abstractmethod
    def executemany(self, statement: str, parameters: Iterable[Any], /) -> Any:
        """Execute an SQL statement once for each of `parameters`; otherwise like `execute`."""

    def publish(
        self, event: DomainEvent, /, *, at: datetime | None = None, delay: float | None = None
    ) -> None:
        """Publish an event with the commit: stored with it, and delivered then, or neither.

        In a handler it inherits the correlation id of the handled event and has it as cause. With
        `at`, an aware time, or `delay`, in seconds, it goes into the log when it is due. One that
        the log has already is not stored again. Raises `InvalidEvent`, `InvalidOption` and
        `EventNotEncodable`; `EventIdConflict` comes when the function has returned.
        """
        self._check_open("publish()")
        if self._is_read_only:
            raise StatementRefused(
                "transaction.publish() was called in a transaction with read_only=True: leave that "
                "out to write"
            )
        due = None
        if at is not None or delay is not None:
            due = self._call.moment.due(check_due(at, delay))
        (checked,) = Batch([event]).events
        if self._call.cause is not None:
            checked = with_cause(checked, self._call.cause)
        with publishing_inside(checked) as found:
            self._take(found, due)

    def _take(self, event: DomainEvent, due: float | None) -> None:
        """Have an event stored with the commit."""
        batch = Batch([event])
        (row,) = self._call.rows_of(batch)
        if due is not None:
            self._later.append((event, Schedule(row, due)))
        else:
            self._rows.append(row)
            if self._batch is None:
                self._batch = batch
            else:
                self._batch.add(batch.events[0], batch.keys[0])

    def _check_whole(self) -> None:  # noqa: B027  # most kinds of transaction cannot be lost
        """Raise if the transaction was ended by what was done in it, although nothing raised."""

    def _end(self) -> None:
        """Let nothing more be done with it."""
        self._is_over = True

    def _check_open(self, what: str) -> None:
        if self._is_over:
            raise StatementRefused(
                f"transaction.{what} was called after the function that was given the transaction "
                "had returned: do it inside"
            )

    @property
    def _has_published(self) -> bool:
        """Whether there are events to be stored."""
        return self._batch is not None or bool(self._later)

    def _store_events(self, value: Any, place: Place, schedule: Keep) -> Returned:
        """Store what was published, and return that with the value that is returned."""
        dues = [item.due_at for event, item in self._later if self._keep(schedule, event, item)]
        if self._batch is None:
            return Returned(value, dues=dues)
        self._batch.is_inside = self._call.is_inside
        same: frozenset[int] = frozenset()
        while True:
            found = place(Append(self._rows, None, same))
            if isinstance(found, Differs):
                event, row = self._batch.events[found.index], self._rows[found.index]
                check_same(self._call.codec, found, event, row)
                same |= {found.index}
            elif isinstance(found, Exception):
                raise found
            else:
                return Returned(value, self._batch, found, dues)

    def _keep(self, schedule: Keep, event: DomainEvent, item: Schedule) -> bool:
        """Schedule an event, and return whether it was not there yet."""
        found = schedule(item)
        if isinstance(found, Differs):
            check_same(self._call.codec, found, event, item.record)
            return False
        if isinstance(found, Exception):
            raise found
        return found.is_new
