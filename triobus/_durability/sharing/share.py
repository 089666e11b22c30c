"""The share that one node has of a group: its segments, and how far it is in each. Pure data.

1. A part is a segment while this node has it. If the node loses the segment and gets it again, that
   is another part: what the first one had in flight records into nothing.
2. Parts that are read up to the same position are read together, the ones that are behind first.
3. A part that is to go takes in nothing new. What workers have of it is finished, then it goes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import attrs

from triobus._durability.acknowledgement import Acknowledgements
from triobus._durability.progress import Progress
from triobus._durability.sharing.segments import SegmentProgress
from triobus._groups.delivery import Completion, InFlight
from triobus.stores._shared import TakenSegment
from triobus.stores._sharing import Fence, SegmentKey, segment_of
from triobus.stores._values import Attempts, Settled


@attrs.define(eq=False)
class Part:
    """One segment of a group, while this node has it."""

    key: SegmentKey
    fence: Fence
    """By what right the node records something of it."""
    progress: SegmentProgress
    acknowledgements: Acknowledgements
    in_flight: set[InFlight] = attrs.field(factory=set, init=False)
    """What workers have of it."""
    cancels: set[Callable[[], None]] = attrs.field(factory=set, init=False)
    """What cancels the handlers that are at work on it."""
    awaited: set[int] = attrs.field(factory=set, init=False)
    """Positions that are still to be read, of which a publisher wants to know the end."""
    is_leaving: bool = attrs.field(default=False, init=False)
    """Whether it goes as soon as nothing of it is in flight."""
    is_lost: bool = attrs.field(default=False, init=False)
    """Whether another node may have it."""

    @property
    def is_at_rest(self) -> bool:
        """Whether it can go."""
        return self.is_leaving and not self.in_flight


@attrs.define(eq=False)
class Share:
    """The parts of one group; to those who finish something, like `Acknowledgements`."""

    group: str
    segments: int
    """How many segments the group has, on all nodes."""
    _on_change: Callable[[], None]
    _on_rest: Callable[[], None]
    """Called when a part that is to go has nothing in flight any more."""
    parts: dict[int, Part] = attrs.field(factory=dict, init=False)
    """By number, those that are to go as well."""
    open: dict[int, Part] = attrs.field(factory=dict, init=False)
    """The parts of what is queued, waits or is in flight, by position."""

    # Which parts there are

    def add(self, taken: TakenSegment) -> Part:
        """Have a segment from here on."""
        progress = SegmentProgress(Progress.stored(taken.offset, taken.ranges))
        acknowledgements = Acknowledgements(self._on_change, progress)
        acknowledgements.recovered = {row.position: row for row in taken.attempts}
        part = Part(taken.key, taken.fence, progress, acknowledgements)
        self.parts[taken.key.segment] = part
        return part

    def remove(self, part: Part) -> None:
        """Have a segment no more."""
        if self.parts.get(part.key.segment) is part:
            del self.parts[part.key.segment]

    def close(self, part: Part) -> None:
        """Forget what is not finished of a part, except what is in flight of one that only goes."""
        kept = set() if part.is_lost else {each.position for each in part.in_flight}
        for position in part.progress.open.keys() - kept:
            self.open.pop(position, None)

    def number_of(self, aggregate_id: str | None, event_id: Any) -> int:
        """Return the number of the segment that an event is in, whoever has that."""
        return segment_of(aggregate_id, str(event_id), self.segments)

    def part_of(self, aggregate_id: str | None, event_id: Any) -> Part | None:
        """Return the part that takes in an event, if this node has one."""
        part = self.parts.get(self.number_of(aggregate_id, event_id))
        return None if part is None or part.is_leaving else part

    @property
    def taking(self) -> list[Part]:
        """The parts that take in what is new."""
        return [part for part in self.parts.values() if not part.is_leaving]

    def surplus(self, share: int) -> list[Part]:
        """Return the parts that are too many, those with the least to do first."""
        parts = sorted(self.taking, key=lambda part: (len(part.progress.open), -part.key.segment))
        return parts[: max(len(parts) - share, 0)]

    # What has been read

    @property
    def read_to(self) -> int | None:
        """Everything up to it was read of all parts that take something in; None without any."""
        return min((part.progress.read_to for part in self.taking), default=None)

    def is_read_to(self, position: int) -> bool:
        """Whether all parts that take something in are exactly there."""
        return all(part.progress.read_to == position for part in self.taking)

    def read_of(self, key: str | None) -> int:
        """Return up to where an aggregate was read."""
        part = self.parts.get(self.number_of(key, ""))
        return 0 if part is None else part.progress.read_to

    def behind(self, last: int) -> tuple[int, int, Sequence[int]] | None:
        """Return what to read next: from where, up to where, and of which segments."""
        after = self.read_to
        if after is None or after >= last:
            return None
        parts = [part for part in self.taking if part.progress.read_to == after]
        further = (part.progress.read_to for part in self.taking)
        up_to = min((position for position in further if position > after), default=last)
        return after, min(up_to, last), [part.key.segment for part in parts]

    def meet(self, part: Part, position: int) -> bool:
        """Meet the next event of a part; return whether it is to be handled."""
        if part.progress.meet(position):
            self.open[position] = part
            return True
        return False

    def look(self, numbers: Iterable[int], to: int) -> None:
        """Know that these segments have nothing more up to a position."""
        for number in numbers:
            part = self.parts.get(number)
            if part is not None and not part.is_leaving:
                part.progress.look(to)
                if part.progress.is_changed:
                    self._on_change()

    # What is finished

    def began(self, delivery: InFlight) -> None:
        """A worker takes a delivery."""
        part = None
        if delivery.letter_id is None and delivery.position is not None:
            part = self.open.get(delivery.position)
        if part is None:
            number = self.number_of(delivery.key, delivery.event.event_id)
            part = self.parts[number]
        delivery.part = part
        part.in_flight.add(delivery)

    def ended(self, delivery: InFlight) -> None:
        """No worker has a delivery any more."""
        part: Part = delivery.part
        part.in_flight.discard(delivery)
        if part.is_at_rest:
            self._on_rest()

    def forget(self, delivery: InFlight) -> None:
        """Leave a delivery that is not finished to another node."""
        if delivery.position is not None and self.open.get(delivery.position) is delivery.part:
            del self.open[delivery.position]

    def is_finished(self, position: int) -> bool:
        """Whether an event that was met is finished."""
        return position not in self.open

    def finish(self, delivery: InFlight) -> None:
        """A delivery is finished."""
        part: Part = delivery.part
        if not part.is_lost and delivery.position is not None:
            self.open.pop(delivery.position, None)
        part.acknowledgements.finish(delivery)

    def settled_with(self, delivery: InFlight, after: int) -> Settled:
        """Return what is to be recorded with the effects of a handler that succeeds."""
        part: Part = delivery.part
        settled = part.acknowledgements.settled_with(delivery, after)
        return settled._replace(segment=part.key, fence=part.fence)

    def on_settled_with(self, delivery: InFlight, settled: Settled) -> None:
        """What `settled_with` has returned is recorded."""
        delivery.part.acknowledgements.on_settled_with(delivery, settled)

    def on_settled(self, positions: Iterable[int]) -> None:
        """These deliveries were settled in the commit that has just succeeded."""
        for position in positions:
            part = self.open.pop(position, None)
            if part is not None:  # else it is another node's by now
                part.acknowledgements.on_settled([position])

    def pass_over_read(self, position: int) -> None:
        """No subscription wants an event any more that was read back."""
        part = self.open.pop(position, None)
        if part is not None:
            part.acknowledgements.pass_over_read(position)

    def record_attempts(self, delivery: InFlight, index: int, attempts: int, delay: float) -> None:
        """A delivery has come to a subscription of its plan, and waits for its next attempt."""
        delivery.part.acknowledgements.record_attempts(delivery, index, attempts, delay)

    def record_begun(self, delivery: InFlight, *, is_counted: bool) -> None:
        """An attempt is about to be made."""
        delivery.part.acknowledgements.record_begun(delivery, is_counted=is_counted)

    def recovered_row(self, position: int) -> Attempts | None:
        """Return what the store had of a delivery that has not been read back."""
        part = self.open.get(position)
        return None if part is None else part.acknowledgements.recovered_row(position)

    def forget_recovered(self, position: int) -> Attempts | None:
        """Return what the store had of a delivery, for it goes on from there now."""
        part = self.open.get(position)
        return None if part is None else part.acknowledgements.forget_recovered(position)

    def ask(self, position: int, completion: Completion) -> None:
        """Tell a completion when the delivery of an event is finished."""
        self.open[position].acknowledgements.ask(position, completion)

    @property
    def changed(self) -> Iterator[Part]:
        """The parts of which there is something to be recorded."""
        return (part for part in self.parts.values() if part.acknowledgements.is_changed)
