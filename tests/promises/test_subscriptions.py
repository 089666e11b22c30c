"""Subscriptions: what is received, their forms and names, changes while the bus runs."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.events import Noted, Other, SpecialNoted
from tests.promises.subscribers import Mailer, handle
from triobus import (
    DomainEvent,
    DuplicateName,
    EventBus,
    MemoryEventStore,
    Published,
    Retry,
    RetryAfter,
)


class Log:
    """Makes handlers that note what they were called with."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def handler(self, name: str) -> Callable[[Any], Any]:
        async def handle(event: DomainEvent) -> None:
            self.calls.append((name, getattr(event, "number", None)))

        return handle


# What is received


async def test_a_handler_receives_the_events_of_its_type_and_no_others(
    new_bus,
    autojump_clock,
) -> None:
    log = Log()
    bus = new_bus()
    bus.subscribe(Noted, log.handler("noted"))
    async with bus:
        await bus.publish_many([Noted(1), Other(2), Noted(3)])
    assert sorted(log.calls) == [("noted", 1), ("noted", 3)]


async def test_a_base_class_receives_its_subclasses(new_bus, autojump_clock) -> None:
    log = Log()
    bus = new_bus(workers=1)
    bus.subscribe(Noted, log.handler("noted"), name="noted")
    bus.subscribe(SpecialNoted, log.handler("special"), name="special")
    async with bus:
        await bus.publish_many([Noted(1), SpecialNoted(2)])
    assert log.calls == [("noted", 1), ("noted", 2), ("special", 2)]


async def test_domain_event_receives_everything(autojump_clock) -> None:
    log = Log()
    bus = EventBus(workers=1)
    bus.subscribe(DomainEvent, log.handler("all"))
    async with bus:
        await bus.publish_many([Noted(1), Other(2), SpecialNoted(3), DomainEvent()])
    assert log.calls == [("all", 1), ("all", 2), ("all", 3), ("all", None)]


async def test_a_tuple_of_types_receives_each_event_once(new_bus, autojump_clock) -> None:
    log = Log()
    bus = new_bus(workers=1)
    bus.subscribe((SpecialNoted, Noted, Other), log.handler("all"))
    async with bus:
        await bus.publish_many([Noted(1), Other(2), SpecialNoted(3)])
    assert log.calls == [("all", 1), ("all", 2), ("all", 3)]


async def test_an_event_that_nobody_wants_is_accepted_all_the_same(
    autojump_clock,
) -> None:
    bus = EventBus()
    bus.subscribe(Other, handle)
    async with bus:
        event = Noted(1)
        assert await bus.publish(event) == Published(event.event_id, None)
        assert (bus.statistics().published, bus.statistics().handled) == (1, 0)


async def test_handlers_run_by_priority_then_in_the_order_of_subscription(
    new_bus,
    autojump_clock,
) -> None:
    log = Log()
    bus = new_bus()
    for name, priority in [("a", 0), ("b", -1), ("c", 5), ("d", 0), ("e", 5), ("f", 10**30)]:
        bus.subscribe(Noted, log.handler(name), name=name, priority=priority)
    async with bus:
        await bus.publish(Noted(1))
    assert log.calls == [(name, 1) for name in "fceadb"]


async def test_groups_each_receive_every_event(new_bus, autojump_clock) -> None:
    log = Log()
    bus = new_bus()
    bus.subscribe(Noted, log.handler("default"))
    for name in ("mail", "audit"):
        bus.group(name, workers=1).subscribe(Noted, log.handler(name))
    async with bus:
        await bus.publish_many([Noted(1, "a"), Noted(2, "a")])
    for name in ("default", "mail", "audit"):
        assert [call for call in log.calls if call[0] == name] == [(name, 1), (name, 2)]


async def test_where_chooses_events(new_bus, autojump_clock) -> None:
    log = Log()
    bus = new_bus(workers=1)
    bus.subscribe(Noted, log.handler("even"), where=lambda event: event.number % 2 == 0)
    async with bus:
        await bus.publish_many([Noted(n) for n in range(5)])
        await bus.wait_idle()
        assert bus.statistics().handled == 5
    assert log.calls == [("even", 0), ("even", 2), ("even", 4)]


async def test_an_error_in_where_is_a_failure_of_the_handler(new_bus, autojump_clock) -> None:
    log = Log()
    bus = new_bus()

    def where(event: Noted) -> bool:
        return 1 // event.number == 1

    bus.subscribe(Noted, log.handler("h"), name="h", where=where, retry=Retry(attempts=2))
    async with bus:
        outcome = await bus.publish_and_wait(Noted(0))
        [letter] = await bus.dead_letters.list()
    assert log.calls == []
    assert [type(error) for error in outcome.errors.values()] == [ZeroDivisionError]
    assert (letter.subscription, letter.attempts) == ("h", 2)
    assert letter.error_type == "ZeroDivisionError"


# Forms and names


