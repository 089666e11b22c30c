"""When something is due: on a clock that restarts do not stop, and that goes on with Trio's."""

from bisect import bisect_right
from datetime import datetime
from operator import itemgetter

import attrs
import trio

from triobus import _checks
from triobus._environment import environment
from triobus._errors import InvalidOption
from triobus._threads import is_virtual, wall_time

_LONGEST_DELAY = 1e10
"""In seconds: some 300 years."""


def check_due(at: object, delay: object) -> datetime | float:
    """Return the datetime or the delay that is given. Raises `InvalidOption`."""
    if delay is not None:
        if at is not None:
            raise InvalidOption(f"at={at!r} and delay={delay!r} were given: give one of them")
        return _checks.number("delay", delay, least=0, most=_LONGEST_DELAY)
    if not isinstance(at, datetime) or at.utcoffset() is None:
        raise InvalidOption(
            f"at={at!r}: give an aware datetime, such as datetime.now(UTC) + timedelta(hours=1)"
        )
    return at


@attrs.define(eq=False)
class Wall:
    """What datetimes are on the clock of due times, which was at `known` when it was `wall`.

    A virtual clock stands still while the wall goes on, and so the time of a datetime goes back.
    There each is counted from the moment in which it is given, and none goes before an earlier one.
    """

    known: float
    wall: datetime
    is_virtual: bool
    _given: list[tuple[datetime, float]] = attrs.field(factory=list, init=False)
    """What was asked for at this time of a virtual clock."""

    def due(self, at: datetime) -> float:
        """Return when a datetime is."""
        if not self.is_virtual:
            # Rounded, so that it is the same time in the next life of a bus too.
            return round(self.known + (at - self.wall).total_seconds(), 6)
        due = self.known + (at - environment.get().now()).total_seconds()
        index = bisect_right(self._given, at, key=itemgetter(0))
        if index:
            due = max(due, self._given[index - 1][1])
        if index < len(self._given):
            due = min(due, self._given[index][1])
        self._given.insert(index, (at, due))
        return due


@attrs.frozen
class Moment:
    """One moment, from which delays are counted."""

    now: float
    """On the clock of due times, in seconds."""
    _wall: Wall

    def due(self, asked: datetime | float) -> float | None:
        """Return when a datetime is, or a delay is over; None if that is so already."""
        due = self._wall.due(asked) if isinstance(asked, datetime) else self.now + asked
        return due if due > self.now else None


@attrs.define(eq=False)
class Moments:
    """The clock of due times in one life of a bus: it goes on with Trio's from its first use."""

    _started: tuple[float, Wall] | None = attrs.field(default=None, init=False)
    """How far it is ahead of Trio's, and what datetimes are; None before it is used."""

    def _start(self) -> tuple[float, Wall]:
        ahead = wall_time() - trio.current_time()
        wall = _look(ahead, is_virtual=is_virtual(trio.lowlevel.current_clock()))
        self._started = ahead, wall
        return self._started

    def now(self) -> Moment:
        """Return the present moment."""
        ahead, wall = self._started or self._start()
        now = trio.current_time() + ahead
        if wall.is_virtual and now != wall.known:
            wall = _look(ahead, is_virtual=True)
            self._started = ahead, wall
        return Moment(now, wall)

    def on_trios_clock(self, due: float) -> float:
        """Return a due time on Trio's clock."""
        ahead, _ = self._started or self._start()
        return due - ahead


def _look(ahead: float, *, is_virtual: bool) -> Wall:
    now = environment.get().now()
    known = trio.current_time() + ahead if is_virtual else now.timestamp()
    return Wall(known, now, is_virtual)
