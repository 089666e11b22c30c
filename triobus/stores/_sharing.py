"""Sharing: which node has which segment of a group, until when, and by which token. Pure data.

It knows no Trio, no clock and no disk: `now` is a time of the store's clock.

1. An event has a slot, by its aggregate. A group has a power of two of segments, and slot by slot
   they have the log between them. So an aggregate is in one segment, and stays in it.
2. A node is what one bus is to its store. It lives as long as its lease, which it renews; a lease
   is over when nobody has renewed it, and then whoever looks removes the node. What was removed
   cannot be renewed: it has to join again, and is another node then.
3. A segment has an owner or none, and a token that rises with every owner. What an owner records
   goes in while the segment is its own by that token, and never after.
4. A group that is paused has no shares: whoever has a segment finishes what runs and lets it go. It
   is paused until somebody resumes it, or until the nodes are gone that have paused it.
5. The share of a node is what is left when the segments are divided by the nodes, rounded up. A
   node takes what has no owner, up to its share; it lets go of the rest in its own time.
6. A group has a revision: what its subscriptions are. Nodes that have another one take nothing new,
   and record nothing beyond the place where the log ended when it was revised, so that they pass
   over nothing which only the new subscriptions want. A revision that has been there before
   comes back when a node begins with it and none has the present one: that is how a program goes
   back to its last version.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple
from zlib import crc32

import attrs

from triobus._errors import InvalidOption

SEGMENTS = 64
"""How many segments a group has; one of total order has a single one."""
_SLOTS = 0x8000


def slot_of(aggregate_id: str | None, event_id: str) -> int:
    """Return the slot of an event: that of its aggregate, or one of its own."""
    name = event_id if aggregate_id is None else aggregate_id
    return crc32(name.encode()) & (_SLOTS - 1)


def segment_of(aggregate_id: str | None, event_id: str, segments: int) -> int:
    """Return which of a group's segments an event is in."""
    return slot_of(aggregate_id, event_id) & (segments - 1)


