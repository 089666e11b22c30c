"""What a group has finished, and how far it is with the rest: recorded with the next commit."""

from collections.abc import Callable, Iterable

import attrs

from triobus._durability.progress import Progress
from triobus._durability.sharing.segments import SegmentProgress
from triobus._groups.delivery import Completion, InFlight
from triobus._threads import wall_time
from triobus.stores._values import BEGUN, NOT_COUNTED, Attempts, GroupChange, GroupRow, Settled


@attrs.define(eq=False)
class Acknowledgements:
    """The progress of one group, with what has changed since the last commit."""

    _on_change: Callable[[], None]
    """Called when there is something to be recorded."""
    progress: Progress | SegmentProgress = attrs.field(factory=Progress)
    recovered: dict[int, Attempts] = attrs.field(factory=dict, init=False)
    """What the store had of deliveries that have not been read back since the start."""
    _changed: dict[int, Attempts | None] = attrs.field(factory=dict, init=False)
    _asked: dict[int, list[Completion]] = attrs.field(factory=dict, init=False)
    """The publishers that wait for the end of deliveries which others have published."""

    def restore(self, record: GroupRow) -> None:
        """Take up the progress that a store has of the group."""
        self.progress = Progress.stored(record.offset, record.ranges)
        self.recovered = {row.position: row for row in record.attempts}

    def begin(self, offset: int) -> None:
        """Begin behind an offset: the group is new."""
        self.progress = Progress(offset, is_changed=True)
        self._on_change()

    def reset(self, offset: int) -> None:
        """The store has this offset for the group, and nothing else."""
        self.progress, self.recovered, self._changed = Progress(offset), {}, {}
        for position in [position for position in self._asked if position <= offset]:
            self._answer(position)

    def finish(self, delivery: InFlight) -> None:
        """A delivery is finished."""
        assert delivery.position is not None
        if self._asked:
            self._answer(delivery.position)
        if delivery.is_settled:
            return
        self.progress.finish(delivery.position)
        if delivery.is_recorded:
            self._changed[delivery.position] = None
        self._on_change()

    def settled_with(self, delivery: InFlight, after: int) -> Settled:
        """Return what is to be recorded with the effects of a handler that succeeds.

        Then it is the turn of the subscription at `after` in the delivery's plan.
        """
        assert delivery.position is not None
        group, position = delivery.subscription.group, delivery.position
        if delivery.letter_id is not None or after == len(delivery.plan):
            return Settled(group, position, None, delivery.letter_id, delivery.is_recorded)
        done = _done(delivery, after)
        row = Attempts(position, delivery.plan[after].name, 0, 0.0, 0.0, done)
        return Settled(group, position, row)

    def on_settled_with(self, delivery: InFlight, settled: Settled) -> None:
        """What `settled_with` has returned is recorded, and no later commit has to do it again."""
        if settled.letter_id is not None:
            return
        self._changed.pop(settled.position, None)
        delivery.is_recorded = delivery.is_recorded or settled.attempts is not None
        delivery.is_settled = settled.attempts is None

    def on_settled(self, positions: Iterable[int]) -> None:
        """These deliveries were settled in the commit that has just succeeded."""
        self.progress.finish_stored(positions)

    def pass_over(self, first: int, last: int) -> None:
        """No subscription wants the events of these positions."""
        self.progress.finish(first, last)
        self._on_change()

    def pass_over_read(self, position: int) -> None:
        """No subscription wants an event any more that was read back."""
        if self.forget_recovered(position) is not None:
            self._changed[position] = None
        self.pass_over(position, position)
        self._answer(position)

    def record_attempts(self, delivery: InFlight, index: int, attempts: int, delay: float) -> None:
        """A delivery has come to a subscription of its plan, and waits for its next attempt."""
        self._record(delivery, index, attempts, wall_time() + delay, delay)

    def record_begun(self, delivery: InFlight, *, is_counted: bool) -> None:
        """An attempt is about to be made, counted as if it had been made or not."""
        attempts = delivery.attempt if is_counted else delivery.attempt - 1
        self._record(delivery, delivery.index, attempts, BEGUN if is_counted else NOT_COUNTED, 0)

    def _record(
        self, delivery: InFlight, index: int, attempts: int, due_at: float, delay: float
    ) -> None:
        assert delivery.position is not None
        delivery.is_recorded = True
        done = _done(delivery, index)
        self._changed[delivery.position] = Attempts(
            delivery.position, delivery.plan[index].name, attempts, due_at, delay, done
        )
        self._on_change()

    def forget_recovered(self, position: int) -> Attempts | None:
        """Return what the store had of a delivery, for it goes on from there now."""
        row = self.recovered.pop(position, None)
        if row is not None and not self.recovered:
            self.recovered = {}  # a dictionary keeps the room that it once needed
        return row

    def ask(self, position: int, completion: Completion) -> None:
        """Tell a completion when the delivery of an event is finished."""
        self._asked.setdefault(position, []).append(completion)

    def recovered_row(self, position: int) -> Attempts | None:
        """Return what the store had of a delivery that has not been read back."""
        return self.recovered.get(position)

    def is_finished(self, position: int) -> bool:
        """Whether an event is finished for the group."""
        return self.progress.is_finished(position)

    def answer_all(self) -> None:
        """Let the publishers go on that wait: the deliveries are no longer this bus's."""
        for position in [*self._asked]:
            self._answer(position)

    def _answer(self, position: int) -> None:
        for completion in self._asked.pop(position, ()):
            completion.finished()

    # What the commits ask

    @property
    def is_changed(self) -> bool:
        """Whether there is something to be recorded."""
        return self.progress.is_changed or bool(self._changed)

    def take_change(self) -> GroupChange:
        """Return what has changed since the last time."""
        changed, self._changed = self._changed, {}
        return GroupChange(self.progress.take_change(), changed)

    def give_back(self, change: GroupChange) -> None:
        """Take a change back, because it could not be stored."""
        self.progress.give_back(change.progress)
        self._changed = {**change.attempts, **self._changed}


def _done(delivery: InFlight, index: int) -> tuple[str, ...]:
    """Return who is done with the event when a delivery has come to that index of its plan."""
    return (*delivery.done, *(subscription.name for subscription in delivery.plan[:index]))
