"""What may be a handler, where it runs, and what it can know about its call."""

import functools
import gc
import inspect
import threading
import time
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.events import Noted
from tests.settled import settled
from triobus import (
    Delivery,
    DomainEvent,
    EventBus,
    InvalidHandler,
    NoDelivery,
    Retry,
    TriobusError,
    current_delivery,
)

ONCE = Retry(attempts=1)


async def outcome_of(handler: Callable[[Any], Any], **options: Any) -> Any:
    """What one handler makes of one event: its result, or its error."""
    bus = EventBus()
    bus.subscribe(Noted, handler, name="h", retry=ONCE, **options)
    async with bus:
        outcome = await bus.publish_and_wait(Noted(7))
    found = {**outcome.results, **outcome.errors}
    return found["h"]


# What may be one


class Counter:
    """Methods and calls of all sorts."""

    def __init__(self, start: int = 0) -> None:
        self.start = start

    async def add(self, event: Noted) -> int:
        return self.start + event.number

    def add_in_thread(self, event: Noted) -> int:
        return self.start + event.number

    @staticmethod
    async def static(event: Noted) -> int:
        return event.number

    @classmethod
    async def of_class(cls, event: Noted) -> str:
        return f"{cls.__name__} {event.number}"


class AsyncCallable(Counter):
    async def __call__(self, event: Noted) -> tuple[int, bool]:
        return self.start + event.number, trio.lowlevel.in_trio_task()


class PlainCallable(Counter):
    def __call__(self, event: Noted) -> tuple[int, bool]:
        return self.start + event.number, trio.lowlevel.in_trio_task()


async def add(extra: int, event: Noted, *, factor: int = 1) -> int:
    return (extra + event.number) * factor


async def test_methods_are_handlers(autojump_clock: MockClock) -> None:
    counter = Counter(100)
    assert await outcome_of(counter.add) == 107
    assert await outcome_of(counter.add_in_thread) == 107
    assert await outcome_of(Counter.static) == 7
    assert await outcome_of(Counter.of_class) == "Counter 7"


async def test_partials_are_handlers(autojump_clock: MockClock) -> None:
    assert await outcome_of(functools.partial(add, 3)) == 10
    nested = functools.partial(functools.partial(add, 3), factor=2)
    assert await outcome_of(nested) == 20
    assert await outcome_of(functools.partial(Counter(1).add)) == 8
    assert await outcome_of(functools.partial(Counter(1).add_in_thread)) == 8
    assert await outcome_of(functools.partial(AsyncCallable(1))) == (8, True)


async def test_callable_objects_are_handlers(autojump_clock: MockClock) -> None:
    assert await outcome_of(AsyncCallable(1)) == (8, True)
    assert await outcome_of(PlainCallable(1)) == (8, False)


async def test_lambdas_and_builtins_are_handlers(autojump_clock: MockClock) -> None:
    seen: list[Any] = []
    assert await outcome_of(lambda event: event.number) == 7
    assert await outcome_of(seen.append) is None
    assert [event.number for event in seen] == [7]


async def test_a_builtin_that_hides_its_signature_is_a_handler(autojump_clock: MockClock) -> None:
    with pytest.raises(ValueError, match="no signature found"):
        inspect.signature(type)
    assert await outcome_of(type) is Noted


async def test_what_a_handler_returns_is_its_result(autojump_clock: MockClock) -> None:
    for result in (None, 0, False, ValueError("returned"), Noted(1)):

        async def handle(event: Noted, result: object = result) -> object:
            return result

        assert await outcome_of(handle) is result
        assert await outcome_of(lambda _, result=result: result) is result


async def test_a_plain_function_that_returns_a_coroutine_is_told_so(
    autojump_clock: MockClock,
) -> None:
    error = await outcome_of(lambda event: add(1, event))
    assert type(error) is InvalidHandler
    assert str(error) == (
        "test_a_plain_function_that_returns_a_coroutine_is_told_so.<locals>.<lambda> is a plain "
        "function and returned a coroutine, which is not awaited: make it 'async def'"
    )


# Threads


async def test_a_plain_function_runs_in_another_thread(autojump_clock: MockClock) -> None:
    assert await outcome_of(lambda _: threading.get_ident()) != threading.get_ident()
    assert await outcome_of(lambda _: trio.lowlevel.in_trio_task()) is False

    async def handle(event: Noted) -> int:
        return threading.get_ident()

    assert await outcome_of(handle) == threading.get_ident()


async def test_no_virtual_time_passes_while_a_handler_is_in_a_thread(
    new_bus,
    autojump_clock,
) -> None:
    released = threading.Event()
    moments: list[Any] = []
    bus = new_bus()

    def blocks(event: Noted) -> None:
        # Another thread lets it go, and after more real time than a jump would need.
        timer = threading.Timer(0.05, released.set)
        timer.start()
        assert released.wait(10)
        timer.join()
        moments.append(trio.from_thread.run_sync(trio.current_time))

    bus.subscribe(Noted, blocks, retry=ONCE)
    async with bus, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _sleep() -> None:
            await trio.sleep(60)
            moments.append(("slept", trio.current_time()))

        outcome = await bus.publish_and_wait(Noted(1))
        assert dict(outcome.errors) == {}
        assert trio.current_time() == 0
    assert moments == [0, ("slept", 60)]


