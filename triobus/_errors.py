"""The error tree: everything that triobus raises of its own is a `TriobusError`.

Where Trio has a word for a situation, our error is one of Trio's too, so that code which already
handles `trio.ClosedResourceError` or `trio.WouldBlock` handles ours.
"""

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


class DuplicateName(TriobusError, ValueError):
    """A group of the bus, or a subscription of the group, already has this name."""


class BusClosed(TriobusError, trio.ClosedResourceError):
    """The bus is not running: it has not been started yet, is stopping, or has stopped."""


class BusAlreadyStarted(TriobusError, trio.BusyResourceError):
    """The bus has been started before; a bus runs once."""


class BusFull(TriobusError, trio.WouldBlock):
    """`publish_nowait` found no room for the event; the event was not accepted."""


class HandlerTimeout(TriobusError, trio.TooSlowError):
    """An attempt took longer than the subscription's timeout and was cancelled."""


class HeldBack(TriobusError):
    """An event was not tried: an earlier one of its aggregate is a dead letter (`hold=True`)."""


class WouldDeadlock(TriobusError, RuntimeError):
    """A handler asked its own bus for something that waits for that same handler."""


class NoDelivery(TriobusError, LookupError):
    """`current_delivery()` was called outside a handler."""


class UnknownDeadLetter(TriobusError, LookupError):
    """No dead letter has this id: it was never there, or was replayed, discarded or dropped."""


class UnknownSubscription(TriobusError, LookupError):
    """A dead letter's subscription is gone, so the letter cannot be replayed."""
