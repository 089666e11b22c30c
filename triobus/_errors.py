"""The error tree: everything that triobus raises of its own is a `TriobusError`.

Where Trio has a word for a situation, our error is one of Trio's too, so that code which already
handles `trio.ClosedResourceError` or `trio.WouldBlock` handles ours.
"""

from uuid import UUID

import trio


class TriobusError(Exception):
    """The root of everything that triobus raises of its own."""


class InvalidOption(TriobusError, ValueError):
    """An option has a value that cannot work; the message names the option and its range."""


class InvalidHandler(TriobusError, TypeError):
    """A handler cannot be called with one event, or is no function at all."""


class InvalidEvent(TriobusError, TypeError, ValueError):
    """Something that is no event, or no event type, was given where one is needed."""


class EventNotDecodable(TriobusError, ValueError):
    """A JSON text is no event of a loaded class; the message says where and what was expected."""

    position: int | None = None
    """Its place in the store's log, if it was read from there."""


class EventNotEncodable(TriobusError, ValueError):
    """An event would not come back from JSON as it is; the message names the field and why."""


class DuplicateName(TriobusError, ValueError):
    """A group of the bus, or a subscription of the group, already has this name."""


class BusClosed(TriobusError, trio.ClosedResourceError):
    """The bus is not running: it has not been started yet, is stopping, or has stopped."""


class BusAlreadyStarted(TriobusError, trio.BusyResourceError):
    """The bus runs already; it can be started again when it has stopped."""


class NotInTrio(TriobusError, RuntimeError):
    """Something that waits was called outside a Trio run, in an asyncio program for example."""


class BusFull(TriobusError, trio.WouldBlock):
    """`publish_nowait` found no room for the event; the event was not accepted."""


class HandlerTimeout(TriobusError, trio.TooSlowError):
    """An attempt took longer than the subscription's timeout and was cancelled."""


class StrayCancelled(TriobusError, RuntimeError):
    """A handler raised a `trio.Cancelled` though neither it nor the bus was cancelled.

    It is what the handler's failure counts as; the `trio.Cancelled` is its cause.
    """


class GroupNotPaused(TriobusError, trio.BusyResourceError):
    """Something was asked of a group that works, and needs one that is paused."""


class HeldBack(TriobusError):
    """An event was not tried: an earlier one of its aggregate is a dead letter (`hold=True`)."""


class GivenUp(TriobusError):
    """An event that waited for a retry was given up by `bus.retries.give_up()`."""


class WouldDeadlock(TriobusError, RuntimeError):
    """Something was waited for that waits for the one who asks: a handler, a listener, a thread."""


class NoDelivery(TriobusError, LookupError):
    """`current_delivery()` was called outside a handler."""


class UnknownDeadLetter(TriobusError, LookupError):
    """No dead letter has this id: it was never there, or was replayed, discarded or dropped."""


class UnknownSubscription(TriobusError, LookupError):
    """A dead letter's subscription is gone, so the letter cannot be replayed."""


class ProcessDied(TriobusError):
    """The process died at every attempt to handle an event, which is a dead letter for it."""


class StoreError(TriobusError):
    """The root of everything that a store raises; the message names the store and what to do."""


class StoreNotFound(StoreError, FileNotFoundError):
    """The store's directory does not exist, or a store that is only to be read does not."""


class InvalidStorePath(StoreError, ValueError):
    """The path cannot be a store's: a directory, a device, a dangling link, no path at all."""


class StoreReadOnly(StoreError):
    """The store cannot be written: its file, directory or file system is read-only."""


class NotAStore(StoreError):
    """The file is no database, another application's, or has another schema than a store's."""


class StoreTooNew(StoreError):
    """A newer version of triobus has written the store."""


class StoreCorrupt(StoreError):
    """The store is damaged; nothing of the damaged part is ever taken for an event."""

    position: int | None = None
    """The first position that is not whole, if it is known."""


class StoreFull(StoreError):
    """The disk is full. What was to be stored is not; once there is room it can be."""


class StoreIOError(StoreError):
    """The disk refused to read or write. What was to be stored is not."""


class StoreUnavailable(StoreIOError):
    """The server of the store cannot be reached, or refuses the connection. Nothing was stored."""


class StoreInUse(StoreError, trio.BusyResourceError):
    """Another bus or writer has the store."""

    pid: int | None = None
    """The process that has it, if that is known."""


class StoreReplaced(StoreError):
    """The store's file was removed or replaced while it was open; it must be opened again."""


class StatementRefused(StoreError):
    """A statement of a transaction was not executed, and the message says why.

    It ends the transaction, changes SQLite's settings, writes to triobus's tables or although the
    transaction is read-only, or comes after the function has returned.
    """


class StoreForked(StoreError):
    """A store was used in a forked child of the process that opened it."""


class StoreClosed(StoreError, trio.ClosedResourceError):
    """The store is not open: use it inside `async with store:`."""


class OutcomeUnknown(StoreError):
    """A commit failed, and the disk refuses what would make that certain.

    Publishing the same event again is safe. The store refuses everything until it is opened again.
    """


class EventIdConflict(StoreError, ValueError):
    """Another event has this id already: other fields, or another type. Nothing was stored."""

    event_id: UUID | None = None
    """The id of both."""
    position: int | None = None
    """Where the first one is in the log; None if both came in one call."""
    field: str | None = None
    """The first field that is different, or "event_type"."""


class SequenceConflict(StoreError):
    """The aggregate has another sequence than was expected; nothing was stored."""

    def __init__(self, message: str, *, expected: int, found: int) -> None:
        super().__init__(message)
        self.expected = expected
        """The sequence that the caller expected the aggregate to have; 0 for no events."""
        self.found = found
        """The sequence that it has."""
