"""Dead letters of which several nodes keep some; the store gives them their ids.

A letter is its segment's, and what is done to it is recorded with that. Until then a new one has a
provisional id, which no user sees: who asks for letters waits until they are recorded.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from triobus._durability.dead_letters import StoredDeadLetters, lane_of_key
from triobus._durability.sharing.share import Part
from triobus._errors import BusClosed, StoreError, UnknownDeadLetter, UnknownSubscription
from triobus._groups.dead_letters import Undelivered
from triobus.stores._commits import Submission
from triobus.stores._shared import PROVISIONAL, SharedEventStore, TakenSegment
from triobus.stores._values import AskReplay, DeadLetterKey, DeadLetterRow

logger = logging.getLogger("triobus")

_PAUSE = 1
"""Seconds after which a replay is made that the store could not serve."""


@attrs.define(eq=False)
class Asking:
    """A replay that the owners of some letters make, as the bus that has asked for it sees it."""

    _letters: "SharedDeadLetters"
    _ids: Sequence[int]
    _is_cut_off: bool = attrs.field(default=False, init=False)

    @enable_ki_protection
    async def run(self) -> int:
        """Wait until they have, and return how many are dead letters no more."""
        store = self._letters.shared
        await store._commits.submit(Submission(None, AskReplay(self._ids)))
        while True:
            news = self._letters.news  # before looking: nothing that comes is missed
            left = set(await store._asked_for()).intersection(self._ids)
            if not left:
                kept = {key.id for key in await store._letter_keys()}
                return sum(letter_id not in kept for letter_id in self._ids)
            if self._is_cut_off:
                raise BusClosed(
                    f"the bus stopped before {len(left)} of the dead letters had been replayed; "
                    "other buses that share its store go on with them"
                )
            await news.wait()

    def cut_off(self) -> None:
        """End the wait, for the bus has ended."""
        self._is_cut_off = True
        self._letters.on_news()


@attrs.define(eq=False)
class SharedDeadLetters(StoredDeadLetters):
    """The dead letters of a shared store; `DeadLetterKeeper` says what it does.

    In memory are the keys of all that are known to this node; of its own segments it knows all.
    """

    shared: SharedEventStore = attrs.field(kw_only=True)
    """The store itself."""
    _part_at: Callable[[str, int], Part | None] = attrs.field(kw_only=True)
    """Returns the part in which a group has the event of a position that is not finished."""
    _parts: dict[int, Part] = attrs.field(factory=dict, init=False)
    """The parts of this node's letters."""
    execute: Callable[[Sequence[int]], Awaitable[int]] = attrs.field(init=False)
    """Replays letters in this bus."""
    news: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when something has become of letters anywhere; then another one is in its place."""
    _last_provisional: int = attrs.field(default=PROVISIONAL, init=False)

    def add(
        self,
        event: Any,
        position: int | None,
        group: str,
        subscription: str,
        attempts: int,
        error: Exception,
        now: datetime,
        aggregate_id: str | None,
        *,
        hold: bool,
    ) -> int:
        """Keep a new letter, and return the id that it has for now."""
        assert position is not None
        part = self._part_at(group, position)
        last, self.last_id = self.last_id, self._last_provisional
        letter_id = super().add(
            event, position, group, subscription, attempts, error, now, aggregate_id, hold=hold
        )
        self.last_id, self._last_provisional = last, letter_id
        if part is None:  # it is another node's by now
            self._forget(letter_id)
        else:
            self._parts[letter_id] = part
        return letter_id

    # What others do with them

    def on_news(self) -> None:
        """Something may have become of letters, or is to be done with them."""
        self.news.set()
        self.news = trio.Event()

    async def refresh(self) -> None:
        """Know all letters that there are. Raises `StoreError` and `BusClosed`."""
        if self.is_current:
            await self._flush()
            self._know(await self.shared._letter_keys())

    def ask(self, ids: Sequence[int], /) -> Asking:
        """Return what lets the owners of letters replay them."""
        return Asking(self, ids)

    async def attend(self, nursery: trio.Nursery) -> None:
        """Replay what is asked for of this node's letters, for ever. Raises `StoreError`."""
        while True:
            news = self.news
            await self.refresh()  # what is discarded elsewhere holds nothing back any more
            asked = await self.shared._asked_for()
            own = [i for i in asked if i in self._parts and i in self._keys]
            own = [letter_id for letter_id in own if letter_id not in self.replaying]
            if own:
                nursery.start_soon(self._replay, own)
            await news.wait()

    async def _replay(self, ids: Sequence[int]) -> None:
        try:
            await self.execute(ids)
        except UnknownSubscription as error:
            logger.warning("dead letters were to be replayed, and cannot be: %s", error)
            await self.shared._commits.submit(Submission(None, AskReplay(ids, is_over=True)))
        except (BusClosed, UnknownDeadLetter):
            pass  # others go on with what is left
        except StoreError as error:
            logger.warning("dead letters were to be replayed, and will be: %s", error)
            await trio.sleep(_PAUSE)
            self.on_news()

    async def listed(
        self, group: str | None, aggregate_id: str | None, limit: int
    ) -> Sequence[Undelivered]:
        """Return the oldest letters of a group, an aggregate, both or all, whoever has them."""
        await self.refresh()
        return await super().listed(group, aggregate_id, limit)

    def ids(self, group: str | None = None, aggregate_id: str | None = None) -> Sequence[int]:
        """Return the ids of letters; the oldest first."""
        return sorted(super().ids(group, aggregate_id))

    # Whose they are

    def take(self, part: Part, taken: TakenSegment) -> None:
        """Know the letters of a segment that this node has from here on."""
        own = {key.id for key in taken.letters}
        for letter_id in [i for i, owner in self._parts.items() if owner.key == part.key]:
            if letter_id not in own:
                self._forget(letter_id)
        for key in taken.letters:
            if key.id not in self._keys:
                self._add_key(key)
            self._parts[key.id] = part
        self.on_news()  # some may have been asked for

    def lose(self, part: Part) -> None:
        """What was not recorded of a segment never will be."""
        for letter_id in [i for i, owner in self._parts.items() if owner is part]:
            self._changed.pop(letter_id, None)
            del self._parts[letter_id]
            if letter_id >= PROVISIONAL:
                self._forget(letter_id)

    def _know(self, keys: Iterable[DeadLetterKey]) -> None:
        """Know which letters there are in the store, besides what is not recorded yet."""
        found = {key.id: key for key in keys}
        for letter_id in [*self._keys]:
            if letter_id < PROVISIONAL and letter_id not in found:
                self._changed.pop(letter_id, None)
                self._forget(letter_id)
        for letter_id, key in found.items():
            if letter_id not in self._keys and letter_id not in self._changed:
                self._add_key(key)

    def _forget(self, letter_id: int) -> None:
        key = self._keys.pop(letter_id, None)
        if key is not None:
            self._leave(letter_id, lane_of_key(key))
        self._parts.pop(letter_id, None)
        self._changed.pop(letter_id, None)

    # Being stored

    def take_changes(self) -> tuple[dict[Part, dict[int, DeadLetterRow | None]], dict[int, None]]:
        """Return what has changed since the last time, by part; and which of others' are gone."""
        own: dict[Part, dict[int, DeadLetterRow | None]] = {}
        others: dict[int, None] = {}
        for letter_id, row in self.take_change().items():
            part = self._parts.get(letter_id)
            if part is not None:
                own.setdefault(part, {})[letter_id] = row
                if row is None:
                    del self._parts[letter_id]
            elif row is None and letter_id < PROVISIONAL:
                others[letter_id] = None
        return own, others

    def give_back_of(self, part: Part, changed: Mapping[int, DeadLetterRow | None]) -> None:
        """Take a change back, because it could not be stored."""
        for letter_id in changed:
            self._parts.setdefault(letter_id, part)
        self.give_back(dict(changed))

    def stored(self, ids: Mapping[int, int]) -> None:
        """Letters have got their ids in the store."""
        for provisional, letter_id in ids.items():
            part = self._parts.pop(provisional, None)
            is_held_back = provisional in self.held_back
            changed = provisional in self._changed
            row = self._changed.pop(provisional, None)
            key = self._keys.pop(provisional, None)
            if key is None:  # it was removed meanwhile, which has still to be recorded
                if part is not None:
                    self._parts[letter_id] = part
                self._changed[letter_id] = None
                self._on_change()
                continue
            self._rename(provisional, letter_id, key)
            if part is not None:
                self._parts[letter_id] = part
            if is_held_back:
                self.held_back.add(letter_id)
            if changed:
                self._changed[letter_id] = None if row is None else attrs.evolve(row, id=letter_id)

    def _rename(self, provisional: int, letter_id: int, key: DeadLetterKey) -> None:
        """Give a letter its id, in its place among those of its lane."""
        lane = lane_of_key(key)
        ids = [letter_id if i == provisional else i for i in self._by_lane[lane]]
        self.held_back.discard(provisional)
        self._keys[letter_id] = key._replace(id=letter_id)
        self._by_lane[lane] = dict.fromkeys(ids)
        self.last_id = max(self.last_id, letter_id)
