"""What is in a store, seen in a copy, so that the store itself stays as it is."""

import shutil
import tempfile
from pathlib import Path

import attrs
import trio

import triobus
from tests.proofs.torture.violation import Violation


@attrs.frozen
class Contents:
    """What is in a store."""

    numbers: dict[int, int] = attrs.field(factory=dict)
    """Of the events, by position."""
    settled: set[tuple[str, int]] = attrs.field(factory=set)
    """Groups with the numbers that they have settled."""
    attempts: dict[tuple[str, int], int] = attrs.field(factory=dict)
    begun: set[tuple[str, int]] = attrs.field(factory=set)
    """Those of which it is recorded that an attempt was about to be made."""
    letters: set[tuple[str, int]] = attrs.field(factory=set)


def contents(path: Path) -> Contents:
    """Return what is in the store of a program that has ended. Raises `Violation` if it is hurt."""
    with tempfile.TemporaryDirectory(prefix="triobus-copy-") as directory:
        copy = Path(directory, path.name)
        for suffix in ("", "-wal"):
            beside = path.with_name(path.name + suffix)
            if beside.exists():
                shutil.copyfile(beside, copy.with_name(beside.name))
        if not copy.exists():
            return Contents()
        try:
            return trio.run(_contents, copy)
        except triobus.TriobusError as error:
            raise Violation(f"the store cannot be read: {error!r}") from error


async def _contents(path: Path) -> Contents:
    async with triobus.SqliteEventStore(path) as store:
        after, position = -1, 0
        while position != after:
            after = position
            position, damaged = await store.check(after)
            if damaged:
                raise Violation(f"the log is damaged at {damaged}")
        found = Contents({stored.position: _number(stored) async for stored in store.read()})
        for group in await store._groups():
            for first, last in ((1, group.offset), *group.ranges):
                settled = range(first, last + 1)
                found.settled.update((group.name, found.numbers[at]) for at in settled)
            for row in group.attempts:
                found.attempts[group.name, found.numbers[row.position]] = row.attempts
                if row.is_begun:
                    found.begun.add((group.name, found.numbers[row.position]))
        for key in await store._letter_keys():
            found.letters.add((key.group, found.numbers[key.position]))
    return found


def _number(stored: triobus.Stored) -> int:
    return int(getattr(stored.event, "number"))  # noqa: B009  # its class is the program's
