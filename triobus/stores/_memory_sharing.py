"""What a `MemoryEventStore` has for several buses: their nodes, and progress by segment."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import attrs
import trio

from triobus.stores._scheduled import ScheduledEvents
from triobus.stores._shared import (
    PROVISIONAL,
    Joined,
    Looked,
    News,
    Recorded,
    Taken,
    TakenSegment,
)
from triobus.stores._sharing import (
    Assignments,
    Claim,
    Fence,
    SegmentKey,
    SegmentLost,
)
from triobus.stores._values import (
    AskReplay,
    Attempts,
    DeadLetterKey,
    DeadLetterRow,
    GroupRow,
    ProgressChange,
    Row,
    SegmentChange,
    Settled,
    StoredGroup,
    StoredNode,
)

_MOST_LOOKED_AT = 4_096
"""How many events of the log are looked at in one call."""


@attrs.define(eq=False)
class _Part:
    """How far a segment of a group is."""

    offset: int
    finished: dict[int, int] = attrs.field(factory=dict)
    attempts: dict[int, Attempts] = attrs.field(factory=dict)

    def is_settled(self, position: int) -> bool:
        """Whether the event at a position, which is one of the segment, is settled."""
        ranges = self.finished.items()
        return position <= self.offset or any(first <= position <= last for first, last in ranges)


@attrs.define(eq=False)
class MemorySharing:
    """The nodes of a store in memory, and how far they are together."""

    _lease: float
    _log: list[Row]
    _letters: dict[int, DeadLetterRow]
    slots: list[int] = attrs.field(factory=list, init=False)
    """The slot of every event in the log."""
    assignments: Assignments = attrs.field(init=False)
    _parts: dict[SegmentKey, _Part] = attrs.field(factory=dict, init=False)
    _audience: dict[int, Callable[[News], None]] = attrs.field(factory=dict, init=False)
    _last_letter: int = attrs.field(default=0, init=False)
    asked: set[int] = attrs.field(factory=set, init=False)
    """The dead letters that are to be replayed."""
    _is_of_letters: bool = attrs.field(default=False, init=False)
    """Whether the nodes have to be told that something has become of letters."""

    def __attrs_post_init__(self) -> None:
        self.assignments = Assignments(self._lease)

    @property
    def head(self) -> int:
        """Where the log ends."""
        return len(self._log)

    # Nodes

    def join(self, name: str, tell: Callable[[News], None], later: ScheduledEvents) -> Joined:
        """Add a node, which hears what is new from here on."""
        node = self.assignments.join(name, trio.current_time())
        self._audience[node] = tell
        letters = tuple(map(key_of, self._letters.values()))
        due = later.next_due()
        return Joined(node, self._lease, len(self._log), letters, len(later), due)

    def renew(self, node: int) -> int | None:
        """Renew a lease, unless it is gone, and see whose has not been."""
        is_alive = self.assignments.renew(node, trio.current_time())
        self._bury()
        return len(self._log) if is_alive else None

    def leave(self, node: int) -> None:
        """Remove a node with all that it has."""
        self._audience.pop(node, None)
        self.assignments.leave(node)
        self.tell(News(is_of_shares=True))

    def cut_off(self, node: int) -> None:
        """Tell a node nothing any more: its process is dead, which nobody knows yet."""
        self._audience.pop(node, None)

    def _bury(self) -> None:
        dead = self.assignments.bury(trio.current_time())
        for node in dead:
            self._audience.pop(node, None)
        if dead:
            self.tell(News(is_of_shares=True))

    def tell(self, news: News, but: int | None = None) -> None:
        """Tell every node something, except for one that knows it."""
        for node, tell in [*self._audience.items()]:
            if node != but:
                tell(news)

    def tell_of_commit(self, later: ScheduledEvents, but: int | None = None) -> None:
        """Tell what has come of a commit to every node except the one that has made it."""
        is_of_letters, self._is_of_letters = self._is_of_letters, False
        if is_of_letters:
            self.tell(News(is_of_letters=True))  # who waits for them may be the same node
        self.tell(News(self.head, later.next_due()), but)

    # Dead letters

    def ask(self, item: AskReplay) -> None:
        """Have letters replayed, or know that this is over."""
        self._is_of_letters = True
        if item.is_over:
            self.asked.difference_update(item.ids)
        else:
            self.asked.update(id_ for id_ in item.ids if id_ in self._letters)

    def discard(self, letters: Mapping[int, DeadLetterRow | None]) -> None:
        """Know that a node has discarded letters of other nodes."""
        for id_ in letters:
            self._written(id_)

    def _written(self, id_: int) -> None:
        self._is_of_letters = True
        self.asked.discard(id_)

    # Segments

    def take(self, node: int, claim: Claim) -> Taken | None:
        """Give a node of a group what it may have."""
        self._bury()
        if node not in self.assignments.nodes:
            return None
        head = len(self._log)
        is_new = claim.group not in self.assignments.groups
        if self.assignments.serve(node, claim, head):
            self.tell(News(is_of_shares=True), but=node)
        if is_new:
            start = 0 if claim.from_beginning else head
            for number in range(claim.segments):
                self._parts[SegmentKey(claim.group, number)] = _Part(start)
        share, taken = self.assignments.take(node, claim.group)
        segments = [
            self._taken(SegmentKey(claim.group, number), Fence(node, token), is_unclean)
            for number, token, is_unclean in taken
        ]
        is_paused = self.assignments.is_paused(claim.group)
        return Taken(share, tuple(segments), head, is_paused)

    def pause(self, node: int, group: str) -> None:
        """Let nobody have a share."""
        self.assignments.pause(node, group)
        self.tell(News(is_of_shares=True))

    def resume(self, group: str) -> None:
        """Share a group again."""
        self.assignments.resume(group)
        self.tell(News(is_of_shares=True))

    def reset(self, group: str, offset: int) -> None:
        """Let a group go on from another position, with nothing of what it has come to."""
        self.assignments.disown(group)
        for number in range(self.assignments.groups[group]):
            self._parts[SegmentKey(group, number)] = _Part(offset)
        self._is_of_letters = True
        self.tell(News(is_of_shares=True))

    def _taken(
        self, key: SegmentKey, fence: Fence, is_unclean: bool
    ) -> TakenSegment:  # as it is given
        part = self._parts[key]
        return TakenSegment(
            key,
            fence,
            is_unclean,
            part.offset,
            tuple(part.finished.items()),
            tuple(part.attempts.values()),
            tuple(key_of(each) for each in self._letters.values() if self._is_in(each, key)),
        )

    def _is_in(self, letter: DeadLetterRow, key: SegmentKey) -> bool:
        return letter.group == key.group and self._segment_of(letter.position, key.group) == key

    def _segment_of(self, position: int, group: str) -> SegmentKey:
        segments = self.assignments.groups[group]
        return SegmentKey(group, self.slots[position - 1] & (segments - 1))

    def release(self, fences: Mapping[SegmentKey, Fence]) -> None:
        """Let segments have no owner."""
        for key, fence in fences.items():
            self.assignments.release(key.group, [(key.segment, fence)])
        self.tell(News(is_of_shares=True))

    def look(
        self, after: int, limit: int, up_to: int, segments: int, numbers: Iterable[int]
    ) -> Looked:
        """Return events of some segments."""
        mask, wanted = segments - 1, frozenset(numbers)
        up_to = min(up_to, len(self._log), after + _MOST_LOOKED_AT)
        slots = enumerate(islice(self.slots, after, up_to), after)
        found = (index for index, slot in slots if slot & mask in wanted)
        rows = [self._log[index] for index in islice(found, limit)]
        return Looked(rows, rows[-1].position if len(rows) == limit else up_to)

    # Recording

    def record(self, changes: Mapping[SegmentKey, SegmentChange]) -> Recorded:
        """Record what is fenced, and say what is not, and which ids new letters have."""
        lost, letters = set(), dict[int, int]()
        for key, change in changes.items():
            if self.assignments.may_record(key, change.fence, _reach(change.change.progress)):
                self._apply(key, change, letters)
            else:
                lost.add(key)
                self.assignments.release(key.group, [(key.segment, change.fence)])
        if lost:
            self.tell(News(is_of_shares=True))
        return Recorded(lost, letters)

    def _apply(self, key: SegmentKey, change: SegmentChange, ids: dict[int, int]) -> None:
        part, progress = self._parts[key], change.change.progress
        part.offset = progress.offset
        for first, last in progress.ranges:
            _set(part.finished, first, last)
        for position, row in change.change.attempts.items():
            _set(part.attempts, position, row)
        for id_, letter in change.letters.items():
            if id_ >= PROVISIONAL and letter is not None:
                self._last_letter += 1
                ids[id_] = self._last_letter
                self._letters[self._last_letter] = attrs.evolve(letter, id=self._last_letter)
            elif letter is None or id_ in self._letters:  # else it was discarded elsewhere
                _set(self._letters, id_, letter)
                self._written(id_)

    def check(self, settled: Sequence[Settled]) -> None:
        """Raise `SegmentLost` if one of some deliveries may not be settled any more."""
        for each in settled:
            assert each.segment is not None
            assert each.fence is not None
            if not self.assignments.may_record(each.segment, each.fence, each.position):
                raise SegmentLost(each.segment)

    def settle(self, settled: Sequence[Settled]) -> None:
        """Record deliveries that a transactional handler has settled."""
        for each in settled:
            assert each.segment is not None
            if each.letter_id is not None:
                self._letters.pop(each.letter_id, None)
                self._written(each.letter_id)
                continue
            part = self._parts[each.segment]
            _set(part.attempts, each.position, each.attempts)
            if each.attempts is None:
                part.finished[each.position] = each.position

    # Looking at it

    def group_rows(self) -> list[GroupRow]:
        """Return the groups; each is as far as the segment that is the least far."""
        return [
            GroupRow(name, min(part.offset for part in parts), (), _all_attempts(parts))
            for name, parts in self._by_group().items()
        ]

    def statistics(self) -> dict[str, StoredGroup]:
        """Return the progress of each group in numbers."""
        letters = Counter(letter.group for letter in self._letters.values())
        return {
            name: StoredGroup(
                offset=min(part.offset for part in parts),
                lag=sum(
                    not parts[slot & (len(parts) - 1)].is_settled(position)
                    for position, slot in enumerate(self.slots, 1)
                ),
                dead_letters=letters[name],
            )
            for name, parts in sorted(self._by_group().items())
        }

    def nodes(self) -> dict[int, StoredNode]:
        """Return who shares the store, and who has how much."""
        owners = {name: Counter(self.assignments.owners(name)) for name in self.assignments.groups}
        return {
            number: StoredNode(
                name=name, segments={group: counts[number] for group, counts in owners.items()}
            )
            for number, name in self.assignments.nodes.items()
        }

    def _by_group(self) -> dict[str, list[_Part]]:
        return {
            name: [self._parts[SegmentKey(name, number)] for number in range(count)]
            for name, count in self.assignments.groups.items()
        }


def key_of(letter: DeadLetterRow) -> DeadLetterKey:
    """Return what identifies a dead letter."""
    return DeadLetterKey(
        letter.id, letter.position, letter.group, letter.subscription, letter.aggregate_id
    )


def _set(rows: dict[int, Any], key: int, row: Any) -> None:
    if row is None:
        rows.pop(key, None)
    else:
        rows[key] = row


def _reach(progress: ProgressChange) -> int:
    """Return the last position of which a change says something."""
    return max(progress.offset, *(last or 0 for _, last in progress.ranges), 0)


def _all_attempts(parts: Iterable[_Part]) -> tuple[Attempts, ...]:
    return tuple(row for part in parts for row in part.attempts.values())