async def test_the_call_returns_a_subscription_that_tells_its_options(
    new_bus,
    autojump_clock,
) -> None:
    retry = Retry(attempts=2)
    mail = new_bus().group("mail")
    subscription = mail.subscribe(
        (Noted, Other), handle, name="n", priority=3, retry=retry, hold=True, timeout=1
    )
    assert (subscription.name, subscription.group) == ("n", "mail")
    assert subscription.types == (Noted, Other)
    assert (subscription.priority, subscription.retry) == (3, retry)
    assert (subscription.hold, subscription.is_active) == (True, True)
    assert mail.subscriptions == (subscription,)


async def test_the_decorator_returns_the_function(new_bus, autojump_clock) -> None:
    seen = []
    bus = new_bus()

    async def noted(event: Noted) -> None:
        seen.append(event.number)

    assert bus.subscribe(Noted, name="first", priority=1)(noted) is noted
    assert bus.group("other").subscribe(Noted)(noted) is noted
    async with bus:
        await bus.publish(Noted(1))
    assert seen == [1, 1]


async def test_one_function_may_be_subscribed_under_several_names(
    new_bus,
    autojump_clock,
) -> None:
    log = Log()
    bus = new_bus()
    handler = log.handler("h")
    bus.subscribe(Noted, handler, name="one")
    bus.subscribe(Noted, handler, name="two")
    async with bus:
        outcome = await bus.publish_and_wait(Noted(1))
    assert dict(outcome.results) == {"one": None, "two": None}
    assert log.calls == [("h", 1), ("h", 1)]


def test_the_default_name_is_the_qualified_name_of_the_handler(new_bus) -> None:
    bus = new_bus()

    async def local(event: Noted) -> None: ...

    def name_of(handler: Any) -> str:
        return bus.subscribe(Noted, handler).name

    here = "test_the_default_name_is_the_qualified_name_of_the_handler.<locals>."
    assert name_of(handle) == "handle"
    assert name_of(local) == f"{here}local"
    assert name_of(Mailer().send) == "Mailer.send"
    assert name_of(Mailer()) == "Mailer"
    assert name_of(functools.partial(functools.partial(print))) == "print"


def test_a_name_is_taken_once_in_a_group(new_bus) -> None:
    bus = new_bus()
    bus.subscribe(Noted, handle)
    bus.group("mail").subscribe(Noted, handle)
    with pytest.raises(DuplicateName) as caught:
        bus.subscribe(Other, handle)
    assert str(caught.value) == (
        "group 'default' already has a subscription named 'handle'; "
        "give this one another name: subscribe(..., name=...)"
    )
    assert bus.statistics().subscription_count == 2


async def test_a_name_is_free_after_unsubscribe(new_bus, autojump_clock) -> None:
    log = Log()
    bus = new_bus()
    subscription = bus.subscribe(Noted, log.handler("old"), name="n")
    subscription.unsubscribe()
    again = bus.subscribe(Noted, log.handler("new"), name="n")
    subscription.unsubscribe()  # repeated, it does not touch the newcomer
    assert (subscription.is_active, again.is_active) == (False, True)
    async with bus:
        await bus.publish(Noted(1))
    assert log.calls == [("new", 1)]


# Changes while it runs


async def test_unsubscribe_stops_queued_events_too(autojump_clock) -> None:
    log = Log()
    bus = EventBus(workers=1)
    gone = bus.subscribe(Noted, log.handler("gone"), name="gone")
    bus.subscribe(Noted, log.handler("stays"), name="stays")
    async with bus:
        bus.publish_nowait(Noted(1))
        bus.publish_nowait(Noted(2))
        gone.unsubscribe()
        await bus.publish(Noted(3))
    assert log.calls == [("stays", 1), ("stays", 2), ("stays", 3)]


async def test_unsubscribe_lets_a_running_call_finish(new_bus, autojump_clock) -> None:
    ended = []
    bus = new_bus()

    async def slow(event: Noted) -> str:
        await trio.sleep(5)
        ended.append(event.number)
        return "done"

    subscription = bus.subscribe(Noted, slow, name="slow")
    async with bus:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.publish_and_wait, Noted(1))
            await trio.sleep(1)
            subscription.unsubscribe()
        assert trio.current_time() == 5
    assert ended == [1]


async def test_unsubscribe_ends_the_retries_that_wait(new_bus, autojump_clock) -> None:
    log = Log()
    bus = new_bus()
    calls = []

    async def fails(event: Noted) -> None:
        calls.append(trio.current_time())
        raise ValueError

    subscription = bus.subscribe(Noted, fails, retry=Retry(attempts=5, delay=10, jitter=0))
    bus.subscribe(Noted, log.handler("next"))
    async with bus:
        await bus.publish(Noted(1))
        await trio.sleep(1)
        subscription.unsubscribe()
        await bus.wait_idle()
        assert trio.current_time() == 1
        assert await bus.dead_letters.list() == []
    assert calls == [0]
    assert log.calls == [("next", 1)]


