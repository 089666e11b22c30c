"""The core of a segment's progress, in a log of which the segment has only some events. Pure data.

1. The segment's events are met in the order of the log. What lies between two of them is not the
   segment's, and is finished together with the later one.
2. So a finished range means that all of the segment's events in it are finished, and ends at one.
3. When everything that was met is finished, the offset moves on to where was looked: a segment in
   which nothing happens does not fall behind.
"""

from collections.abc import Iterable

import attrs

from triobus._durability.progress import Progress
from triobus.stores._values import ProgressChange

_FAR = 4_096
"""How far the offset may fall behind where nothing happens."""


@attrs.define(eq=False)
class SegmentProgress:
    """How far one segment has come; like a `Progress` to those who finish something."""

    _progress: Progress
    read_to: int = attrs.field(init=False)
    """Everything of the segment up to there was met."""
    open: dict[int, int] = attrs.field(factory=dict, init=False)
    """What was met and is not finished, each with the first position that is finished with it."""
    _known_to: int = attrs.field(init=False)
    """Everything up to there is finished, or will be with what is open."""

    def __attrs_post_init__(self) -> None:
        self.read_to = self._known_to = self._progress.offset

    @property
    def offset(self) -> int:
        """Everything of the segment up to there is finished."""
        return self._progress.offset

    @property
    def finished(self) -> int:
        """How many positions above the offset are in finished ranges."""
        return self._progress.finished

    @property
    def is_changed(self) -> bool:
        """Whether `take_change` has something to tell."""
        return self._progress.is_changed

    def meet(self, position: int) -> bool:
        """Meet the next event of the segment; return whether it is still to be finished."""
        first, self._known_to = self._known_to + 1, position
        self.read_to = position
        if self._progress.is_finished(position):
            self._progress.cover(first, position)
            return False
        self.open[position] = first
        return True

    def look(self, to: int) -> None:
        """Know that there is no further event of the segment up to a position."""
        self.read_to = to
        if to - self.offset > _FAR:
            self.absorb()

    def back(self, to: int) -> None:
        """Look again at what is behind a position, from which on nothing was met."""
        self.read_to = to

    def absorb(self) -> None:
        """Let the offset be where was looked, if nothing is open."""
        if not self.open and self._known_to < self.read_to:
            self._progress.cover(self._known_to + 1, self.read_to)
            self._known_to = self.read_to

    def is_finished(self, position: int) -> bool:
        """Whether an event of the segment is finished."""
        return position not in self.open and position <= self.read_to

    def finish(self, position: int, _: int | None = None) -> None:
        """Finish an event that was met."""
        self._progress.cover(self.open.pop(position), position)

    def finish_stored(self, positions: Iterable[int]) -> None:
        """Finish events of which the store knows that they are."""
        for position in positions:
            self._progress.on_settled(position)
            self.finish(position)

    def take_change(self) -> ProgressChange:
        """Return what has changed since the last time."""
        self.absorb()
        return self._progress.take_change()

    def give_back(self, change: ProgressChange) -> None:
        """Take a change back, because it could not be written."""
        self._progress.give_back(change)

    def on_stored(self, change: ProgressChange) -> None:
        """Know that a change has been written."""
        self._progress.on_stored(change)
