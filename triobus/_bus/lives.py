"""What a program has declared of a bus, and the lives that the bus has: one after the other."""

from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import trio

from triobus._bus.life import Drain, Life
from triobus._bus.memory_log import no_transactions
from triobus._environment import environment
from triobus._errors import BusAlreadyStarted, DuplicateName, InvalidOption
from triobus._events import DomainEvent
from triobus._groups.failures import LogErrors, OnFailure
from triobus._groups.instruments import Instrument, Instruments
from triobus._groups.subscriptions import BatchGroup, Group, GroupOptions, Start
from triobus.stores import EventStore


@attrs.define(eq=False)
class Lives:
    """The declared groups of one bus, and its present life, or the last one."""

    store: EventStore | None
    """The store of the bus, None without one."""
    _on_failure: OnFailure
    _log_errors: LogErrors
    _drain: Drain
    options: dict[str, GroupOptions] = attrs.field(factory=dict, init=False)
    """What was said of each group, by its name."""
    life: Life = attrs.field(init=False)
    instruments: Instruments = attrs.field(factory=Instruments, init=False)
    _instrument_of: Callable[[Any], Any] | None = attrs.field(default=None, init=False)
    """What has given the bus an instrument of its environment, if something has."""
    _blocks: list[Life] = attrs.field(factory=list, init=False)
    """The lives whose blocks have not been left."""

    def __attrs_post_init__(self) -> None:
        self.life = self._new_life()
        self.instruments.on_change = self._observe

    def _observe(self) -> None:
        for options in self.options.values():
            options.group._observe()
        self.life.observe()

    def _new_life(self) -> Life:
        life = Life(self.store, self._on_failure, self._log_errors, self._drain, self.instruments)
        for options in self.options.values():
            life.add(options)
        return life

    def replace_store(self, store: EventStore) -> None:
        """Keep everything in another store, from the next start on."""
        if not self.life.cycle.allows("start"):
            raise BusAlreadyStarted("the bus runs: give it its store before it starts")
        if self.life.routing.inboxes or self.life.routing.waiters:
            raise InvalidOption("the bus is listened to: give it its store before")
        self.store = store
        self.life = self._new_life()

    def add_group(
        self,
        name: str,
        *,
        workers: int,
        buffer: float,
        is_ordered: bool,
        batch: int | None,
        start: Start,
    ) -> Group:
        """Make a group; while the bus runs, its workers come at once."""
        if name in self.options:
            raise DuplicateName(f"the bus already has a group {name!r}: choose another name")
        limiter = trio.CapacityLimiter(workers)
        group = (Group if batch is None else BatchGroup)(
            name,
            limiter,
            batch,
            self._check_types,
            partial(self._resubscribed, name),
            self._check_transactional,
            self.instruments,
        )
        options = self.options[name] = GroupOptions(
            group=group,
            workers=workers,
            buffer=buffer,
            is_ordered=is_ordered,
            batch=batch,
            start=start,
        )
        self.life.add(options)
        self._attend(group)
        return group

    def _check_types(self, types: tuple[type[DomainEvent], ...]) -> None:
        self.life.check_types(types)

    def _check_transactional(self) -> None:
        if self.store is None:
            raise no_transactions()

    def _resubscribed(self, name: str) -> None:
        self.life.resubscribed(name)
        self._attend(self.options[name].group)

    def watch(self, instrument: Instrument) -> None:
        """Let an instrument see what happens from here on."""
        self.instruments.add(instrument)
        if instrument in self.instruments.attend:
            for options in self.options.values():
                instrument.attend(options.group)  # type: ignore[attr-defined]  # then it has that

    def _attend(self, group: Group) -> None:
        for watcher in self.instruments.attend:
            watcher.attend(group)

    def watch_as_environment_says(self, bus: Any) -> None:
        """Give the bus the instrument that every bus of this environment gets, but once."""
        instrument_of = environment.get().instrument_of
        if instrument_of is not None and instrument_of is not self._instrument_of:
            self._instrument_of = instrument_of
            bus.add_instrument(instrument_of(bus))

    async def begin(self, bus: Any) -> None:
        """Begin a life, a new one if the last is over. Raises `BusAlreadyStarted`."""
        cycle = self.life.cycle
        if not cycle.allows("start"):
            raise BusAlreadyStarted(
                f"the bus is {cycle.state}: let it stop before it is started again, or make a "
                "further EventBus"
            )
        if cycle.state == "stopped":
            last_letter = self.life.letters.last_id
            self.life = self._new_life()
            self.life.letters.last_id = last_letter  # no later letter is taken for an older one
        self.watch_as_environment_says(bus)
        life = self.life
        await life.start()
        self._blocks.append(life)

    async def leave(self, error: BaseException | None) -> None:
        """End the life with the block around it, which `error` leaves if one does."""
        # A bus that was stopped inside may have been started again, there or by another task.
        life = next(filter(Life.is_own, reversed(self._blocks)), self._blocks[-1])
        self._blocks.remove(life)
        await life.leave(error)
