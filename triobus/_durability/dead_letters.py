"""The dead letters of a bus that are kept in its store; what they are about is in the log."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import attrs

from triobus._durability.unreadable import unreadable
from triobus._errors import BusClosed, EventNotDecodable, StoreClosed
from triobus._events import DomainEvent
from triobus._groups.dead_letters import DeadLetter, DeadLetterIndex, Lane, Undelivered
from triobus._text import described
from triobus.stores import EventStore
from triobus.stores._values import DeadLetterKey, DeadLetterRow, Row


@attrs.define(eq=False)
class StoredDeadLetters(DeadLetterIndex):
    """The dead letters of a store; `DeadLetterKeeper` says what it does.

    In memory are their ids and whose they are, about 300 bytes a letter, and what is to be stored.
    """

    _store: EventStore
    _on_change: Callable[[], None]
    _flush: Callable[[], Awaitable[None]]
    is_current: bool = attrs.field(default=False, init=False)
    """Whether it is what the store has, or will have: from the start of the bus to its end."""
    _keys: dict[int, DeadLetterKey] = attrs.field(factory=dict, init=False)
    _changed: dict[int, DeadLetterRow | None] = attrs.field(factory=dict, init=False)
    _loaded: dict[int, DeadLetterRow] = attrs.field(factory=dict, init=False)
    """Those that are being replayed."""

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, letter_id: int) -> bool:
        return letter_id in self._keys

    # Being stored

    def restore(self, keys: Iterable[DeadLetterKey], last_id: int = 0) -> None:
        """Take up what a store has; no id up to `last_id` is used again."""
        self.last_id = max(self.last_id, last_id)
        for key in keys:
            self._add_key(key)
        self.is_current = True

    def forget_group(self, group: str) -> None:
        """The store has forgotten the letters of a group."""
        for letter_id in self.ids(group):
            self._leave(letter_id, lane_of_key(self._keys.pop(letter_id)))
            self._changed.pop(letter_id, None)

    @property
    def is_changed(self) -> bool:
        """Whether there is something to be stored."""
        return bool(self._changed)

    def take_change(self) -> dict[int, DeadLetterRow | None]:
        """Return what has changed since the last time."""
        changed, self._changed = self._changed, {}
        return changed

    def give_back(self, changed: dict[int, DeadLetterRow | None]) -> None:
        """Take a change back, because it could not be stored."""
        self._changed = {**changed, **self._changed}

    async def flush(self) -> None:
        """Wait until what was done to the letters is stored."""
        await self._flush()

    # Being used

    def ids(self, group: str | None = None, aggregate_id: str | None = None) -> Sequence[int]:
        """Return the ids of the letters of a group, an aggregate, both or all; the oldest first."""
        return [key.id for key in self._keys.values() if _is_of(key, group, aggregate_id)]

    def in_order(self, ids: Iterable[int]) -> Sequence[int]:
        """Return ids in the order of their events' positions."""
        return sorted(ids, key=lambda letter_id: (self._keys[letter_id].position, letter_id))

    def lane_of(self, letter_id: int) -> Lane:
        """Return the lane of a letter."""
        return lane_of_key(self._keys[letter_id])

    def add(
        self,
        event: Any,  # noqa: ARG002  # the log has it
        position: int | None,
        group: str,
        subscription: str,
        attempts: int,
        error: Exception,
        now: datetime,
        aggregate_id: str | None,
        *,
        hold: bool,  # noqa: ARG002  # none is ever dropped
    ) -> int:
        """Keep a new letter, and return its id."""
        assert position is not None
        key = DeadLetterKey(self.last_id + 1, position, group, subscription, aggregate_id)
        self._add_key(key)
        if not attempts:
            self.held_back.add(key.id)
        self._change(
            DeadLetterRow(
                **key._asdict(),
                attempts=attempts,
                first_failed_at=now,
                last_failed_at=now,
                **described(error),
            )
        )
        return key.id

    def add_failure(self, letter_id: int, attempts: int, error: Exception, now: datetime) -> None:
        """Note that a replay failed again, unless the letter was removed meanwhile."""
        if letter_id in self._keys:
            self.held_back.discard(letter_id)
            record = self._loaded[letter_id]
            attempts += record.attempts
            self._change(
                attrs.evolve(record, attempts=attempts, last_failed_at=now, **described(error))
            )

    def newest(self, letter_id: int, event: Any) -> DeadLetter | None:
        """Return a letter of an event that has just failed; None if it was removed meanwhile."""
        record = self._changed.get(letter_id)
        return None if record is None else _shown(record, event, event)

    def check_removable(self) -> None:
        """Raise `BusClosed` if what is removed would not be recorded."""
        if not self.is_current:
            raise BusClosed(
                "dead_letters.discard(): the bus does not use its store now, which has the dead "
                "letters: do it while the bus runs"
            )

    def remove(self, letter_id: int) -> None:
        """Forget a letter, unless that was done before."""
        key = self._keys.pop(letter_id, None)
        if key is not None:
            self._leave(letter_id, lane_of_key(key))
            self._changed[letter_id] = None
            self._on_change()

    def end_replay(self, letter_id: int) -> None:
        """A letter is on its way no more, whatever became of it."""
        super().end_replay(letter_id)
        self._loaded.pop(letter_id, None)

    async def load(self, ids: Sequence[int]) -> Sequence[Undelivered]:
        """Return those that are still there of the letters to be replayed. Raises `StoreError`."""
        found = await self._read(ids)
        self._loaded.update({letter.id: letter for letter, _ in found})
        return [self._undelivered(letter, record) for letter, record in found]

    async def _read(self, ids: Sequence[int]) -> Sequence[tuple[DeadLetterRow, Row]]:
        await self._flush()
        found = await self._store._letters(ids)
        return [(letter, record) for letter, record in found if letter.id in self._keys]

    async def listed(
        self, group: str | None, aggregate_id: str | None, limit: int
    ) -> Sequence[Undelivered]:
        """Return the oldest letters of a group, an aggregate, both or all. Raises `StoreError`.

        While no bus uses the store, it is opened for that.
        """
        found = await self._listed_by_bus(group, aggregate_id, limit)
        if found is None:
            async with self._store._reopened():
                keys = await self._store._letter_keys()
                ids = [key.id for key in keys if _is_of(key, group, aggregate_id)]
                found = await self._store._letters(ids[:limit])
        return [self._undelivered(letter, record) for letter, record in found]

    async def _listed_by_bus(
        self, group: str | None, aggregate_id: str | None, limit: int
    ) -> Sequence[tuple[DeadLetterRow, Row]] | None:
        """Return letters as the bus has them; None if it does not use the store, or stops to."""
        if not self.is_current:
            return None
        try:
            return await self._read(self.ids(group, aggregate_id)[:limit])
        except (BusClosed, StoreClosed):
            if self.is_current:
                raise
            return None

    def _undelivered(self, letter: DeadLetterRow, record: Row) -> Undelivered:
        event, failure = None, None
        stand_in = unreadable(record)
        try:
            event = self._store._decode(record)
        except EventNotDecodable as error:
            failure = error
        shown = _shown(letter, event, stand_in)
        return Undelivered(shown, stand_in if event is None else event, failure)

    def _change(self, record: DeadLetterRow) -> None:
        self._changed[record.id] = record
        self._on_change()

    def _add_key(self, key: DeadLetterKey) -> None:
        self._keys[key.id] = key
        self._enter(key.id, lane_of_key(key))


def _shown(letter: DeadLetterRow, event: Any, named: Any) -> DeadLetter:
    """Return a letter with its event, if that could be made, and the names of what has its id."""
    return DeadLetter(
        event=event if isinstance(event, DomainEvent) else None,
        event_id=named.event_id,
        event_type=named.event_type,
        **attrs.asdict(letter),
    )


def lane_of_key(key: DeadLetterKey) -> Lane:
    return key.group, key.subscription, key.aggregate_id


def _is_of(key: DeadLetterKey, group: str | None, aggregate_id: str | None) -> bool:
    return group in (None, key.group) and aggregate_id in (None, key.aggregate_id)
