"""The dead letters as a bus shows them: list, replay, discard."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from triobus import _checks
from triobus._durability.unreadable import stand_in
from triobus._errors import BusClosed, InvalidOption, UnknownDeadLetter, UnknownSubscription
from triobus._groups.dead_letters import Asked, DeadLetter, DeadLetterKeeper, Lane
from triobus._groups.subscriptions import Subscription
from triobus._groups.workers import GroupShell
from triobus._text import shown

Ids = int | DeadLetter | Iterable[int | DeadLetter]
"""Dead letters, by their ids or themselves."""
Listed = list[DeadLetter]  # inside the class, `list` is a method

_REPLAYED_AT_ONCE = 100


class Life(Protocol):
    """What is asked of the life of a bus that has the letters."""

    @property
    def letters(self) -> DeadLetterKeeper:
        """The dead letters."""

    @property
    def cycle(self) -> Any:
        """Where in its life the bus is, as a `LifeCycle`."""

    @property
    def shells(self) -> Mapping[str, GroupShell]:
        """The groups by name."""

    @property
    def completions(self) -> set[Any]:
        """Who is told when the life ends."""


@attrs.define(eq=False, repr=False)
class DeadLetters:
    """What handlers of a bus have failed for good; `bus.dead_letters`.

    With a store they last. Without one they are in memory until the bus is started again: the
    newest 1,000, and beyond these all that hold back their aggregate or are being replayed.
    """

    _life: Callable[[], Life]
    """The life of the bus that goes on, or the last one."""
    _check_running: Callable[[str], None]

    def __repr__(self) -> str:
        count = len(self._life().letters)
        return f"<DeadLetters, {count} of them>"

    @property
    def dropped(self) -> int:
        """How many dead letters had to make room for newer ones, and are lost."""
        return self._life().letters.dropped

    async def list(
        self,
        group: str | None = None,
        aggregate_id: str | None = None,
        limit: int = 100,
    ) -> Listed:
        """Return the oldest `limit` dead letters, of one group or aggregate if that is given.

        Also when the bus does not run; its store is opened for that. Raises `StoreError` where
        they are in a store that cannot be read.
        """
        _checks.whole_number("limit", limit, least=0)
        await trio.lowlevel.checkpoint()
        found = await self._life().letters.listed(group, aggregate_id, limit)
        return [undelivered.letter for undelivered in found]

    @enable_ki_protection
    async def replay(self, ids: Ids | None = None, *, group: str | None = None) -> int:
        """Deliver dead letters again, to the handlers that failed and no others.

        Give ids, letters as `list` returns them, or a group; without either all of the bus are
        meant. They go in the order of their events' positions (without a store in which they became
        dead letters), behind what is queued for their aggregates, and with the full number of
        attempts. What is held back behind them meanwhile goes with them.

        Return, when all are done, how many were handled. A letter that failed again stays, up to
        date. Letters that are being replayed already go before these, and are left alone.

        Cancelled, it stops waiting, and what was begun goes on. Raises `UnknownDeadLetter` or
        `UnknownSubscription` before anything is replayed, `BusClosed` if the bus is not running or
        stops meanwhile, `WouldDeadlock` inside a handler of the same bus, and `StoreError`.
        """
        self._check_running("dead_letters.replay()")
        await trio.lowlevel.checkpoint_if_cancelled()
        life = self._life()
        await life.letters.refresh()
        chosen = self._chosen(ids, group)
        asked = life.letters.ask(chosen)
        if asked is None:
            return await replay_here(life, chosen)
        for letter_id in chosen:
            target_of(life, letter_id)
        return await _run_within(life, asked)

    @enable_ki_protection
    async def discard(self, ids: Ids) -> int:
        """Forget dead letters, by their ids or as `list` returns them; return how many.

        Cancelled while it waits until that is stored, they are forgotten all the same.

        Raises `UnknownDeadLetter` if one is not there, and `BusClosed` if they are in a store and
        the bus does not run: then none is forgotten. Raises `StoreError` if it could not be stored
        yet that they are forgotten, and `BusClosed` if the bus has stopped and it never will be.
        """
        life = self._life()
        life.letters.check_removable()
        await life.letters.refresh()
        chosen = self._among(life.letters, ids)
        await trio.lowlevel.checkpoint_if_cancelled()
        for letter_id in chosen:
            life.letters.remove(letter_id)
        under_way = life.letters.replaying.intersection(chosen)
        if under_way:
            for shell in life.shells.values():
                shell.let_go_of_letters(under_way)
        await trio.lowlevel.cancel_shielded_checkpoint()
        await life.letters.flush()
        return len(chosen)

    def _chosen(self, ids: Ids | None, group: str | None) -> Sequence[int]:
        life = self._life()
        if ids is not None:
            if group is not None:
                raise InvalidOption(
                    f"group={group!r} was given beside dead letters: give either, or nothing for "
                    "all of the bus"
                )
            return self._among(life.letters, ids)
        if group is not None and group not in life.shells:
            names = ", ".join(map(repr, life.shells))
            raise InvalidOption(f"group={group!r}: the bus has no such group; it has: {names}")
        return [*life.letters.ids(group)]

    def _among(self, kept: DeadLetterKeeper, ids: Ids) -> Sequence[int]:
        """Return the ids of letters, which all are there."""
        chosen = sorted(_ids(ids))
        for letter_id in chosen:
            if letter_id not in kept:
                raise UnknownDeadLetter(
                    f"there is no dead letter {letter_id}: it never was, or it has been "
                    "replayed, discarded or dropped; dead_letters.list() shows the "
                    f"{len(kept)} there are"
                )
        return chosen


async def replay_here(life: Life, ids: Sequence[int]) -> int:
    """Replay letters in this bus, and return how many were handled."""
    before = [completion for completion in life.completions if isinstance(completion, _Replay)]
    replay = _Replay(life, before)
    replay.take_in(ids)
    return await _run_within(life, replay)


async def _run_within(life: Life, replay: Asked) -> int:
    """Run a replay, which the end of the bus cuts off."""
    life.completions.add(replay)
    try:
        return await replay.run()
    finally:
        life.completions.discard(replay)


def target_of(life: Life, letter_id: int) -> tuple[GroupShell, Subscription]:
    """Return whose a letter is. Raises `UnknownSubscription`."""
    group, name, _ = life.letters.lane_of(letter_id)
    shell = life.shells.get(group)
    if shell is None:
        names = ", ".join(map(repr, life.shells))
        raise UnknownSubscription(
            f"dead letter {letter_id} belongs to {name!r} in group {group!r}, and the bus has "
            f"no such group now; it has: {names}. Make the group again, or discard the letter"
        )
    subscription = shell.group._get(name)
    if subscription is not None:
        return shell, subscription
    names = ", ".join(repr(s.name) for s in shell.group.subscriptions) or "none"
    raise UnknownSubscription(
        f"dead letter {letter_id} belongs to {name!r} in group {group!r}, which has no such "
        f"subscription now; it has: {names}. Subscribe under that name again, or discard the "
        "letter"
    )


def _ids(given: Any) -> set[int]:
    """Return the ids of letters that were given in whatever way; raises `InvalidOption`."""
    is_many = isinstance(given, Iterable) and not isinstance(given, (str, bytes))
    ids = [getattr(one, "id", one) for one in (given if is_many else [given])]
    for found in ids:
        if type(found) is not int:
            raise InvalidOption(
                f"{shown(found)} is no dead letter: give what dead_letters.list() returned, or ids"
            )
    return set(ids)


@attrs.define(eq=False)
class _Replay:
    """One call of `replay`, until all its deliveries are finished."""

    _life: Life
    _before: Sequence["_Replay"]
    """Those that began before; what they have of a lane goes before what this one has of it."""
    _left: dict[int, Lane] = attrs.field(factory=dict, init=False)
    """Letters that have not been put into their lanes, in their order."""
    _targets: dict[int, tuple[GroupShell, Subscription]] = attrs.field(factory=dict, init=False)
    _newest: dict[Lane, int] = attrs.field(factory=dict, init=False)
    """Its lanes, with the id of the newest letter when the first that replays there began."""
    _after: list["_Replay"] = attrs.field(factory=list, init=False)
    """Those that began later."""
    pending: int = attrs.field(default=0, init=False)
    """How many letters have still to be dealt with."""
    count: int = attrs.field(default=0, init=False)
    """How many were handled."""
    _is_cut_off: bool = attrs.field(default=False, init=False)
    _is_met: Callable[[], bool] = attrs.field(default=bool, init=False)
    """What is waited for."""
    _done: trio.Event = attrs.field(factory=trio.Event, init=False)

    @property
    def _letters(self) -> DeadLetterKeeper:
        return self._life.letters

    def take_in(self, ids: Iterable[int]) -> None:
        """Mean to replay letters too, unless they are on their way; raises, and then none is."""
        chosen = [i for i in ids if i not in self._letters.replaying]
        self._targets.update({letter_id: target_of(self._life, letter_id) for letter_id in chosen})
        for letter_id in self._letters.in_order(chosen):
            lane = self._left[letter_id] = self._letters.lane_of(letter_id)
            known = (other._newest[lane] for other in self._before if lane in other._newest)
            self._newest.setdefault(lane, min(known, default=self._letters.last_id))
        self._letters.replaying.update(chosen)
        self.pending += len(chosen)

    async def run(self) -> int:
        """Replay them, and return how many were handled."""
        for other in self._before:
            other._after.append(self)
        try:
            while self._left:
                await self._wait_until(lambda: bool(self._next()))
                await self._begin(self._next())
                await self._wait_until(lambda: self.pending <= len(self._left))
                if not self._left:
                    self.take_in(self._held_back_meanwhile())
            await trio.lowlevel.cancel_shielded_checkpoint()
            return self.count
        finally:
            for letter_id in self._left:
                self._letters.end_replay(letter_id)
            self._left.clear()
            self._tell_others()
            for other in self._before:
                other._after.remove(self)
            self._before = ()

    def _next(self) -> list[int]:
        """Return the letters to begin with: some that no earlier replay has to go before."""
        taken = {lane for other in self._before for lane in other._left.values()}
        free = (letter_id for letter_id, lane in self._left.items() if lane not in taken)
        return [*islice(free, _REPLAYED_AT_ONCE)]

    def _tell_others(self) -> None:
        for other in self._after:
            other.look()

    def _held_back_meanwhile(self) -> list[int]:
        """Return the letters that now hold back their aggregates without having been tried."""
        found: list[int] = []
        for lane, newest in self._newest.items():
            first = self._letters.first_of(*lane)
            is_new = first is not None and first > newest and first in self._letters.held_back
            # What another one replays brings the rest with it.
            if is_new and first not in self._letters.replaying and self._is_there(lane):
                found += self._letters.lane(lane)
        return found

    async def _begin(self, ids: Sequence[int]) -> None:
        """Put some letters into their lanes."""
        found = await self._letters.load(ids)
        if not self._life.cycle.allows("replay"):
            raise self._closed()  # what were put into its lane now would be left there
        for letter_id in ids:
            del self._left[letter_id]
        for letter_id in set(ids) - {undelivered.letter.id for undelivered in found}:
            self.finished(letter_id)  # discarded meanwhile
        for undelivered in found:
            letter, error = undelivered.letter, undelivered.error
            shell, subscription = self._targets[letter.id]
            if error is not None:
                subscription = stand_in(subscription, error)
            completion = _ReplayCompletion(self, letter.id)
            shell.replay(letter, undelivered.event, subscription, completion)
        self._tell_others()

    def finished(self, letter_id: int) -> None:
        """Let a letter be replayed again, and end the wait for the last one."""
        self._letters.end_replay(letter_id)
        self.pending -= 1
        self.look()

    def look(self) -> None:
        """End the wait if what is waited for has come."""
        if self._is_met():
            self._done.set()

    def cut_off(self) -> None:
        """End the wait, for the bus has ended."""
        self._is_cut_off = True
        self._done.set()

    async def _wait_until(self, is_met: Callable[[], bool]) -> None:
        self._is_met = is_met
        while not self._is_met() and not self._is_cut_off:
            self._done = trio.Event()
            await self._done.wait()
        if self._is_cut_off and self.pending:
            raise self._closed()

    def _closed(self) -> BusClosed:
        return BusClosed(
            f"the bus stopped before {self.pending} of the dead letters had been replayed; "
            "they are kept"
        )

    def _is_there(self, lane: Lane) -> bool:
        """Whether the bus has the subscription of a lane."""
        group, name, _ = lane
        shell = self._life.shells.get(group)
        return shell is not None and shell.group._get(name) is not None


@attrs.define(eq=False)
class _ReplayCompletion:
    """Watches the delivery of one dead letter."""

    _replay: _Replay
    _letter_id: int

    def handled(self, _subscription: Subscription, _result: object) -> None:
        """Count it; the dead letter is gone already."""
        self._replay.count += 1

    def failed(self, _subscription: Subscription, _error: Exception) -> None:
        """Nothing to add: the dead letter has been brought up to date."""

    def finished(self) -> None:
        """The letter has been dealt with, one way or the other."""
        self._replay.finished(self._letter_id)
