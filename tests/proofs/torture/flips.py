"""Damage stores at random, and see whether `triobus verify` notices.

Each damage is done to a copy: one bit of a store at rest or of one that was killed, a file cut at a
random place, a `-wal` that is missing or another store's. Then the copy is looked at as `triobus
verify` does. Where that finds nothing, everything that can be read is compared with what it was:
events by position, by id and by aggregate, progress, attempts, dead letters.

No damage may end in anything but an answer or an error of triobus, and no look may change a file: a
crash of the interpreter, a hang or another exception is a violation, too.
"""

import multiprocessing
import os
import random
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, ClassVar, TypeAlias
from uuid import UUID

import attrs
import trio
import trio.testing

import triobus
from tests.proofs.torture.power_life import quiet
from tests.proofs.torture.power_recording import scratch
from tests.proofs.torture.violation import Violation
from triobus._cli._verify import examined
from triobus._environment import replace
from triobus.stores._values import Selection
from triobus.testing import crash

STORE = "flips.db"
LOG = STORE + "-wal"
HEADER, FRAME = 32, 24 + 4096
"""Sizes in a `-wal` of SQLite."""
EVENTS, COMMITS = 20, 8
"""How many events a store has that came together, and how many that each had a commit."""
CHUNK = 1_000
PARALLEL_FROM = 3_000
SECONDS_OF_A_CHUNK = 300
PASSED = "noticed"
SAME = "changed nothing that is read"
LETTERS = "changed the text of a dead letter, which has no checksum"
OLDER = "left it whole as it was some commits before"
OTHER = "made it another store, which is whole"

Files: TypeAlias = dict[str, bytes]


@attrs.frozen
class Moved(triobus.DomainEvent):
    """Something has happened to an aggregate."""

    event_type: ClassVar[str] = "flips.moved"
    number: int

    @property
    def aggregate_id(self) -> str:
        return f"aggregate-{self.number % 5}"


@attrs.frozen
class Content:
    """Everything that can be read of a store."""

    log: Any
    progress: Any
    letters: Any


@attrs.frozen
class Stores:
    """The stores that are damaged, and what is in them."""

    rest: Files
    """One that was closed."""
    killed: Files
    """One whose process was killed."""
    other: Files
    """Another that was killed, with other events."""
    fresh: Files
    """One that was killed in its first life, so that all its pages are in its `-wal`."""
    at_rest: Content
    """What is in the one at rest."""
    after: Sequence[Content]
    """What was in the killed one after each commit in its `-wal`."""
    fresh_after: Sequence[Content]
    """The same of the fresh one."""


