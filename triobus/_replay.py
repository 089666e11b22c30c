"""The dead letters as a bus shows them: list, replay, discard."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import attrs
import trio

from triobus import _checks
from triobus._dead_letters import DeadLetter, Letters
from triobus._errors import BusClosed, InvalidOption, UnknownDeadLetter, UnknownSubscription
from triobus._group import GroupShell
from triobus._subscriptions import Subscription
from triobus._unreadable import stand_in

Listed = list[DeadLetter]  # inside the class, `list` is a method

_REPLAYED_AT_ONCE = 100


@attrs.define(eq=False)
class DeadLetters:
    """What handlers of a bus have failed for good; `bus.dead_letters`.

    With a store they last; without one they are in memory, the newest 1,000.
    """

    _letters: Letters
    _shells: Mapping[str, GroupShell]
    _watches: set[Any]
    """Who is told when the bus ends."""
    _check_running: Callable[[str], None]

    @property
    def dropped(self) -> int:
        """How many dead letters had to make room for newer ones, and are lost."""
        return self._letters.dropped

    async def list(
        self,
        group: str | None = None,
        aggregate_id: str | None = None,
        limit: int = 100,
    ) -> Listed:
        """Return the oldest `limit` dead letters, of one group or aggregate if that is given.

        Raises `StoreError` where they are in a store that cannot be read.
        """
        _checks.whole_number("limit", limit, least=0)
        await trio.lowlevel.checkpoint()
        ids = [*islice(self._letters.ids(group, aggregate_id), limit)]
        return [undelivered.letter for undelivered in await self._letters.load(ids)]

    async def replay(
        self, ids: int | Iterable[int] | None = None, *, group: str | None = None
    ) -> int:
        """Deliver dead letters again, to the handlers that failed and no others.

        Give their ids, or the group of which all are meant. They go in the order of their events'
        positions (without a store in which they became dead letters), behind what is queued for
        their aggregates, and with the full number of attempts. Return, when all are done, how many
        were handled: those are dead letters no more; one that failed again stays, with its attempts
        and error brought up to date. Letters that are being replayed already are left alone.

        Cancelled, it stops waiting, and what was begun goes on. Raises `UnknownDeadLetter` or
        `UnknownSubscription` before anything is replayed, `BusClosed` if the bus is not running or
        stops meanwhile, `WouldDeadlock` inside a handler of the same bus, and `StoreError`.
        """
        self._check_running("dead_letters.replay()")
        await trio.lowlevel.checkpoint_if_cancelled()
        letters = self._letters
        chosen = [i for i in self._chosen(ids, group) if i not in letters.replaying]
        targets = {letter_id: self._target(letter_id) for letter_id in chosen}
        left = deque(letters.in_order(chosen))
        letters.replaying.update(left)
        replay = _Replay(len(left))
        self._watches.add(replay)
        try:
            while left:
                begun = [left.popleft() for _ in range(min(len(left), _REPLAYED_AT_ONCE))]
                await self._begin(replay, begun, targets)
                await replay.wait_until(len(left))
            await trio.lowlevel.cancel_shielded_checkpoint()
            return replay.count
        finally:
            self._watches.discard(replay)
            for letter_id in left:
                letters.end_replay(letter_id)

    async def _begin(
        self,
        replay: "_Replay",
        ids: Sequence[int],
        targets: Mapping[int, tuple[GroupShell, Subscription]],
    ) -> None:
        """Put some letters into their lanes."""
        try:
            found = await self._letters.load(ids)
        except BaseException:
            for letter_id in ids:
                self._letters.end_replay(letter_id)
            raise
        for letter_id in set(ids) - {undelivered.letter.id for undelivered in found}:
            _ReplayWatch(replay, self._letters, letter_id).finished()  # discarded meanwhile
        for undelivered in found:
            letter, error = undelivered.letter, undelivered.error
            shell, subscription = targets[letter.id]
            if error is not None:
                subscription = stand_in(subscription, error)
            watch = _ReplayWatch(replay, self._letters, letter.id)
            shell.lanes.add(
                undelivered.event,
                letter.aggregate_id,
                (subscription,),
                watch,
                letter.id,
                letter.position,
            )
            shell.wake()

    async def discard(self, ids: int | Iterable[int]) -> int:
        """Forget dead letters by their ids, and return how many.

        Cancelled while it waits until that is stored, they are forgotten all the same.

        Raises `UnknownDeadLetter` if one is not there, and then none is forgotten, `StoreError` if
        it could not be stored yet that they are forgotten, and `BusClosed` if the bus has stopped
        and it never will be.
        """
        chosen = self._chosen(ids, None)
        await trio.lowlevel.checkpoint_if_cancelled()
        for letter_id in chosen:
            self._letters.remove(letter_id)
        await trio.lowlevel.cancel_shielded_checkpoint()
        await self._letters.flush()
        return len(chosen)

    def _chosen(self, ids: int | Iterable[int] | None, group: str | None) -> Sequence[int]:
        if (ids is None) == (group is None):
            raise InvalidOption("give either the ids of dead letters or group=..., and not both")
        if ids is None:
            if group not in self._shells:
                names = ", ".join(map(repr, self._shells))
                raise InvalidOption(f"group={group!r}: the bus has no such group; it has: {names}")
            return [*self._letters.ids(group)]
        chosen = sorted({ids} if isinstance(ids, int) else set(ids))
        for letter_id in chosen:
            if letter_id not in self._letters:
                raise UnknownDeadLetter(
                    f"there is no dead letter {letter_id!r}: it never was, or it has been "
                    "replayed, discarded or dropped; dead_letters.list() shows the "
                    f"{len(self._letters)} there are"
                )
        return chosen

    def _target(self, letter_id: int) -> tuple[GroupShell, Subscription]:
        group, name = self._letters.owner(letter_id)
        shell = self._shells.get(group)
        if shell is None:
            names = ", ".join(map(repr, self._shells))
            raise UnknownSubscription(
                f"dead letter {letter_id} belongs to {name!r} in group {group!r}, and the bus has "
                f"no such group now; it has: {names}. Make the group again, or discard the letter"
            )
        subscription = shell.group.get(name)
        if subscription is not None:
            return shell, subscription
        names = ", ".join(repr(s.name) for s in shell.group.subscriptions) or "none"
        raise UnknownSubscription(
            f"dead letter {letter_id} belongs to {name!r} in group {group!r}, which has no such "
            f"subscription now; it has: {names}. Subscribe under that name again, or discard the "
            "letter"
        )


@attrs.define(eq=False)
class _Replay:
    """One call of `replay`, until all its deliveries are finished."""

    pending: int
    count: int = 0
    is_cut_off: bool = False
    left: int = 0
    """At how many pending ones `done` is set."""
    done: trio.Event = attrs.field(factory=trio.Event, init=False)

    def cut_off(self) -> None:
        """End the wait, for the bus has ended."""
        self.is_cut_off = True
        self.done.set()

    async def wait_until(self, left: int) -> None:
        """Wait until no more than `left` are pending."""
        while self.pending > left and not self.is_cut_off:
            self.left, self.done = left, trio.Event()
            await self.done.wait()
        if self.is_cut_off:
            raise BusClosed(
                f"the bus stopped before {self.pending} of the dead letters had been replayed; "
                "they are kept"
            )


@attrs.define(eq=False)
class _ReplayWatch:
    """Watches the delivery of one dead letter."""

    _replay: _Replay
    _letters: Letters
    _letter_id: int

    def handled(self, _subscription: Subscription, _result: object) -> None:
        """Count it; the dead letter is gone already."""
        self._replay.count += 1

    def failed(self, _subscription: Subscription, _error: Exception) -> None:
        """Nothing to add: the dead letter has been brought up to date."""

    def finished(self) -> None:
        """Let it be replayed again, and end the wait for the last one."""
        self._letters.end_replay(self._letter_id)
        self._replay.pending -= 1
        if self._replay.pending <= self._replay.left:
            self._replay.done.set()
