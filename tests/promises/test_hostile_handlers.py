"""Handlers that do not come back, or end more than themselves."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.events import Noted
from tests.promises.hostile import ONCE, handling
from tests.promises.kinds import Reopened
from triobus import BusClosed, EventBus, Retry, StrayCancelled
from triobus.testing import record

# Handlers that do not come back


async def test_a_handler_that_never_returns_holds_up_its_aggregate_and_no_other(
    any_store: Reopened, autojump_clock: MockClock
) -> None:
    handled = []

    async def handler(event: Noted) -> None:
        if event.number == 0:
            await trio.sleep_forever()
        handled.append(event.number)

    async with handling(any_store(), handler) as bus:
        await bus.publish_many([Noted(n, "ab"[n % 2]) for n in range(20)])
        await trio.sleep(10_000)
        found = bus.statistics()
        report = await bus.stop(timeout=5)
    assert handled == list(range(1, 20, 2))
    assert (found.in_flight, found.failed_attempts, found.worker_count) == (1, 0, 4)
    assert dict(report.settled) == {"default": 10}
    assert dict(report.left) == {"default": 10}


async def test_with_a_timeout_one_that_never_returns_becomes_a_dead_letter(
    any_store: Reopened, autojump_clock: MockClock
) -> None:
    handled = []

    async def handler(event: Noted) -> None:
        if event.number == 0:
            await trio.sleep_forever()
        handled.append(event.number)

    async with handling(any_store(), handler, timeout=5) as bus:
        await bus.publish_many([Noted(n, "a") for n in range(3)])
        await bus.wait_idle()
        (letter,) = await bus.dead_letters.list()
    assert handled == [1, 2]
    assert trio.current_time() == 5
    assert (letter.event.number, letter.error_type) == (0, "HandlerTimeout")


async def test_one_that_swallows_its_cancellation_is_waited_for_until_it_returns(
    any_store: Reopened, autojump_clock: MockClock
) -> None:
    async def stubborn(event: Noted) -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(50)
        return "at last"

    async with handling(any_store(), stubborn) as bus:
        await bus.publish_many([Noted(n, "a") for n in range(2)])
        await trio.sleep(1)
        report = await bus.stop(drain=False)
    assert trio.current_time() == 50
    assert (dict(report.settled), dict(report.left)) == ({"default": 1}, {"default": 1})


# Handlers that end more than themselves


class Fatal(BaseException):
    """An error of somebody who does not want it to be caught."""


@pytest.mark.parametrize("error", [Fatal, KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_what_is_no_exception_ends_the_bus_and_the_event_comes_on_the_next_start(
    new_store: Reopened, autojump_clock: MockClock, error: type[BaseException]
) -> None:
    async def fatal(event: Noted) -> None:
        raise error("now")

    bus = handling(new_store(), fatal)
    # Control-C leaves by itself, where nothing else has failed.
    with pytest.raises(error if error is KeyboardInterrupt else BaseExceptionGroup) as caught:
        async with bus:
            await bus.publish(Noted(1))
            await trio.sleep_forever()
    inner = getattr(caught.value, "exceptions", (caught.value,))
    assert list(map(type, inner)) == [error]
    assert bus.health().status == "stopped"
    assert bus.statistics().failed_attempts == 0
    handled = []

    async def handler(event: Noted) -> None:
        handled.append(event.number)

    async with handling(new_store(), handler) as bus:
        await bus.wait_idle()
        assert await bus.dead_letters.list() == []
    assert handled == [1]


async def smuggled_cancellation() -> trio.Cancelled:
    """Return a `Cancelled` of a scope that is over."""
    smuggled = None
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            smuggled = cancelled
    assert smuggled is not None
    return smuggled


def alone(cancelled: trio.Cancelled) -> BaseException:
    return cancelled


def in_a_group(cancelled: trio.Cancelled) -> BaseException:
    return BaseExceptionGroup("", [OSError("x"), BaseExceptionGroup("", [cancelled])])


@pytest.mark.parametrize("timeout", [None, 10])
@pytest.mark.parametrize(
    ("wrapped", "error_type"),
    [(alone, "StrayCancelled"), (in_a_group, "ExceptionGroup(OSError, StrayCancelled)")],
)
async def test_a_cancellation_that_a_handler_raises_out_of_its_scope_is_a_failure_like_any_other(
    any_store: Reopened, autojump_clock: MockClock, wrapped: Any, error_type: str, timeout: Any
) -> None:
    calls: list[int] = []

    async def smuggler(event: Noted) -> None:
        calls.append(event.number)
        if event.number == 1:
            raise wrapped(await smuggled_cancellation())

    bus = EventBus(any_store())
    recording = record(bus)
    retry = Retry(attempts=2, delay=1)
    bus.subscribe(Noted, smuggler, name="smuggler", retry=retry, timeout=timeout)
    async with bus:
        outcome = await bus.publish_and_wait(Noted(1))
        await bus.publish(Noted(2))
        await bus.wait_idle()
        (letter,) = await bus.dead_letters.list()
        statistics = bus.statistics()
    assert calls == [1, 1, 2]
    assert (letter.attempts, letter.error_type) == (2, error_type)
    assert "nothing around it was cancelled" in letter.message
    assert "smuggled_cancellation" in letter.traceback
    assert isinstance(outcome.errors["smuggler"], Exception)
    assert (statistics.failed_attempts, statistics.dead_lettered) == (2, 1)
    assert len(recording.dead_letters) == 1


async def test_with_raise_such_a_cancellation_leaves_the_bus_as_an_error(
    autojump_clock: MockClock,
) -> None:
    async def smuggler(event: Noted) -> None:
        raise await smuggled_cancellation()

    bus = EventBus(on_failure="raise")
    bus.subscribe(Noted, smuggler, retry=ONCE)
    with pytest.raises(ExceptionGroup) as caught:
        async with bus:
            await bus.publish(Noted(1))
            await trio.sleep_forever()
    assert [type(error) for error in caught.value.exceptions] == [StrayCancelled]


async def test_an_interrupt_beside_such_a_cancellation_ends_the_bus(
    autojump_clock: MockClock,
) -> None:
    async def smuggler(event: Noted) -> None:
        raise BaseExceptionGroup("", [await smuggled_cancellation(), SystemExit(3)])

    with pytest.raises(BaseExceptionGroup) as caught:
        async with handling(None, smuggler) as bus:
            await bus.publish(Noted(1))
            await trio.sleep_forever()
    assert caught.value.subgroup(SystemExit) is not None


async def test_one_that_cancels_the_nursery_around_its_bus_ends_it_as_any_cancellation_does(
    any_store: Reopened, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:

        async def canceller(event: Noted) -> None:
            nursery.cancel_scope.cancel()
            await trio.sleep_forever()

        bus = handling(any_store(), canceller)
        await nursery.start(bus.run)
        await bus.publish(Noted(1))
    assert bus.health().status == "stopped"
    assert bus.statistics().groups["default"].lag == 1
    with pytest.raises(BusClosed):
        await bus.publish(Noted(2))
