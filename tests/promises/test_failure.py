"""What happens when a handler fails, and what is no failure."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import trio

from tests.events import Noted
from triobus import (
    DomainEvent,
    EventBus,
    HandlerTimeout,
    InvalidOption,
    Retry,
    RetryAfter,
    TriobusError,
    current_delivery,
)

ONCE = Retry(attempts=1)
SECONDS = Retry(attempts=4, delay=1, factor=2, jitter=0)


def now() -> float:
    return round(trio.current_time(), 6)


def failing(*errors: BaseException, calls: list[Any] | None = None) -> Callable[[Any], Any]:
    """A handler that raises the errors, one an attempt, and then succeeds."""
    left = list(errors)

    async def fails(event: DomainEvent) -> str:
        if calls is not None:
            calls.append((now(), current_delivery().attempt))
        if left:
            raise left.pop(0)
        return "done"

    return fails


async def nothing(event: DomainEvent) -> None:
    """Succeeds."""


# Retries


async def test_retries_come_exactly_when_the_policy_says(new_bus, autojump_clock) -> None:
    calls: list[Any] = []
    bus = new_bus()
    errors = [ValueError("a"), KeyError("b"), OSError("c")]
    bus.subscribe(Noted, failing(*errors, calls=calls), name="h", retry=SECONDS)
    async with bus:
        outcome = await bus.publish_and_wait(Noted(1))
        statistics = bus.statistics()
    assert calls == [(0, 1), (1, 2), (3, 3), (7, 4)]
    assert (dict(outcome.results), dict(outcome.errors)) == ({"h": "done"}, {})
    assert (statistics.failed_attempts, statistics.retries) == (3, 3)
    assert (statistics.handled, statistics.dead_lettered) == (1, 0)


async def test_a_handler_says_itself_when_it_is_to_be_tried_again(
    new_bus,
    autojump_clock,
) -> None:
    calls: list[Any] = []
    bus = new_bus()
    grouped = ExceptionGroup("", [RetryAfter(7), RetryAfter(2)])
    errors = [RetryAfter(600), grouped, ValueError()]
    bus.subscribe(Noted, failing(*errors, calls=calls), name="h", retry=SECONDS)
    async with bus:
        outcome = await bus.publish_and_wait(Noted(1))
    assert calls == [(0, 1), (600, 2), (607, 3), (611, 4)]
    assert outcome.results == {"h": "done"}


async def test_such_an_attempt_counts_and_the_last_one_becomes_a_dead_letter(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus()
    bus.subscribe(Noted, failing(RetryAfter(5), RetryAfter(5)), retry=Retry(attempts=2))
    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        (letter,) = await bus.dead_letters.list()
    assert (now(), letter.attempts, letter.error_type) == (5, 2, "RetryAfter")
    assert letter.message == "to be tried again after 5 s"


async def test_such_an_attempt_need_not_count(new_bus, autojump_clock) -> None:
    calls: list[Any] = []
    bus = new_bus()
    errors = [*[RetryAfter(60, counts=False)] * 1000, ValueError(), RetryAfter(3, counts=False)]
    bus.subscribe(Noted, failing(*errors, calls=calls), name="h", retry=Retry(2, 1, jitter=0))
    async with bus:
        outcome = await bus.publish_and_wait(Noted(1))
        statistics = bus.statistics()
    assert outcome.results == {"h": "done"}
    assert calls[:1001] == [(60 * n, 1) for n in range(1001)]
    assert calls[1001:] == [(60_001, 2), (60_004, 2)]
    assert (statistics.failed_attempts, statistics.retries) == (1002, 1002)
    assert statistics.dead_lettered == 0


async def test_a_handler_that_is_gone_is_not_tried_again_whatever_it_says(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus()

    async def handle(event: DomainEvent) -> None:
        subscription.unsubscribe()
        raise RetryAfter(5, counts=False)

    subscription = bus.subscribe(Noted, handle)
    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        (letter,) = await bus.dead_letters.list()
    assert (now(), letter.attempts) == (0, 1)


async def test_the_default_policy_makes_four_attempts(new_bus, autojump_clock) -> None:
    calls: list[Any] = []
    bus = new_bus()
    event = Noted(1)
    error = ValueError()
    bus.subscribe(Noted, failing(*[error] * 9, calls=calls))
    async with bus:
        await bus.publish(event)
    moments = [0.0]
    for attempt in (1, 2, 3):
        delay = Retry().delay_after(attempt, error, event.event_id)
        assert delay is not None
        moments.append(round(moments[-1] + delay, 6))
    assert [attempt for _, attempt in calls] == [1, 2, 3, 4]
    assert [moment for moment, _ in calls] == pytest.approx(moments, abs=2e-6)


async def test_only_the_handler_that_failed_is_retried(new_bus, autojump_clock) -> None:
    calls: list[Any] = []
    bus = new_bus()

    async def before(event: Noted) -> None:
        calls.append("before")

    async def after(event: Noted) -> None:
        calls.append("after")

    bus.subscribe(Noted, before)
    bus.subscribe(Noted, failing(ValueError(), ValueError(), calls=calls), retry=SECONDS)
    bus.subscribe(Noted, after)
    async with bus:
        await bus.publish(Noted(1))
    assert calls == ["before", (0, 1), (1, 2), (3, 3), "after"]


async def test_a_retry_without_delay_is_made_at_once(new_bus, autojump_clock) -> None:
    calls: list[Any] = []
    bus = new_bus()
    bus.subscribe(Noted, failing(*[ValueError()] * 2, calls=calls), retry=Retry(delay=0))
    async with bus:
        await bus.publish(Noted(1))
    assert calls == [(0, 1), (0, 2), (0, 3)]


async def test_two_retries_in_flight_each_keep_their_time(new_bus, autojump_clock) -> None:
    calls: list[Any] = []
    bus = new_bus()

    async def fails_first(event: Noted) -> None:
        calls.append((now(), event.number, current_delivery().attempt))
        if current_delivery().attempt == 1:
            raise ValueError

    bus.subscribe(Noted, fails_first, retry=Retry(delay=10, jitter=0))
    async with bus:
        await bus.publish(Noted(1))
        await trio.sleep(4)
        await bus.publish(Noted(2))
    assert calls == [(0, 1, 1), (4, 2, 1), (10, 1, 2), (14, 2, 2)]


async def test_a_shorter_retry_that_comes_later_is_not_held_up(new_bus, autojump_clock) -> None:
    calls: list[Any] = []
    bus = new_bus()
    long = Retry(delay=20, jitter=0)
    short = Retry(delay=1, jitter=0)
    first, second = failing(ValueError(), calls=calls), failing(ValueError(), calls=calls)
    bus.subscribe(Noted, first, name="long", retry=long, where=lambda event: event.number == 1)
    bus.subscribe(Noted, second, name="short", retry=short, where=lambda event: event.number == 2)
    async with bus:
        await bus.publish(Noted(1))
        await trio.sleep(5)
        await bus.publish(Noted(2))
    assert calls == [(0, 1), (5, 1), (6, 2), (20, 2)]


async def test_what_is_not_worth_a_retry_is_given_up_at_once(new_bus, autojump_clock) -> None:
    calls: list[Any] = []
    bus = new_bus()
    fails = failing(OSError(), KeyError("no"), calls=calls)
    bus.subscribe(Noted, fails, retry=Retry(on=OSError, delay=1, jitter=0))
    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        [letter] = await bus.dead_letters.list()
    assert calls == [(0, 1), (1, 2)]
    assert (letter.error_type, letter.message, letter.attempts) == ("KeyError", "'no'", 2)


async def test_an_exception_group_is_a_failure_like_any_other(new_bus, autojump_clock) -> None:
    calls: list[Any] = []
    bus = new_bus()

    async def fails_in_a_nursery(event: Noted) -> None:
        calls.append(now())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(failing(ValueError("inner")), event)
            nursery.start_soon(trio.sleep_forever)

    bus.subscribe(Noted, fails_in_a_nursery, retry=Retry(attempts=2, delay=1, jitter=0))
    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        [letter] = await bus.dead_letters.list()
    assert calls == [0, 1]
    assert (letter.error_type, letter.attempts) == ("ExceptionGroup(ValueError)", 2)
    assert letter.message == "ValueError: inner"
    assert "ValueError: inner" in letter.traceback


async def test_a_dead_letter_of_a_group_names_what_is_in_it(new_bus, autojump_clock) -> None:
    bus = new_bus()
    inner = ExceptionGroup("b", [KeyError("k"), ValueError("second")])
    bus.subscribe(Noted, failing(ExceptionGroup("a", [ValueError("first"), inner])), retry=ONCE)
    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        [letter] = await bus.dead_letters.list()
    assert letter.error_type == "ExceptionGroup(ValueError, KeyError)"
    assert letter.message == "ValueError: first; KeyError: 'k'; ValueError: second"


async def test_a_group_of_many_names_the_first(new_bus, autojump_clock) -> None:
    bus = new_bus()
    many = ExceptionGroup("a", [ValueError(n) for n in range(30)])
    bus.subscribe(Noted, failing(many), retry=ONCE)
    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        [letter] = await bus.dead_letters.list()
    assert letter.error_type == "ExceptionGroup(ValueError)"
    assert letter.message.startswith("ValueError: 0; ValueError: 1; ")
    assert letter.message.endswith("ValueError: 19; and 10 more")


# The log


async def test_the_log_tells_what_an_attempt_and_a_dead_letter_failed_of(
    new_bus, autojump_clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "triobus")
    bus = new_bus()

    async def typo(event: DomainEvent) -> None:
        event.nmber  # type: ignore[attr-defined]  # noqa: B018  # the typo

    bus.subscribe(Noted, typo, name="typo", retry=Retry(attempts=2))
    async with bus:
        await bus.publish(event := Noted(1))
    told = "AttributeError: 'Noted' object has no attribute 'nmber'"
    assert [(entry.levelname, entry.getMessage()) for entry in caplog.records] == [
        ("INFO", f"'typo' in group 'default' failed at attempt 1: {told}"),
        (
            "ERROR",
            f"dead letter 1: event {event.event_id}, 'typo' in group 'default', after 2 attempts: "
            f"{told}",
        ),
    ]
    assert caplog.records[0].exc_text is None
    (entry,) = caplog.records[1:]
    assert entry.exc_text is not None
    assert entry.exc_text.startswith("Traceback (most recent call last):\n")
    assert ", in typo\n    event.nmber" in entry.exc_text
    assert f"\n{told}" in entry.exc_text
    assert f"{told}\nTraceback (most recent" in logging.Formatter().format(entry)


async def test_the_log_keeps_to_the_types_if_messages_may_hold_secrets(
    new_bus, autojump_clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "triobus")
    bus = new_bus(log_errors="type")
    group = ExceptionGroup("secret", [KeyError("secret"), ValueError("secret")])
    bus.subscribe(Noted, failing(OSError("secret"), group), name="h", retry=Retry(attempts=2))
    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        (letter,) = await bus.dead_letters.list()
    assert "secret" in letter.message
    assert "secret" not in caplog.text
    assert [entry.getMessage().rpartition(": ")[2] for entry in caplog.records] == [
        "OSError",
        "ExceptionGroup(KeyError, ValueError)",
    ]


def test_what_the_log_tells_is_one_of_two(new_bus) -> None:
    with pytest.raises(InvalidOption, match=r"^log_errors='all': give 'message' or 'type'$"):
        new_bus(log_errors="all")  # type: ignore[arg-type]  # it is wrong on purpose


# Timeouts


async def test_a_handler_that_takes_too_long_is_cancelled_and_retried(
    new_bus,
    autojump_clock,
) -> None:
    calls: list[Any] = []
    bus = new_bus()

    async def slow_at_first(event: Noted) -> str:
        calls.append(now())
        await trio.sleep(10 if current_delivery().attempt < 3 else 4)
        return "done"

    bus.subscribe(
        Noted, slow_at_first, name="h", timeout=5, retry=Retry(attempts=3, delay=1, jitter=0)
    )
    async with bus:
        outcome = await bus.publish_and_wait(Noted(1))
        assert bus.statistics().failed_attempts == 2
    assert calls == [0, 6, 13]
    assert now() == 17
    assert dict(outcome.results) == {"h": "done"}


async def test_the_error_of_a_timeout_is_one_of_trios_too(new_bus, autojump_clock) -> None:
    bus = new_bus()

    async def slow(event: Noted) -> None:
        await trio.sleep_forever()

    bus.subscribe(Noted, slow, name="h", timeout=2.5, retry=ONCE)
    async with bus:
        outcome = await bus.publish_and_wait(Noted(1))
        [letter] = await bus.dead_letters.list()
    error = outcome.errors["h"]
    assert type(error) is HandlerTimeout
    assert isinstance(error, TriobusError)
    assert isinstance(error, trio.TooSlowError)
    assert str(error) == (
        "test_the_error_of_a_timeout_is_one_of_trios_too.<locals>.slow did not finish within its "
        "timeout of 2.5 s and was cancelled"
    )
    assert (letter.error_type, letter.message) == ("HandlerTimeout", str(error))
    assert now() == 2.5


async def test_a_handler_that_just_makes_it_is_no_failure(new_bus, autojump_clock) -> None:
    bus = new_bus()

    async def slow(event: Noted) -> str:
        await trio.sleep(1.999)
        return "made it"

    bus.subscribe(Noted, slow, name="h", timeout=2)
    async with bus:
        outcome = await bus.publish_and_wait(Noted(1))
    assert dict(outcome.results) == {"h": "made it"}


async def test_every_attempt_has_the_whole_timeout(new_bus, autojump_clock) -> None:
    bus = new_bus()

    async def fails_late(event: Noted) -> None:
        await trio.sleep(4)
        if current_delivery().attempt < 3:
            raise ValueError

    bus.subscribe(Noted, fails_late, timeout=5, retry=Retry(delay=0))
    async with bus:
        outcome = await bus.publish_and_wait(Noted(1))
    assert dict(outcome.errors) == {}
    assert now() == 12


async def test_a_handlers_own_too_slow_error_stays_as_it_is(new_bus, autojump_clock) -> None:
    bus = new_bus()

    async def impatient(event: Noted) -> None:
        with trio.fail_after(1):
            await trio.sleep(2)

    bus.subscribe(Noted, impatient, name="h", timeout=5, retry=ONCE)
    async with bus:
        outcome = await bus.publish_and_wait(Noted(1))
    assert [type(error) for error in outcome.errors.values()] == [trio.TooSlowError]


# The last attempt


async def test_after_the_last_attempt_the_delivery_goes_on(new_bus, autojump_clock) -> None:
    calls: list[Any] = []
    bus = new_bus()
    event = Noted(1, "a")
    error = ValueError("no good")

    async def next_one(event: Noted) -> str:
        calls.append((now(), "next"))
        return "fine"

    bus.subscribe(Noted, failing(*[error] * 9, calls=calls), name="bad", retry=SECONDS)
    bus.subscribe(Noted, next_one, name="next")
    async with bus:
        outcome = await bus.publish_and_wait(event)
        [letter] = await bus.dead_letters.list()
        statistics = bus.statistics()
    assert calls == [(0, 1), (1, 2), (3, 3), (7, 4), (7, "next")]
    assert (dict(outcome.results), dict(outcome.errors)) == ({"next": "fine"}, {"bad": error})
    assert letter.event == event
    assert (letter.group, letter.subscription, letter.attempts) == ("default", "bad", 4)
    assert (letter.error_type, letter.message) == ("ValueError", "no good")
    assert letter.traceback.startswith("Traceback (most recent call last):\n")
    assert letter.traceback.endswith("in fails\n    raise left.pop(0)\nValueError: no good\n")
    assert letter.first_failed_at == letter.last_failed_at
    assert (statistics.failed_attempts, statistics.retries) == (4, 3)
    assert (statistics.handled, statistics.dead_lettered) == (1, 1)


class SilentError(Exception):
    """Cannot even say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


