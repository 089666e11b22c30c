"""Effects exactly once: a handler is called inside the commit that settles its deliveries."""

from collections.abc import Callable, Sequence
from typing import Any

from trio.lowlevel import checkpoint_if_cancelled, enable_ki_protection

from triobus._durability.acknowledgement import Acknowledgements
from triobus._errors import StoreError
from triobus._events.causes import calling_bundle, calling_cause, snapshot_of
from triobus._groups.delivery import InFlight
from triobus._groups.retry import RetryAfter
from triobus.stores import EventStore
from triobus.stores._commits import Submission
from triobus.stores._transaction import Call

_PAUSE = 1
"""Seconds until a handler is called again for which the store could not commit."""


@enable_ki_protection
async def call_in_commit(
    store: EventStore,
    acknowledgements: Acknowledgements,
    function: Callable[[Any], object],
    timeout: float | None,
    on_own_change: Callable[[], None],
) -> object:
    """Call a function for the deliveries whose handler is calling, and return what it returns.

    A store that cannot commit now is no failure of the handler, which is tried again. What is
    settled is told in the commit, before anything can interrupt the worker.
    """
    bundle: Sequence[InFlight] = calling_bundle()

    def on_stored() -> None:
        for delivery in bundle:
            acknowledgements.on_settled_with(delivery)
        on_own_change()

    call = Call(
        function,
        codec=store._codec,
        rows_of=store._rows_of,
        deliveries=[snapshot_of(delivery) for delivery in bundle],
        cause=calling_cause(),
        settled=[acknowledgements.settled_with(delivery) for delivery in bundle],
        on_stored=on_stored,
        moment=store._commits.moment(),
        timeout=timeout,
        is_inside=True,
    )
    submission = Submission(None, call)
    await checkpoint_if_cancelled()
    try:
        await store._commits.submit(submission)
    except StoreError as error:
        if not submission.is_lost:
            raise
        raise RetryAfter(_PAUSE, counts=False) from error
    return submission.result