def share_of(segments: int, nodes: int) -> int:
    """Return how many of a group's segments one of so many nodes may have."""
    return -(-segments // nodes) if nodes else 0


class SegmentLost(Exception):  # a result of a commit, which only the bus sees
    """Nothing was done, for the node does not have the segment any more."""

    def __init__(self, key: "SegmentKey") -> None:
        super().__init__(f"segment {key.segment} of group {key.group!r} has another owner")
        self.key = key


class Fence(NamedTuple):
    """By what right a node records something of a segment."""

    node: int
    token: int


class SegmentKey(NamedTuple):
    """A segment of a group."""

    group: str
    segment: int


@attrs.frozen
class Claim:
    """What a node says of a group that it wants segments of."""

    group: str
    segments: int
    """How many the group has."""
    revision: str
    """What its subscriptions are."""
    from_beginning: bool = False
    """Where the group begins if it is new."""


class Assigned(NamedTuple):
    """What a node may have of a group."""

    share: int
    """How many segments in all; 0 for a node whose revision is not the group's."""
    taken: list[tuple[int, int, bool]]
    """Those it has been given now, with their tokens, and whether the last owner has died."""


@attrs.define
class _Node:
    name: str
    lease_until: float


@attrs.define
class _Segment:
    token: int = 0
    owner: int | None = None


@attrs.define
class _SharedGroup:
    segments: list[_Segment]
    revision: str
    revised_at: int
    """Where the log ended when the group got its revision."""
    known: set[str]
    """All revisions that it ever had."""
    members: dict[int, str] = attrs.field(factory=dict)
    """The nodes that serve the group, and their revisions."""
    paused_by: set[int] = attrs.field(factory=set)
    """The nodes that have paused it, and are there."""


@attrs.define(eq=False)
class Assignments:
    """The nodes of a store, and the segments that they have."""

    lease: float
    """Seconds for which a node lives after it was renewed."""
    _nodes: dict[int, _Node] = attrs.field(factory=dict, init=False)
    _groups: dict[str, _SharedGroup] = attrs.field(factory=dict, init=False)
    _last_node: int = attrs.field(default=0, init=False)

    # Nodes

    @property
    def nodes(self) -> Mapping[int, str]:
        """The names of the nodes that nobody has removed."""
        return {number: node.name for number, node in self._nodes.items()}

    def join(self, name: str, now: float) -> int:
        """Return the number of a new node; none is ever used again."""
        self._last_node += 1
        self._nodes[self._last_node] = _Node(name, now + self.lease)
        return self._last_node

    def renew(self, node: int, now: float) -> bool:
        """Let a node live on; False if it is there no more."""
        if node not in self._nodes:
            return False
        self._nodes[node].lease_until = now + self.lease
        return True

    def leave(self, node: int) -> None:
        """Remove a node, which has let go of all that it had."""
        for group in self._groups.values():
            for segment in group.segments:
                if segment.owner == node:
                    segment.owner = None
        self._remove(node)

    def bury(self, now: float) -> list[int]:
        """Remove the nodes whose lease is over, and return them."""
        dead = [number for number, node in self._nodes.items() if node.lease_until <= now]
        for node in dead:
            self._remove(node)
        return dead

    def _remove(self, node: int) -> None:
        self._nodes.pop(node, None)
        for group in self._groups.values():
            group.members.pop(node, None)
            group.paused_by.discard(node)

    # Segments

    @property
    def groups(self) -> Mapping[str, int]:
        """How many segments each group has."""
        return {name: len(group.segments) for name, group in self._groups.items()}

    def owners(self, group: str) -> list[int | None]:
        """Return the node that has each segment of a group; None where none is alive."""
        segments = self._groups[group].segments
        return [s.owner if s.owner in self._nodes else None for s in segments]

    def serve(self, node: int, claim: Claim, head: int) -> bool:
        """Know that a node serves a group; return whether others have to look at their shares.

        `head` is where the log ends. Raises `InvalidOption` for another number of segments.
        """
        group = self._groups.get(claim.group)
        if group is None:
            group = self._groups[claim.group] = _SharedGroup(
                [_Segment() for _ in range(claim.segments)], claim.revision, head, {claim.revision}
            )
        if len(group.segments) != claim.segments:
            raise InvalidOption(
                f"group {claim.group!r} has {len(group.segments)} segments in the store, and this "
                f"bus would have {claim.segments}: a group has one with workers=1 and "
                f"{SEGMENTS} otherwise, so give it on all nodes the same workers, or another name"
            )
        is_new = group.members.get(node) != claim.revision
        group.members[node] = claim.revision
        is_unknown = claim.revision not in group.known
        is_present = group.revision in group.members.values()
        if claim.revision != group.revision and is_new and (is_unknown or not is_present):
            group.revision, group.revised_at = claim.revision, head
            group.known.add(claim.revision)
        return is_new

    def take(self, node: int, name: str) -> Assigned:
        """Give a node segments that have no owner, up to its share."""
        group = self._groups[name]
        if group.paused_by or group.members.get(node) != group.revision:
            return Assigned(0, [])
        current = sum(revision == group.revision for revision in group.members.values())
        share = share_of(len(group.segments), current)
        wanted = share - sum(segment.owner == node for segment in group.segments)
        taken: list[tuple[int, int, bool]] = []
        for number, segment in enumerate(group.segments):
            if len(taken) < wanted and segment.owner not in self._nodes:
                is_unclean = segment.owner is not None
                segment.owner = node
                segment.token += 1
                taken.append((number, segment.token, is_unclean))
        return Assigned(share, taken)

    def pause(self, node: int, name: str) -> None:
        """Let nobody have a share of a group until it is resumed, or the node is gone."""
        if node in self._nodes and name in self._groups:
            self._groups[name].paused_by.add(node)

    def resume(self, name: str) -> None:
        """Share a group again, whoever has paused it."""
        if name in self._groups:
            self._groups[name].paused_by.clear()

    def is_paused(self, name: str) -> bool:
        """Whether nobody has a share of a group for now."""
        return name in self._groups and bool(self._groups[name].paused_by)

    def has_owner(self, name: str) -> bool:
        """Whether a node that is alive has a segment of a group."""
        return name in self._groups and any(owner is not None for owner in self.owners(name))

    def disown(self, name: str) -> None:
        """Let nobody have anything of a group; what anybody still does is not recorded."""
        for segment in self._groups[name].segments:
            segment.owner = None

    def release(self, name: str, fences: Iterable[tuple[int, Fence]]) -> None:
        """Let segments of a group have no owner, if they have that one."""
        for number, fence in fences:
            if self.is_valid(SegmentKey(name, number), fence):
                self._groups[name].segments[number].owner = None

    def is_valid(self, key: SegmentKey, fence: Fence) -> bool:
        """Whether a segment is that node's, by that token."""
        segment = self._groups[key.group].segments[key.segment]
        return (segment.owner, segment.token) == fence

    def may_record(self, key: SegmentKey, fence: Fence, up_to: int) -> bool:
        """Whether a node may record something of a segment, up to a position."""
        group = self._groups[key.group]
        is_current = group.members.get(fence.node) == group.revision
        return self.is_valid(key, fence) and (is_current or up_to <= group.revised_at)
