"""Carries events that are read through a bus, until the end of the input or a signal."""

import contextlib
import signal
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator

import attrs
import trio

from triobus._bus import EventBus
from triobus._cli._input import LONGEST_LINE, Line, LineSplitter, Source
from triobus._cli._load import Maker, made
from triobus._cli._messages import CommandError, say
from triobus._cli._progress import Bar
from triobus._cli._streams import ReaderGone
from triobus._errors import (
    BusAlreadyStarted,
    EventIdConflict,
    EventNotDecodable,
    EventNotEncodable,
    InvalidEvent,
    StoreError,
)
from triobus._events import DomainEvent, EventDecoder, Published, check_aggregate_id, key_of
from triobus._groups.statistics import BusStatistics
from triobus._text import escaped, leaves
from triobus.stores import EventStore

Restore = Callable[[EventStore], Awaitable[None]]
Report = Callable[[EventStore], Awaitable[object]]

_BATCH = 100
"""How many events are published at a time: few, so that a small buffer is kept to."""
_REFUSALS = (EventIdConflict, EventNotEncodable, InvalidEvent)
"""What a bus says about one event, and by which all that is published with it is refused."""
_UNUSABLE = (CommandError, StoreError, BusAlreadyStarted, InvalidEvent, EventNotEncodable)
"""Errors that are no handler's, but say that a bus, its store or a class cannot be used."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SECONDS_BETWEEN_LOOKS = 0.1


class _Interrupted(Exception):
    """A signal came before there was anything to sum up."""


@attrs.define(eq=False, kw_only=True)
class Run:
    """A run of the command: `trio.run(run.carry_out)`; afterwards it has the result."""

    found: EventBus | Maker
    """The bus, or a function that makes it, which is called inside the Trio run."""
    source: Source
    skip_bad: bool
    stop_timeout: float
    store: EventStore | None = None
    restore: Restore | None = None
    """Called with the store before the bus starts, so that the module can take up what it knew."""
    report: Report | None = None
    """Called with the store when the bus has stopped, for the rows below the summary."""
    reported: object = attrs.field(default=None, init=False)
    """What that has returned, or the error that it raised."""
    left_before: int = attrs.field(default=0, init=False)
    """Deliveries that an earlier run had left."""
    read: int = attrs.field(default=0, init=False)
    """Events that were read and accepted by the bus."""
    known: int = attrs.field(default=0, init=False)
    """Events that were read and that the store had already."""
    bad_lines: int = attrs.field(default=0, init=False)
    """Lines that were no events."""
    stopped_by: str | None = attrs.field(default=None, init=False)
    """The signal that ended the reading, if one did."""
    is_input_bad: bool = attrs.field(default=False, init=False)
    """Whether the reading ended at a bad line, or because the input could not be read on."""
    has_failed: bool = attrs.field(default=False, init=False)
    """Whether a handler's error ended the bus (`on_failure="raise"`)."""
    _bytes_read: int = attrs.field(default=0, init=False)
    _decoder: EventDecoder = attrs.field(factory=EventDecoder, init=False)
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    """Around what a signal ends: getting ready, then reading. Each has one of its own."""
    _draining: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    """Around the waiting for the handlers at the end, to which a signal then sets a limit."""
    _bar: Bar = attrs.field(init=False)
    _bus: EventBus | None = attrs.field(default=None, init=False)

    @property
    def statistics(self) -> BusStatistics:
        """What the bus has counted."""
        return self._ready_bus.statistics()

    @property
    def left(self) -> int:
        """Deliveries that were accepted and are not finished."""
        return sum(group.lag for group in self.statistics.groups.values())

    def exit_code(self, *, are_dead_letters_expected: bool = False) -> int:
        """Return what the program tells its caller."""
        if self.is_input_bad:
            return 2
        if self.stopped_by is not None:
            return 128 + signal.Signals[self.stopped_by]  # as a shell says it
        has_letters = self.statistics.dead_lettered > 0 and not are_dead_letters_expected
        return int(self.has_failed or self.left > 0 or self.bad_lines > 0 or has_letters)

    @property
    def _ready_bus(self) -> EventBus:
        assert self._bus is not None
        return self._bus

    async def carry_out(self) -> None:
        """Publish what the source holds; return when all is handled, or a signal ended it.

        Raises `CommandError` when it cannot begin, and `ReaderGone`.
        """
        await self.source.open()
        self._bar = Bar(f"reading {self.source.name}", self.source.size)
        try:
            with trio.open_signal_receiver(*_SIGNALS) as signals:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._stop_on_signal, signals)
                    await self._get_ready_and_carry()
                    nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            self._explain(group)
        finally:
            self.source.close()

    def _explain(self, group: BaseExceptionGroup[BaseException]) -> None:
        """Say why the run ended; raises what only concerns the command."""
        if group.split(ReaderGone)[0] is not None:
            raise ReaderGone from None
        if group.split(_Interrupted)[0] is not None:
            raise KeyboardInterrupt from None
        unusable, others = group.split(_UNUSABLE)
        if unusable is not None and others is None:
            raise CommandError(str(leaves(unusable)[0])) from None
        if self._bus is None:
            raise group
        self.has_failed = True
        say("triobus: a handler failed and ended the bus:")
        say("".join(traceback.format_exception(group)).rstrip())

    async def _get_ready_and_carry(self) -> None:
        with self._until_signal():
            self._bus = await made(self.found) if callable(self.found) else self.found
        if self.stopped_by is not None:
            raise _Interrupted  # before there was anything to sum up
        if self.store is not None:
            self._ready_bus.store = self.store
        store = self._ready_bus.store
        if store is None:
            await self._carry()
            return
        async with store:
            last = await store._last_position()
            for group in await store._groups():
                finished = sum(end - first + 1 for first, end in group.ranges)
                self.left_before += last - group.offset - finished
            if self.restore is not None:
                with self._until_signal():
                    await self.restore(store)
                if self.stopped_by is not None:
                    raise _Interrupted  # the module has not taken up all of it
            await self._carry()
            if self.report is not None:
                await self._ask_for_report(self.report, store)

    async def _ask_for_report(self, report: Report, store: EventStore) -> None:
        try:
            self.reported = await report(store)
        except Exception as error:  # noqa: BLE001  # it is the user's function; the caller tells it
            self.reported = error

    async def _carry(self) -> None:
        bus = self._ready_bus
        if bus.store is not None:
            self._decoder = EventDecoder(converters=bus.store._codec.converters)
        async with bus, trio.open_nursery() as nursery:
            nursery.start_soon(self._show_progress)
            with self._until_signal():
                await self._read()
            if self.stopped_by is not None:
                await bus.stop(timeout=self.stop_timeout)
            else:
                with self._draining:
                    await bus.stop()
            nursery.cancel_scope.cancel()

    @contextlib.contextmanager
    def _until_signal(self) -> Iterator[None]:
        with trio.CancelScope() as self._scope:
            if self.stopped_by is not None:
                self._scope.cancel()
            yield

    async def _read(self) -> None:
        splitter = LineSplitter()
        while not self.is_input_bad:
            try:
                chunk = await self.source.read()
            except CommandError as error:
                say(escaped(f"triobus: {error}"))
                self.is_input_bad = True
                return
            self._bytes_read += len(chunk)
            await self._publish(splitter.feed(chunk) if chunk else splitter.end())
            if not chunk:
                return

    async def _publish(self, lines: Iterable[Line]) -> None:
        """Publish the events of lines: all up to the first bad one, or all the good ones."""
        ready: list[tuple[Line, DomainEvent]] = []
        for line in lines:
            try:
                ready.append((line, self._decode(line)))
            except (EventNotDecodable, EventNotEncodable) as error:
                await self._accept(ready)
                ready = []
                if not self.is_input_bad:
                    self._report_bad(line, error)
            if self.is_input_bad:
                return
            if len(ready) == _BATCH:
                await self._accept(ready)
                ready = []
        await self._accept(ready)

    def _report_bad(self, line: Line, error: Exception) -> None:
        say(escaped(f"triobus: line {line.number} of {self.source.name}: {error}"))
        self.bad_lines += 1
        if not self.skip_bad:
            self.is_input_bad = True
            say(f"triobus: stopped at line {line.number}, the rest is unread; --skip-bad goes on")

    async def _accept(self, ready: list[tuple[Line, DomainEvent]]) -> None:
        """Publish events together; one by one if one of them is refused, which refuses them all."""
        try:
            self._count(await self._ready_bus.publish_many([event for _, event in ready]))
        except _REFUSALS:
            for line, event in ready:
                try:
                    self._count([await self._ready_bus.publish(event)])
                except _REFUSALS as error:
                    self._report_bad(line, error)
                    if self.is_input_bad:
                        return

    def _count(self, accepted: Iterable[Published]) -> None:
        for published in accepted:
            self.read += 1
            self.known += not published.is_new

    def _decode(self, line: Line) -> DomainEvent:
        if line.text is None:
            raise EventNotDecodable(f"the line is longer than {LONGEST_LINE} bytes")
        event = self._decoder.decode(line.text)
        if self._ready_bus.store is not None:
            # One that the store refuses would take all that is published with it along.
            check_aggregate_id(type(event), key_of(event))
            self._ready_bus.store._codec.encode(event)
        return event

    async def _stop_on_signal(self, signals: AsyncIterator[int]) -> None:
        self.stopped_by = signal.Signals(await anext(signals)).name
        for number in _SIGNALS:
            # The next one ends the program by the system's own hand, even if a handler is stuck.
            signal.signal(number, signal.SIG_DFL)
        self._bar.stop()
        say(
            f"triobus: {self.stopped_by}: reading no more; handlers have {self.stop_timeout:g} s "
            "to finish, and the same signal again ends the program at once"
        )
        self._scope.cancel()
        self._draining.deadline = trio.current_time() + self.stop_timeout

    async def _show_progress(self) -> None:
        if not self._bar.is_shown:
            say(f"triobus: reading {self.source.name}")  # the summary has the rest
            return
        with self._bar:
            while True:
                done = self.statistics.handled
                counts = f"{self.read:,} read, {self.left:,} to do, {done:,} done"
                self._bar.show(self._bytes_read, counts)
                await trio.sleep(_SECONDS_BETWEEN_LOOKS)
