"""Dead letters of which several nodes keep some; the store gives them their ids.

A letter is its segment's, and what is done to it is recorded with that. Until then a new one has a
provisional id, which no user sees: who asks for letters waits until they are recorded.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

import attrs

from triobus._durability.dead_letters import StoredDeadLetters, lane_of_key
from triobus._durability.sharing.share import Part
from triobus.stores._shared import PROVISIONAL, TakenSegment
from triobus.stores._values import DeadLetterKey, DeadLetterRow


@attrs.define(eq=False)
class SharedDeadLetters(StoredDeadLetters):
    """The dead letters of a shared store; `DeadLetterKeeper` says what it does.

    In memory are the keys of all that are known to this node; of its own segments it knows all.
    """

    _part_at: Callable[[str, int], Part | None] = attrs.field(kw_only=True)
    """Returns the part in which a group has the event of a position that is not finished."""
    _parts: dict[int, Part] = attrs.field(factory=dict, init=False)
    """The parts of this node's letters."""
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

    def lose(self, part: Part) -> None:
        """What was not recorded of a segment never will be."""
        for letter_id in [i for i, owner in self._parts.items() if owner is part]:
            self._changed.pop(letter_id, None)
            del self._parts[letter_id]
            if letter_id >= PROVISIONAL:
                self._forget(letter_id)

    def refresh(self, keys: Iterable[DeadLetterKey]) -> None:
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