async def test_an_error_that_cannot_be_printed_is_kept(new_bus, autojump_clock) -> None:
    bus = new_bus()
    bus.subscribe(Noted, failing(SilentError()), retry=ONCE)
    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        [letter] = await bus.dead_letters.list()
    assert letter.error_type == "SilentError"
    assert letter.message == "<str() of this SilentError raised an error itself>"
    assert "raise left.pop(0)" in letter.traceback


async def test_a_huge_message_is_cut(new_bus, autojump_clock) -> None:
    bus = new_bus()
    bus.subscribe(Noted, failing(ValueError("x" * 5_000_000)), retry=ONCE)
    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        [letter] = await bus.dead_letters.list()
    assert letter.message == "x" * 4096
    assert len(letter.traceback.encode()) <= 16 * 1024
    assert "raise left.pop(0)" in letter.traceback


@pytest.mark.parametrize("letter", ["x", "é", "汉", "😀", "\ud800"], ids=ascii)
async def test_a_huge_traceback_is_cut_to_its_end(new_bus, autojump_clock, letter: str) -> None:
    bus = new_bus()
    error = ExceptionGroup("many", [ValueError(letter * 500, n) for n in range(500)])
    error.__cause__ = ValueError(letter * 100_000)
    bus.subscribe(Noted, failing(error, KeyError("the end")), retry=Retry(attempts=2))

    async def deep(event: Noted) -> None:
        def fall(depth: int) -> None:
            try:
                if depth:
                    fall(depth - 1)
            finally:
                raise ValueError(letter * 100 + str(depth))

        try:
            fall(100)
        finally:
            raise KeyError("the end")

    bus.subscribe(Noted, deep, retry=ONCE)
    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        first, second = await bus.dead_letters.list()
    assert first.traceback.endswith("KeyError: 'the end'\n")
    assert 8 * 1024 < len(second.traceback.encode()) <= 16 * 1024
    assert second.traceback.endswith("KeyError: 'the end'\n")


