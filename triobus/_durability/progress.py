"""The core of a group's progress: an offset, and what is finished above it. Pure data.

1. Everything up to the offset is finished: handled, dead-lettered, or wanted by no subscription.
2. Above it the finished positions are kept as ranges that neither touch nor overlap, so that one
   aggregate which waits for hours costs one range, however much is finished behind it.
3. Finishing the position after the offset moves the offset, over the ranges that it meets.
4. Positions can have been written by themselves, with the effects of handlers; what is written
   later takes them in.
5. What has changed since it was last taken is known, so that each commit writes only that; changes
   whose commit failed are given back and taken again.
"""

from bisect import bisect_right
from collections.abc import Iterable

import attrs

from triobus.stores._values import ProgressChange, joined


@attrs.define(eq=False)
class Progress:
    """How far one group has come. Positions are finished in any order, each of them once."""

    offset: int = 0
    is_changed: bool = False
    """Whether `take_change` has something to tell."""
    _firsts: list[int] = attrs.field(factory=list)
    _lasts: list[int] = attrs.field(factory=list)
    _touched: set[int] = attrs.field(factory=set)
    _stored: set[int] = attrs.field(factory=set)
    """Where the ranges begin that are written."""
    _written: int = attrs.field(default=attrs.Factory(lambda self: self.offset, takes_self=True))
    """The offset that is written."""

    @classmethod
    def stored(cls, offset: int, ranges: Iterable[tuple[int, int]]) -> "Progress":
        """Return a progress as a store has it."""
        progress = cls(offset)
        for first, last in sorted(ranges):
            progress._stored.add(first)
            if first <= offset:
                progress._touched.add(first)
            if last > offset:
                progress.finish(max(first, offset + 1), last)
        # Rows that touch each other have become one; the next change takes the others away.
        progress._touched |= progress._stored - set(progress._firsts)
        progress.is_changed = False
        return progress

    @property
    def finished(self) -> int:
        """How many positions above the offset are finished."""
        return sum(self._lasts) - sum(self._firsts) + len(self._firsts)

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """First and last position of the finished ranges above the offset."""
        return tuple(zip(self._firsts, self._lasts, strict=True))

    def is_finished(self, position: int) -> bool:
        """Whether a position is finished."""
        if position <= self.offset:
            return True
        index = bisect_right(self._firsts, position) - 1
        return index >= 0 and position <= self._lasts[index]

    def finish(self, first: int, last: int | None = None) -> None:
        """Finish one position, or all from `first` to `last`."""
        if last is None:
            last = first
        self.is_changed = True
        firsts, lasts = self._firsts, self._lasts
        if first in self._stored:
            self._touched.add(first)
        if first == self.offset + 1:
            if firsts and firsts[0] == last + 1:
                self._touched.add(firsts.pop(0))
                last = lasts.pop(0)
            self.offset = last
            return
        index = bisect_right(firsts, first)
        if index < len(firsts) and firsts[index] == last + 1:
            self._touched.add(firsts.pop(index))
            last = lasts.pop(index)
        if index and lasts[index - 1] == first - 1:
            lasts[index - 1] = last
            self._touched.add(firsts[index - 1])
        else:
            firsts.insert(index, first)
            lasts.insert(index, last)
            self._touched.add(first)

    def finish_stored(self, positions: Iterable[int]) -> None:
        """Finish positions that were written, as `joined` puts them, behind the last change.

        The next change joins them to the others.
        """
        was_changed = self.is_changed
        for first, last in joined(positions):
            if first == self._written + 1:
                self._written = last
            else:
                self._stored.add(first)
                self._touched.add(first)
            self.finish(first, last)
        self.is_changed = was_changed or bool(self._touched) or self.offset != self._written

    def on_settled(self, position: int) -> None:
        """Know that a position was written by itself, which is about to be finished."""
        self._stored.add(position)
        self._touched.add(position)

    def cover(self, first: int, last: int) -> None:
        """Finish what is not finished of the positions from `first` to `last`."""
        first = max(first, self.offset + 1)
        while first <= last:
            index = bisect_right(self._firsts, first)
            if index and first <= self._lasts[index - 1]:
                first = self._lasts[index - 1] + 1
                continue
            end = min(last, self._firsts[index] - 1) if index < len(self._firsts) else last
            self.finish(first, end)
            first = max(end, self.offset) + 1

    def take_change(self) -> ProgressChange:
        """Return what has changed since the last time."""
        lasts = dict(zip(self._firsts, self._lasts, strict=True)) if self._touched else {}
        ranges = tuple(
            (first, lasts.get(first))
            for first in self._touched
            if first in lasts or first in self._stored
        )
        self._touched = set()
        self.is_changed = False
        return ProgressChange(self.offset, ranges)

    def give_back(self, change: ProgressChange) -> None:
        """Take a change back, because it could not be written."""
        self._touched.update(first for first, _ in change.ranges)
        self.is_changed = True

    def on_stored(self, change: ProgressChange) -> None:
        """Know that a change has been written."""
        self._written = change.offset
        for first, last in change.ranges:
            if last is None:
                self._stored.discard(first)
            else:
                self._stored.add(first)
