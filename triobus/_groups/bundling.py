"""Lanes of which a worker takes several deliveries at once. Pure data, as `delivery.py` is.

What is taken along has its old place in the order when it could not be begun.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from heapq import heappush
from math import inf

import attrs

from triobus._groups.delivery import Bundle, InFlight, Lanes, Queued


@attrs.define(eq=False)
class BundlingLanes(Lanes):
    """The lanes of a group, whose deliveries can be taken one by one or several at once."""

    is_total: bool = False
    """Whether nothing may overtake anything, retries aside."""

    def take_along(self, first: InFlight, limit: int) -> Bundle:
        """Return a delivery that was taken, with up to `limit` in all that can be handled with it.

        These are the oldest ones of the same plan, in their order: they are ready, or line up
        behind others of the bundle. In total order none that is ready is passed over. A replay
        goes alone, and so does what had attempts before.
        """
        bundle = Bundle([first], first.attempt)
        if first.letter_id is not None or first.is_recorded:
            return bundle
        deliveries, queue, resumed = bundle.deliveries, self._queue, self._resumed
        end, line_end = self._barrier, inf
        if self.is_total:
            end = min(end, resumed[0][0] if resumed else inf)
            line_end = min(end, queue[0][0] if queue else inf)
        line = None if first.key is None else self._lanes[first.key]
        while line and len(deliveries) < limit and self._goes_along(line[0], first):
            if line[0][0] > line_end:
                break
            deliveries[-1].is_followed = True
            deliveries.append(InFlight(*line.popleft()))
        # Behind a line that is left there is nothing to take.
        last = {} if line else {first.key: deliveries[-1]}
        if last or not self.is_total:
            self._take_from_queue(deliveries, last, limit, end)
        self.held -= len(deliveries) - 1
        return bundle

    def _take_from_queue(
        self,
        deliveries: list[InFlight],
        last: dict[str | None, InFlight],
        limit: int,
        end: float,
    ) -> None:
        """Add what can be handled with the first delivery; what cannot keeps its order.

        `last` has the last delivery of each aggregate that the queue may go on with.
        """
        queue, lanes, first = self._queue, self._lanes, deliveries[0]
        passed_over, passed_keys = deque[Queued](), set[str | None]()
        while queue and len(deliveries) < limit and len(passed_over) < limit:
            if queue[0][0] >= end:
                break
            queued = queue.popleft()
            key = queued[2]
            if self._goes_along(queued, first) and (
                key is None or (key not in passed_keys and (key in last or key not in lanes))
            ):
                delivery = InFlight(*queued)
                deliveries.append(delivery)
                if key is not None:
                    if key in last:
                        last[key].is_followed = True
                    else:
                        lanes[key] = None
                    last[key] = delivery
            elif key is not None and key in lanes and not (self.is_total and key in last):
                last.pop(key, None)
                self._line_up(key, queued)
            elif self.is_total:
                queue.appendleft(queued)
                break
            else:
                passed_over.append(queued)
                passed_keys.add(key)
        queue.extendleft(reversed(passed_over))

    def put_back(self, untried: Sequence[InFlight], held_up: Mapping[str | None, InFlight]) -> None:
        """Let deliveries of a bundle that were not begun be ready again, in their old places.

        Those of an aggregate that is held up line up behind the delivery that failed.
        """
        self.held += len(untried)
        for each in held_up.values():
            each.is_followed = False
        ready, lines = list[Queued](), dict[str, list[Queued]]()
        for each in untried:
            key = each.key
            if key is None or (key not in held_up and not self._lanes.get(key)):
                ready.append(each.queued)
            else:
                lines.setdefault(key, []).append(each.queued)
        for queued in ready:
            self._lanes.pop(queued[2], None)  # type: ignore[arg-type]  # one without a key has none
        self._queue.extendleft(reversed(ready))
        for key, some in lines.items():
            line = self._lanes[key] or deque[Queued]()
            self._lanes[key] = line
            line.extendleft(reversed(some))
            if key not in held_up:
                heappush(self._resumed, line.popleft())

    def go_on(self, delivery: InFlight) -> None:
        """Let a delivery that a worker has be ready again, for its next subscription."""
        self.held += delivery.size
        heappush(self._resumed, (delivery.number, delivery))

    def _goes_along(self, queued: Queued, first: InFlight) -> bool:
        return queued[5] is None and queued[3] == first.plan

    def _line_up(self, key: str, queued: Queued) -> None:
        line = self._lanes[key]
        if line is None:
            self._lanes[key] = deque((queued,))
        else:
            line.append(queued)
