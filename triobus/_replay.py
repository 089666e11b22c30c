"""The dead letters as a bus shows them: list, replay, discard."""

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import attrs
import trio

from triobus import _checks
from triobus._dead_letters import DeadLetter, DeadLetterBox
from triobus._errors import BusClosed, InvalidOption, UnknownSubscription
from triobus._group import GroupShell
from triobus._subscriptions import Subscription

Letters = list[DeadLetter]  # inside the class, `list` is a method


@attrs.define(eq=False)
class DeadLetters:
    """What handlers of a bus have failed for good; `bus.dead_letters`.

    Without a store it is in memory and keeps the newest 1,000.
    """

    _box: DeadLetterBox
    _shells: Mapping[str, GroupShell]
    _watches: set[Any]
    """Who is told when the bus ends."""
    _check_running: Callable[[str], None]

    @property
    def dropped(self) -> int:
        """How many dead letters had to make room for newer ones, and are lost."""
        return self._box.dropped

    async def list(
        self,
        group: str | None = None,
        aggregate_id: str | None = None,
        limit: int = 100,
    ) -> Letters:
        """Return the oldest `limit` dead letters, of one group or aggregate if that is given."""
        _checks.whole_number("limit", limit, least=0)
        await trio.lowlevel.checkpoint()
        return Letters(islice(self._box.find(group, aggregate_id), limit))

    async def replay(
        self, ids: int | Iterable[int] | None = None, *, group: str | None = None
    ) -> int:
        """Deliver dead letters again, to the handlers that failed and no others.

        Give their ids, or the group of which all are meant. They go in the order in which they
        became dead letters, behind what is queued for their aggregates, and with the full number of
        attempts. Return, when all are done, how many were handled: those are dead letters no more;
        one that failed again stays, with its attempts and error brought up to date. Letters that
        are being replayed already are left alone.

        Cancelled, it stops waiting, and what was begun goes on. Raises `UnknownDeadLetter` or
        `UnknownSubscription` before anything is replayed, `BusClosed` if the bus is not running or
        stops meanwhile, and `WouldDeadlock` inside a handler of the same bus.
        """
        self._check_running("dead_letters.replay()")
        await trio.lowlevel.checkpoint_if_cancelled()
        chosen = self._chosen(ids, group)
        letters = [letter for letter in chosen if letter.id not in self._box.replaying]
        targets = [self._target(letter) for letter in letters]
        replay = _Replay(len(letters))
        for letter, (shell, subscription) in zip(letters, targets, strict=True):
            self._box.replaying.add(letter.id)
            watch = _ReplayWatch(replay, self._box, letter.id)
            key = letter.event.aggregate_id
            shell.lanes.add(letter.event, key, (subscription,), watch, letter.id)
            shell.wake()
        self._watches.add(replay)
        try:
            return await replay.wait()
        finally:
            self._watches.discard(replay)

    async def discard(self, ids: int | Iterable[int]) -> int:
        """Forget dead letters by their ids, and return how many.

        Raises `UnknownDeadLetter` if one is not there, and then none is forgotten.
        """
        letters = self._chosen(ids, None)
        await trio.lowlevel.checkpoint_if_cancelled()
        for letter in letters:
            self._box.remove(letter.id)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return len(letters)

    def _chosen(self, ids: int | Iterable[int] | None, group: str | None) -> Letters:
        if (ids is None) == (group is None):
            raise InvalidOption("give either the ids of dead letters or group=..., and not both")
        if ids is None:
            if group not in self._shells:
                names = ", ".join(map(repr, self._shells))
                raise InvalidOption(f"group={group!r}: the bus has no such group; it has: {names}")
            return Letters(self._box.find(group))
        chosen = {ids} if isinstance(ids, int) else set(ids)
        return [self._box.get(letter_id) for letter_id in sorted(chosen)]

    def _target(self, letter: DeadLetter) -> tuple[GroupShell, Subscription]:
        shell = self._shells[letter.group]
        subscription = shell.group.get(letter.subscription)
        if subscription is not None:
            return shell, subscription
        names = ", ".join(repr(s.name) for s in shell.group.subscriptions) or "none"
        raise UnknownSubscription(
            f"dead letter {letter.id} belongs to {letter.subscription!r} in group "
            f"{letter.group!r}, which has no such subscription now; it has: {names}. Subscribe "
            "under that name again, or discard the letter"
        )


@attrs.define(eq=False)
class _Replay:
    """One call of `replay`, until all its deliveries are finished."""

    pending: int
    count: int = 0
    is_cut_off: bool = False
    done: trio.Event = attrs.field(factory=trio.Event, init=False)

    def cut_off(self) -> None:
        """End the wait, for the bus has ended."""
        self.is_cut_off = True
        self.done.set()

    async def wait(self) -> int:
        """Wait until all are finished, and return how many were handled."""
        if not self.pending:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return self.count
        await self.done.wait()
        if self.is_cut_off:
            raise BusClosed(
                f"the bus stopped before {self.pending} of the dead letters had been replayed; "
                "they are kept"
            )
        return self.count


@attrs.define(eq=False)
class _ReplayWatch:
    """Watches the delivery of one dead letter."""

    _replay: _Replay
    _box: DeadLetterBox
    _letter_id: int

    def handled(self, _subscription: Subscription, _result: object) -> None:
        """Count it; the dead letter is gone already."""
        self._replay.count += 1

    def failed(self, _subscription: Subscription, _error: Exception) -> None:
        """Nothing to add: the dead letter has been brought up to date."""

    def finished(self) -> None:
        """Let it be replayed again, and end the wait for the last one."""
        self._box.replaying.discard(self._letter_id)
        self._replay.pending -= 1
        if not self._replay.pending:
            self._replay.done.set()
