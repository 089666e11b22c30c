"""The stores that programs are played on, which tell the model of their commits."""

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import attrs
from trio.lowlevel import cancel_shielded_checkpoint

from tests.proofs.model.facts import GroupTruth, LetterTruth, Row, StoreTruth
from tests.proofs.model.promises import Promises
from triobus import EventStore, MemoryEventStore, SqliteEventStore, StoreError
from triobus.stores._values import Commit, GroupRow


class _Telling(EventStore):
    """Tells of its commits."""

    promises: Promises | None = None

    async def _commit(self, commit: Commit) -> list[Any]:
        if self.promises is None:
            return await super()._commit(commit)
        self.promises.commit_began()
        found = await super()._commit(commit)
        self.promises.commit_ended()
        return found


class _Memory(_Telling, MemoryEventStore):
    """In memory."""


class _Sqlite(_Telling, SqliteEventStore):
    """In a file."""


@attrs.define(eq=False)
class Opened:
    """Opens the same store again and again, as a program does that starts again."""

    _make: Callable[[], _Memory | _Sqlite]
    _chance: Random
    is_crashed: bool = False
    """Whether the program has just been killed, so that what is on its way may be lost."""

    def store(self, promises: Promises | None) -> EventStore:
        """Return the store; whoever looks from outside tells nobody."""
        store = self._make()
        store.promises = promises
        return store

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Make a call that would go to a thread: here, after some turns of the scheduler."""
        for _ in range(self._chance.randrange(4)):
            await cancel_shielded_checkpoint()
        is_commit = getattr(function, "makes_durable", False)
        if is_commit and self.is_crashed and self._chance.random() < 0.5:
            raise StoreError("the process was killed before this was written")
        try:
            return function(*args)
        finally:
            for _ in range(self._chance.randrange(4)):
                await cancel_shielded_checkpoint()


def opened(kind: str, directory: Path, seed: int) -> Opened | None:
    """Return what opens a store of a kind: "memory", "sqlite", or None for "none"."""
    chance = Random(f"{seed} store")
    if kind == "none":
        return None
    if kind == "memory":
        memory = _Memory()
        return Opened(lambda: memory, chance)
    return Opened(lambda: _Sqlite(directory / "events.db"), chance)


async def truth_of(store: EventStore) -> StoreTruth:
    """Return what a store has, as the model wants to know it."""
    stored = [stored async for stored in store.read()]
    numbers = {found.position: found.event.number for found in stored}  # type: ignore[attr-defined]  # they are ours
    groups = {record.name: _group(record, numbers) for record in await store._groups()}
    keys = await store._letter_keys()
    letters = await store._letters([key.id for key in keys])
    return StoreTruth(
        log=tuple(numbers.values()),
        positions=tuple(found.position for found in stored),
        groups=groups,
        letters=_letters(letters, numbers),
    )


def _group(record: GroupRow, numbers: dict[int, int]) -> GroupTruth:
    settled = set(range(1, record.offset + 1))
    for first, last in record.ranges:
        settled.update(range(first, last + 1))
    rows = tuple(
        Row(numbers[row.position], row.subscription, row.attempts, row.due_at, row.done)
        for row in record.attempts
    )
    return GroupTruth(record.offset, frozenset(settled), rows)


def _letters(found: Sequence[Any], numbers: dict[int, int]) -> tuple[LetterTruth, ...]:
    return tuple(
        LetterTruth(
            letter.id,
            letter.group,
            letter.subscription,
            numbers[letter.position],
            letter.attempts,
            letter.error_type.partition("(")[0],  # of a group, without its leaves
        )
        for letter, _ in found
    )
