"""Who has which segment, against a naive model: a list of everything that was ever granted."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
)

from triobus import InvalidOption
from triobus.stores._sharing import (
    SEGMENTS,
    Assignments,
    Claim,
    Fence,
    SegmentKey,
    segment_of,
    share_of,
    slot_of,
)

_LEASE = 5.0
_GROUPS = {"one": 1, "four": 4, "many": SEGMENTS}


class Sharing(RuleBasedStateMachine):
    """Nodes that join, renew, take, let go, leave, and die or hang by doing nothing."""

    nodes: Bundle[int] = Bundle("nodes")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.head = 0
        self.shared = Assignments(_LEASE)
        self.until: dict[int, float] = {}
        self.granted: dict[SegmentKey, list[Fence]] = {}
        self.released: set[tuple[SegmentKey, Fence]] = set()
        self.serving: dict[tuple[int, str], str] = {}

    def alive(self) -> set[int]:
        return {node for node, until in self.until.items() if until > self.now}

    @rule(target=nodes)
    def join(self) -> int:
        node = self.shared.join("node", self.now)
        assert node not in self.until
        self.until[node] = self.now + _LEASE
        return node

    @rule(seconds=st.floats(0, 7))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.head += 1

    @rule(node=nodes)
    def renew(self, node: int) -> None:
        was_buried = node not in self.shared.nodes
        assert self.shared.renew(node, self.now) is not was_buried
        if not was_buried:
            self.until[node] = self.now + _LEASE

    @rule(node=nodes, group=st.sampled_from([*_GROUPS]), revision=st.sampled_from("ab"))
    def take(self, node: int, group: str, revision: str) -> None:
        self.shared.bury(self.now)
        assert set(self.shared.nodes) == self.alive() & set(self.shared.nodes)
        if node in self.shared.nodes:
            self.shared.serve(node, Claim(group, _GROUPS[group], revision), self.head)
            self.serving[node, group] = revision
            self.given(node, group)

    def given(self, node: int, group: str) -> int:
        share, taken = self.shared.take(node, group)
        for segment, token, is_unclean in taken:
            fences = self.granted.setdefault(SegmentKey(group, segment), [])
            assert token == len(fences) + 1
            if fences:  # the one before has let go, or its lease is over
                key, last = SegmentKey(group, segment), fences[-1]
                assert ((key, last) in self.released) is not is_unclean
                assert (key, last) in self.released or last.node not in self.alive()
            fences.append(Fence(node, token))
        return share

    @rule(node=nodes, group=st.sampled_from([*_GROUPS]), count=st.integers(0, 5))
    def release(self, node: int, group: str, count: int) -> None:
        for key, fence in self.held(node, group)[:count]:
            self.shared.release(group, [(key.segment, fence)])
            self.released.add((key, fence))

    @rule(node=consumes(nodes))
    def leave(self, node: int) -> None:
        for group in _GROUPS:
            self.released.update(self.held(node, group))
        self.shared.leave(node)
        self.until.pop(node)

    def held(self, node: int, group: str) -> list[tuple[SegmentKey, Fence]]:
        return [
            (key, fences[-1])
            for key, fences in self.granted.items()
            if key.group == group
            and fences[-1].node == node
            and (key, fences[-1]) not in self.released
        ]

    @invariant()
    def at_most_one_may_record(self) -> None:
        for key, fences in self.granted.items():
            valid = [fence for fence in fences if self.shared.is_valid(key, fence)]
            expected = [] if (key, fences[-1]) in self.released else [fences[-1]]
            assert valid == expected

    @rule()
    def settle(self) -> None:
        """Let all that live look at their shares: all is shared out, and nobody has too much."""
        self.shared.bury(self.now)
        for group, count in _GROUPS.items():
            members = [n for n in self.shared.nodes if (n, group) in self.serving]
            for _ in range(2):  # first they let go, then they take
                for node in members:
                    share = self.given(node, group)
                    for key, fence in self.held(node, group)[share:]:
                        self.shared.release(group, [(key.segment, fence)])
                        self.released.add((key, fence))
            current = [n for n in members if self.given(n, group)]
            if not current:
                assert not members or group not in self.shared.groups or self.is_left_by_all(group)
                continue
            sizes = [len(self.held(node, group)) for node in members]
            assert sum(sizes) == count
            assert max(sizes) <= share_of(count, len(current))
            for key, fences in self.granted.items():
                if key.group == group:
                    assert self.shared.may_record(key, fences[-1], self.head)

    def is_left_by_all(self, group: str) -> bool:
        """Whether nobody serves a group by its last revision: then it waits for one who does."""
        revision = self.shared._groups[group].revision
        return all(
            self.serving[node, group] != revision
            for node in self.shared.nodes
            if (node, group) in self.serving
        )


TestSharing = Sharing.TestCase


def test_the_events_of_an_aggregate_are_in_one_segment_and_others_are_spread() -> None:
    names = [f"order-{number}" for number in range(10_000)]
    assert {slot_of(name, "whatever") == slot_of(name, "else") for name in names} == {True}
    segments = [segment_of(name, "", SEGMENTS) for name in names]
    counts = [segments.count(segment) for segment in range(SEGMENTS)]
    assert len(counts) == 64
    assert min(counts) > 100
    assert segment_of(None, "an event's own id", 64) == segment_of("an event's own id", "", 64)
    assert {segment_of(name, "", 1) for name in names} == {0}


def test_an_older_revision_records_nothing_behind_the_place_of_the_newer_one() -> None:
    shared = Assignments(_LEASE)
    old, new = shared.join("old", 0), shared.join("new", 0)
    shared.serve(old, Claim("g", 4, "before"), 0)
    taken = shared.take(old, "g").taken
    shared.serve(new, Claim("g", 4, "after"), 100)
    assert shared.take(old, "g") == (0, [])
    key, fence = SegmentKey("g", 0), Fence(old, taken[0][1])
    assert shared.may_record(key, fence, 100)
    assert not shared.may_record(key, fence, 101)
    assert shared.take(new, "g") == (4, [])  # until the old one has let go
    shared.release("g", [(number, Fence(old, token)) for number, token, _ in taken])
    assert [segment for segment, _, _ in shared.take(new, "g").taken] == [0, 1, 2, 3]


def test_a_revision_comes_back_when_a_node_begins_with_it_and_none_has_the_present_one() -> None:
    shared = Assignments(_LEASE)
    first, second = shared.join("first", 0), shared.join("second", 0)
    shared.serve(first, Claim("g", 4, "v1"), 0)
    shared.serve(second, Claim("g", 4, "v2"), 0)
    third = shared.join("third", 0)
    shared.serve(third, Claim("g", 4, "v1"), 10)
    assert shared.take(third, "g").share == 0
    shared.leave(second)
    shared.serve(third, Claim("g", 4, "v1"), 20)
    assert shared.take(third, "g").share == 0  # it was there when the newer one was
    fourth = shared.join("fourth", 0)
    shared.serve(fourth, Claim("g", 4, "v1"), 30)
    assert shared.take(fourth, "g").share == 2
    assert shared.take(third, "g").share == 2


def test_another_number_of_segments_is_refused() -> None:
    shared = Assignments(_LEASE)
    node = shared.join("node", 0)
    shared.serve(node, Claim("g", 64, "v"), 0)
    with pytest.raises(InvalidOption, match="'g' has 64 segments in the store, and this bus would"):
        shared.serve(node, Claim("g", 1, "v"), 0)
