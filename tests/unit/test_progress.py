"""The core of a group's progress, against a naive model: a set of finished positions."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from triobus._durability.progress import Progress
from triobus.stores._values import Changes, GroupChange, ProgressChange, Settled, with_settled


def naive(finished):
    """Return offset and ranges of a set of positions."""
    offset = 0
    while offset + 1 in finished:
        offset += 1
    above = sorted(position for position in finished if position > offset)
    ranges = []
    for position in above:
        if ranges and ranges[-1][1] == position - 1:
            ranges[-1] = (ranges[-1][0], position)
        else:
            ranges.append((position, position))
    return offset, tuple(ranges)


@given(st.permutations(range(1, 30)), st.integers(0, 29))
def test_the_offset_and_ranges_are_those_of_what_is_finished_in_any_order(order, count):
    progress = Progress()
    for position in order[:count]:
        progress.finish(position)
    offset, ranges = naive(set(order[:count]))
    assert (progress.offset, progress.ranges) == (offset, ranges)
    assert progress.finished == count - offset
    for position in range(1, 31):
        assert progress.is_finished(position) == (position in order[:count])


@given(st.lists(st.integers(1, 4), max_size=20), st.randoms())
def test_runs_of_positions_are_finished_like_one_after_the_other(lengths, random):
    runs, first = [], 1
    for length in lengths:
        runs.append((first, first + length - 1))
        first += length
    random.shuffle(runs)
    progress, finished = Progress(), set()
    for low, high in runs:
        progress.finish(low, high)
        finished.update(range(low, high + 1))
        assert (progress.offset, progress.ranges) == naive(finished)


@given(st.sets(st.integers(1, 60)))
def test_a_stored_progress_comes_back_whole_and_unchanged(finished):
    offset, ranges = naive(finished)
    progress = Progress.stored(offset, ranges)
    assert (progress.offset, progress.ranges) == (offset, ranges)
    assert not progress.is_changed


def test_ranges_below_the_offset_of_a_store_are_cleaned_up():
    progress = Progress.stored(10, [(3, 4), (9, 12), (20, 21)])
    assert (progress.offset, progress.ranges) == (12, ((20, 21),))
    progress.finish(13)
    change = progress.take_change()
    assert change.offset == 13
    assert {(3, None), (9, None)} <= set(change.ranges)


class Stored(RuleBasedStateMachine):
    """What a store makes of the changes that it gets is what the progress is, failures included."""

    def __init__(self):
        super().__init__()
        self.progress = Progress()
        self.offset, self.rows = 0, {}
        self.open = list(range(1, 2000))

    @rule(index=st.integers(0, 8), count=st.integers(1, 3))
    def finish(self, index, count):
        for _ in range(count):
            self.progress.finish(self.open.pop(index))

    def write(self, change):
        self.offset = change.offset
        for first, last in change.ranges:
            if last is None:
                del self.rows[first]  # only what the store has is taken away
            else:
                self.rows[first] = last

    @rule()
    def store(self):
        change = self.progress.take_change()
        assert not self.progress.is_changed
        self.write(change)
        self.progress.on_stored(change)
        assert tuple(sorted(self.rows.items())) == self.progress.ranges
        assert self.offset == self.progress.offset

    @rule(indexes=st.sets(st.integers(0, 8), min_size=1), meanwhile=st.integers(0, 3))
    def store_with_effects(self, indexes, meanwhile):
        settled = [self.open[index] for index in indexes]
        self.open = [position for position in self.open if position not in settled]
        had_change = self.progress.is_changed
        change = self.progress.take_change() if had_change else ProgressChange(self.offset)
        all_ = [Settled("group", position) for position in settled]
        changes = Changes({"group": GroupChange(change)} if had_change else {})
        stored = with_settled(changes, all_, lambda _: self.offset)
        self.write(stored.groups["group"].progress)
        for _ in range(meanwhile):
            self.progress.finish(self.open.pop(0))
        if had_change:
            self.progress.on_stored(change)
        self.progress.finish_stored(settled)
        if not self.progress.is_changed:
            assert tuple(sorted(self.rows.items())) == self.progress.ranges
            assert self.offset == self.progress.offset

    @rule()
    def fail(self):
        self.progress.give_back(self.progress.take_change())

    @rule()
    def restart(self):
        self.store()
        self.progress = Progress.stored(self.offset, self.rows.items())

    @invariant()
    def only_what_is_finished_is_finished(self):
        assert not any(self.progress.is_finished(position) for position in self.open[:10])


TestStored = Stored.TestCase
