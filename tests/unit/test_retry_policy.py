"""The retry policy: a function of the attempt, the error and the event's id."""

import copy
import math
import pickle
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triobus import InvalidOption, Retry, RetryAfter, TriobusError

EVENT_ID = UUID("12345678-1234-5678-1234-567812345678")
ids = st.uuids()


def delays(retry: Retry, error: BaseException | None = None) -> list[float | None]:
    """The delays after the attempts 1, 2, 3 ... until there is none."""
    found: list[float | None] = []
    while not found or found[-1] is not None:
        found.append(retry.delay_after(len(found) + 1, error or ValueError(), EVENT_ID))
    return found


def test_each_delay_is_longer_by_the_factor_and_the_last_failure_has_none() -> None:
    assert delays(Retry(attempts=4, delay=0.1, factor=2.0, jitter=0)) == [0.1, 0.2, 0.4, None]


def test_the_defaults_are_the_documented_ones() -> None:
    retry = Retry()
    assert (retry.attempts, retry.delay, retry.factor) == (4, 0.1, 2.0)
    assert (retry.max_delay, retry.longest_delay, retry.jitter) == (None, 30.0, 0.1)
    assert (retry.on, retry.never_on) == ((Exception,), ())


def test_one_attempt_means_no_retry() -> None:
    assert delays(Retry(attempts=1)) == [None]


def test_a_delay_of_an_hour_is_waited_for() -> None:
    assert delays(Retry(attempts=3, delay=3600, jitter=0)) == [3600.0, 3600.0, None]
    assert delays(Retry(attempts=3, delay=20, jitter=0)) == [20.0, 30.0, None]
    assert delays(Retry(attempts=3, delay=3600, factor=2, max_delay=5000, jitter=0)) == [
        3600.0,
        5000.0,
        None,
    ]


def test_a_longest_delay_that_is_shorter_than_the_first_is_refused() -> None:
    with pytest.raises(InvalidOption) as caught:
        Retry(delay=3600, max_delay=30)
    assert str(caught.value) == (
        "max_delay=30 is less than delay=3600, so that no attempt would wait as long as 'delay' "
        "says: give a max_delay of at least that, or none"
    )
    assert Retry(delay=3600, max_delay=3600).longest_delay == 3600


@pytest.mark.parametrize("seconds", [0, 7, 7.5, 31_622_400])
def test_a_handler_may_say_when_whatever_the_policy_says(seconds: float) -> None:
    for retry in (Retry(delay=2, max_delay=5), Retry(on=OSError), Retry(delay=0)):
        assert delays(retry, RetryAfter(seconds)) == [seconds, seconds, seconds, None]


def test_of_a_group_the_longest_wish_counts() -> None:
    group = ExceptionGroup("", [RetryAfter(3), ExceptionGroup("", [RetryAfter(9), OSError()])])
    assert delays(Retry(attempts=2), group) == [9.0, None]


def test_a_wish_does_not_make_other_errors_worth_a_retry() -> None:
    group = ExceptionGroup("", [RetryAfter(3), ValueError()])
    assert delays(Retry(on=OSError), group) == [None]
    assert delays(Retry(never_on=ValueError), group) == [None]
    assert delays(Retry(never_on=RetryAfter), RetryAfter(3)) == [None]


def test_an_error_that_was_raised_from_a_wish_asks_for_the_same() -> None:
    wish = RetryAfter(7)
    error = ValueError()
    error.__cause__ = OSError()
    error.__cause__.__cause__ = wish
    assert delays(Retry(on=OSError, attempts=2), error) == [7, None]
    assert delays(Retry(never_on=ValueError), error) == [None]
    group = ExceptionGroup("", [error, RetryAfter(3)])
    assert delays(Retry(on=KeyError, attempts=2), group) == [7, None]
    wish.__cause__ = error  # a circle
    assert delays(Retry(on=OSError, attempts=2), error) == [7, None]
    circle = ValueError()
    circle.__cause__ = circle
    assert delays(Retry(on=OSError), circle) == [None]


def test_a_subclass_may_carry_the_wish() -> None:
    class RateLimited(RetryAfter):
        def __init__(self) -> None:
            super().__init__(11, counts=False)

    assert delays(Retry(attempts=2), RateLimited()) == [11.0, None]


@pytest.mark.parametrize("seconds", [math.nan, "3", -1, None])
def test_a_subclass_that_says_nothing_useful_is_an_error_like_any_other(seconds: object) -> None:
    class Odd(RetryAfter):
        def __init__(self) -> None:
            self.seconds = seconds  # type: ignore[assignment]  # it is wrong on purpose

    class Silent(RetryAfter):
        def __init__(self) -> None:
            pass

    policy = Retry(attempts=2, delay=1, jitter=0)
    assert delays(policy, Odd()) == delays(policy, Silent()) == [1.0, None]


@pytest.mark.parametrize(
    "seconds", [math.nan, math.inf, -1, -0.001, True, None, "3", 10**400, 31_622_401]
)
def test_seconds_that_cannot_be_waited_are_refused(seconds: Any) -> None:
    with pytest.raises(InvalidOption) as caught:
        RetryAfter(seconds)
    assert str(caught.value) == (
        f"seconds={seconds!r}: give a finite number of at least 0 and at most 3.16224e+07"
    )


