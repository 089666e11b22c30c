"""What a failed attempt becomes: a retry, a dead letter, the end of the bus, or nothing at all."""

import logging
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from triobus._errors import GivenUp, StrayCancelled
from triobus._events import key_of
from triobus._events.causes import snapshot_of
from triobus._groups.dead_letters import DeadLetterKeeper
from triobus._groups.delivery import Bundle, InFlight, Lanes
from triobus._groups.instruments import Instruments
from triobus._groups.retry import wish_in
from triobus._groups.subscriptions import Subscription
from triobus._text import described, escaped, leaves, line, message_of, type_of

logger = logging.getLogger("triobus")

OnFailure = Literal["dead-letter", "raise"]
LogErrors = Literal["message", "type"]
RecordAttempts = Callable[[InFlight, int, int, float], None]
"""Tells a store which subscription of its plan a delivery has come to, how many attempts that one
has had, and the seconds until the next one."""


@attrs.define(eq=False)
class Failures:
    """The failures of one group's handlers, and what becomes of them."""

    group: str
    """The name of the group."""
    on_failure: OnFailure
    lanes: Lanes
    letters: DeadLetterKeeper
    _instruments: Instruments
    _log_errors: LogErrors
    _expect: Callable[[float], None]
    """Called with the time at which a retry is due."""
    _record_attempts: RecordAttempts
    """Called with what a store has to know of a delivery that is not finished."""
    attempts: int = attrs.field(default=0, init=False)
    """How many attempts have failed."""
    first_again: int = attrs.field(default=0, init=False)
    """How many retries are or will be first attempts, because the one before did not count."""
    dead_lettered: int = attrs.field(default=0, init=False)
    """How many events have become dead letters."""

    @enable_ki_protection
    def attempt_failed(
        self, delivery: InFlight, subscription: Subscription, error: BaseException
    ) -> bool:
        """Retry, keep a dead letter, or raise; return whether the delivery stops for now."""
        failure = self.put_off(delivery, subscription, error)
        if failure is None:
            return True
        self.end(delivery, subscription, failure, delivery.attempt)
        return False

    @enable_ki_protection
    def put_off(
        self, delivery: InFlight | Bundle, subscription: Subscription, error: BaseException
    ) -> Exception | None:
        """Let a delivery wait for its next attempt, or return why it has none.

        None too if it was cancelled, which the next checkpoint raises.
        """
        failure = self.counted(subscription, error)
        if failure is None:
            return None
        is_wanted = subscription.is_active and self._has_letter(delivery)
        if is_wanted and self._is_retried(delivery, subscription, failure):
            return None
        return failure

    def counted(self, subscription: Subscription, error: BaseException) -> Exception | None:
        """Count a failed attempt and return its failure; None if the worker was cancelled."""
        if _is_cancelled():
            self._raise_cancelled(subscription, error)
            return None
        failure = as_failure(error)
        if failure is None:
            raise error
        self.attempts += 1
        return failure

    def end(
        self, delivery: InFlight, subscription: Subscription, failure: Exception, attempts: int
    ) -> None:
        """Do what is to be done after the last attempt."""
        if self.on_failure == "raise":
            raise failure
        self.give_up(delivery, subscription, failure, attempts)

    def _raise_cancelled(self, subscription: Subscription, error: BaseException) -> None:
        """Raise what leaves a worker whose handler was cancelled, if anything does.

        Errors that came of the cancellation are no failure, and do not end the bus either.
        """
        if isinstance(error, trio.Cancelled) or self.on_failure == "raise":
            raise error
        if isinstance(error, BaseExceptionGroup):
            cancelled, errors = error.split(trio.Cancelled)
            if cancelled is not None and isinstance(errors, Exception):
                self._log_cancelled(subscription, errors)
                raise cancelled from None
        if not isinstance(error, Exception):
            raise error
        self._log_cancelled(subscription, error)

    def _has_letter(self, delivery: InFlight | Bundle) -> bool:
        """Whether the dead letter that is replayed, if it is one, has not been discarded."""
        return delivery.letter_id is None or delivery.letter_id in self.letters

    def _is_retried(
        self, delivery: InFlight | Bundle, subscription: Subscription, error: Exception
    ) -> bool:
        """Let the delivery wait for its next attempt, if its policy grants one."""
        now, attempt, wish = trio.current_time(), delivery.attempt, wish_in(error)
        counted = attempt if wish is None or wish.counts else attempt - 1
        delivery.attempt = counted
        due = self.lanes.fail(delivery, error, now)
        delivery.attempt = attempt
        if due is None:
            return False
        for each in delivery.parts:
            if each.letter_id is None:
                self._record_attempts(each, each.index, counted, due - now)
            for watcher in self._instruments.retry_planned:
                watcher.retry_planned(each, due)
            if self._instruments.retry_scheduled:
                self._instruments.call("retry_scheduled", snapshot_of(each), due)
        self._expect(due)
        if logger.isEnabledFor(logging.INFO):
            logger.info(
                "%r in group %r failed at attempt %d: %s",
                subscription.name,
                self.group,
                attempt,
                self._told(error),
            )
        delivery.attempt = counted
        self.first_again += not counted
        return True

    def _told(self, error: BaseException) -> str:
        """Return one line about an error for the log."""
        if self._log_errors == "type":
            return line(type_of(error))
        return f"{line(type_of(error))}: {line(message_of(error))}"

    def _log_cancelled(self, subscription: Subscription, error: BaseException) -> None:
        logger.warning(
            "%r in group %r raised an error when cancelled: %s",
            subscription.name,
            self.group,
            self._told(error),
        )

    @enable_ki_protection
    def give_up(
        self, delivery: InFlight, subscription: Subscription, error: Exception, attempts: int
    ) -> None:
        """Keep the event as a dead letter of the subscription."""
        for watcher in self._instruments.given_up:
            watcher.given_up(delivery.event, subscription, attempts, error)
        now = datetime.now(UTC)
        letter_id = delivery.letter_id
        if letter_id is not None:
            self.letters.add_failure(letter_id, attempts, error, now)
        else:
            letter_id = self._keep(delivery, subscription, error, attempts, now)
        if self._instruments.dead_lettered:
            letter = self.letters.newest(letter_id, delivery.event)
            if letter is not None:
                self._instruments.call("dead_lettered", letter)
        if delivery.completion is not None:
            delivery.completion.failed(subscription, error)

    @enable_ki_protection
    def end_waiting(self, delivery: InFlight | Bundle, advance: Callable[[InFlight], bool]) -> int:
        """Give up what was to be tried again, and go on behind that; return how many events."""
        parts, attempts = delivery.parts, delivery.attempt
        for each in parts:
            known = f"; the last error was {each.error}" if each.error else ""
            error = GivenUp(f"given up after {attempts} attempt{'s' * (attempts != 1)}{known}")
            self.give_up(each, each.subscription, error, attempts)
            if advance(each):
                each.index = len(each.plan)
                if each.completion is not None:
                    each.completion.finished()
        delivery.attempt = 0
        if isinstance(delivery, Bundle):
            delivery.drop_finished()
        if any(each.index < len(each.plan) for each in delivery.deliveries):
            self.lanes.resume(delivery)
        return len(parts)

    def _keep(
        self,
        delivery: InFlight,
        subscription: Subscription,
        error: Exception,
        attempts: int,
        now: datetime,
    ) -> int:
        self.dead_lettered += 1
        letter_id = self.letters.add(
            delivery.event,
            delivery.position,
            self.group,
            subscription.name,
            attempts,
            error,
            now,
            aggregate_id_of(delivery, self.lanes),
            hold=subscription.hold,
        )
        is_last = delivery.index + 1 == len(delivery.plan)
        if not is_last:
            self._record_attempts(delivery, delivery.index + 1, 0, 0)
        if logger.isEnabledFor(logging.ERROR):
            self._log_letter(letter_id, delivery, subscription, error, attempts)
        return letter_id

    def _log_letter(
        self,
        letter_id: int,
        delivery: InFlight,
        subscription: Subscription,
        error: Exception,
        attempts: int,
    ) -> None:
        """Log a dead letter on one line, with a traceback that formatters put below it.

        It is made here: what they made of a hostile error could be of any length, or an error.
        """
        name, event_id = subscription.name, delivery.event.event_id
        record = logger.makeRecord(
            logger.name,
            logging.ERROR,
            __file__,
            0,
            "dead letter %d: event %s, %r in group %r, after %d attempts: %s",
            (letter_id, event_id, name, self.group, attempts, self._told(error)),
            None,
            "_log_letter",
        )
        if self._log_errors == "message":
            record.exc_text = escaped(described(error)["traceback"], kept="\n").rstrip()
        logger.handle(record)


