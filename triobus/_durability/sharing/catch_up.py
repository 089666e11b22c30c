"""What a shared store adds to a group: only the node's own segments come in, and may go again."""

from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Protocol

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from triobus._durability.catch_up import CatchUp
from triobus._durability.evicted import Evicted
from triobus._durability.plans import Plans
from triobus._durability.sharing.dead_letters import SharedDeadLetters
from triobus._durability.sharing.guard import Guard
from triobus._durability.sharing.lanes import SharedLanes
from triobus._durability.sharing.share import Part, Share
from triobus._durability.suspects import Suspects
from triobus._events import DomainEvent
from triobus._groups.delivery import Completion, InFlight
from triobus.stores._reading import BATCH, type_names
from triobus.stores._shared import SharedEventStore, TakenSegment
from triobus.stores._sharing import SEGMENTS, Claim


class Member(Protocol):
    """The node, as a group sees it."""

    @property
    def node(self) -> int:
        """Its number."""

    @property
    def is_member(self) -> bool:
        """Whether it is a node of the store now."""

    @property
    def news(self) -> trio.Event:
        """Set when there is news of shares; then another one is in its place."""

    def ring(self) -> None:
        """Look at the share, soon."""


@attrs.define(eq=False)
class SharedCatchUp(CatchUp):
    """Brings the log of a shared store to one group, as far as this node has it."""

    _shared: SharedEventStore = attrs.field(kw_only=True)
    """The store itself."""
    _suspects_of: Callable[["SharedCatchUp"], Suspects] = attrs.field(kw_only=True)
    """Returns what may have killed another node."""
    _membership: Member = attrs.field(kw_only=True)
    """The node, which looks at what it has of the group when it is rung."""
    is_paused: bool = attrs.field(default=False, init=False)
    """Whether this node has paused the group on all nodes."""
    is_paused_elsewhere: bool = attrs.field(default=False, init=False)
    is_outdated: bool = attrs.field(default=False, init=False)
    """Whether other nodes have newer subscriptions, and so all of its segments."""
    _letters: SharedDeadLetters = attrs.field(kw_only=True)
    share: Share = attrs.field(init=False)
    guard: Guard = attrs.field(init=False)
    _shared_lanes: SharedLanes = attrs.field(init=False)
    """The lanes, as what they are here."""

    def __attrs_post_init__(self) -> None:
        options = self.options
        is_total = options.workers == 1
        self.share = self.acknowledgements = Share(
            options.group.name, 1 if is_total else SEGMENTS, self._on_change, self._membership.ring
        )
        self.guard = Guard(self.lose)
        self.lanes = self._shared_lanes = SharedLanes(
            is_ordered=options.is_ordered, is_total=is_total, share=self.share
        )
        self.plans = Plans(options.group, self._store, self.lanes, self.share, self.guard.around)
        self._evicted = Evicted(self.lanes)
        self._steps = [self._read_on, self._refill, self._wake]

    # Which segments it has

    @property
    def claim(self) -> Claim:
        """What is to be said of the group to get segments of it."""
        wanted = sorted(
            (subscription.name, sorted(type_names(subscription.types) or ()))
            for subscription in self.group.subscriptions
        )
        revision = blake2b(repr(wanted).encode(), digest_size=8).hexdigest()
        is_from_beginning = self.options.start == "beginning"
        return Claim(self.group.name, self.share.segments, revision, is_from_beginning)

    def activate(self) -> None:
        """Ask for a share, if the group has got its first subscription, or others than before."""
        self.guard.refresh()
        self.is_active = self.is_recorded = bool(self.group.subscriptions)
        self._membership.ring()

    @enable_ki_protection
    def take(self, taken: Iterable[TakenSegment]) -> None:
        """Have segments from here on."""
        for each in taken:
            self._letters.take(self.share.add(each), each)
            if each.is_unclean:  # something in it may have killed the node before this one
                self.plans.suspects = self._suspects_of(self)
        self._begin_reading_anew()

    @enable_ki_protection
    def let_go(self, parts: Sequence[Part]) -> None:
        """Begin with nothing new of some parts; each goes when what is in flight is done."""
        for part in parts:
            part.is_leaving = True
            self._drop(part)
        if parts:
            self._membership.ring()

    @enable_ki_protection
    def lose(self, part: Part) -> None:
        """Know that a segment may be another node's: nothing of it is done any more."""
        if not part.is_lost:
            part.is_lost = True
            self._drop(part)
            self.share.remove(part)
            self._letters.lose(part)
            for cancel in [*part.cancels]:
                cancel()

    def lose_all(self) -> None:
        """Know that the node is dead to the others."""
        for part in [*self.share.parts.values()]:
            self.lose(part)

    def _drop(self, part: Part) -> None:
        """Forget what is queued and waits of a part."""
        waiting = self._shared_lanes.drop_part(part)
        waiting += self._evicted.drop(lambda key: self._shared_lanes.is_key_of(part, key))
        awaited = (self.lanes.completions.pop(position, None) for position in part.awaited)
        waiting += [completion for completion in awaited if completion is not None]
        self.share.close(part)
        self._begin_reading_anew()
        for completion in waiting:
            completion.finished()
        part.acknowledgements.answer_all()

    def _begin_reading_anew(self) -> None:
        self._generation += 1  # what is being read is for other parts
        self._alarm.ring()
        self._on_read()

    def begin_anew(self, offset: int) -> None:  # noqa: ARG002  # it is for whoever has a part then
        """The store has another offset for the group, and nothing else of it."""
        self.lose_all()
        self.plans.suspects = None

    # Pausing

    async def pause(self) -> None:
        """Wait until no node runs a handler of the group; it stays so while this one is there."""
        if not self._membership.is_member:
            return  # it is paused when it begins
        await self._shared._pause(self._membership.node, self.group.name)
        self.is_paused = True
        while self._membership.is_member and self.group._is_paused:
            news = self._membership.news  # before looking: nothing that comes is missed
            if not await self._shared._has_owner(self.group.name):
                return
            await news.wait()

    async def pause_again(self) -> None:
        """Pause the group as a node that has just joined. Raises `StoreError`."""
        await self._shared._pause(self._membership.node, self.group.name)
        self.is_paused = True

    async def resume(self) -> None:
        """Let all nodes go on, whichever has paused the group."""
        self.is_paused = False
        if self._membership.is_member:
            await self._shared._resume(self.group.name)

    def know_paused(self, *, is_paused: bool, was_paused: bool) -> None:
        """The store says whether the group is paused; `was_paused` if this node had it paused."""
        self.is_paused_elsewhere = is_paused and not self.is_paused
        if was_paused and self.is_paused and not is_paused:  # another node has resumed it
            self.is_paused = self.group._is_paused = False
            self.shell.go_on()

    # Where it stands

    @property
    def unread(self) -> int:
        """How many events of the log it has not looked at."""
        read_to = self.share.read_to
        return 0 if read_to is None else max(self.last - read_to, 0)

    @property
    def lag(self) -> int:
        """How many events of the log are not settled, of this node's share."""
        return self.unread + len(self.share.open)

    def is_open(self, _: DomainEvent, position: int, /) -> bool:
        """Whether an event of the log is wanted here and not finished."""
        return position in self.share.open

    def _is_behind(self) -> bool:
        return self.share.behind(self.last) is not None

    def _read_to_of(self, key: str | None) -> int:
        """Return up to where an aggregate was read."""
        return self.share.read_of(key)

    # Out: what is finished

    @enable_ki_protection
    def advance(self, delivery: InFlight) -> bool:
        """Go on after a subscription is done; a delivery that is finished will be recorded."""
        is_lost = delivery.part.is_lost
        is_finished = self.lanes.advance(delivery)
        if is_finished and not is_lost:
            self._settle(delivery)
            self.share.ended(delivery)
        return is_finished

    # In: events that have just been stored

    def offer(
        self,
        events: Sequence[DomainEvent],
        keys: Sequence[str | None],
        first: int,
        completion: Completion | None,
    ) -> None:
        """Take what is this node's of events that now are in the log, as far as there is room."""
        if events and self.share.is_read_to(first - 1):
            last = first + len(events) - 1
            for position, event, key in zip(range(first, last + 1), events, keys, strict=True):
                if not self._offer(event, key, position, completion):
                    last = position - 1
                    break
            self.share.look([*self.share.parts], last)
        elif completion is not None:
            self.watch(events[0], keys[0], first, completion)
        if self._is_behind():
            self._alarm.ring()
        self._on_read()

    def _offer(
        self, event: DomainEvent, key: str | None, position: int, completion: Completion | None
    ) -> bool:
        """Take one event; False if there is no room."""
        part = self.share.part_of(key, event.event_id)
        if part is None:
            return True
        plan = self.plans.of_class(type(event))
        if plan and not self._room_for_new():
            self._await(part, position, completion)
            return False
        self.share.meet(part, position)
        if not plan:
            self.share.pass_over_read(position)
        else:
            self._evicted.add([event], [key], plan, completion, position)
        return True

    def watch(
        self, event: DomainEvent, key: str | None, position: int, completion: Completion
    ) -> None:
        """Tell a publisher of the end of an event that is wanted, and is read or will be."""
        part = self.share.part_of(key, event.event_id)
        if position in self.share.open:
            self.share.ask(position, completion)
        elif part is not None and position > part.progress.read_to:
            self._await(part, position, completion)
        else:
            completion.finished()

    def _await(self, part: Part, position: int, completion: Completion | None) -> None:
        if completion is not None:
            self.lanes.completions[position] = completion
            part.awaited.add(position)

    def wants(self, event: DomainEvent, key: str | None) -> bool:
        """Whether this node handles an event that comes now."""
        has_part = self.share.part_of(key, event.event_id) is not None
        return has_part and bool(self.plans.of_class(type(event)))

    # In: events that are read back

    async def _read_on(self) -> None:
        """Read what comes next in the log for the parts that are the furthest behind."""
        wanted = self.share.behind(self.last)
        assert wanted is not None
        after, up_to, numbers = wanted
        limit, generation = max(int(min(self._room(), BATCH)), 1), self._generation
        found = await self._shared._look(after, limit, up_to, self.share.segments, numbers)
        if generation != self._generation:
            return
        for record in found.rows:
            part = self.share.part_of(record.aggregate_id, record.event_id)
            assert part is not None
            if self.share.meet(part, record.position):
                self._take_in(record)
        self.share.look(numbers, found.to)
        self._on_read()
