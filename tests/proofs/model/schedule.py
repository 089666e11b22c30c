"""The model of what is published for later: when it must be in the log, and when it must not.

No virtual time passes while a bus has something to do. So an event whose time has gone by is in the
log, or was handed to the groups of a bus without one, and one whose time is to come is not.
"""

from collections.abc import Collection

import attrs

from tests.proofs.model.facts import Breach, Fact, Known

_INEXACT = 1e-6


@attrs.define(eq=False)
class Later:
    """One event that was published for later."""

    known: Known
    due: float
    is_accepted: bool = False
    """Whether its publisher was told so. Until then it may come or not."""
    is_free: bool = False
    """Whether it may come before its time, for it was published at once besides."""
    is_withdrawn: bool = False
    """Whether it must not come, for it was taken back."""


@attrs.define(eq=False)
class Schedule:
    """All events that were published for later, over all lives of a store."""

    _breach: Breach
    _events: dict[int, Later] = attrs.field(factory=dict)

    def publishing(self, known: Known, due: float, *, is_free: bool) -> None:
        """Somebody begins to publish an event for later, and perhaps has done so at once before."""
        self._events[known.fact.number] = Later(known, due, is_free=is_free)

    def published(self, number: int, position: int | None, now: float) -> None:
        """It was accepted, and the publisher was told its position, if it has one."""
        later = self._events[number]
        if position is not None and now < later.due - _INEXACT and not later.is_free:
            self._breach(f"{number} is due at {later.due}, and at {now} it is at {position}")
        later.is_accepted = True

    def refused(self, number: int) -> None:
        """It was not accepted."""
        del self._events[number]

    def published_at_once(self, number: int) -> None:
        """It is published again, and not for later."""
        if number in self._events:
            self._events[number].is_free = True

    def is_waiting(self, number: int) -> bool:
        """Whether it was accepted, and its publisher was told so."""
        return number in self._events and self._events[number].is_accepted

    def withdrawn(self, number: int, now: float, *, was_waiting: bool, is_told: bool) -> None:
        """It was to be taken back, and the bus has told whether it was there and not due.

        `was_waiting` is whether `is_waiting` was true when the bus was asked to.
        """
        later = self._events.get(number)
        if later is None and is_told:
            self._breach(f"{number} was taken back, and was not published for later")
        if later is None or later.is_free:
            return  # published at once besides, it may have gone into the log any moment
        if is_told:
            if later.is_withdrawn or now > later.due + _INEXACT:
                self._breach(f"{number} was taken back at {now}, and it was {later}")
            later.is_withdrawn = later.known.is_refused = True
        elif was_waiting and self._must_be_there(later, now):
            self._breach(f"{number} was not taken back at {now}, and it was {later}")

    def _must_be_there(self, later: Later, now: float) -> bool:
        is_certain = later.is_accepted and later.known.position is None
        return is_certain and not later.is_withdrawn and now < later.due - _INEXACT

    def uncertain(self, number: int) -> None:
        """Taking it back was cut off, and may have happened."""
        if number in self._events:
            self._events[number].is_accepted = False
            self._events[number].known.is_uncertain = True

    def check_due(self, fact: Fact, now: float) -> None:
        """Check that an event that is there is not early."""
        later = self._events.get(fact.number)
        if later is not None and now < later.due - _INEXACT and not later.is_free:
            self._breach(f"{fact.number} is due at {later.due}, and came at {now}")

    def come(self, now: float) -> list[Known]:
        """Return the events that were accepted and whose time has gone by."""
        return [
            later.known
            for later in self._events.values()
            if later.is_accepted and not later.is_withdrawn and later.due < now - _INEXACT
        ]

    def is_open(self, now: float) -> bool:
        """Whether something may have come by now or not: due this moment, or never told of."""
        return any(
            abs(later.due - now) <= _INEXACT or (not later.is_accepted and later.due < now)
            for later in self._events.values()
        )

    def check_log(self, numbers: Collection[int], until: float, now: float) -> None:
        """Check that a log has what was due until a moment, and nothing that is not."""
        missing = [
            known.fact.number for known in self.come(until) if known.fact.number not in numbers
        ]
        if missing:
            self._breach(f"{sorted(missing)} were due before {until}, and are not stored")
        for number in numbers:
            if number in self._events:
                self.check_due(self._events[number].known.fact, now)

    def check_count(self, found: int, until: float, now: float) -> None:
        """Check how many are said to come, when nothing goes on; what came until then is there."""
        waiting, open_ = 0, 0
        for later in self._events.values():
            if (
                later.is_withdrawn
                or later.due < until - _INEXACT
                or later.known.position is not None
            ):
                continue
            is_certain = later.is_accepted and not later.is_free and later.due > now + _INEXACT
            waiting, open_ = waiting + is_certain, open_ + (not is_certain)
        if not waiting <= found <= waiting + open_:
            self._breach(f"{waiting} events are to come, and counted are {found}")

    def is_owed(self, known: Known) -> bool:
        """Whether an event that is not in the log may come there."""
        later = self._events.get(known.fact.number)
        return later is not None and not later.is_withdrawn

    def forget(self) -> None:
        """A bus without a store has ended."""
        self._events.clear()