def run(count: int, seed: int, say: Callable[[str], None]) -> None:
    """Flip so many bits, one in each copy, cut files and mix them; raise `Violation` with the seed.

    Of ten stores nine are at rest and one was killed. A twentieth as many files are cut, and a
    fiftieth as many `-wal` files are removed or replaced.
    """
    stores = trio.run(_stores)
    kinds = {
        "a bit of a store at rest": (count - count // 10, _flip_at_rest),
        "a bit of a store that was killed": (count // 10, _flip_of_killed),
        "a file cut at a random place": (count // 20, _cut),
        "a -wal that is missing or another store's": (count // 50, _other_log),
    }
    for kind, (times, damage) in kinds.items():
        found = _done(stores, damage, times, f"{seed} {kind}")
        told = ", ".join(f"{found[what]:,} {what}" for what in sorted(found, key=_order))
        say(f"{kind}, {times:,} times: {told or 'nothing'}, 0 unnoticed")


def _order(what: str) -> int:
    return (PASSED, SAME, LETTERS, OLDER, OTHER).index(what)


# The damage


@attrs.frozen
class Damaged:
    """A store after something was done to it."""

    files: Files
    whole: Content
    """What should be in it."""
    older: Sequence[Content] = ()
    """What may be in it, because no file says that there was more."""
    other: Sequence[Content] = ()
    """What may be in it, because no file says that there was something else."""


Damage: TypeAlias = Callable[[Stores, random.Random], Damaged]


def _flip_at_rest(stores: Stores, chance: random.Random) -> Damaged:
    return Damaged(_flipped(stores.rest, STORE, chance), stores.at_rest)


def _flip_of_killed(stores: Stores, chance: random.Random) -> Damaged:
    name = chance.choice((STORE, LOG, LOG))
    # What is damaged in the last commit of a log looks as if the power had been cut in it.
    *_, before, full = stores.after
    return Damaged(_flipped(stores.killed, name, chance), full, [before] if name == LOG else [])


def _flipped(files: Files, name: str, chance: random.Random) -> Files:
    data = bytearray(files[name])
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return files | {name: bytes(data)}


def _cut(stores: Stores, chance: random.Random) -> Damaged:
    files, may_be = chance.choice(((stores.rest, [stores.at_rest]), (stores.killed, stores.after)))
    name = chance.choice(sorted(files))
    size = chance.randrange(len(files[name]))
    return Damaged(files | {name: files[name][:size]}, may_be[-1], may_be[:-1])


def _other_log(stores: Stores, chance: random.Random) -> Damaged:
    *older, full = stores.after
    if chance.random() < 0.1:
        return Damaged({STORE: stores.killed[STORE]}, full, older)
    other = chance.choice((stores.other, stores.other, stores.other, stores.fresh))
    log = other[LOG][: chance.choice((None, chance.randrange(len(other[LOG]))))]
    # A log that has every page makes another store of it.
    may_be = stores.fresh_after if other is stores.fresh else ()
    if chance.random() < 0.5:
        return Damaged(stores.rest | {LOG: log}, stores.at_rest, other=may_be)
    # The log of the one that was killed is gone, too.
    return Damaged(stores.killed | {LOG: log}, full, older, may_be)


# Looking at it


def _done(stores: Stores, damage: Damage, times: int, seed: str) -> "Counter[str]":
    if times < PARALLEL_FROM:
        return _chunk(stores, damage, seed, 0, times)
    found: Counter[str] = Counter()
    workers = min(os.cpu_count() or 1, 8)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        chunks = {
            first: pool.submit(_chunk, stores, damage, seed, first, min(CHUNK, times - first))
            for first in range(0, times, CHUNK)
        }
        try:
            for first, chunk in chunks.items():
                found += _answer(chunk, f"{seed} {first}")
        except Violation:
            for process in multiprocessing.active_children():
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def _answer(chunk: "Future[Counter[str]]", where: str) -> "Counter[str]":
    try:
        return chunk.result(SECONDS_OF_A_CHUNK)
    except BrokenProcessPool as error:
        raise Violation(f"{where}: the interpreter crashed among the next {CHUNK}") from error
    except TimeoutError as error:
        raise Violation(f"{where}: a hang among the next {CHUNK}") from error


def _chunk(stores: Stores, damage: Damage, seed: str, first: int, times: int) -> "Counter[str]":
    with tempfile.TemporaryDirectory(prefix="triobus-", dir=scratch()) as directory:
        return trio.run(_looked, Path(directory), stores, damage, seed, first, times)


async def _looked(
    directory: Path, stores: Stores, damage: Damage, seed: str, first: int, times: int
) -> "Counter[str]":
    replace(instead_of_thread=_at_once)
    found: Counter[str] = Counter()
    for number in range(first, first + times):
        damaged = damage(stores, random.Random(f"{seed} {number}"))
        try:
            complaint, content = await _verified(directory, damaged.files)
        except Exception as error:
            said = error if isinstance(error, Violation) else f"no error of triobus: {error!r}"
            raise Violation(f"{seed} {number}: {said}") from error
        what = PASSED if complaint else _compared(content, damaged)
        if not what:
            raise Violation(f"{seed} {number}: a change was not noticed: {content}")
        found[what] += 1
    return found


async def _at_once(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _compared(content: Content | None, damaged: Damaged) -> str:
    """Return what a damage that was not noticed has done; "" if it should have been noticed."""
    whole = damaged.whole
    if content == whole:
        return SAME
    if content in damaged.older:
        return OLDER
    if content in damaged.other:
        return OTHER
    if content is not None and (content.log, content.progress) == (whole.log, whole.progress):
        return LETTERS
    return ""


async def _verified(directory: Path, files: Files) -> tuple[str, Content | None]:
    """Return what `triobus verify` complains of, or else what can be read."""
    _put(directory, files)
    answer = await _looked_at(directory)
    for name, before in files.items():
        if before and (directory / name).read_bytes() != before:
            raise Violation(f"{name} was changed by looking at it, which ended with {answer[0]!r}")
    return answer


async def _looked_at(directory: Path) -> tuple[str, Content | None]:
    is_whole = False
    try:
        async with triobus.SqliteEventStore(directory / STORE, read_only=True) as store:
            found = await examined(store)
            if found.complaints:
                return found.complaints[0], None
            is_whole = True
            return "", await _content(store)
    except triobus.StoreError as error:
        if is_whole:
            raise Violation(f"it was said to be whole and cannot be read: {error!r}") from error
        return str(error), None


def _put(directory: Path, files: Files) -> None:
    for entry in list(directory.iterdir()):
        entry.unlink()
    for name, content in files.items():
        (directory / name).write_bytes(content)


async def _content(store: triobus.SqliteEventStore) -> Content:
    records = []
    while more := await store._fetch(len(records), 1000):
        records += more
    statistics = await store.statistics()
    keys = sorted({record.aggregate_id for record in records})
    letter_keys = await store._letter_keys()
    return Content(
        log=(
            records,
            [await store._find(UUID(record.event_id)) for record in records],
            [await store._fetch(0, 1000, selected=Selection(key)) for key in keys],
            attrs.evolve(statistics, size_bytes=0, groups={}),
        ),
        progress=await store._groups(),
        letters=(letter_keys, await store._letters([key.id for key in letter_keys])),
    )


# The stores


async def _stores() -> Stores:
    with tempfile.TemporaryDirectory(prefix="triobus-", dir=scratch()) as parent:
        rest, killed, other, fresh, scene = (Path(parent, str(number)) for number in range(5))
        scene.mkdir()
        with quiet():
            await _make(rest, 1, is_killed=False)
            await _make(killed, 1, is_killed=False)
            await _make(killed, 101, is_killed=True)
            await _make(other, 1001, is_killed=False)
            await _make(other, 1101, is_killed=True)
            await _make(fresh, 2001, is_killed=True)
        files = [_files(directory) for directory in (rest, killed, other, fresh)]
        whole, after, _, fresh_after = [[c async for c in _after_commits(scene, f)] for f in files]
    return Stores(*files, whole[-1], after, fresh_after)


def _files(directory: Path) -> Files:
    """Return the files of a store, without those that SQLite makes anew."""
    names = (STORE, LOG)
    return {name: (directory / name).read_bytes() for name in names if (directory / name).exists()}


async def _make(directory: Path, first: int, *, is_killed: bool) -> None:
    """Let a bus leave events, dead letters, attempts and progress that has gaps in a store."""
    directory.mkdir(exist_ok=True)
    bus = triobus.EventBus(triobus.SqliteEventStore(directory / STORE), workers=3)

    async def handle(event: Moved) -> None:
        if event.number % 13 == 0 or event.number % 7 == 3:
            raise ValueError(f"the error of number {event.number}")

    retry = triobus.Retry(attempts=2, delay=1000, jitter=0)
    bus.subscribe(Moved, handle, name="never", retry=triobus.Retry(attempts=1))
    bus.group("mail", start="beginning").subscribe(Moved, handle, name="later", retry=retry)
    async with bus:
        await bus.publish_many([Moved(number) for number in range(first, first + EVENTS)])
        for number in range(first + EVENTS, first + EVENTS + COMMITS):
            await bus.publish(Moved(number))
        await trio.testing.wait_all_tasks_blocked(0.05)
        if is_killed:
            await crash(bus)
        else:
            await bus.stop(drain=False)


async def _after_commits(scene: Path, files: Files) -> AsyncIterator[Content]:
    """Yield what is in a store after each commit of its `-wal`, and at first without it."""
    log = files.get(LOG, b"")
    ends = [0] + [
        at + FRAME
        for at in range(HEADER, len(log), FRAME)
        if int.from_bytes(log[at + 4 : at + 8], "big")
    ]
    for end in ends:
        complaint, content = await _verified(scene, {STORE: files[STORE], LOG: log[:end]})
        if content is None:
            raise Violation(f"a store that was made for this is damaged: {complaint}")
        yield content
