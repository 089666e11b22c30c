"""Failed attempts are made again when the policy says, and the log tells of them."""

import logging
from typing import Any

import pytest
import trio

from tests.events import Noted
from tests.promises.failing import ONCE, SECONDS, failing, now
from triobus import DomainEvent, InvalidOption, Retry, RetryAfter, current_delivery

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
