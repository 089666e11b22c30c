"""Subscriptions and groups: who receives what, and what is refused at the call."""

import functools
import math
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, ClassVar

import pytest
import trio
from trio.testing import MockClock

from tests.events import Noted, Other, SpecialNoted
from triobus import (
    DomainEvent,
    DuplicateName,
    EventBus,
    InvalidEvent,
    InvalidHandler,
    InvalidOption,
    MemoryEventStore,
    Published,
    Retry,
    RetryAfter,
    TriobusError,
)


class Log:
    """Makes handlers that note what they were called with."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def handler(self, name: str) -> Callable[[Any], Any]:
        async def handle(event: DomainEvent) -> None:
            self.calls.append((name, getattr(event, "number", None)))

        return handle


async def handle(event: DomainEvent) -> None:
    """Does nothing."""


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


class Mailer:
    """Something with methods, that can also be called."""

    async def send(self, event: Noted) -> None: ...

    async def __call__(self, event: Noted) -> None: ...


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


# What is refused at the call


def generator(event: Noted) -> Iterator[None]:
    yield


async def async_generator(event: Noted) -> AsyncIterator[None]:
    yield


class CallableGenerator:
    def __call__(self, event: Noted) -> Iterator[DomainEvent]:
        yield event


class Plain:
    def __call__(self, event: Noted) -> None: ...


class NoArgument:
    def __init__(self) -> None: ...


async def async_handle(event: Noted) -> None: ...


@functools.wraps(async_handle)
def wrapper(event: Noted) -> Any:
    return async_handle(event)


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (3, "3 is not callable: give a function that takes one event"),
        ("handle", "'handle' is not callable: give a function that takes one event"),
        (generator, "generator is a generator, so calling it would do nothing: "),
        (async_generator, "async_generator is a generator, so calling it would do nothing: "),
        (functools.partial(generator), "generator is a generator, so calling it would do nothing"),
        (CallableGenerator(), "CallableGenerator is a generator, so calling it would do nothing"),
        (lambda: None, "test_subscriptions.<lambda>() cannot be called with one event"),
        (lambda _a, _b: None, "<lambda>(_a, _b) cannot be called with one event"),
        (lambda *, _event: None, "<lambda>(*, _event) cannot be called with one event"),
        (Mailer.send, "Mailer.send(self, event: tests.events.Noted) -> None cannot be called"),
        (Mailer, "Mailer is a class whose objects can be called, and was given itself: "),
        (functools.partial(Mailer), "Give one of them, such as Mailer()"),
        (Plain, "Plain is a class whose objects can be called, and was given itself: "),
        (NoArgument, "NoArgument() -> None cannot be called with one event"),
        (wrapper, "async_handle is a plain function around the async async_handle, whose "),
        (functools.lru_cache(async_handle), "is a plain function around the async async_handle"),
        (functools.partial(wrapper), "is a plain function around the async async_handle"),
        (functools.partial(handle, Noted(1)), "cannot be called with one event"),
    ],
    ids=lambda value: None if not isinstance(value, str) else value[:20],
)
def test_what_is_no_handler_is_refused(new_bus, handler: Any, message: str) -> None:
    bus = new_bus()
    with pytest.raises(InvalidHandler) as caught:
        bus.subscribe(Noted, handler)
    assert message.removeprefix("test_subscriptions.") in str(caught.value)
    assert isinstance(caught.value, TriobusError)
    assert isinstance(caught.value, TypeError)
    assert bus.statistics().subscription_count == 0


def test_a_coroutine_in_place_of_its_function_is_refused_and_closed(new_bus) -> None:
    coroutine: Any = handle(Noted(1))
    with pytest.raises(InvalidHandler) as caught:
        new_bus().subscribe(Noted, coroutine)
    assert str(caught.value) == (
        "a coroutine of handle was given: give the function itself, without calling it"
    )
    assert coroutine.cr_frame is None


def test_handlers_with_defaults_and_stars_are_fine(new_bus) -> None:
    bus = new_bus()
    handlers: list[Any] = [
        lambda *_: None,
        lambda _event, _extra=1: None,
        lambda _event=None, **_: None,
        functools.partial(lambda _first, _event: None, 1),
    ]
    for number, handler in enumerate(handlers):
        bus.subscribe(Noted, handler, name=str(number))
    assert bus.statistics().subscription_count == 4


def test_no_types_at_all_are_refused(new_bus) -> None:
    with pytest.raises(InvalidEvent) as caught:
        new_bus().subscribe((), handle)
    assert str(caught.value) == ("an empty tuple of event types was given: name at least one class")


@pytest.mark.parametrize(
    "types", [int, object, None, "noted", Noted(1), [Noted], (Noted, int), (Noted, None), handle]
)
def test_what_is_no_event_type_is_refused(new_bus, types: Any) -> None:
    bus = new_bus()
    with pytest.raises(InvalidEvent, match="is no event type: give a class derived from Domain"):
        bus.subscribe(types, handle)
    with pytest.raises(InvalidEvent, match="is no event type: give a class derived from Domain"):
        bus.subscribe(types)  # the decorator does not wait for its function
    assert bus.statistics().subscription_count == 0


ALWAYS_TRUE = (
    "what it returns is true whatever the event is, for it is async or a generator: give a plain "
    "function that returns True or False"
)


async def is_wanted(event: Noted) -> bool:
    return False


class AsyncPredicate:
    here: ClassVar["AsyncPredicate"]

    async def __call__(self, event: Noted) -> bool:
        return False


AsyncPredicate.here = AsyncPredicate()


@pytest.mark.parametrize("hold", [True, False])
async def test_a_predicate_whose_answer_is_to_be_awaited_is_a_failure(
    new_bus, autojump_clock, hold: bool
) -> None:
    calls: list[Any] = []
    bus = new_bus()
    bus.subscribe(
        Noted,
        calls.append,
        where=lambda event: is_wanted(event),
        hold=hold,
        retry=Retry(attempts=1),
    )
    async with bus:
        await bus.publish_many([Noted(1, "a"), Noted(2, "a")])
        await bus.wait_idle()
        letters = await bus.dead_letters.list()
    assert calls == []
    assert [letter.error_type for letter in letters] == ["InvalidOption"] * 2
    assert letters[0].message == (
        "where returned 'coroutine', which is to be awaited: give a plain function that returns "
        "True or False"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"priority": 1.5}, "priority=1.5: give a whole number; higher runs first"),
        ({"priority": True}, "priority=True: give a whole number; higher runs first"),
        ({"priority": None}, "priority=None: give a whole number; higher runs first"),
        ({"timeout": math.nan}, "timeout=nan: give a finite number of at least 0"),
        ({"timeout": math.inf}, "timeout=inf: give a finite number of at least 0"),
        ({"timeout": -1}, "timeout=-1: give a finite number of at least 0"),
        ({"timeout": "5"}, "timeout='5': give a finite number of at least 0"),
        ({"timeout": True}, "timeout=True: give a finite number of at least 0"),
        ({"retry": None}, "retry=None: give a Retry, such as Retry(attempts=1)"),
        ({"retry": 3}, "retry=3: give a Retry, such as Retry(attempts=1)"),
        ({"where": 3}, "where=3: give a function that takes the event"),
        ({"where": is_wanted}, f"where={is_wanted!r}: {ALWAYS_TRUE}"),
        ({"where": AsyncPredicate.here}, f"where={AsyncPredicate.here!r}: {ALWAYS_TRUE}"),
        ({"where": generator}, f"where={generator!r}: {ALWAYS_TRUE}"),
        ({"hold": "x"}, "hold='x': give True or False"),
        ({"name": ""}, "name='': give a string that is not empty"),
        ({"name": 3}, "name=3: give a string that is not empty"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_cannot_work_are_refused(
    new_bus, options: dict[str, Any], message: str
) -> None:
    bus = new_bus()
    for subscribe in (bus.subscribe, bus.group("other").subscribe):
        with pytest.raises(InvalidOption) as caught:
            subscribe(Noted, handle, **options)
        assert str(caught.value) == message
        with pytest.raises(InvalidOption):
            subscribe(Noted, **options)
    assert isinstance(caught.value, ValueError)
    assert bus.statistics().subscription_count == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers=0: give a whole number of 1 or more"),
        ({"workers": -1}, "workers=-1: give a whole number of 1 or more"),
        ({"workers": 2.0}, "workers=2.0: give a whole number of 1 or more"),
        ({"workers": True}, "workers=True: give a whole number of 1 or more"),
        ({"workers": None}, "workers=None: give a whole number of 1 or more"),
        ({"buffer": -1}, "buffer=-1: give a whole number of 0 or more, or math.inf"),
        ({"buffer": 1.5}, "buffer=1.5: give a whole number of 0 or more, or math.inf"),
        ({"buffer": math.nan}, "buffer=nan: give a whole number of 0 or more, or math.inf"),
        ({"buffer": None}, "buffer=None: give a whole number of 0 or more, or math.inf"),
    ],
    ids=str,
)
def test_sizes_that_cannot_work_are_refused(new_bus, options: dict[str, Any], message: str) -> None:
    for make in (EventBus, functools.partial(new_bus().group, "g")):
        with pytest.raises(InvalidOption) as caught:
            make(**options)
        assert str(caught.value) == message


@pytest.mark.parametrize("value", ["x", "", None, 1, []], ids=repr)
def test_choices_that_do_not_exist_are_refused(new_bus, value: Any) -> None:
    with pytest.raises(InvalidOption) as caught:
        new_bus().group("g", ordering=value)
    assert str(caught.value) == f"ordering={value!r}: give 'aggregate' or 'none'"
    with pytest.raises(InvalidOption) as caught:
        new_bus().group("g", start=value)
    assert str(caught.value) == f"start={value!r}: give 'now' or 'beginning'"
    with pytest.raises(InvalidOption) as caught:
        new_bus(on_failure=value)
    assert str(caught.value) == f"on_failure={value!r}: give 'dead-letter' or 'raise'"


@pytest.mark.parametrize("name", ["", None, 3, b"mail"], ids=repr)
def test_a_group_needs_a_name(new_bus, name: Any) -> None:
    with pytest.raises(InvalidOption) as caught:
        new_bus().group(name)
    assert str(caught.value) == f"name={name!r}: give a string that is not empty"


@pytest.mark.parametrize("name", ["mail", "default"])
def test_a_group_name_is_taken_once(new_bus, name: str) -> None:
    bus = new_bus()
    bus.group("mail")
    with pytest.raises(DuplicateName) as caught:
        bus.group(name)
    assert str(caught.value) == f"the bus already has a group {name!r}: choose another name"
