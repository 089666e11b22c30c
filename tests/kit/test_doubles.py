"""`FlakyHandler` and `SlowHandler` do what they are told, and remember it."""

import math

import pytest
import trio

from tests.kit.scenarios import Ordered
from triobus import EventBus, InvalidOption, Retry
from triobus.testing import FlakyHandler, SlowHandler


async def test_a_flaky_handler_fails_as_often_as_it_was_told(autojump_clock):
    handler = FlakyHandler(failures=2)
    bus = EventBus()
    bus.subscribe(Ordered, handler, retry=Retry(delay=1, jitter=0))
    event = Ordered("Ada", 1)
    async with bus:
        await bus.publish(event)
    assert [(call.attempt, call.started, str(call.error)) for call in handler.calls] == [
        (1, 0, "planned failure 1 of 2"),
        (2, 1, "planned failure 2 of 2"),
        (3, 3, "None"),
    ]
    assert handler.events == [event]


@pytest.mark.parametrize("error", [OSError("down"), OSError, lambda: OSError("down")])
async def test_it_raises_what_it_was_given(error):
    handler = FlakyHandler(error=error)
    with pytest.raises(OSError):  # noqa: PT011  # a class has no message
        await handler(Ordered("Ada", 1))
    assert await handler(Ordered("Ada", 2)) is None
    assert handler.calls[0].attempt is None


async def test_then_it_returns_what_its_handler_returns():
    async def later(event):
        return event.number

    assert await FlakyHandler(failures=0, then=later)(Ordered("Ada", 7)) == 7
    assert await FlakyHandler(failures=0, then=lambda event: event.number)(Ordered("A", 8)) == 8


async def test_with_infinite_failures_an_event_becomes_a_dead_letter(autojump_clock):
    bus = EventBus()
    bus.subscribe(Ordered, FlakyHandler(failures=math.inf))
    async with bus:
        await bus.publish(Ordered("Ada", 1))
    assert bus.statistics().dead_lettered == 1


async def test_a_slow_handler_takes_its_virtual_time_and_counts_who_is_in_it(autojump_clock):
    handler = SlowHandler(seconds=5, then=lambda event: event.number)
    bus = EventBus(workers=3)
    bus.subscribe(Ordered, handler)
    async with bus:
        for number in range(3):
            await bus.publish(Ordered(f"customer {number}", number))
    assert sorted((call.result, call.started, call.ended) for call in handler.calls) == [
        (0, 0, 5),
        (1, 0, 5),
        (2, 0, 5),
    ]
    assert (handler.running, handler.most_running) == (0, 3)


async def test_a_call_that_was_cancelled_is_remembered_as_such(autojump_clock):
    handler = SlowHandler(seconds=5)
    with trio.move_on_after(1):
        await handler(Ordered("Ada", 1))
    (call,) = handler.calls
    assert (type(call.error), call.ended, handler.events) == (trio.Cancelled, 1, [])


@pytest.mark.parametrize(
    "make",
    [
        lambda: FlakyHandler(failures=-1),
        lambda: FlakyHandler(error="down"),
        lambda: FlakyHandler(then=5),
        lambda: SlowHandler(seconds=-1),
        lambda: SlowHandler(seconds=math.nan),
    ],
)
def test_values_that_cannot_work_are_refused(make):
    with pytest.raises(InvalidOption):
        make()
