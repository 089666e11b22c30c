"""What comes after the last attempt, and what is no failure."""

from typing import Any

import pytest
import trio

from tests.events import Noted
from tests.promises.failing import ONCE, SECONDS, failing, now
from triobus import EventBus, Retry

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
