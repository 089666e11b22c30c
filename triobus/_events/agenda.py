"""What is to be done later, by key: in the order of due times, then of being added. Pure data.

What is taken out before it is due leaves its place in the order behind, which is passed over when
its time comes. When there are more such places than others, they are swept out together: so taking
out costs next to nothing, and no place is left behind for long.
"""

from collections.abc import Hashable, Iterator
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

import attrs

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")

_LEFT_BEHIND = 100
"""How many places may be left behind in the order, beside as many as there are items."""


@attrs.define(eq=False)
class Agenda(Generic[Key, Item]):
    """Items that are due at some time, each under a key of its own."""

    _places: dict[Key, tuple[float, int, Key, Item]] = attrs.field(factory=dict, init=False)
    _order: list[tuple[float, int, Key, Item]] = attrs.field(factory=list, init=False)
    """A heap of the same places, and of those that were left behind."""
    _added: int = attrs.field(default=0, init=False)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Item]:
        """Iterate over the items, in the order in which they were added."""
        return (place[3] for place in self._places.values())

    def get(self, key: Key) -> Item | None:
        """Return what is there under a key."""
        place = self._places.get(key)
        return None if place is None else place[3]

    def due_at(self, key: Key) -> float | None:
        """Return when what is there under a key is due."""
        place = self._places.get(key)
        return None if place is None else place[0]

    def add(self, key: Key, due_at: float, item: Item) -> None:
        """Add an item, under a key that nothing is under."""
        assert key not in self._places
        self._added = number = self._added + 1
        place = self._places[key] = (due_at, number, key, item)
        heappush(self._order, place)

    def remove(self, key: Key) -> None:
        """Take out what is there under a key, if something is."""
        if self._places.pop(key, None) is None:
            return
        if len(self._order) > 2 * len(self._places) + _LEFT_BEHIND:
            self._order = list(self._places.values())
            heapify(self._order)

    def next_due(self) -> float | None:
        """Return when the first one is due."""
        order, places = self._order, self._places
        while order:
            first = order[0]
            if places.get(first[2]) is first:
                return first[0]
            heappop(order)
        return None

    def first_due(self, now: float) -> tuple[Key, Item] | None:
        """Return the first one with its key, if it is due; it stays."""
        due_at = self.next_due()
        return None if due_at is None or due_at > now else self._order[0][2:]