# on_failure="raise"


async def test_with_raise_the_error_leaves_the_block_as_from_a_nursery(
    autojump_clock,
) -> None:
    error = ValueError("fatal")
    seen: list[str] = []
    bus = EventBus(on_failure="raise")
    bus.subscribe(Noted, failing(error), retry=ONCE)

    async def body() -> None:
        async with bus:
            await bus.publish(Noted(1))
            try:
                await trio.sleep_forever()
            finally:
                seen.append("cancelled")

    with pytest.raises(ExceptionGroup) as caught:
        await body()
    assert caught.value.exceptions == (error,)
    assert seen == ["cancelled"]
    assert not bus.statistics().running
    assert await bus.dead_letters.list() == []


async def test_with_raise_the_error_comes_after_the_last_attempt(new_bus, autojump_clock) -> None:
    calls: list[Any] = []
    errors = [ValueError(n) for n in range(4)]
    bus = new_bus(on_failure="raise")
    bus.subscribe(Noted, failing(*errors, calls=calls), retry=SECONDS)
    with pytest.raises(ExceptionGroup) as caught:
        async with bus:
            await bus.publish(Noted(1))
    assert calls == [(0, 1), (1, 2), (3, 3), (7, 4)]
    assert caught.value.exceptions == (errors[-1],)


