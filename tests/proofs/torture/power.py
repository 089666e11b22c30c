"""Cut the power at every point of a run, and look at what the store has kept.

A bus lives three times while everything that reaches the disk is recorded. Then the power is cut
behind each recorded operation, again and again: what was synchronised is there, of the rest any
part (power_disk.py says how a disk is thought of). Each state is opened by the store itself, which
recovers, compares all checksums and whatever else `triobus verify` looks at, reads everything and
takes one more event; every fiftieth is gone on with by a whole bus.

What is looked at: no event is lost of which `publish` had returned, and no progress that was
recorded; positions have no gaps; no group has as settled what it had not handled; what a
transactional handler has written and published is of exactly the events that are settled; the store
opens, without a complaint.
"""

import hashlib
import multiprocessing
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Container, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import attrs
import trio

import triobus
from tests.proofs.torture.power_disk import Disk
from tests.proofs.torture.power_effects import GROUP, wrong_books
from tests.proofs.torture.power_life import (
    GROUPS,
    TYPES,
    Looked,
    Moved,
    new_bus,
    open_books,
    quiet,
)
from tests.proofs.torture.power_recording import (
    MAPPED,
    STORE,
    Recording,
    reason_against,
    record,
    scratch,
)
from tests.proofs.torture.violation import Violation
from triobus.stores._values import Row

STATES_OF_A_RECORDING = 10_000
STATES_BEFORE_A_BUS = 50
PARALLEL_FROM = 5_000
"""Below so many states further processes cost more than they do."""
SECONDS_OF_A_BUS = 60
EXTREMES = ("none", "all", "prefix", "prefix")
DRAWS = 6
UNIMPORTANT = (MAPPED, "-lock")
"""What is never synchronised, and need not be."""


@attrs.frozen(kw_only=True)
class Figures:
    """What the states were like."""

    states: int = 0
    """Power cuts."""
    distinct: int = 0
    """States of the disk that no two of them share, each of which a store has opened."""
    continued: int = 0
    """Those that a whole bus has gone on with."""
    acknowledged: int = 0
    """Events that were looked for, because their `publish` had returned."""
    lost: int = 0
    """Those that were not there."""
    losing: int = 0
    """States in which an event was lost."""
    most: int = 0
    """The most events that one state has lost."""
    forgotten: int = 0
    """States in which progress was lost that had been recorded."""
    corrupt: int = 0
    """States that the store refuses, or in which it finds damage."""
    first: str = ""
    """What was found first."""

    def __add__(self, other: "Figures") -> "Figures":
        summed = {
            field.name: getattr(self, field.name) + getattr(other, field.name)
            for field in attrs.fields(Figures)
            if field.type is int
        }
        summed["most"] = max(self.most, other.most)
        return Figures(**summed, first=self.first or other.first)

    def __str__(self) -> str:
        return (
            f"{self.states:,} states, {self.distinct:,} of them distinct and opened, "
            f"{self.continued:,} gone on with by a bus; {self.acknowledged:,} acknowledged events "
            f"looked at, {self.lost:,} lost, in {self.losing:,} states, at most {self.most:,} in "
            f"one; recorded progress forgotten in {self.forgotten:,}; corrupt: {self.corrupt:,}"
        )


def run(
    states: int, seed: int, say: Callable[[str], None], synchronous: str = "full", bug: str = ""
) -> None:
    """Visit so many states; raise `Violation` if one has lost something that was acknowledged.

    `synchronous` is "full", "normal", or "off", with which nothing is synchronised at all; `bug` is
    one of those of `power_effects`, or nothing.
    """
    if (reason := reason_against()) is not None:
        say(reason)
        return
    found = lost(states, seed, synchronous, bug)
    if found.first:
        raise Violation(f"seed {seed}, synchronous={synchronous}: {found.first}. In all: {found}")
    say(f"power cuts with synchronous={synchronous}: {found}")


