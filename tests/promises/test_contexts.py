"""A delivery leaves nothing behind: what a handler sets in its context, no other attempt sees."""

import decimal
import gc
import weakref
from contextvars import ContextVar
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests.events import Noted
from triobus import EventBus, MemoryEventStore, Retry, current_delivery

request: ContextVar[Any] = ContextVar("request", default="nobody")
user: ContextVar[Any] = ContextVar("user")


@attrs.frozen(eq=False)
class Same:
    """Equal to everything."""

    name: str

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 1


@pytest.fixture(params=[None, MemoryEventStore], ids=["memory", "store"])
def bus(request: Any) -> EventBus:
    return EventBus(None if request.param is None else request.param(), workers=1)


async def test_what_a_handler_sets_is_not_there_in_the_next_delivery(bus: EventBus) -> None:
    seen: list[Any] = []

    @bus.subscribe(Noted)
    async def handle(event: Noted) -> None:
        seen.append(request.get())
        request.set(event.number)
        await trio.lowlevel.checkpoint()
        seen.append(request.get())

    async with bus:
        await bus.publish_many([Noted(1), Noted(2)])
        await bus.publish(Noted(3))
    assert seen == ["nobody", 1, "nobody", 2, "nobody", 3]


async def test_a_group_that_a_handler_makes_works_in_the_context_of_the_bus(bus: EventBus) -> None:
    seen: list[Any] = []

    async def note(event: Noted) -> None:
        seen.append((request.get(), event.causation_id))

    @bus.subscribe(Noted)
    async def handle(event: Noted) -> None:
        request.set("the first")
        bus.group("made inside").subscribe(Noted, note)

    request.set("the program")
    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        bus.group("default 2")
        request.set("later")
        await bus.publish(Noted(2))
    assert seen[-1] == ("the program", None)


async def test_one_that_had_no_value_has_none_again(bus: EventBus) -> None:
    seen: list[Any] = []

    @bus.subscribe(Noted)
    async def handle(event: Noted) -> None:
        with pytest.raises(LookupError):
            user.get()
        user.set(event.number)
        seen.append(event.number)

    async with bus:
        await bus.publish_many([Noted(1), Noted(2)])
    assert seen == [1, 2]


async def test_nor_for_the_next_handler_of_the_same_delivery(bus: EventBus) -> None:
    seen: list[Any] = []

    @bus.subscribe(Noted, priority=1)
    async def first(event: Noted) -> None:
        request.set("first")

    @bus.subscribe(Noted)
    async def second(event: Noted) -> None:
        seen.append(request.get())

    async with bus:
        await bus.publish(Noted(1))
    assert seen == ["nobody"]


async def test_nor_for_the_next_attempt(bus: EventBus, autojump_clock: MockClock) -> None:
    seen: list[Any] = []

    @bus.subscribe(Noted, retry=Retry(attempts=3))
    async def handle(event: Noted) -> None:
        seen.append(request.get())
        request.set(current_delivery().attempt)
        if current_delivery().attempt < 3:
            raise ValueError

    async with bus:
        await bus.publish(Noted(1))
    assert seen == ["nobody"] * 3


async def test_nor_when_a_predicate_sets_it(bus: EventBus) -> None:
    seen: list[Any] = []

    def where(event: Noted) -> bool:
        seen.append(request.get())
        request.set(event.number)
        return event.number == 1

    @bus.subscribe(Noted, where=where)
    async def handle(event: Noted) -> None:
        seen.append(request.get())

    async with bus:
        await bus.publish_many([Noted(1), Noted(2)])
    assert seen == ["nobody", 1, "nobody"]


async def test_nor_when_a_plain_function_sets_it(bus: EventBus) -> None:
    seen: list[Any] = []

    @bus.subscribe(Noted)
    def handle(event: Noted) -> None:
        seen.append(request.get())
        request.set(event.number)

    async with bus:
        await bus.publish_many([Noted(1), Noted(2)])
    assert seen == ["nobody", "nobody"]


@pytest.mark.parametrize(
    ("value", "other"),
    [("one", "another"), (1, True), ([], []), (Same("one"), Same("another")), (1, Same("1"))],
    ids=repr,
)
async def test_what_the_program_had_set_is_there_each_time(value: Any, other: Any) -> None:
    bus = EventBus(workers=1)
    seen: list[Any] = []

    @bus.subscribe(Noted)
    async def handle(event: Noted) -> None:
        seen.append(request.get())
        request.set(other)

    token = request.set(value)
    try:
        async with bus:
            await bus.publish_many([Noted(1), Noted(2), Noted(3)])
    finally:
        request.reset(token)
    assert [each is value for each in seen] == [True, True, True]


async def test_a_task_that_the_handler_has_started_keeps_what_it_began_with(bus: EventBus) -> None:
    seen: list[Any] = []

    async def look(event: Noted) -> None:
        await trio.lowlevel.checkpoint()
        seen.append((event.number, request.get()))

    @bus.subscribe(Noted)
    async def handle(event: Noted) -> None:
        request.set(event.number)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look, event)

    async with bus:
        await bus.publish_many([Noted(1), Noted(2)])
    assert seen == [(1, 1), (2, 2)]


async def test_a_decimal_context_that_a_handler_changes_is_its_own() -> None:
    bus = EventBus(workers=1)
    seen: list[int] = []

    @bus.subscribe(Noted)
    async def handle(event: Noted) -> None:
        seen.append(decimal.getcontext().prec)
        decimal.setcontext(decimal.Context(prec=5))

    async with bus:
        await bus.publish_many([Noted(1), Noted(2)])
    assert seen == [28, 28]


async def test_an_idle_worker_keeps_nothing_that_a_handler_has_set(bus: EventBus) -> None:
    kept: list[Any] = []

    @bus.subscribe(Noted)
    async def handle(event: Noted) -> None:
        thing = Same("a")
        kept.append(weakref.ref(thing))
        request.set(thing)

    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        assert [each() is None for each in kept] == [True]