def test_whether_it_counts_is_yes_or_no() -> None:
    with pytest.raises(InvalidOption, match=r"^counts=0: give True or False$"):
        RetryAfter(3, counts=0)  # type: ignore[arg-type]  # it is wrong on purpose


def test_a_wish_can_be_copied_and_sent_to_another_process() -> None:
    for wish in (RetryAfter(3.5), RetryAfter(3, counts=False)):
        copies = [copy.copy(wish), pickle.loads(pickle.dumps(wish))]
        assert {(each.seconds, each.counts, str(each)) for each in copies} == {
            (wish.seconds, wish.counts, str(wish))
        }


def test_a_factor_of_one_keeps_the_delay() -> None:
    assert delays(Retry(attempts=4, delay=3, factor=1, jitter=0)) == [3.0, 3.0, 3.0, None]


def test_no_delay_stays_no_delay() -> None:
    assert delays(Retry(attempts=3, delay=0)) == [0.0, 0.0, None]


def test_a_delay_never_exceeds_max_delay_jitter_included() -> None:
    retry = Retry(attempts=5, delay=1.0, factor=10.0, max_delay=50.0, jitter=0)
    assert delays(retry) == [1.0, 10.0, 50.0, 50.0, None]
    for attempt in range(1, 100):
        retry = Retry(attempts=100, delay=50.0, max_delay=50.0, jitter=1)
        assert retry.delay_after(attempt, ValueError(), uuid4()) == 50.0


@given(event_id=ids, attempt=st.integers(1, 9), jitter=st.floats(0, 1))
def test_jitter_lengthens_a_delay_by_its_fraction_at_most(
    event_id: UUID, attempt: int, jitter: float
) -> None:
    retry = Retry(attempts=10, delay=1.0, factor=2.0, max_delay=1e6, jitter=jitter)
    plain = 2.0 ** (attempt - 1)
    delay = retry.delay_after(attempt, ValueError(), event_id)
    assert delay is not None
    assert plain <= delay <= plain * (1 + jitter)


def test_jitter_is_the_same_for_the_same_event_and_attempt() -> None:
    first = [Retry().delay_after(n, ValueError("x"), EVENT_ID) for n in (1, 2, 3)]
    again = [Retry().delay_after(n, KeyError("y"), EVENT_ID) for n in (1, 2, 3)]
    assert first == again


def test_jitter_spreads_events_and_attempts() -> None:
    retry = Retry(attempts=99, factor=1, delay=1, jitter=1)
    by_event = {retry.delay_after(1, ValueError(), UUID(int=n)) for n in range(1000)}
    by_attempt = {retry.delay_after(n, ValueError(), EVENT_ID) for n in range(1, 99)}
    assert len(by_event) == 1000
    assert len(by_attempt) == 98
    delays = [delay for delay in by_event if delay is not None]
    assert 1.4 < sum(delays) / len(delays) < 1.6


@pytest.mark.parametrize("attempt", [1_000, 1_100, 10**6])
@pytest.mark.parametrize("factor", [2, 2.0])
@pytest.mark.parametrize("delay", [1, 0.1])
@pytest.mark.parametrize("jitter", [0, 0.1, 1])
def test_a_huge_number_of_attempts_waits_for_max_delay(
    attempt: int, factor: float, delay: float, jitter: float
) -> None:
    retry = Retry(attempts=10**10, delay=delay, factor=factor, jitter=jitter)
    assert retry.delay_after(attempt, ValueError(), EVENT_ID) == 30.0


def test_no_delay_stays_no_delay_at_a_huge_number_of_attempts() -> None:
    retry = Retry(attempts=10**10, delay=0.0)
    assert retry.delay_after(5_000, ValueError(), EVENT_ID) == 0.0


def test_a_delay_near_the_largest_float_is_cut() -> None:
    retry = Retry(attempts=3, delay=1.5, factor=1e308, max_delay=7.0, jitter=0)
    assert delays(retry) == [1.5, 7.0, None]
    retry = Retry(attempts=4, delay=1e308, factor=1e308)
    assert delays(retry) == [1e308, 1e308, 1e308, None]


def test_only_the_errors_named_in_on_are_retried() -> None:
    retry = Retry(attempts=2, delay=1, jitter=0, on=(OSError, ValueError))
    assert retry.delay_after(1, ConnectionError(), EVENT_ID) == 1.0
    assert retry.delay_after(1, UnicodeError(), EVENT_ID) == 1.0
    assert retry.delay_after(1, KeyError(), EVENT_ID) is None


def test_never_on_wins_over_on() -> None:
    retry = Retry(attempts=2, delay=1, jitter=0, on=OSError, never_on=FileNotFoundError)
    assert retry.delay_after(1, PermissionError(), EVENT_ID) == 1.0
    assert retry.delay_after(1, FileNotFoundError(), EVENT_ID) is None


