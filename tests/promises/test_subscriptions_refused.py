"""Subscriptions, groups and options that cannot work are refused at the call."""

import functools
import math
from collections.abc import AsyncIterator, Iterator
from typing import Any, ClassVar

import pytest

from tests.events import Noted
from tests.promises.subscribers import Mailer, handle
from triobus import (
    DomainEvent,
    DuplicateName,
    EventBus,
    InvalidEvent,
    InvalidHandler,
    InvalidOption,
    Retry,
    TriobusError,
)


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
