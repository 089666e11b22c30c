"""Effects exactly once: handlers are called inside the commit that settles their deliveries."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import outcome
from trio.lowlevel import checkpoint_if_cancelled, enable_ki_protection

from triobus._durability.acknowledgement import Acknowledgements
from triobus._errors import StoreError
from triobus._groups.effects import Effect
from triobus._groups.retry import RetryAfter
from triobus.stores import EventStore
from triobus.stores._commits import Submission
from triobus.stores._transaction import Call
from triobus.stores._values import Settled

_PAUSE = 1
"""Seconds until a handler is called again for which the store could not commit."""


@enable_ki_protection
async def call_in_commit(
    store: EventStore,
    acknowledgements: Acknowledgements,
    effects: Sequence[Effect],
    on_own_change: Callable[[], None],
) -> list[outcome.Outcome[Any] | None]:
    """Have effects in one commit, and return what came of each; None for one that was not tried.

    A store that cannot commit now is no failure of the handlers, which are tried again. What is
    settled is told in the commit, before anything can interrupt the worker. Cancelled before the
    commit has begun, nothing is done; after that its end is waited for.
    """
    moment = store._commits.moment()
    submissions = []
    for effect in effects:
        settled = [acknowledgements.settled_with(each, effect.after) for each in effect.deliveries]
        call = Call(
            effect.function,
            codec=store._codec,
            rows_of=store._rows_of,
            deliveries=effect.told,
            cause=effect.cause,
            settled=settled,
            on_stored=partial(_on_stored, acknowledgements, effect, settled, on_own_change),
            moment=moment,
            timeout=effect.timeout,
            is_inside=True,
            chain=effect.chain,
            context=effect.context,
        )
        submissions.append(Submission(None, call))
    await checkpoint_if_cancelled()
    await store._commits.submit_all(submissions)
    return [_outcome(submission) for submission in submissions]


def _on_stored(
    acknowledgements: Acknowledgements,
    effect: Effect,
    settled: Sequence[Settled],
    on_own_change: Callable[[], None],
) -> None:
    for delivery, each in zip(effect.deliveries, settled, strict=True):
        acknowledgements.on_settled_with(delivery, each)
    on_own_change()


def _outcome(submission: Submission) -> outcome.Outcome[Any] | None:
    """Return what became of a call; None if it was not made, for one before it has failed."""
    error = submission.error
    if isinstance(error, StoreError) and submission.is_lost:
        again = RetryAfter(_PAUSE, counts=False)
        again.__cause__ = error
        return outcome.Error(again)
    if error is not None:
        return outcome.Error(error)
    return outcome.Value(submission.result) if submission.is_made else None
