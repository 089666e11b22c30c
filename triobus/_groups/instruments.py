"""Instruments: who watches a bus, and how each is told.

Each hook has the instruments that override it. Where there are none, nothing is made and nobody is
called: routes, handlers and workers are put together anew whenever an instrument comes or goes.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from triobus._errors import InvalidOption
from triobus._events import DomainEvent, with_metadata
from triobus._events.causes import Delivery, handling, snapshot_of
from triobus._groups.dead_letters import DeadLetter
from triobus._text import described, escaped, line, message_of, type_of

logger = logging.getLogger("triobus")

Range = tuple[int, int | None]
"""First and last position of what is finished; a last of None where the range is no more."""
Metadata = Sequence[Mapping[str, str]] | None
"""What is to be put into the metadata of events: a mapping for each, or None for nothing."""
Invoke = Callable[[Any], Awaitable[object]]
_Entered = list[tuple["Instrument", AbstractContextManager[Any], Any]]


class Instrument:
    """Watches a bus: derive from it, override what you want to hear of, `bus.add_instrument(it)`.

    A method that is not overridden costs nothing, and without instruments nothing is spent at all.
    An instrument may be added and removed while the bus runs; of calls of handlers it hears from
    the next one on. One that raises is removed, and the error logged: it disturbs no handler.

    The methods are plain functions that must not wait: the bus stands still meanwhile. They are
    called in Trio's thread, except for `publishing` around `transaction.publish()`, which is called
    in the store's. Times are seconds on Trio's clock. To change what a handler does, write a
    decorator.
    """

    def added_to(self, bus: Any, /) -> None:
        """It was added to a bus, whose statistics it may ask for from here on.

        What it raises leaves `add_instrument`, and then it was not added.
        """

    def removed_from(self, bus: Any, /) -> None:
        """It was removed, by the program or because it has raised."""

    def publishing(self, events: Sequence[DomainEvent], /) -> AbstractContextManager[Metadata]:  # noqa: ARG002  # for those that override it
        """Return a context manager around the call that publishes some events.

        What it yields is put into the metadata of the events: a mapping for each of them, or None.
        Keys that an event has stay as they are, and what does not fit into the limits of metadata
        is left out. The events have their cause by then; nothing else of them changes.
        """
        return nullcontext()

    def published(self, event: DomainEvent, position: int | None, /) -> None:
        """An event was accepted, in this order, and no handler has been called with it yet.

        The position is None without a store. An event that the store had before is not published.
        """

    def attempt_started(self, delivery: Delivery, /) -> None:
        """A handler is about to be called; what `where` does not want is no attempt.

        A batch is one attempt: told is its first delivery, whose `batch` has all of them.
        """

    def handling(self, delivery: Delivery, /) -> AbstractContextManager[object]:  # noqa: ARG002  # as above
        """Return a context manager around the handler.

        Context variables that it sets are seen by the handler, in a thread and inside a transaction
        too. It is entered behind `attempt_started` and left before `attempt_finished`. What the
        handler raises goes through it, and cannot be swallowed there.
        """
        return nullcontext()

    def attempt_finished(
        self, delivery: Delivery, seconds: float, error: BaseException | None, /
    ) -> None:
        """A handler has returned, or raised `error`: `trio.Cancelled` when it was cancelled."""

    def retry_scheduled(self, delivery: Delivery, due: float, /) -> None:
        """An attempt has failed, and the next one is due at this time of Trio's clock.

        Of a batch each delivery is told.
        """

    def settled(self, delivery: Delivery, /) -> None:
        """A group is done with an event: handled, or dead-lettered, by each of its handlers.

        With a store it is told when that is recorded there. The delivery names the last handler.
        """

    def dead_lettered(self, letter: DeadLetter, /) -> None:
        """An event has become a dead letter, or has remained one when it was replayed."""

    def committed(
        self, events: Sequence[DomainEvent], seconds: float, error: BaseException | None, /
    ) -> None:
        """A store has made a commit, or has failed to.

        The events are those that the commit put into the log; none if it only recorded progress. If
        it failed, they are those that it was to store.
        """

    def group_paused(self, group: str, /) -> None:
        """A group begins nothing any more; what runs comes to its end."""

    def group_resumed(self, group: str, /) -> None:
        """A paused group goes on."""


class Watcher(Instrument):
    """An instrument that is part of triobus, as the test kit's are: it is told more.

    What it raises is not caught: it would be a fault of ours.
    """

    def attend(self, group: Any, /) -> None:
        """A group is there, or a subscription of it is new."""

    def around(self, subscription: Any, invoke: Invoke, /) -> Invoke:  # noqa: ARG002  # as above
        """Return what is called in the place of a subscription, its `where` included."""
        return invoke

    def retry_planned(self, delivery: Any, due: float, /) -> None:
        """A delivery in flight has failed, and the next attempt is due at that time."""

    def given_up(
        self, event: DomainEvent, subscription: Any, attempts: int, error: Exception, /
    ) -> None:
        """An event has become a dead letter of a subscription, or has remained one."""

    def recorded(self, group: str, offset: int, ranges: Sequence[Range], /) -> None:
        """A store has the progress of a group: an offset, and the finished ranges that changed."""

    def reset(self, group: str, offset: int, /) -> None:
        """A group goes on behind another position, and has forgotten what it had come to."""

    def drained(self) -> None:
        """The bus has stopped because nothing was left to do."""


_Told = tuple[Any, ...]


def _nothing() -> None:
    """Nobody has to know."""


@attrs.define(eq=False)
class Instruments:
    """The instruments of one bus, and for each hook those that override it."""

    on_change: Callable[[], None] = attrs.field(default=_nothing, init=False)
    """Called when one has come or gone, so that everything is put together anew."""
    on_removed: Callable[[Instrument], None] = attrs.field(default=lambda _: None, init=False)
    present: list[Instrument] = attrs.field(factory=list, init=False)
    publishing: _Told = attrs.field(default=(), init=False)
    published: _Told = attrs.field(default=(), init=False)
    attempt_started: _Told = attrs.field(default=(), init=False)
    handling: _Told = attrs.field(default=(), init=False)
    attempt_finished: _Told = attrs.field(default=(), init=False)
    retry_scheduled: _Told = attrs.field(default=(), init=False)
    settled: _Told = attrs.field(default=(), init=False)
    dead_lettered: _Told = attrs.field(default=(), init=False)
    committed: _Told = attrs.field(default=(), init=False)
    group_paused: _Told = attrs.field(default=(), init=False)
    group_resumed: _Told = attrs.field(default=(), init=False)
    attend: _Told = attrs.field(default=(), init=False)
    around: _Told = attrs.field(default=(), init=False)
    retry_planned: _Told = attrs.field(default=(), init=False)
    given_up: _Told = attrs.field(default=(), init=False)
    recorded: _Told = attrs.field(default=(), init=False)
    reset: _Told = attrs.field(default=(), init=False)
    drained: _Told = attrs.field(default=(), init=False)

    # Who is there

    def __contains__(self, instrument: Instrument) -> bool:
        return any(known is instrument for known in self.present)

    @enable_ki_protection
    def add(self, instrument: Instrument) -> None:
        """Tell one more instrument what happens from here on."""
        self.present.append(instrument)
        self._changed()

    @enable_ki_protection
    def remove(self, instrument: Instrument) -> None:
        """Tell it nothing more."""
        self.present = [known for known in self.present if known is not instrument]
        self._changed()
        self.on_removed(instrument)

    def _changed(self) -> None:
        for hook in _HOOKS:
            told = tuple(each for each in self.present if _overrides(each, hook))
            setattr(self, hook, told)
        self.on_change()

    # Telling them

    def call(self, hook: str, *args: object) -> None:
        """Call one method of all that override it; one that raises is removed."""
        for instrument in getattr(self, hook):
            try:
                getattr(instrument, hook)(*args)
            except Exception as error:  # noqa: BLE001  # it is logged
                self.disable(instrument, hook, error)

    def enter(self, hook: str, *args: object) -> _Entered:
        """Enter the context managers that one method returns; `leave` takes what is returned."""
        entered: _Entered = []
        for instrument in getattr(self, hook):
            try:
                manager = getattr(instrument, hook)(*args)
                entered.append((instrument, manager, manager.__enter__()))
            except Exception as error:  # noqa: BLE001  # as above
                self.disable(instrument, hook, error)
        return entered

    def leave(self, hook: str, entered: _Entered, error: BaseException | None) -> None:
        """Leave context managers, the last one first; none of them can swallow the error."""
        kind = None if error is None else type(error)
        traceback = None if error is None else error.__traceback__
        for instrument, manager, _ in reversed(entered):
            try:
                manager.__exit__(kind, error, traceback)
            except BaseException as raised:
                if raised is error:
                    continue
                if not isinstance(raised, Exception):
                    raise
                self.disable(instrument, hook, raised)

    def disable(self, instrument: Instrument, hook: str, error: Exception) -> None:
        """Remove an instrument that has raised, and log that."""
        if instrument not in self:
            return
        try:
            self.remove(instrument)
        except Exception as further:  # noqa: BLE001  # it raises there too
            _log(instrument, "removed_from", further)
        _log(instrument, hook, error)

    @contextmanager
    def around_publishing(self, events: Sequence[DomainEvent]) -> Iterator[Sequence[DomainEvent]]:
        """Let instruments look on while events are published; yield what is to be published."""
        entered = self.enter("publishing", events)
        error: BaseException | None = None
        try:
            for instrument, _, given in entered:
                try:
                    events = _extended(events, given)
                except Exception as raised:  # noqa: BLE001  # it is logged
                    self.disable(instrument, "publishing", raised)
            yield events
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.leave("publishing", entered, error)


_HOOKS = tuple(
    field.name
    for field in attrs.fields(Instruments)
    if field.name not in ("on_change", "on_removed", "present")
)


def _overrides(instrument: Instrument, hook: str) -> bool:
    found, known = getattr(instrument, hook, None), getattr(Watcher, hook)
    return found is not None and getattr(found, "__func__", found) is not known


def _extended(events: Sequence[DomainEvent], given: Metadata) -> Sequence[DomainEvent]:
    if given is None:
        return events
    if len(given) != len(events):
        raise InvalidOption(
            f"publishing() yielded {len(given)} mappings for {len(events)} events: yield one for "
            "each, or None"
        )
    return [with_metadata(event, found) for event, found in zip(events, given, strict=True)]


def _log(instrument: Instrument, hook: str, error: Exception) -> None:
    """Log why an instrument was removed, with a traceback of bounded length."""
    record = logger.makeRecord(
        logger.name,
        logging.ERROR,
        __file__,
        0,
        "the instrument %s was removed, for its %s() raised %s: %s",
        (type(instrument).__qualname__, hook, line(type_of(error)), line(message_of(error))),
        None,
        "disable",
    )
    if logger.isEnabledFor(logging.ERROR):
        record.exc_text = escaped(described(error)["traceback"], kept="\n").rstrip()
        logger.handle(record)


# Around handlers


def told_of(deliveries: Sequence[Any]) -> Delivery:
    """Return what instruments are told of the deliveries of one attempt."""
    first = snapshot_of(deliveries[0])
    if len(deliveries) == 1:
        return first
    return attrs.evolve(first, batch=(first, *map(snapshot_of, deliveries[1:])))


def observed(call: Invoke, instruments: Instruments, *, is_batch: bool) -> Invoke:
    """Return what calls a handler while instruments look on: `call` itself if none does."""
    if not (instruments.attempt_started or instruments.handling or instruments.attempt_finished):
        return call

    async def invoke(given: Any) -> object:
        own = handling.get()
        assert own is not None  # a worker calls it
        delivery = told_of(own.deliveries if is_batch else (own.delivery,))
        instruments.call("attempt_started", delivery)
        entered = instruments.enter("handling", delivery)
        started = trio.current_time()
        try:
            result = await call(given)
        except BaseException as error:
            seconds = trio.current_time() - started
            instruments.leave("handling", entered, error)
            instruments.call("attempt_finished", delivery, seconds, error)
            raise
        seconds = trio.current_time() - started
        instruments.leave("handling", entered, None)
        instruments.call("attempt_finished", delivery, seconds, None)
        return result

    return invoke