def test_a_single_class_may_be_given_for_a_tuple() -> None:
    retry = Retry(on=OSError, never_on=FileNotFoundError)
    assert (retry.on, retry.never_on) == ((OSError,), (FileNotFoundError,))


@pytest.mark.parametrize("many", [list, set, frozenset])
def test_other_collections_may_be_given_too(many: Any) -> None:
    retry = Retry(on=many([OSError]), never_on=many([FileNotFoundError]))
    assert (retry.on, retry.never_on) == ((OSError,), (FileNotFoundError,))
    assert hash(retry) == hash(Retry(on=OSError, never_on=FileNotFoundError))


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("ValueError", "'ValueError' is no class"),
        (ValueError("x"), "ValueError('x') is no class"),
        ([OSError, "x"], "'x' is no class"),
        (int, "int is not derived from Exception"),
        (KeyboardInterrupt, "KeyboardInterrupt is not derived from Exception"),
    ],
)
def test_what_is_wrong_about_classes_is_said(value: object, what: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        Retry(on=value)
    assert f": {what}; give classes derived from Exception, such as on=(" in str(caught.value)


def test_on_may_be_empty_which_retries_nothing() -> None:
    assert delays(Retry(on=()), ValueError()) == [None]
    assert delays(Retry(on=()), ExceptionGroup("", [ValueError()])) == [None]


def test_an_exception_group_is_retried_if_all_in_it_are() -> None:
    retry = Retry(attempts=2, delay=1, jitter=0, on=ValueError)
    nested = ExceptionGroup("", [ValueError(), ExceptionGroup("", [UnicodeError()])])
    mixed = ExceptionGroup("", [ValueError(), ExceptionGroup("", [KeyError()])])
    assert retry.delay_after(1, nested, EVENT_ID) == 1.0
    assert retry.delay_after(1, mixed, EVENT_ID) is None


def test_an_exception_group_is_not_retried_if_one_in_it_is_not() -> None:
    retry = Retry(attempts=2, delay=1, jitter=0, never_on=KeyError)
    good = ExceptionGroup("", [ValueError(), OSError()])
    bad = ExceptionGroup("", [ValueError(), ExceptionGroup("", [KeyError()])])
    assert retry.delay_after(1, good, EVENT_ID) == 1.0
    assert retry.delay_after(1, bad, EVENT_ID) is None


def test_groups_themselves_may_be_named() -> None:
    group = ExceptionGroup("", [KeyError()])
    assert delays(Retry(attempts=2, delay=1, jitter=0, on=ExceptionGroup), group) == [1.0, None]
    assert delays(Retry(never_on=ExceptionGroup), group) == [None]


class Odd:
    """No number and no class."""

    def __repr__(self) -> str:
        return "Odd()"  # without its address, which differs in every process that collects it


BAD_NUMBERS = [math.nan, math.inf, -math.inf, -1, -0.001, True, False, None, "1", 10**400, 1j, []]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        (option, value)
        for option in ("delay", "factor", "max_delay", "jitter")
        for value in BAD_NUMBERS
        if (option, value) != ("max_delay", None)
    ],
    ids=lambda value: str(value)[:10],
)
def test_what_is_no_finite_number_is_refused(option: str, value: object) -> None:
    with pytest.raises(InvalidOption) as caught:
        Retry(**{option: value})
    assert str(caught.value).startswith(f"{option}={value!r}: give a finite number of at least ")
    assert isinstance(caught.value, (TriobusError, ValueError))


@pytest.mark.parametrize(("option", "value"), [("factor", 0.99), ("factor", 0), ("jitter", 1.001)])
def test_a_number_out_of_its_range_is_refused(option: str, value: float) -> None:
    with pytest.raises(InvalidOption, match=rf"^{option}={value!r}: give a finite number"):
        Retry(**{option: value})


@pytest.mark.parametrize("value", [0, -1, 1.0, 1.5, True, None, "3", math.inf, math.nan])
def test_attempts_is_a_whole_number_of_at_least_one(value: object) -> None:
    with pytest.raises(InvalidOption) as caught:
        Retry(attempts=value)
    assert str(caught.value) == f"attempts={value!r}: give a whole number of 1 or more"


@pytest.mark.parametrize("option", ["on", "never_on"])
@pytest.mark.parametrize(
    "value",
    [
        BaseException,
        KeyboardInterrupt,
        SystemExit,
        BaseExceptionGroup,
        int,
        Odd(),
        ValueError(),
        "ValueError",
        None,
        3,
        [ValueError()],
        (ValueError, BaseException),
        ((ValueError,),),
    ],
    ids=str,
)
def test_only_classes_of_exceptions_can_be_retried(option: str, value: object) -> None:
    with pytest.raises(InvalidOption) as caught:
        Retry(**{option: value})
    assert str(caught.value).startswith(f"{option}=")
    assert "give classes derived from Exception" in str(caught.value)


def test_a_policy_does_not_change() -> None:
    with pytest.raises(AttributeError):
        Retry().attempts = 7


def test_two_policies_with_the_same_options_are_equal() -> None:
    assert Retry(delay=1, on=OSError) == Retry(delay=1, on=(OSError,))
    assert hash(Retry()) == hash(Retry())