async def test_the_clock_goes_on_after_a_handler_in_a_thread(new_bus, autojump_clock) -> None:
    bus = new_bus()
    bus.subscribe(Noted, lambda event: event.number, name="h")
    async with bus:
        for number in range(5):
            await bus.publish_and_wait(Noted(number))
            await trio.sleep(10)
    assert trio.current_time() == 50


async def test_handlers_in_threads_are_retried_on_virtual_time(new_bus, autojump_clock) -> None:
    calls: list[Any] = []
    bus = new_bus()

    def fails(event: Noted) -> str:
        calls.append((trio.from_thread.run_sync(trio.current_time), current_delivery().attempt))
        if len(calls) < 3:
            raise ValueError
        return "done"

    bus.subscribe(Noted, fails, name="h", retry=Retry(delay=10, jitter=0))
    async with bus:
        outcome = await bus.publish_and_wait(Noted(1))
    assert calls == [(0, 1), (10, 2), (30, 3)]
    assert dict(outcome.results) == {"h": "done"}


async def test_as_many_threads_run_as_the_group_has_workers(new_bus, autojump_clock) -> None:
    bus = new_bus(workers=8)
    together = threading.Barrier(8)

    def meets(event: Noted) -> bool:
        together.wait(10)
        return True

    bus.subscribe(Noted, meets, retry=ONCE)
    async with bus:
        await bus.publish_many([Noted(n) for n in range(16)])
        await bus.wait_idle()
        assert bus.statistics().dead_lettered == 0
        assert bus.statistics().handled == 16


async def test_a_thread_notices_its_timeout_when_it_asks(
    new_bus, autojump_clock: MockClock
) -> None:
    bus = new_bus()
    entered = trio.Event()
    released = threading.Event()

    def asks(event: Noted) -> None:
        trio.from_thread.run_sync(entered.set)
        assert released.wait(10)
        trio.from_thread.check_cancelled()

    bus.subscribe(Noted, asks, name="h", timeout=5, retry=ONCE)
    async with bus, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _time_passes() -> None:
            await entered.wait()
            autojump_clock.jump(6)
            with trio.CancelScope(deadline=trio.current_time()):
                await trio.sleep_forever()  # Trio has looked at the deadlines when this returns
            released.set()

        outcome = await bus.publish_and_wait(Noted(1))
    assert [type(error).__name__ for error in outcome.errors.values()] == ["HandlerTimeout"]


async def test_a_thread_may_publish_to_its_own_bus(new_bus, autojump_clock) -> None:
    bus = new_bus(buffer=1, workers=1)
    seen: list[DomainEvent] = []

    def publishes(event: Noted) -> None:
        seen.append(event)
        if event.number < 3:
            bus.publish_from_thread(Noted(event.number + 1))
            bus.publish_from_thread(Noted(10))

    bus.subscribe(Noted, publishes, retry=ONCE)
    async with bus:
        await bus.publish(Noted(1))
    assert sorted(event.number for event in seen if isinstance(event, Noted)) == [1, 2, 3, 10, 10]
    assert {event.correlation_id for event in seen[1:]} == {seen[0].event_id}


@pytest.mark.parametrize("cls", [StopIteration, StopAsyncIteration, GeneratorExit, Exception])
async def test_odd_errors_of_a_thread_are_failures(
    new_bus, autojump_clock, cls: type[BaseException]
) -> None:
    bus = new_bus()

    def raises(event: Noted) -> None:
        raise cls

    bus.subscribe(Noted, raises, name="h", retry=ONCE)
    if cls is GeneratorExit:  # no Exception, so that it leaves as KeyboardInterrupt would
        with pytest.raises(BaseExceptionGroup):
            async with bus:
                await bus.publish_and_wait(Noted(1))
        return
    async with bus:
        outcome = await bus.publish_and_wait(Noted(1))
    assert list(outcome.errors) == ["h"]


# What a handler can know


async def test_a_handler_knows_its_delivery(autojump_clock) -> None:
    seen: list[Delivery] = []
    bus = EventBus()
    mail = bus.group("mail")

    async def in_task(event: Noted) -> None:
        seen.append(current_delivery())
        await trio.sleep(1)
        assert current_delivery() == seen[-1]
        if len(seen) == 1:
            raise ValueError

    def in_thread(event: Noted) -> None:
        seen.append(current_delivery())

    mail.subscribe(Noted, in_task, name="task", retry=Retry(delay=1))
    mail.subscribe(Noted, in_thread, name="thread")
    event = Noted(1, "a")
    async with bus:
        await bus.publish(event)

    def delivery(subscription: str, attempt: int) -> Delivery:
        return Delivery(
            event=event, position=None, group="mail", subscription=subscription, attempt=attempt
        )

    assert seen == [delivery("task", 1), delivery("task", 2), delivery("thread", 1)]


