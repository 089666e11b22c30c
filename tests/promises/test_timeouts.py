"""Handlers that take too long are cancelled, which is a failure."""

from typing import Any

import trio

from tests.events import Noted
from tests.promises.failing import ONCE, now
from triobus import HandlerTimeout, Retry, TriobusError, current_delivery


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
