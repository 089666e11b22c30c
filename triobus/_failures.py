"""What a failed attempt becomes: a retry, a dead letter, the end of the bus, or nothing at all."""

import logging
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Literal

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from triobus._dead_letters import Letters
from triobus._delivery import Carriage, Lanes
from triobus._retry import wish_in
from triobus._subscriptions import Subscription
from triobus._text import line
from triobus._witness import Witness

logger = logging.getLogger("triobus")

OnFailure = Literal["dead-letter", "raise"]
NoteAttempts = Callable[[Carriage, int, int, float], None]
"""Tells a store which subscription of its plan a delivery has come to, how many attempts that one
has had, and the seconds until the next one."""


@attrs.define(eq=False)
class Failures:
    """The failures of one group's handlers, and what becomes of them."""

    group: str
    """The name of the group."""
    on_failure: OnFailure
    lanes: Lanes
    letters: Letters
    _witnesses: Sequence[Witness]
    _expect: Callable[[float], None]
    """Called with the time at which a retry is due."""
    note_attempts: NoteAttempts | None = None
    """Called with what a store has to know of a delivery that is not finished, if there is one."""
    attempts: int = attrs.field(default=0, init=False)
    """How many attempts have failed."""
    first_again: int = attrs.field(default=0, init=False)
    """How many retries are or will be first attempts, because the one before did not count."""
    dead_lettered: int = attrs.field(default=0, init=False)
    """How many events have become dead letters."""

    @enable_ki_protection
    def attempt_failed(
        self, carriage: Carriage, subscription: Subscription, error: Exception
    ) -> bool:
        """Retry, keep a dead letter, or raise; return whether the delivery stops for now."""
        if trio.current_effective_deadline() == -math.inf:
            if self.on_failure == "raise":
                raise error
            self._log_cancelled(subscription, error)
            return True
        self.attempts += 1
        if subscription.is_active and self._is_retried(carriage, subscription, error):
            return True
        if self.on_failure == "raise":
            raise error
        self.give_up(carriage, subscription, error, carriage.attempt)
        return False

    def _is_retried(self, carriage: Carriage, subscription: Subscription, error: Exception) -> bool:
        """Let the delivery wait for its next attempt, if its policy grants one."""
        now, attempt = trio.current_time(), carriage.attempt
        wish = wish_in(error)
        if wish is not None and not wish.counts:
            carriage.attempt -= 1
        due = self.lanes.fail(carriage, error, now)
        if due is None:
            carriage.attempt = attempt
            return False
        if not carriage.attempt:
            self.first_again += 1
        if self.note_attempts is not None and carriage.letter_id is None:
            self.note_attempts(carriage, carriage.index, carriage.attempt, due - now)
        self._expect(due)
        for witness in self._witnesses:
            witness.retry_planned(carriage, due)
        logger.info(
            "%r in group %r failed at attempt %d: %s",
            subscription.name,
            self.group,
            attempt,
            line(type(error).__name__),
        )
        return True

    def cancelled_alone(
        self, subscription: Subscription, group: BaseExceptionGroup[BaseException]
    ) -> BaseExceptionGroup[BaseException]:
        """Return what leaves a worker whose handler was cancelled and raised errors besides.

        The errors came of the cancellation: they are no failure, and do not end the bus either.
        """
        cancelled, errors = group.split(trio.Cancelled)
        if cancelled is None or not isinstance(errors, Exception) or self.on_failure == "raise":
            return group
        self._log_cancelled(subscription, errors)
        return cancelled

    def _log_cancelled(self, subscription: Subscription, error: Exception) -> None:
        logger.warning(
            "%r in group %r raised %s when cancelled",
            subscription.name,
            self.group,
            line(type(error).__name__),
        )

    def give_up(
        self, carriage: Carriage, subscription: Subscription, error: Exception, attempts: int
    ) -> None:
        """Keep the event as a dead letter of the subscription."""
        for witness in self._witnesses:
            witness.given_up(carriage.event, subscription, attempts, error)
        now = datetime.now(UTC)
        if carriage.letter_id is not None:
            self.letters.add_failure(carriage.letter_id, attempts, error, now)
        else:
            self._keep(carriage, subscription, error, attempts, now)
        if carriage.watch is not None:
            carriage.watch.failed(subscription, error)

    def _keep(
        self,
        carriage: Carriage,
        subscription: Subscription,
        error: Exception,
        attempts: int,
        now: datetime,
    ) -> None:
        self.dead_lettered += 1
        letter_id = self.letters.add(
            carriage.event,
            carriage.position,
            self.group,
            subscription.name,
            attempts,
            error,
            now,
        )
        is_last = carriage.index + 1 == len(carriage.plan)
        if self.note_attempts is not None and not is_last:
            self.note_attempts(carriage, carriage.index + 1, 0, 0)
        logger.error(
            "dead letter %d: event %s, %r in group %r, after %d attempts: %s",
            letter_id,
            carriage.event.event_id,
            subscription.name,
            self.group,
            attempts,
            line(type(error).__name__),
        )
