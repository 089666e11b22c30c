"""What a soak finds in its store between two lives."""

from collections import defaultdict
from pathlib import Path
from typing import Any
from uuid import UUID

import triobus
from tests.proofs.torture.books import Book, Breaches, Identity, identity
from tests.proofs.torture.load import Load


async def compare(store: triobus.SqliteEventStore, load: Load, *, was_crashed: bool) -> None:
    """See that the store has as unfinished what the books have, and begin a new life of theirs."""
    groups = {record.name: record for record in await store._groups()}
    books = load.books
    offsets = {name: group.offset for name, group in groups.items()}
    unfinished: dict[Book, dict[Identity, UUID]] = {book: {} for book in books}
    done = {
        (group.name, position)
        for group in groups.values()
        for first, last in group.ranges
        for position in range(first, last + 1)
    }
    partly = {
        (group.name, row.position, name)
        for group in groups.values()
        for row in group.attempts
        for name in row.done
    }
    after = min(offsets.get(book.group, 0) for book in books)
    async for stored in store.read(after=after):
        event: Any = stored.event
        for book in books:
            place = book.group, stored.position
            is_finished = stored.position <= offsets.get(book.group, 0) or place in done
            is_finished = is_finished or (*place, book.subscription) in partly
            if not is_finished and book.wants(event):
                unfinished[book][identity(event)] = event.event_id
    letters = await _letters(store)
    unsure = {identity(event) for events in load.unsure.values() for event in events}
    for book in books:
        book.compare(
            unfinished[book],
            letters[book.group, book.subscription],
            unsure,
            was_crashed=was_crashed,
        )
        book.begin_life()


async def _letters(store: triobus.SqliteEventStore) -> dict[tuple[str, str], dict[Identity, UUID]]:
    """Return the dead letters in the store, by group and subscription."""
    found: dict[tuple[str, str], dict[Identity, UUID]] = defaultdict(dict)
    keys = await store._letter_keys()
    for letter, record in await store._letters([key.id for key in keys]):
        event: Any = store._decode(record)
        found[letter.group, letter.subscription][identity(event)] = event.event_id
    return found


async def look_through(path: Path, breaches: Breaches) -> None:
    """See that everything in a file is whole and finished, and nothing beside it."""
    beside = [entry.name for entry in path.parent.iterdir() if entry != path]
    if beside:
        breaches.note(f"beside the store was left: {beside}")
    async with triobus.SqliteEventStore(path) as store:
        last = await store._last_position()
        position, damaged = await store.check()
        while position < last and not damaged:
            position, damaged = await store.check(position)
        if damaged:
            breaches.note(f"the log is damaged at {damaged}")
        for group in await store._groups():
            if (group.offset, group.ranges, group.attempts) != (last, (), ()):
                breaches.note(f"all is done, and group {group} is not at {last}")
        if keys := await store._letter_keys():
            breaches.note(f"all is done, and there are {len(keys)} dead letters")
