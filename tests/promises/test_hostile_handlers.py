"""Handlers and events at their worst: what the program sees, and what is kept."""

import logging
import time
from collections import defaultdict
from typing import Any, ClassVar

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests.events import Noted
from tests.promises.kinds import KINDS, Reopened, reopened
from triobus import (
    BusClosed,
    DomainEvent,
    EventBus,
    EventNotEncodable,
    MemoryEventStore,
    Retry,
    SqliteEventStore,
    StoreIOError,
    StrayCancelled,
)
from triobus.testing import record

ONCE = Retry(attempts=1)


@pytest.fixture(params=[*KINDS, "none"])
def any_store(request: Any, tmp_path: Any) -> Reopened:
    """Opens a store of every kind again and again, and then none."""
    return (lambda: None) if request.param == "none" else reopened(request.param, tmp_path)


@pytest.fixture(params=KINDS)
def new_store(request: Any, tmp_path: Any) -> Reopened:
    return reopened(request.param, tmp_path)


def handling(store: Any, handler: Any, types: Any = Noted, **options: Any) -> EventBus:
    bus = EventBus(store)
    bus.subscribe(types, handler, name="handler", retry=ONCE, **options)
    return bus


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


# Events and errors that cannot be shown


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


# Many and much


@pytest.mark.parametrize(
    ("store", "rounds"), [(None, 2), (MemoryEventStore(), 1)], ids=["none", "memory"]
)
async def test_a_hundred_thousand_aggregates_keep_their_order_and_leave_nothing_behind(
    autojump_clock: MockClock, store: MemoryEventStore | None, rounds: int
) -> None:
    last: dict[str, int] = defaultdict(int)

    async def handler(event: Noted) -> None:
        assert event.key is not None
        assert event.number == last[event.key] + 1
        last[event.key] = event.number
        if event.key.endswith("99"):
            await trio.lowlevel.checkpoint()

    bus = handling(store, handler)
    async with bus:
        for number in range(1, rounds + 1):
            await bus.publish_many([Noted(number, str(key)) for key in range(100_000)])
        await bus.wait_idle()
        lanes = bus._life.shells["default"].lanes
        assert len(lanes._lanes) == 0
        assert await bus.dead_letters.list() == []
    assert len(last) == 100_000
    assert set(last.values()) == {rounds}


async def test_an_event_of_1_mib_is_kept_and_one_byte_more_is_refused_and_not_delivered(
    new_store: Reopened, autojump_clock: MockClock
) -> None:
    handled = []

    async def handler(event: Noted) -> None:
        handled.append((event.number, len(event.key or "")))

    async with new_store() as store:
        room = 1_048_576 - len(store._codec.encode(Noted(1, "")))
    async with handling(new_store(), handler) as bus:
        await bus.publish(Noted(1, "x" * room))
        with pytest.raises(EventNotEncodable, match="1,048,577"):
            await bus.publish(Noted(2, "x" * (room + 1)))
        await bus.publish(Noted(3, "x"))
    assert sorted(handled) == [(1, room), (3, 1)]
    async with new_store() as store:
        found = [(s.event.number, len(s.event.key)) async for s in store.read()]
    assert found == [(1, room), (3, 1)]


@pytest.mark.parametrize("store", [None, MemoryEventStore()], ids=["none", "memory"])
async def test_ten_thousand_subscriptions_are_called_in_their_order(
    autojump_clock: MockClock, store: MemoryEventStore | None
) -> None:
    called = []
    bus = EventBus(store)

    def subscribe(number: int) -> Any:
        async def handler(event: Noted) -> None:
            called.append(number)

        return bus.subscribe(Noted, handler, name=str(number), priority=number % 3)

    subscriptions = [subscribe(number) for number in range(10_000)]
    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        assert called == sorted(range(10_000), key=lambda number: (-(number % 3), number))
        called.clear()
        for subscription in subscriptions[10:]:
            subscription.unsubscribe()
        await bus.publish(Noted(2))
    assert called == [2, 5, 8, 1, 4, 7, 0, 3, 6, 9]


# Clocks that are set


class Hurried(trio.abc.Clock):
    """A real clock that runs a thousand times as fast: no virtual time, and no long test."""

    RATE: ClassVar[float] = 1000

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return time.perf_counter() * self.RATE

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return (deadline - self.current_time()) / self.RATE


@pytest.mark.parametrize("days", [-1000, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_a_retry_keeps_its_time_though_the_clock_of_the_system_is_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, kind: str, days: int
) -> None:
    """While the program runs its own clock counts; a restart waits for the delay again, at most."""
    new_store, shift = reopened(kind, tmp_path), 0.0
    real_time, asked = time.time, []

    def set_time() -> float:
        asked.append(shift)
        return real_time() * Hurried.RATE + shift

    monkeypatch.setattr(time, "time", set_time)
    attempts: list[float] = []
    again = trio.Event()

    async def fails(event: Noted) -> None:
        attempts.append(trio.current_time())
        if len(attempts) == 2:
            again.set()
        raise OSError("not now")

    def bus(attempts: int) -> EventBus:
        bus = EventBus(new_store())
        retry = Retry(attempts=attempts, delay=100, factor=1, jitter=0, max_delay=100)
        bus.subscribe(Noted, fails, name="handler", retry=retry)
        return bus

    async def main() -> None:
        nonlocal shift
        async with bus(3) as first:
            await first.publish(Noted(1, "a"))
            await trio.sleep(20)
            shift = days * 86400.0
            await again.wait()
            await first.stop(drain=False)
        shift = 2 * days * 86400.0
        started = trio.current_time()
        async with bus(3) as second:
            await second.wait_idle()
            (letter,) = await second.dead_letters.list()
        assert letter.attempts == 3
        assert 100 <= attempts[1] - attempts[0] < 2000
        waited = attempts[2] - started
        assert (waited >= 100) == (days < 0)
        assert waited < 3000

    trio.run(main, clock=Hurried())
    assert {0.0, days * 86400.0, 2 * days * 86400.0} <= set(asked)


# SQLite interrupted


async def test_a_commit_that_sqlite_interrupts_fails_its_publish_alone(
    tmp_path: Any, autojump_clock: MockClock
) -> None:
    store, handled, interrupted = SqliteEventStore(tmp_path / "events.db"), [], []

    async def handler(event: Noted) -> None:
        handled.append(event.number)

    def interrupt() -> int:
        interrupted.append(1)
        return 1

    async with handling(store, handler) as bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        connection = store._database.connection
        assert connection is not None
        await store._worker.run(connection.set_progress_handler, interrupt, 1)
        with pytest.raises(StoreIOError, match="interrupted"):
            await bus.publish(Noted(2))
        assert interrupted
        await store._worker.run(connection.set_progress_handler, None, 0)
        assert (await bus.publish(Noted(3))).position == 2
    assert handled == [1, 3]