def lost(states: int, seed: int, synchronous: str, bug: str = "") -> Figures:
    """Visit so many states and return what they have lost. Needs a C compiler."""
    found = Figures()
    for number in range(-(-states // STATES_OF_A_RECORDING)):
        some = min(STATES_OF_A_RECORDING, states - number * STATES_OF_A_RECORDING)
        found += visit(record(synchronous, bug), some, f"{seed} {number}")
    return found


# The states


@attrs.frozen
class Known:
    """What the program knew before the power was cut. Sets of positions are bits of numbers."""

    accepted: dict[int, str] = attrs.field(factory=dict)
    """The ids of events that were accepted, by position."""
    handled: dict[str, int] = attrs.field(factory=dict)
    """What each group has handled."""
    recorded: dict[str, int] = attrs.field(factory=dict)
    """What a commit has recorded of that."""

    def note(self, mark: str) -> None:
        kind, first, *rest = mark.split()
        if kind == "accepted":
            self.accepted[int(first)] = rest[0]
        elif kind == "handled":
            self.handled[first] = self.handled.get(first, 0) | 1 << int(rest[0])
        else:
            offset, *ranges = rest
            bits = _bits([(1, int(offset)), *(map(int, one.split("-")) for one in ranges)])
            self.recorded[first] = self.recorded.get(first, 0) | bits


@attrs.frozen(kw_only=True)
class Kept:
    """What a store had after a power cut."""

    trouble: str = ""
    """Why it is not whole, or how it failed."""
    ids: Sequence[str] = ()
    settled: dict[str, int] = attrs.field(factory=dict)
    excused: dict[str, int] = attrs.field(factory=dict)
    """What each group need not have handled: dead letters, and what it does not want."""


def _bits(ranges: Sequence[Sequence[int]]) -> int:
    """Return the number with the bits from each first to each last."""
    bits = 0
    for first, last in ranges:
        bits |= (1 << last + 1) - (1 << first)
    return bits


def visit(recording: Recording, states: int, seed: str) -> Figures:
    """Visit so many states of one recording."""
    points = _points(recording, states, seed)
    workers = min(os.cpu_count() or 1, 8) if states >= PARALLEL_FROM else 1
    if workers == 1:
        found, keys = _walk(recording, points, seed)
        return attrs.evolve(found, distinct=len(keys))
    shares = [
        {point: count for point, count in points.items() if point % workers == worker}
        for worker in range(workers)
    ]
    context = multiprocessing.get_context("spawn")
    total, all_keys = Figures(), set[bytes]()
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        walks = [pool.submit(_walk, recording, share, seed) for share in shares]
        for walk in walks:
            found, keys = walk.result()
            total += found
            all_keys |= keys
    return attrs.evolve(total, distinct=len(all_keys))


def _points(recording: Recording, states: int, seed: str) -> dict[int, int]:
    """Return how often the power is cut behind which operations."""
    disk = Disk(recording.directory)
    open_points, closed_points = [0], []
    for point, operation in enumerate(recording.operations, 1):
        disk.apply(operation)
        (open_points if disk.is_pending(UNIMPORTANT) else closed_points).append(point)
    each, rest = divmod(max(0, states - len(closed_points)), len(open_points))
    counts = dict.fromkeys(open_points, each) | dict.fromkeys(closed_points, 1)
    if not each:
        counts = {}
        rest, open_points = states, open_points + closed_points
    for point in random.Random(seed).sample(open_points, rest):
        counts[point] = counts.get(point, 0) + 1
    return counts


def _walk(recording: Recording, points: dict[int, int], seed: str) -> tuple[Figures, set[bytes]]:
    """Cut the power at these points; return what was found, and which states there were."""
    disk, known, seen = Disk(recording.directory), Known(), dict[bytes, Kept]()
    found = Figures()
    with quiet(), tempfile.TemporaryDirectory(prefix="triobus-", dir=scratch()) as directory:
        for point in range(len(recording.operations) + 1):
            behind = ""
            if point:
                operation = recording.operations[point - 1]
                behind = f", behind {operation}"
                disk.apply(operation)
                if operation.kind == "mark":
                    known.note(operation.data.decode())
            for number in range(points.get(point, 0)):
                key, state = _state(disk, f"{seed} {point} {number}", number, points[point], seen)
                if key not in seen:
                    is_bus = len(seen) % STATES_BEFORE_A_BUS == 0
                    seen[key] = _opened(
                        Path(directory, "disk"), state, is_bus, recording.synchronous == "full"
                    )
                    found += Figures(continued=int(is_bus))
                where = f"state {number} of the power cut at {point}{behind}"
                found += _compared(known, seen[key], where)
    return found, set(seen)


def _state(
    disk: Disk, seed: str, number: int, count: int, seen: Container[bytes]
) -> tuple[bytes, dict[str, bytes]]:
    """Draw one of so many states at a point: the extremes first, then such as were not yet seen."""
    chance = random.Random(seed)
    mode = chance.choice((*EXTREMES, None)) if count <= len(EXTREMES) else None
    if number < len(EXTREMES) < count:
        mode = EXTREMES[number]
    for _ in range(DRAWS):
        state = disk.cut(chance, mode)
        key = _key(state)
        if mode is not None or key not in seen:
            break
    return key, state


def _key(state: dict[str, bytes]) -> bytes:
    """Return what two states share only if a store sees no difference."""
    digest = hashlib.blake2b(digest_size=16)
    for name, content in state.items():
        if not name.endswith(UNIMPORTANT):
            digest.update(b"%b %d " % (name.encode(), len(content)))
            digest.update(content)
    return digest.digest()


def _compared(known: Known, kept: Kept, where: str) -> Figures:
    """Hold what a store has kept against what the program knew."""
    if kept.trouble:
        return Figures(states=1, corrupt=1, first=f"{where}: {kept.trouble}")
    gone = [
        position
        for position, event_id in known.accepted.items()
        if position > len(kept.ids) or kept.ids[position - 1] != event_id
    ]
    forgotten = [
        group for group, bits in known.recorded.items() if bits & ~kept.settled.get(group, 0)
    ]
    first = ""
    if gone:
        first = f"{where}: lost are the acknowledged events at {gone}"
    elif forgotten:
        first = f"{where}: recorded progress of {forgotten} is lost"
    for group, settled in kept.settled.items():
        excess = settled & ~known.handled.get(group, 0) & ~kept.excused.get(group, 0)
        if excess:
            what = f"{where}: group {group!r} has settled and never handled {excess:b} (bits)"
            return Figures(states=1, corrupt=1, first=what)
    return Figures(
        states=1,
        acknowledged=len(known.accepted),
        lost=len(gone),
        losing=int(bool(gone)),
        most=len(gone),
        forgotten=int(bool(forgotten)),
        first=first,
    )


# The store


def _opened(directory: Path, state: dict[str, bytes], is_bus: bool, is_full: bool) -> Kept:
    """Put a state on a disk, and let a store, or a bus afterwards, make of it what it can."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name, content in state.items():
        (directory / name).write_bytes(content)
    try:
        return trio.run(_read, directory / STORE, is_bus, is_full)
    except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001  # it is what was found
        return Kept(trouble=repr(error))


async def _read(path: Path, is_bus: bool, is_full: bool) -> Kept:
    async with triobus.SqliteEventStore(path, types=TYPES) as store:
        await store._claim()
        after, end = -1, 0
        while end != after:
            after = end
            end, damaged = await store.check(after)
            if damaged:
                return Kept(trouble=f"the log is damaged at {damaged}")
        # Without "full" a log may have a hole, behind which are commits that nobody can read.
        complaints = await store.problems()
        if is_full and complaints:
            return Kept(trouble=f"'triobus verify' would complain: {complaints}")
        kept = await _contents(store)
        if kept.trouble:
            return kept
        next_position = len(kept.ids) + 1
        if not is_bus:
            (placed,) = await store.append([Looked(0)])
            if placed.position != next_position:
                return Kept(trouble=f"the event {next_position} was stored at {placed.position}")
    if is_bus and (left := await _go_on(path, kept)):
        return Kept(trouble=left)
    return kept


async def _contents(store: triobus.SqliteEventStore) -> Kept:
    records: list[Row] = []
    while more := await store._fetch(len(records), 1000):
        records += more
    positions = [record.position for record in records]
    if positions != list(range(1, len(records) + 1)):
        return Kept(trouble=f"the positions have gaps: {positions}")
    groups, keys = await store._groups(), await store._letter_keys()
    await store._letters([key.id for key in keys])
    settled = {group.name: _bits([(1, group.offset), *group.ranges]) for group in groups}
    dead = dict.fromkeys(GROUPS, 0)
    for key in keys:
        dead[key.group] |= 1 << key.position
    entered = settled.get(GROUP, 0) & ~dead[GROUP]
    wrong = await wrong_books(store, records, entered, Moved.event_type)
    unwanted = _bits([(r.position,) * 2 for r in records if r.event_type != Moved.event_type])
    return Kept(
        trouble=wrong and f"the books are wrong: {wrong}",
        ids=[record.event_id for record in records],
        settled=settled,
        excused={group: dead[group] | (unwanted if group != "all" else 0) for group in GROUPS},
    )


async def _go_on(path: Path, before: Kept) -> str:
    """Let a bus publish and finish; return what a group has left out, "" if nothing."""
    handled = dict.fromkeys(GROUPS, 0)

    def note(group: str, position: int) -> None:
        handled[group] |= 1 << position

    with trio.fail_after(SECONDS_OF_A_BUS):
        async with new_bus(str(path), "full", note) as bus:
            await open_books(bus)
            await bus.publish(Moved(1))
        async with triobus.SqliteEventStore(path, types=TYPES) as store:
            after = await _contents(store)
    if after.trouble:
        return f"after a bus went on, {after.trouble}"
    everything = _bits([(1, len(after.ids))])
    for group, positions in handled.items():
        left = everything & ~positions & ~before.settled.get(group, 0) & ~after.excused[group]
        if left or after.settled.get(group) != everything:
            return f"a bus that went on has left {left:b} (bits) in the group {group!r}"
    return ""