def as_failure(error: BaseException) -> Exception | None:
    """Return what a handler's error counts as, if its worker was not cancelled; None if as none.

    It is none if KeyboardInterrupt, SystemExit or their like are in it. A `trio.Cancelled` is of a
    scope that is not around the handler, and an error like any other.
    """
    if isinstance(error, Exception):
        return error
    found = [_as_error(leaf) for leaf in leaves(error)]
    failures = [leaf for leaf in found if leaf is not None]
    if len(failures) < len(found):
        return None
    failure = (
        ExceptionGroup("a handler's errors", failures)
        if isinstance(error, BaseExceptionGroup)
        else failures[0]
    )
    failure.__cause__ = error
    return failure


def _as_error(error: BaseException) -> Exception | None:
    if isinstance(error, trio.Cancelled):
        return StrayCancelled(
            "the handler raised a trio.Cancelled, and nothing around it was cancelled: it is of "
            "another scope, kept and raised again. Let Cancelled pass where it is raised"
        )
    return error if isinstance(error, Exception) else None


def _is_cancelled() -> bool:
    return trio.current_effective_deadline() == -math.inf


def aggregate_id_of(delivery: InFlight, lanes: Lanes) -> str | None:
    """Return what the event said when it was published, and may not say any more."""
    if delivery.key is not None or lanes.is_ordered:
        return delivery.key
    try:  # a group without order has no use for it, and keeps none
        return key_of(delivery.event)
    except Exception:  # noqa: BLE001  # the user's property may raise anything by now
        return None