@pytest.mark.parametrize("store", [None, MemoryEventStore], ids=["none", "memory"])
async def test_unsubscribe_lets_the_aggregate_go_on_at_once(
    autojump_clock: MockClock, store: Any
) -> None:
    handled: list[Any] = []
    bus = EventBus(store and store())

    async def fails(event: Noted) -> None:
        if event.number < 2:
            raise ValueError

    async def other(event: Noted) -> None:
        handled.append((trio.current_time(), event.number))
        if event.number == 7:
            raise RetryAfter(30)

    retry = Retry(attempts=2, delay=100, jitter=0)
    subscription = bus.subscribe(Noted, fails, retry=retry)
    bus.subscribe(Noted, other, retry=retry)
    async with bus:
        await bus.publish_many([Noted(1, "a"), Noted(2, "a"), Noted(3, "a"), Noted(7, "b")])
        await trio.sleep(1)
        subscription.unsubscribe()
        await bus.wait_idle()
    assert handled == [(0, 7), (1, 1), (1, 2), (1, 3), (30, 7)]


async def test_a_subscription_that_is_gone_after_a_restart_is_waited_for_no_more(
    autojump_clock: MockClock,
) -> None:
    handled: list[Any] = []
    store = MemoryEventStore()

    async def fails(event: Noted) -> None:
        raise ValueError

    async def other(event: Noted) -> None:
        handled.append((trio.current_time(), event.number))

    def made() -> tuple[EventBus, Any]:
        bus = EventBus(store)
        subscription = bus.subscribe(Noted, fails, name="fails", retry=Retry(2, 100, jitter=0))
        bus.subscribe(Noted, other, name="other")
        return bus, subscription

    async with trio.open_nursery() as nursery:
        bus, _ = made()
        await nursery.start(bus.run)
        await bus.publish_many([Noted(1, "a"), Noted(2, "a")])
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    bus, subscription = made()
    async with bus:
        await trio.sleep(1)
        subscription.unsubscribe()
        await bus.wait_idle()
    assert handled == [(2, 1), (2, 2)]


def test_groups_and_subscriptions_show_what_they_are_on_one_line(new_bus) -> None:
    bus = new_bus()
    mail = bus.group("mail")
    first = mail.subscribe((Noted, DomainEvent), handle, name="first", where=lambda event: True)
    assert repr(first) == "<Subscription 'first' of group 'mail' to Noted, DomainEvent>"
    assert repr(mail) == "<Group 'mail', 1 subscription>"
    mail.subscribe(Noted, handle, name="second")
    assert repr(mail) == "<Group 'mail', 2 subscriptions>"
    first.unsubscribe()
    assert repr(first) == "<Subscription 'first' of group 'mail' to Noted, DomainEvent, ended>"


async def test_a_handler_may_unsubscribe_itself(new_bus, autojump_clock) -> None:
    seen = []
    bus = new_bus(workers=1)

    async def once(event: Noted) -> None:
        seen.append(event.number)
        subscription.unsubscribe()

    subscription = bus.subscribe(Noted, once)
    async with bus:
        await bus.publish_many([Noted(1), Noted(2)])
        await bus.publish(Noted(3))
    assert seen == [1]


async def test_a_new_subscription_sees_only_what_is_published_afterwards(
    new_bus,
    autojump_clock,
) -> None:
    log = Log()
    bus = new_bus(workers=1)
    bus.subscribe(Noted, log.handler("old"), name="old")
    async with bus:
        await bus.publish_many([Noted(1), Noted(2)])
        bus.subscribe(Noted, log.handler("new"), name="new", priority=1)
        await bus.publish(Noted(3))
    assert log.calls == [("old", 1), ("old", 2), ("new", 3), ("old", 3)]


async def test_a_group_may_be_made_while_the_bus_runs(new_bus, autojump_clock) -> None:
    log = Log()
    bus = new_bus()
    with trio.fail_after(60):
        async with bus:
            await bus.publish(Noted(1))
            bus.group("late", workers=2).subscribe(Noted, log.handler("late"))
            await bus.publish_many([Noted(2, "a"), Noted(3, "a")])
    assert log.calls == [("late", 2), ("late", 3)]


@pytest.mark.parametrize("events", [0, 1, 2])
async def test_a_group_that_was_made_just_before_the_end_does_not_hold_it_up(
    autojump_clock, events: int
) -> None:
    # The workers of the group may not have begun when the bus stops. Which task Trio runs first is
    # chance, so it is tried often.
    for _ in range(20):
        log = Log()
        bus = EventBus(workers=1)
        with trio.fail_after(60):
            async with bus:
                bus.group("late", workers=3).subscribe(Noted, log.handler("late"))
                for number in range(events):
                    bus.publish_nowait(Noted(number, "a"))
        assert log.calls == [("late", number) for number in range(events)]
        assert trio.current_time() == 0
