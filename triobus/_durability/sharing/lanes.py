"""The lanes of a group of which this node has some segments, and may lose any. Pure data.

What has to be read back, waits or is queued of a segment that goes is forgotten at once, without a
step between. What workers have of it is theirs until they are done, and counts as in flight.
"""

from collections import deque
from collections.abc import Callable
from heapq import heapify

import attrs

from triobus._durability.lanes import StoredLanes
from triobus._durability.sharing.share import Part, Share
from triobus._groups.delivery import Bundle, Completion, InFlight, Queued


@attrs.define(eq=False)
class SharedLanes(StoredLanes):
    """The lanes of a group whose segments several nodes share."""

    share: Share = attrs.field(kw_only=True)

    # The order

    def take(self, recycled: InFlight | None = None) -> InFlight | None:
        """Return the oldest delivery that is ready, now in flight, or None."""
        delivery = super().take(recycled)
        if delivery is not None:
            for each in delivery.deliveries:
                self.share.began(each)
        return delivery

    def _goes_along(self, queued: Queued, first: InFlight) -> bool:
        """A bundle is of one segment, for it is lost as a whole or not."""
        return super()._goes_along(queued, first) and self._is_of(first.part, queued)

    def take_along(self, first: InFlight, limit: int) -> Bundle:
        """Return a delivery that was taken with others of its segment, as `Lanes` do."""
        bundle = super().take_along(first, limit)
        for each in bundle.deliveries[1:]:
            self.share.began(each)
        return bundle

    def advance(self, delivery: InFlight) -> bool:
        """Go on after the current subscription is done; of what was lost nothing is to be done."""
        if delivery.part.is_lost:
            delivery.plan = delivery.plan[: delivery.index + 1]
            self._numbered -= 1
            self.share.ended(delivery)
            return True
        return super().advance(delivery)

    def _put_aside(self, delivery: InFlight | Bundle, due: float) -> None:
        """Let a delivery wait for its next attempt, on another node if its segment is to go."""
        part: Part = delivery.deliveries[0].part
        is_gone = part is not None and (part.is_lost or part.is_leaving)
        if not is_gone:
            super()._put_aside(delivery, due)
        for each in delivery.deliveries:
            if is_gone:
                self._numbered -= 1
                self.share.forget(each)
                if each.key is not None and not part.is_lost and not each.is_followed:
                    self._lanes.pop(each.key, None)
            if each.part is not None:
                self.share.ended(each)

    # Segments that go

    def drop_part(self, part: Part) -> list[Completion]:
        """Forget what no worker has of a part; return who wants to know what becomes of it."""
        found: list[Completion | None] = []
        in_memory = {each.position for each in part.in_flight if each.letter_id is None}

        def stays(queued: Queued) -> bool:
            if not self._is_of(part, queued):
                return True
            found.append(queued[4])
            if queued[5] is None:
                in_memory.add(queued[6])
            self.held -= 1
            self._numbered -= 1
            return False

        self._queue = deque(filter(stays, self._queue))
        self._beyond = deque(filter(stays, self._beyond))
        self._drop_lanes(part, stays)
        self._resumed = [
            entry
            for entry in self._resumed
            if (stays(entry) if len(entry) != 2 else self._stays(entry[1], part, found, in_memory))
        ]
        heapify(self._resumed)
        self._drop_waiting(part, found, in_memory)
        self.outside -= len(part.progress.open.keys() - in_memory)
        for position in part.progress.open:
            self.due.pop(position, None)
            self._restored.pop(position, None)
            found.append(self.completions.pop(position, None))
        self._asleep = [each for each in self._asleep if each.position not in part.progress.open]
        heapify(self._asleep)
        return [completion for completion in found if completion is not None]

    def _is_of(self, part: Part, queued: Queued) -> bool:
        _, event, key, _, _, letter_id, position = queued
        if letter_id is None and position is not None:
            return self.share.open.get(position) is part
        return self.share.number_of(key, event.event_id) == part.key.segment

    def _drop_lanes(self, part: Part, stays: Callable[[Queued], bool]) -> None:
        """Forget the lanes of a part, except for those that wait for what is in flight."""
        busy = set() if part.is_lost else {each.key for each in part.in_flight}
        for key in [key for key in self._lanes if self.is_key_of(part, key)]:
            line = self._lanes[key]
            for queued in line or ():
                stays(queued)
            if key in busy:
                self._lanes[key] = None
            else:
                del self._lanes[key]

    def is_key_of(self, part: Part, key: str) -> bool:
        """Whether an aggregate is in the segment of a part."""
        return self.share.number_of(key, "") == part.key.segment

    def _stays(
        self,
        delivery: InFlight | Bundle,
        part: Part,
        found: list[Completion | None],
        in_memory: set[int | None],
    ) -> bool:
        """Forget a delivery that is in memory, has had attempts and is the part's."""
        if not self._has(part, delivery):
            return True
        self.held -= delivery.size
        self._numbered -= delivery.size
        for each in delivery.deliveries:
            found.append(each.completion)
            if each.letter_id is None:
                in_memory.add(each.position)
        return False

    def _has(self, part: Part, delivery: InFlight | Bundle) -> bool:
        first = delivery.deliveries[0]
        if first.letter_id is None and first.position is not None:
            return self.share.open.get(first.position) is part
        return self.share.number_of(first.key, first.event.event_id) == part.key.segment

    def _drop_waiting(
        self, part: Part, found: list[Completion | None], in_memory: set[int | None]
    ) -> None:
        """Forget what waits for a retry; single deliveries take no room there, and are outside."""
        waiting, self._waiting = self._waiting, []
        for entry in waiting:
            delivery = entry[2]
            if isinstance(delivery, Bundle):
                if self._stays(delivery, part, found, in_memory):
                    self._waiting.append(entry)
            elif not self._has(part, delivery):
                self._waiting.append(entry)
            else:
                found.append(delivery.completion)
                self.outside -= delivery.letter_id is not None
        heapify(self._waiting)
