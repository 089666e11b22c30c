"""What became of an event in every group: handled, waiting, given up."""

from collections.abc import Sequence

import attrs

from triobus.stores import EventStore
from triobus.stores._values import Attempts, DeadLetterKey, DeadLetterRow, GroupRow

HANDLED, RETRYING, NOT_YET = "settled", "waits for a retry", "not settled yet"


@attrs.frozen
class Fate:
    """What became of one event in one group."""

    group: str
    state: str
    attempts: Attempts | None
    """How far it has come, if it has begun and is not finished."""
    letters: Sequence[DeadLetterRow]


@attrs.define(eq=False)
class Fates:
    """Says what became of events, as of the moment when it was made."""

    _store: EventStore
    _groups: Sequence[GroupRow]
    _attempts: dict[tuple[str, int], Attempts]
    _keys: dict[int, list[DeadLetterKey]]

    @classmethod
    async def of(cls, store: EventStore) -> "Fates":
        """Read what the groups have come to."""
        groups = await store._groups()
        attempts = {
            (group.name, each.position): each for group in groups for each in group.attempts
        }
        keys: dict[int, list[DeadLetterKey]] = {}
        for key in await store._letter_keys():
            keys.setdefault(key.position, []).append(key)
        return cls(store, groups, attempts, keys)

    async def at(self, position: int) -> list[Fate]:
        """Return what became of the event at a position, group by group."""
        ids = [key.id for key in self._keys.get(position, ())]
        letters = [letter for letter, _ in await self._store._letters(ids)] if ids else []
        found = []
        for group in self._groups:
            attempts = self._attempts.get((group.name, position))
            own = [letter for letter in letters if letter.group == group.name]
            found.append(Fate(group.name, _state(group, position, attempts), attempts, own))
        return found


def _state(group: GroupRow, position: int, attempts: Attempts | None) -> str:
    if attempts is not None:
        return NOT_YET if attempts.is_begun else RETRYING
    is_finished = position <= group.offset or any(
        first <= position <= last for first, last in group.ranges
    )
    return HANDLED if is_finished else NOT_YET
