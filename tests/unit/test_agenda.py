"""The order of what is due later, against a naive model: a list that is sorted each time."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from triobus._events.agenda import Agenda

KEYS = st.integers(0, 12)
TIMES = st.integers(0, 8).map(float)


class AgainstASortedList(RuleBasedStateMachine):
    """What was added and not taken out, in the order of being added."""

    def __init__(self):
        super().__init__()
        self.agenda, self.added, self.number = Agenda(), [], 0

    def expected(self):
        return sorted(self.added, key=lambda entry: entry[0])

    def drop(self, key):
        self.added = [entry for entry in self.added if entry[1] != key]

    @rule(key=KEYS, due_at=TIMES)
    def add(self, key, due_at):
        if self.agenda.get(key) is None:
            self.number += 1
            self.agenda.add(key, due_at, f"item {self.number}")
            self.added.append((due_at, key, f"item {self.number}"))

    @rule(key=KEYS)
    def remove(self, key):
        self.agenda.remove(key)
        self.drop(key)

    @rule(now=TIMES)
    def take_what_is_due(self, now):
        while found := self.agenda.first_due(now):
            due_at, key, item = self.expected()[0]
            assert found == (key, item)
            assert due_at <= now
            self.agenda.remove(key)
            self.drop(key)
        assert all(due_at > now for due_at, _, _ in self.added)

    @rule(count=st.integers(60, 200), due_at=TIMES)
    def come_and_go(self, count, due_at):
        for number in range(count):
            self.agenda.add(("gone", number), due_at, "gone")
        for number in range(count):
            self.agenda.remove(("gone", number))

    @invariant()
    def what_is_there_is_the_same(self):
        assert list(self.agenda) == [item for _, _, item in self.added]
        assert len(self.agenda) == len(self.added)
        for due_at, key, item in self.added:
            assert (self.agenda.get(key), self.agenda.due_at(key)) == (item, due_at)
        assert self.agenda.next_due() == (self.expected()[0][0] if self.added else None)

    @invariant()
    def little_is_left_behind(self):
        assert len(self.agenda._order) <= 2 * len(self.added) + 100


TestAgainstASortedList = AgainstASortedList.TestCase


def test_places_that_are_left_behind_are_swept_out():
    agenda = Agenda()
    agenda.add("stays", 1.0, "it")
    for number in range(100_000):
        agenda.add(number, 2.0, "gone")
        agenda.remove(number)
    assert len(agenda._order) < 200
    assert agenda.first_due(5.0) == ("stays", "it")
