"""A segment's progress, against a naive model: the set of its events that are finished."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from triobus._durability.progress import Progress
from triobus._durability.sharing.segments import SegmentProgress


class Segment(RuleBasedStateMachine):
    """A log of which every second or third event is the segment's, and a store that forgets."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[bool] = []  # whether each event is the segment's
        self.finished: set[int] = set()  # by the model
        self.stored = (0, dict[int, int]())
        self.recorded: set[int] = set()
        self.read = 0
        self.segment = SegmentProgress(Progress())

    @rule(own=st.lists(st.booleans(), min_size=1, max_size=5))
    def publish(self, own: list[bool]) -> None:
        self.log += own

    @rule(count=st.integers(1, 10))
    def read_on(self, count: int) -> None:
        up_to = min(self.read + count, len(self.log))
        for position in range(self.read + 1, up_to + 1):
            if self.log[position - 1]:
                assert self.segment.meet(position) is (position not in self.finished)
        self.segment.look(up_to)
        self.read = up_to

    @precondition(lambda self: self.segment.open)
    @rule(data=st.data(), is_stored=st.booleans())
    def finish(self, data: st.DataObject, is_stored: bool) -> None:
        position = data.draw(st.sampled_from(sorted(self.segment.open)))
        if is_stored:  # as with the effects of a handler
            self.stored[1][position] = position
            self.recorded.add(position)
            self.segment.finish_stored([position])
        else:
            self.segment.finish(position)
        self.finished.add(position)

    @rule(does_fail=st.booleans())
    def commit(self, does_fail: bool) -> None:
        change = self.segment.take_change()
        assert not self.segment.is_changed
        if does_fail:
            self.segment.give_back(change)
            return
        rows = self.stored[1]
        for first, last in change.ranges:
            if last is None:
                del rows[first]
            else:
                rows[first] = last
        self.stored = change.offset, rows
        self.segment.on_stored(change)
        self.recorded = set(self.finished)

    @rule()
    def take_over(self) -> None:
        """Another node goes on from what was recorded."""
        offset, rows = self.stored
        self.segment = SegmentProgress(Progress.stored(offset, rows.items()))
        self.read, self.finished = self.segment.read_to, set(self.recorded)

    @invariant()
    def what_is_stored_is_what_was_recorded(self) -> None:
        offset, rows = self.stored
        own = {position for position, is_own in enumerate(self.log, 1) if is_own}
        covered = {p for p in own if p <= offset}
        for first, last in rows.items():
            covered |= own & set(range(first, last + 1))
        assert covered == self.recorded

    @invariant()
    def nothing_met_is_forgotten(self) -> None:
        own = {p for p, is_own in enumerate(self.log[: self.read], 1) if is_own}
        assert set(self.segment.open) == own - self.finished

    @precondition(lambda self: not self.segment.open)
    @rule()
    def everything_is_finished(self) -> None:
        change = self.segment.take_change()
        assert change.offset >= self.read  # more if what comes next was finished by others
        self.segment.give_back(change)


TestSegment = Segment.TestCase


def test_the_offset_follows_where_nothing_of_the_segment_happens() -> None:
    segment = SegmentProgress(Progress())
    segment.look(4_000)
    assert not segment.is_changed
    segment.look(5_000)
    assert segment.is_changed
    assert segment.take_change().offset == 5_000