async def test_with_raise_other_handlers_are_cancelled(new_bus, autojump_clock) -> None:
    ends: list[Any] = []
    bus = new_bus(on_failure="raise")

    async def slow(event: Noted) -> None:
        try:
            await trio.sleep(100)
        finally:
            ends.append(now())

    async def fails(event: Noted) -> None:
        await trio.sleep(3)
        raise ValueError

    bus.subscribe(Noted, slow)
    bus.group("other").subscribe(Noted, fails, retry=ONCE)
    with pytest.raises(ExceptionGroup) as caught:
        async with bus:
            await bus.publish(Noted(1))
    assert [type(error) for error in caught.value.exceptions] == [ValueError]
    assert ends == [3]


async def test_with_raise_the_error_leaves_run_too(new_bus, autojump_clock) -> None:
    error = ValueError("fatal")
    bus = new_bus(on_failure="raise")
    bus.subscribe(Noted, failing(error), retry=ONCE)

    async def body() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(bus.run)
            await bus.publish(Noted(1))
            await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await body()
    inner = caught.value.exceptions[0]
    assert isinstance(inner, ExceptionGroup)
    assert inner.exceptions == (error,)


# Not failures


@pytest.mark.parametrize("cls", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("on_failure", ["dead-letter", "raise"])
async def test_what_ends_the_program_is_never_swallowed(
    autojump_clock, cls: type[BaseException], on_failure: Any
) -> None:
    error = cls("now")
    calls: list[Any] = []
    bus = EventBus(on_failure=on_failure)
    bus.subscribe(Noted, failing(error, calls=calls))

    async def body() -> None:
        async with bus:
            await bus.publish(Noted(1))
            await trio.sleep_forever()

    # Control-C leaves by itself, where nothing else has failed.
    with pytest.raises(cls if cls is KeyboardInterrupt else BaseExceptionGroup) as caught:
        await body()
    assert getattr(caught.value, "exceptions", (caught.value,)) == (error,)
    assert calls == [(0, 1)]
    assert bus.statistics().failed_attempts == 0
    assert await bus.dead_letters.list() == []


async def test_cancellation_is_no_failure(autojump_clock) -> None:
    bus = EventBus()

    async def slow(event: Noted) -> None:
        await trio.sleep(100)

    bus.subscribe(Noted, slow)
    with trio.move_on_after(5):
        async with bus:
            await bus.publish_many([Noted(1, "a"), Noted(2, "a")])
            await trio.sleep_forever()
    statistics = bus.statistics()
    assert now() == 5
    assert (statistics.failed_attempts, statistics.retries, statistics.dead_lettered) == (0, 0, 0)
    assert statistics.handled == 0
    assert statistics.groups["default"].lag == 2
    assert await bus.dead_letters.list() == []


@pytest.mark.parametrize("with_nursery", [False, True])
async def test_an_error_in_a_cancelled_handler_is_no_failure_either(
    autojump_clock, with_nursery: bool
) -> None:
    bus = EventBus()

    async def untidy(event: Noted) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("while cleaning up")

    async def untidy_child(event: Noted) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(untidy, event)
            nursery.start_soon(trio.sleep_forever)

    bus.subscribe(Noted, untidy_child if with_nursery else untidy)
    async with bus:
        await bus.publish(Noted(1))
        await trio.sleep(1)
        report = await bus.stop(drain=False)
    assert report.left == {"default": 1}
    assert bus.statistics().failed_attempts == 0
    assert await bus.dead_letters.list() == []


async def test_a_handler_may_cancel_a_scope_of_its_own(new_bus, autojump_clock) -> None:
    bus = new_bus()

    async def cancels_itself(event: Noted) -> str:
        with trio.CancelScope() as scope:
            scope.cancel()
            await trio.sleep(10)
        return "cancelled" if scope.cancelled_caught else "not"

    bus.subscribe(Noted, cancels_itself, name="h")
    async with bus:
        outcome = await bus.publish_and_wait(Noted(1))
        assert bus.statistics().failed_attempts == 0
    assert dict(outcome.results) == {"h": "cancelled"}


async def test_a_failing_handler_stops_neither_worker_nor_bus(new_bus, autojump_clock) -> None:
    bus = new_bus(workers=2)

    async def fails_at_odd(event: Noted) -> int:
        if event.number % 2:
            raise ValueError
        return event.number

    bus.subscribe(Noted, fails_at_odd, retry=ONCE)
    async with bus:
        for number in range(100):
            await bus.publish(Noted(number))
        await bus.wait_idle()
        statistics = bus.statistics()
        letters = await bus.dead_letters.list()
    assert (statistics.handled, statistics.dead_lettered, statistics.worker_count) == (100, 50, 2)
    assert sorted(letter.event.number for letter in letters) == list(range(1, 100, 2))
