"""Events and errors that cannot be shown, or not within limits."""

import logging
from typing import Any, ClassVar

import attrs
import pytest
from trio.testing import MockClock

from tests.events import Noted
from tests.promises.hostile import handling
from tests.promises.kinds import Reopened
from triobus import DomainEvent, EventBus, Retry
from triobus.testing import record


@attrs.frozen(repr=False)
class Unspeakable(DomainEvent):
    event_type: ClassVar[str] = "hostile.unspeakable"
    number: int

    def __repr__(self) -> str:
        raise RuntimeError("no words")


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


async def test_an_event_and_an_error_that_cannot_be_shown_go_the_way_of_all_others(
    any_store: Reopened, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def fails(event: Unspeakable) -> None:
        raise UnspeakableError(event)

    bus = EventBus(any_store())
    recording = record(bus)
    bus.subscribe(Unspeakable, fails, name="fails", retry=Retry(attempts=2, delay=1))
    async with bus:
        outcome = await bus.publish_and_wait(Unspeakable(7))
        (letter,) = await bus.dead_letters.list()
        assert await bus.dead_letters.replay(letter.id) == 0
        (letter,) = await bus.dead_letters.list()
    assert letter.event == outcome_event(recording)
    assert (letter.attempts, letter.error_type) == (4, "UnspeakableError")
    assert letter.message == "<str() of this UnspeakableError raised an error itself>"
    assert "in fails" in letter.traceback
    assert isinstance(outcome.errors["fails"], UnspeakableError)
    assert f"failed: UnspeakableError: {letter.message}" in recording.timeline()
    assert recording.assert_published(Unspeakable, number=7) == letter.event
    told = "UnspeakableError: <str() of this UnspeakableError raised an error itself>"
    assert [entry.getMessage() for entry in caplog.records if entry.name == "triobus"] == [
        f"'fails' in group 'default' failed at attempt 1: {told}",
        f"dead letter 1: event {letter.event_id}, 'fails' in group 'default', after 2 attempts: "
        f"{told}",
        f"'fails' in group 'default' failed at attempt 1: {told}",
    ]


class Text(str):
    """What is said by an error, and is no plain text."""

    def __getitem__(self, key: Any) -> Any:
        raise RuntimeError("no part of it")

    def encode(self, *args: Any) -> Any:
        raise RuntimeError("no bytes of it")

    __len__ = __iter__ = __str__ = __format__ = encode


class Meta(type):
    @property
    def __name__(cls) -> str:
        raise RuntimeError("no name")


def error_with(metaclass: Any = type, **members: Any) -> Any:
    """Return an error whose class has these members, some of which raise."""
    return metaclass("Odd", (Exception,), members)("x")


def raising(error: Any) -> Any:
    def member(*_: Any) -> Any:
        raise error

    return member


ODD_ERRORS = {
    "str raises SystemExit": lambda: error_with(__str__=raising(SystemExit(3))),
    "str is odd": lambda: error_with(__str__=lambda _: Text("x")),
    "str is none": lambda: error_with(__str__=lambda _: 7),
    "repr raises": lambda: error_with(__repr__=raising(KeyError)),
    "notes raise": lambda: error_with(__notes__=property(raising(KeyError))),
    "notes are odd": lambda: error_with(__notes__=[error_with(__str__=raising(KeyError))]),
    "class raises": lambda: error_with(__class__=property(raising(KeyError))),
    "class lies": lambda: error_with(__class__=KeyboardInterrupt),
    "traceback raises": lambda: error_with(__traceback__=property(raising(KeyError))),
    "cause raises": lambda: error_with(__cause__=property(raising(KeyError))),
    "context raises": lambda: error_with(__context__=property(raising(KeyError))),
    "everything raises": lambda: error_with(__getattribute__=raising(KeyError)),
    "name raises": lambda: error_with(Meta),
    "hash raises": lambda: error_with(__hash__=raising(KeyError), __eq__=raising(KeyError)),
    "a group whose errors raise": lambda: type(
        "OddGroup", (ExceptionGroup,), {"exceptions": property(raising(KeyError))}
    )("x", [ValueError("y")]),
    "a deep group": lambda: deep_group(2000),
    "a wide group": lambda: ExceptionGroup("x", [ValueError(str(n)) for n in range(10_000)]),
}


def deep_group(depth: int) -> Exception:
    error: Exception = ValueError("y")
    for _ in range(depth):
        error = ExceptionGroup("x", [error])
    return error


@pytest.mark.parametrize("make", ODD_ERRORS.values(), ids=ODD_ERRORS.keys())
async def test_an_error_that_cannot_be_told_is_told_within_limits_and_ends_no_bus(
    any_store: Reopened, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, make: Any
) -> None:
    caplog.set_level(logging.DEBUG)

    async def fails(event: Noted) -> None:
        if event.number == 1:
            raise make()

    bus = EventBus(any_store())
    bus.subscribe(Noted, fails, name="fails", retry=Retry(attempts=2, delay=1, on=Exception))
    async with bus:
        await bus.publish_many([Noted(1), Noted(2)])
        await bus.wait_idle()
        (letter,) = await bus.dead_letters.list()
    assert letter.attempts == 2
    assert len(letter.message) <= 4096
    assert len(letter.error_type) <= 4096
    assert len(letter.traceback.encode()) <= 16 * 1024
    assert letter.traceback
    assert all(len(record.getMessage()) < 1500 for record in caplog.records)


def outcome_event(recording: Any) -> DomainEvent:
    (published,) = recording.published
    event: DomainEvent = published.event
    return event


async def test_an_error_of_50_mb_is_cut_before_it_is_kept(
    any_store: Reopened, autojump_clock: MockClock
) -> None:
    message = "é" * 25_000_000

    async def fails(event: Noted) -> None:
        try:
            raise ValueError(message)
        except ValueError as error:
            raise ExceptionGroup(message, [error, OSError(message)]) from error

    async with handling(any_store(), fails) as bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        (letter,) = await bus.dead_letters.list()
    assert letter.message == ("ValueError: " + "é" * 4096)[:4096]
    assert len(letter.traceback.encode()) <= 16 * 1024
    assert "OSError" in letter.traceback


async def test_with_hold_an_error_in_where_is_a_failure_and_the_bus_goes_on(
    any_store: Reopened, autojump_clock: MockClock
) -> None:
    handled = []

    async def handler(event: Noted) -> None:
        handled.append(event.number)

    def where(event: Noted) -> bool:
        if event.number < 3:
            raise LookupError(event.number)
        return True

    async with handling(any_store(), handler, where=where, hold=True) as bus:
        await bus.publish_many([Noted(n, "a") for n in range(5)])
        await bus.publish(Noted(5, "b"))
        await bus.wait_idle()
        letters = await bus.dead_letters.list()
    assert handled == [5]
    assert [(x.event.number, x.error_type, x.attempts) for x in letters] == [
        (0, "LookupError", 1),
        (1, "LookupError", 1),
        (2, "LookupError", 1),
        (3, "HeldBack", 0),
        (4, "HeldBack", 0),
    ]