async def test_tasks_of_a_handler_know_its_delivery(new_bus, autojump_clock) -> None:
    seen: list[Any] = []
    bus = new_bus(workers=4)

    async def child(number: int) -> None:
        await trio.sleep(1)
        seen.append((number, current_delivery().event))

    async def handle(event: Noted) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child, event.number)

    bus.subscribe(Noted, handle)
    events = [Noted(n) for n in range(4)]
    async with bus:
        await bus.publish_many(events)
    assert sorted(seen, key=lambda pair: pair[0]) == list(enumerate(events))


async def test_there_is_no_delivery_outside_a_handler(new_bus, autojump_clock) -> None:
    bus = new_bus()

    async def handle(event: Noted) -> None: ...

    bus.subscribe(Noted, handle)
    with pytest.raises(NoDelivery) as caught:
        current_delivery()
    assert str(caught.value) == (
        "current_delivery() was called outside a handler: there is no delivery"
    )
    assert isinstance(caught.value, TriobusError)
    assert isinstance(caught.value, LookupError)
    async with bus:
        await bus.publish_and_wait(Noted(1))
        with pytest.raises(NoDelivery):
            current_delivery()
        with pytest.raises(NoDelivery):
            await trio.to_thread.run_sync(current_delivery)


def test_there_is_no_delivery_without_trio() -> None:
    with pytest.raises(NoDelivery):
        current_delivery()


async def test_a_task_that_outlives_its_handler_has_no_delivery(new_bus, autojump_clock) -> None:
    seen: list[str] = []
    bus = new_bus()
    async with trio.open_nursery() as nursery:

        async def lingers() -> None:
            await trio.sleep(10)
            try:
                current_delivery()
            except NoDelivery:
                seen.append("no delivery")

        async def handle(event: Noted) -> None:
            if event.number == 1:
                nursery.start_soon(lingers)
            else:
                await trio.sleep(20)

        bus.subscribe(Noted, handle)
        async with bus:
            await bus.publish(Noted(1))
            await bus.wait_idle()
            await bus.publish_many([Noted(n) for n in (2, 3, 4, 5)])
    assert seen == ["no delivery"]


async def test_an_idle_bus_keeps_no_event_alive(new_bus, autojump_clock) -> None:
    bus = new_bus()

    async def handle(event: Noted) -> None:
        await trio.sleep(1)

    bus.subscribe(Noted, handle)
    bus.group("threads").subscribe(Noted, lambda _: None)
    async with bus:
        references = []
        for number in range(10):
            event = Noted(number)
            references.append(weakref.ref(event))
            await bus.publish(event)
            del event
        await bus.wait_idle()
        await settled()
        gc.collect()
        assert [ref() for ref in references] == [None] * 10


async def test_a_handler_of_another_bus_knows_its_own_delivery(new_bus, autojump_clock) -> None:
    seen: list[str] = []
    inner, outer = new_bus(), new_bus()

    async def in_inner(event: Noted) -> None:
        seen.append(current_delivery().subscription)

    async def in_outer(event: Noted) -> None:
        await inner.publish_and_wait(Noted(event.number + 1))
        seen.append(current_delivery().subscription)

    inner.subscribe(Noted, in_inner, name="inner")
    outer.subscribe(Noted, in_outer, name="outer")
    async with inner, outer:
        await outer.publish(Noted(1))
    assert seen == ["inner", "outer"]


variable: ContextVar[str] = ContextVar("variable", default="default")


async def test_handlers_see_the_context_in_which_the_bus_was_started(
    new_bus,
    autojump_clock,
) -> None:
    seen: list[str] = []
    bus = new_bus()

    async def in_task(event: Noted) -> None:
        seen.append(variable.get())

    def in_thread(event: Noted) -> None:
        seen.append(variable.get())

    bus.subscribe(Noted, in_task)
    bus.subscribe(Noted, in_thread)
    token = variable.set("at the start")
    async with bus:
        variable.set("of the publisher")
        await bus.publish(Noted(1))
        await bus.wait_idle()
        assert variable.get() == "of the publisher"
    variable.reset(token)
    assert seen == ["at the start", "at the start"]


async def test_what_a_thread_sets_in_its_context_stays_there(new_bus, autojump_clock) -> None:
    seen: list[str] = []
    bus = new_bus(workers=1)

    def sets(event: Noted) -> None:
        seen.append(variable.get())
        variable.set("leaked")

    bus.subscribe(Noted, sets)
    async with bus:
        await bus.publish_many([Noted(1), Noted(2)])
    assert seen == ["default", "default"]


async def test_a_real_clock_runs_on_while_a_handler_is_in_a_thread(new_bus, autojump_clock) -> None:
    bus = new_bus()
    bus.subscribe(Noted, lambda _: time.monotonic(), name="h")
    async with bus:
        before = time.monotonic()
        outcome = await bus.publish_and_wait(Noted(1))
        assert before <= outcome.results["h"] <= time.monotonic()
