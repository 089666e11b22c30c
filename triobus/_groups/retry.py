"""The retry policy: plain data and one function of the attempt, with no state and no clock."""

import zlib
from typing import Any
from uuid import UUID

import attrs

from triobus._checks import number, whole_number
from triobus._errors import InvalidOption, TriobusError
from triobus._text import leaves, shown

LONGEST_WISH = 366 * 86400.0
"""The longest delay in seconds that a handler may ask for: more would be a mistake."""


_CAUSE = BaseException.__dict__["__cause__"].__get__
"""Asked of the type, for `__cause__` of a user's error may be anything."""


class RetryAfter(TriobusError):
    """Raised by a handler to say itself when it is to be tried again.

    The next attempt is made after `seconds`, at most a year, whatever delay and `max_delay` the
    subscription's `Retry` has. It is retried whatever `Retry.on` says, unless `never_on` names it.
    An error that it is the cause of asks for the same: `raise BrokerIsDown() from RetryAfter(60)`.
    In an `ExceptionGroup` the longest of several counts. It is a failed attempt like any other,
    after the last of which the event becomes a dead letter; with `counts=False` it is none of those
    that `Retry.attempts` limits: for what is not the event's fault, such as a broker that is down.
    Raises `InvalidOption` for seconds that cannot be waited.
    """

    def __init__(self, seconds: float, *, counts: bool = True) -> None:
        self.seconds = number("seconds", seconds, least=0, most=LONGEST_WISH)
        """Seconds until the next attempt."""
        if type(counts) is not bool:
            raise InvalidOption(f"counts={counts!r}: give True or False")
        self.counts = counts
        """Whether this attempt counts."""
        super().__init__(seconds)

    def __str__(self) -> str:
        return f"to be tried again after {self.seconds:g} s"


@attrs.frozen
class Wish:
    """When a handler wants to be tried again."""

    delay: float
    """Seconds until then."""
    counts: bool
    """Whether the attempt that has failed is one of those that are limited."""


def wish_in(error: BaseException) -> Wish | None:
    """Return what the `RetryAfter` in an error asks for, if there is one.

    Of several the longest delay counts; the attempt counts unless everything in the error says no.
    """
    found = [_wish(leaf) for leaf in leaves(error)]
    wishes = [wish for wish in found if wish is not None]
    if not wishes:
        return None
    return Wish(max(wish.delay for wish in wishes), None in found or any(w.counts for w in wishes))


def _wish(error: BaseException) -> Wish | None:
    error = _carried(error)
    if not issubclass(type(error), RetryAfter):
        return None
    try:
        seconds, counts = error.seconds, error.counts  # type: ignore[attr-defined]  # as its type says
        return Wish(number("seconds", seconds, least=0, most=LONGEST_WISH), counts is not False)
    except Exception:  # noqa: BLE001  # a subclass that does not call our __init__, or worse
        return None


def _carried(error: BaseException) -> BaseException:
    """Return the `RetryAfter` that an error was raised from, else the error itself."""
    found: BaseException | None = error
    seen = set()
    while found is not None and id(found) not in seen:
        if issubclass(type(found), RetryAfter):
            return found
        seen.add(id(found))
        found = _CAUSE(found)
    return error


def _error_types(value: Any) -> Any:
    """Return one class as a tuple of it, and other collections as tuples."""
    if isinstance(value, (list, set, frozenset)):
        return tuple(value)
    return value if isinstance(value, tuple) else (value,)


def _check_error_types(_: "Retry", attribute: "attrs.Attribute[Any]", value: Any) -> None:
    for found in value:
        if not isinstance(found, type):
            what = f"{shown(found)} is no class"
        elif not issubclass(found, Exception):
            what = f"{found.__name__} is not derived from Exception"
        else:
            continue
        raise InvalidOption(
            f"{attribute.name}={value!r}: {what}; give classes derived from Exception, such as "
            f"{attribute.name}=(OSError, TimeoutError); cancellation, KeyboardInterrupt and "
            "SystemExit are never retried"
        )


@attrs.frozen
class Retry:
    """How often and when a failed handler is tried again.

    The first attempt is made at once; the n-th failure is followed by a delay of
    `delay * factor ** (n - 1)` seconds on Trio's clock, lengthened by up to the fraction `jitter`
    and never longer than `max_delay`. A handler that knows better raises `RetryAfter`. Raises
    `InvalidOption` for values that cannot work.
    """

    attempts: int = attrs.field(default=4)
    """How many attempts in all, the first included; 1 means no retry."""

    delay: float = attrs.field(default=0.1)
    """Seconds before the second attempt."""

    factor: float = attrs.field(default=2.0)
    """By how much each delay is longer than the one before."""

    max_delay: float | None = attrs.field(default=None)
    """The longest delay in seconds, jitter included; None for 30, or `delay` where that is more."""

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
        if self.max_delay is not None:
            number("max_delay", self.max_delay, least=0)
            if self.max_delay < self.delay:
                raise InvalidOption(
                    f"max_delay={self.max_delay!r} is less than delay={self.delay!r}, so that no "
                    "attempt would wait as long as 'delay' says: give a max_delay of at least "
                    "that, or none"
                )
        number("jitter", self.jitter, least=0, most=1)

    @property
    def longest_delay(self) -> float:
        """The longest delay in seconds that the policy itself can come to."""
        return max(30.0, self.delay) if self.max_delay is None else self.max_delay

    def delay_after(self, attempt: int, error: BaseException, event_id: UUID) -> float | None:
        """Return the seconds to wait after the failed `attempt` (from 1), or None for no retry."""
        if attempt >= self.attempts or not self._is_worth_it(error):
            return None
        wish = wish_in(error)
        if wish is not None:
            return wish.delay
        longest = self.longest_delay
        try:
            delay = self.delay * float(self.factor) ** (attempt - 1)
        except OverflowError:
            delay = longest if self.delay else 0.0
        spread = zlib.crc32(attempt.to_bytes(8), zlib.crc32(event_id.bytes)) / 2**32
        return min(delay * (1 + self.jitter * spread), longest)

    def _is_worth_it(self, error: BaseException) -> bool:
        # The types are asked, for the `__class__` of a user's error may be anything.
        found = [type(leaf) for leaf in leaves(error)]
        if any(issubclass(cls, self.never_on) for cls in (type(error), *found)):
            return False
        if issubclass(type(error), self.on):
            return True
        asked = [type(_carried(leaf)) for leaf in leaves(error)]
        wanted = (*self.on, RetryAfter)
        return all(issubclass(cls, wanted) for cls in asked)
