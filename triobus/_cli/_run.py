"""Carries a feed of events through a bus, until its end or a signal."""

import signal
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

import attrs
import trio

from triobus._bus import EventBus
from triobus._cli._input import LONGEST_LINE, Line, LineSplitter, Source
from triobus._cli._messages import CommandError, say
from triobus._cli._progress import Progress, State, progress
from triobus._errors import BusAlreadyStarted, EventNotDecodable, EventNotEncodable, StoreError
from triobus._events import DomainEvent, EventDecoder, check_aggregate_id, key_of
from triobus._statistics import BusStatistics
from triobus._text import escaped
from triobus.stores import EventStore, SqliteEventStore

Restore = Callable[[EventStore], Awaitable[None]]

_BATCH = 100
"""How many events are published at a time: few, so that a small buffer is kept to."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@attrs.frozen(kw_only=True)
class Result:
    """What became of a run."""

    statistics: BusStatistics
    read: int
    """Events that were read and accepted by the bus."""
    bad_lines: int
    """Lines that were no events."""
    stopped_by: str | None
    """The signal that ended the reading, if one did."""
    is_input_bad: bool
    """Whether the reading ended at a bad line, or because the input could not be read on."""
    has_failed: bool
    """Whether a handler's error ended the bus (`on_failure="raise"`)."""
    store: str | None
    """The path of the store, if there is one."""
    left_before: int
    """Deliveries that an earlier run had left."""

    @property
    def left(self) -> int:
        """Deliveries that were accepted and not finished."""
        return sum(group.lag for group in self.statistics.groups.values())

    @property
    def exit_code(self) -> int:
        """What the program tells its caller."""
        if self.is_input_bad:
            return 2
        return int(self.has_failed or self.left > 0 or self.statistics.dead_lettered > 0)


@attrs.define(eq=False, kw_only=True)
class _Feed:
    """A run while it goes on."""

    bus: EventBus
    source: Source
    skip_bad: bool
    stop_timeout: float
    store: SqliteEventStore | None
    restore: Restore | None
    left_before: int = 0
    bytes_read: int = 0
    read: int = 0
    bad_lines: int = 0
    stopped_by: str | None = None
    is_input_bad: bool = False
    has_failed: bool = False
    _decoder: EventDecoder = attrs.field(init=False)
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    """Around what a signal ends: reading, and waiting for the handlers without a limit."""
    _shown: Progress = attrs.field(init=False)

    @_decoder.default
    def _new_decoder(self) -> EventDecoder:
        store = self.bus.store
        return EventDecoder() if store is None else EventDecoder(converters=store.codec.converters)

    async def run(self) -> None:
        """Do it all; raises `CommandError` when it cannot begin."""
        await self.source.open()
        self._shown = progress(self.source.name, self.source.size)
        try:
            with trio.open_signal_receiver(*_SIGNALS) as signals:
                if self.store is None:
                    await self._carry(signals)
                else:
                    await self._carry_with(self.store, signals)
        except StoreError as error:
            raise CommandError(str(error)) from None
        except BaseExceptionGroup as group:
            of_store, others = group.split(StoreError)
            if of_store is not None and others is None:
                raise CommandError(_first_leaf(of_store)) from None
            self.has_failed = True
            say("triobus: a handler failed and ended the bus:")
            say("".join(traceback.format_exception(group)).rstrip())
        except BusAlreadyStarted as error:
            raise CommandError(str(error)) from None
        finally:
            self.source.close()

    async def _carry_with(self, store: SqliteEventStore, signals: AsyncIterator[int]) -> None:
        """Go on from what the store has."""
        self.bus.store = store
        async with store:
            last = await store.last_position()
            for group in await store.groups():
                finished = sum(end - first + 1 for first, end in group.ranges)
                self.left_before += last - group.offset - finished
            if self.restore is not None:
                await self.restore(store)
            await self._carry(signals)

    async def _carry(self, signals: AsyncIterator[int]) -> None:
        async with self.bus, trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_on_signal, signals)
            nursery.start_soon(self._shown.watch, self._look)
            with self._scope:
                await self._read()
                await self.bus.wait_idle()
            await self.bus.stop(timeout=self.stop_timeout)
            nursery.cancel_scope.cancel()

    async def _read(self) -> None:
        splitter = LineSplitter()
        while not self.is_input_bad:
            try:
                chunk = await self.source.read()
            except CommandError as error:
                say(escaped(f"triobus: {error}"))
                self.is_input_bad = True
                return
            self.bytes_read += len(chunk)
            await self._publish(splitter.feed(chunk) if chunk else splitter.end())
            if not chunk:
                return

    async def _publish(self, lines: Iterable[Line]) -> None:
        """Publish the events of lines: all up to the first bad one, or all the good ones."""
        events: list[DomainEvent] = []
        for line in lines:
            try:
                events.append(self._decode(line))
            except (EventNotDecodable, EventNotEncodable) as error:
                say(escaped(f"triobus: line {line.number} of {self.source.name}: {error}"))
                self.bad_lines += 1
                if not self.skip_bad:
                    self.is_input_bad = True
                    break
            if len(events) == _BATCH:
                await self._accept(events)
                events = []
        await self._accept(events)

    async def _accept(self, events: list[DomainEvent]) -> None:
        await self.bus.publish_many(events)
        self.read += len(events)

    def _decode(self, line: Line) -> DomainEvent:
        if line.text is None:
            raise EventNotDecodable(f"the line is longer than {LONGEST_LINE} bytes")
        event = self._decoder.decode(line.text)
        if self.bus.store is not None:
            # One that the store refuses would take all that is published with it along.
            check_aggregate_id(type(event), key_of(event))
            self.bus.store.codec.encode(event)
        return event

    async def _stop_on_signal(self, signals: AsyncIterator[int]) -> None:
        self.stopped_by = signal.Signals(await anext(signals)).name
        for number in _SIGNALS:
            # The next one ends the program by the system's own hand, even if a handler is stuck.
            signal.signal(number, signal.SIG_DFL)
        self._shown.stop()
        say(
            f"triobus: {self.stopped_by}: reading no more; handlers have {self.stop_timeout:g} s "
            "to finish, and the same signal again ends the program at once"
        )
        self._scope.cancel()

    def _look(self) -> State:
        statistics = self.bus.statistics()
        unsettled = sum(group.lag for group in statistics.groups.values())
        return State(self.bytes_read, self.read, statistics.handled, unsettled)


def _first_leaf(group: BaseExceptionGroup[BaseException]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


def run(
    bus: EventBus,
    source: Source,
    *,
    skip_bad: bool,
    stop_timeout: float,
    store: SqliteEventStore | None = None,
    restore: Restore | None = None,
) -> Result:
    """Publish what the source holds and return when all is handled, or a signal ended it.

    With a store `restore` is called with it before, so that the module can take up what it knew.
    """
    feed = _Feed(
        bus=bus,
        source=source,
        skip_bad=skip_bad,
        stop_timeout=stop_timeout,
        store=store,
        restore=restore,
    )
    trio.run(feed.run)
    return Result(
        statistics=bus.statistics(),
        read=feed.read,
        bad_lines=feed.bad_lines,
        stopped_by=feed.stopped_by,
        is_input_bad=feed.is_input_bad,
        has_failed=feed.has_failed,
        store=None if store is None else store.path,
        left_before=feed.left_before,
    )
