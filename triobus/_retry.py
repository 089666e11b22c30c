"""The retry policy: plain data and one function of the attempt, with no state and no clock."""

import zlib
from typing import Any
from uuid import UUID

import attrs

from triobus._checks import number, whole_number
from triobus._errors import InvalidOption


def _error_types(value: Any) -> tuple[type[Exception], ...]:
    return value if isinstance(value, tuple) else (value,)


def _check_error_types(_: "Retry", attribute: "attrs.Attribute[Any]", value: Any) -> None:
    for error_type in value:
        if not (isinstance(error_type, type) and issubclass(error_type, Exception)):
            raise InvalidOption(
                f"{attribute.name}={value!r}: give classes derived from Exception; cancellation, "
                "KeyboardInterrupt and SystemExit are never retried"
            )


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


@attrs.frozen
class Retry:
    """How often and when a failed handler is tried again.

    The first attempt is made at once; the n-th failure is followed by a delay of
    `delay * factor ** (n - 1)` seconds on Trio's clock, lengthened by up to the fraction `jitter`
    and never longer than `max_delay`. Raises `InvalidOption` for values that cannot work.
    """

    attempts: int = attrs.field(default=4)
    """How many attempts in all, the first included; 1 means no retry."""

    delay: float = attrs.field(default=0.1)
    """Seconds before the second attempt."""

    factor: float = attrs.field(default=2.0)
    """By how much each delay is longer than the one before."""

    max_delay: float = attrs.field(default=30.0)
    """The longest delay in seconds, `delay` itself and jitter included: raise it for a long one."""

    jitter: float = attrs.field(default=0.1)
    """The largest fraction, from 0 to 1, that is added to a delay so that retries spread out. It is
    computed from the event's id, not drawn: the same event waits equally long every time."""

    on: tuple[type[Exception], ...] = attrs.field(
        default=(Exception,), converter=_error_types, validator=_check_error_types
    )
    """The errors that are worth a retry; a group of errors is if all in it are."""

    never_on: tuple[type[Exception], ...] = attrs.field(
        default=(), converter=_error_types, validator=_check_error_types
    )
    """The errors that are not, though `on` names them; a group of errors is not if one in it is."""

    def __attrs_post_init__(self) -> None:
        whole_number("attempts", self.attempts, least=1)
        number("delay", self.delay, least=0)
        number("factor", self.factor, least=1)
        number("max_delay", self.max_delay, least=0)
        number("jitter", self.jitter, least=0, most=1)

    def delay_after(self, attempt: int, error: BaseException, event_id: UUID) -> float | None:
        """Return the seconds to wait after the failed `attempt` (from 1), or None for no retry."""
        if attempt >= self.attempts or not self._is_worth_it(error):
            return None
        try:
            delay = self.delay * float(self.factor) ** (attempt - 1)
        except OverflowError:
            delay = self.max_delay if self.delay else 0.0
        spread = zlib.crc32(attempt.to_bytes(8), zlib.crc32(event_id.bytes)) / 2**32
        return min(delay * (1 + self.jitter * spread), self.max_delay)

    def _is_worth_it(self, error: BaseException) -> bool:
        if isinstance(error, self.never_on):
            return False
        leaves = _leaves(error)
        if any(isinstance(leaf, self.never_on) for leaf in leaves):
            return False
        return isinstance(error, self.on) or all(isinstance(leaf, self.on) for leaf in leaves)
