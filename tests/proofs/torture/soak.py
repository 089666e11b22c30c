"""Load for a long time: two buses live, end and live again, and nothing may grow or be lost.

One bus has a store in a file, the other has none. Every life has all kinds of groups under load;
it ends in one of the ways there are: quietly, drained, cut short, cancelled, or as if its process
had been killed. Before the next one the books of `books.py` are compared with the store.

Between two lives nothing of a bus is there, and what the process has is measured: descriptors and
threads must be as many as at first, always. Memory is the resident set; the most of it after the
warm-up, which is the first tenth, is compared with the most in it. The numbers of objects and of
allocated blocks are compared after those lives that ended quietly, when the books are empty too.

The resident set has in it what the C library keeps of what was freed, and nothing is done to make
it give that back. But glibc keeps it in up to eight arenas a processor, and each new thread gets
another one: with new threads in every life it takes long until all have had their 2.5 MiB of
SQLite's. So a long soak has glibc use a single one, and then the resident set tells what grows.

The log grows on disk all the while; from time to time, after a look at all of it, the soak goes on
with a new file.
"""

import ctypes
import logging
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import attrs
import trio

import triobus
import triobus.testing
from tests.proofs.torture.books import Breaches, Soaked
from tests.proofs.torture.crowd import Crowd
from tests.proofs.torture.load import Load
from tests.proofs.torture.logs import compare, look_through
from tests.proofs.torture.samples import Growth, sampled
from tests.proofs.torture.violation import Violation

EVENTS_A_FILE = 100_000
"""After how many events a file is done with: what comes after a crash reads all of it."""
QUIETLY, DRAINED, CUT_SHORT, CANCELLED, CRASHED = ENDINGS = (
    "quietly",
    "drained",
    "cut short",
    "cancelled",
    "crashed",
)
_THREADS_FOR_CALLS = 24
"""Two groups with 3 workers, and foreign threads' calls: more are never needed at a time."""
_ARENA_MAX = -8  # M_ARENA_MAX in malloc.h
_KEPT_SECONDS = 11
"""After so long Trio has ended the threads that it has kept."""


@attrs.define(eq=False)
class Soak:
    """One soak."""

    seconds: float
    directory: Path
    chance: random.Random
    say: Callable[[str], None]
    on_handled: Callable[[Soaked], None]
    breaches: Breaches = attrs.field(factory=Breaches, init=False)
    growth: Growth = attrs.field(init=False)
    durable: Load = attrs.field(init=False)
    memory: Load = attrs.field(init=False)
    started: float = attrs.field(factory=time.monotonic, init=False)
    lives: dict[str, int] = attrs.field(factory=lambda: dict.fromkeys(ENDINGS, 0), init=False)
    counts: dict[str, int] = attrs.field(factory=lambda: defaultdict(int), init=False)
    _files: int = attrs.field(default=1, init=False)
    _logged: int = attrs.field(default=0, init=False)
    """Events in the file that is in use."""
    _was_crashed: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        make = partial(Load, self.chance, self.breaches, pause=0.02, on_handled=self.on_handled)
        self.durable, self.memory = make(is_durable=True), make(is_durable=False)

    @property
    def path(self) -> Path:
        return self.directory / f"soak-{self._files}.db"

    async def run(self) -> None:
        """Live until the time is over, and often enough to tell. Raises `Violation`."""
        first = sampled()
        self.growth = Growth(first, first)
        length = min(3.0, self.seconds / 40)
        next_line = 0.0
        for ending in self._endings():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._live_durably, ending, length)
                nursery.start_soon(self._live_in_memory, ending, length)
            self.lives[ending] += 1
            elapsed = time.monotonic() - self.started
            is_over = ending == QUIETLY and self.lives[QUIETLY] > 2 and elapsed >= self.seconds
            if ending == QUIETLY and (is_over or self._logged > EVENTS_A_FILE):
                await look_through(self.path, self.breaches)
                self.path.unlink()
                self._files += 1
                self._logged = 0
            self._look(ending, elapsed)
            if elapsed >= next_line:
                next_line = elapsed + self.seconds / 30
                self.say(f"{self}")
            if is_over:
                return

    def _endings(self) -> Iterator[str]:
        """Yield every ending once before any comes again."""
        while True:
            yield from self.chance.sample(ENDINGS, len(ENDINGS))

    def _look(self, ending: str, elapsed: float) -> None:
        sample = sampled()
        self.growth.note(
            sample,
            is_quiet=ending == QUIETLY,
            is_warm=elapsed > self.seconds / 10 and self.lives[QUIETLY] > 1,
        )
        wrong = [*self.growth.wrong(self.growth.first.kept_threads + _THREADS_FOR_CALLS)]
        if self.breaches.first is not None or wrong:
            raise Violation(f"{self.breaches.first or wrong[0]}. {self}")

    def __str__(self) -> str:
        counts = self.counts
        return (
            f"{time.monotonic() - self.started:.0f} s: {counts['events']} events, "
            f"{counts['deliveries']} deliveries, {counts['failed attempts']} failed attempts, "
            f"{sum(self.lives.values())} restarts ({self.lives[CRASHED]} crashes), "
            f"{counts['dead letters']} dead letters; lost {self.breaches.lost}, "
            f"reordered {self.breaches.reordered}, repeated after crashes "
            f"{sum(book.repeated for book in self.durable.books)}; {self.growth}"
        )

    # Lives

    async def _live_durably(self, ending: str, length: float) -> None:
        is_opened_before = self.chance.random() < 0.5
        async with triobus.SqliteEventStore(self.path) as store:
            await compare(store, self.durable, was_crashed=self._was_crashed)
            if is_opened_before:
                await self._live(self.durable, store, ending, length)
        if not is_opened_before:
            store = triobus.SqliteEventStore(self.path)
            await self._live(self.durable, store, ending, length)
        self._was_crashed = ending == CRASHED

    async def _live_in_memory(self, ending: str, length: float) -> None:
        if ending != QUIETLY:
            ending = self.chance.choice(ENDINGS[1:])
        await self._live(self.memory, None, ending, length)
        for book in self.memory.books:
            if ending in (QUIETLY, DRAINED) and len(book):
                first = next(book.owed())
                self.breaches.note(f"{book} lost {first}", lost=len(book))
            book.forget()

    async def _live(
        self, load: Load, store: triobus.EventStore | None, ending: str, length: float
    ) -> None:
        bus = triobus.EventBus(store, workers=4, buffer=100 if load.is_durable else 40)
        load.subscribe(bus)
        crowd = Crowd(load, bus)
        report: triobus.StopReport | None = None
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(bus.run)
                async with trio.open_nursery() as actors:
                    crowd.start(actors)
                    await trio.sleep(length / 3)
                    if load.is_durable:
                        load.subscribe_late(bus)
                    await trio.sleep(length * 2 / 3)
                    report = await self._end(load, bus, ending, scope)
                if ending == QUIETLY:
                    await self._end_quietly(crowd)
        for book in load.books if report is not None and not load.is_durable else ():
            if book.is_alone and report.left[book.group] < len(book):
                self.breaches.note(f"{book} owes {len(book)}, and {report} says less")
        self._count(bus, is_quiet=ending == QUIETLY)

    async def _end(
        self, load: Load, bus: triobus.EventBus, ending: str, scope: trio.CancelScope
    ) -> triobus.StopReport | None:
        report = None
        if ending == DRAINED:
            report = await bus.stop()
        elif ending == CUT_SHORT:
            options = self.chance.choice([{"drain": False}, {"timeout": 0.02}])
            report = await bus.stop(**options)
        elif ending == CANCELLED:
            scope.cancel()
        elif ending == CRASHED:
            await triobus.testing.crash(bus)
        load.is_open = False
        return report

    async def _end_quietly(self, crowd: Crowd) -> None:
        await crowd.bus.wait_idle()
        while await crowd.treat_letters():
            pass
        await crowd.bus.stop()
        crowd.load.generation += 1

    def _count(self, bus: triobus.EventBus, *, is_quiet: bool) -> None:
        found = bus.statistics()
        if is_quiet:  # in a bus that was only drained a replay may have been cut off
            open_ = found.queued + found.in_flight + found.waiting_for_retry
            if open_ or any(g.published != g.handled or g.lag for g in found.groups.values()):
                self.breaches.note(f"all is done, and the statistics are {found}")
        self.counts["events"] += found.published
        self.counts["deliveries"] += found.handled
        self.counts["failed attempts"] += found.failed_attempts
        self.counts["dead letters"] += found.dead_lettered
        if bus.store is not None:
            self._logged += found.published


@contextmanager
def _quiet_logger() -> Iterator[None]:
    """Let nobody keep or show what the buses log."""
    logger = logging.getLogger("triobus")
    handler, propagates = logging.NullHandler(), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


def _use_one_arena() -> None:
    """Have glibc take all memory from one area; other C libraries have no more, or do not say."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


def run(
    seconds: float,
    seed: int,
    say: Callable[[str], None],
    on_handled: Callable[[Soaked], None] = lambda _: None,
) -> None:
    """Soak for so many seconds, and say how it goes. Raises `Violation`.

    `on_handled` is called with every event that a handler is done with.
    """
    is_long = seconds >= 2 * _KEPT_SECONDS
    if is_long:
        _use_one_arena()
    descriptors = sampled().descriptors
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="triobus-") as directory, _quiet_logger():
        soak = Soak(seconds, Path(directory), chance, say, on_handled)
        trio.run(soak.run)
    if is_long:
        time.sleep(_KEPT_SECONDS)
        after = sampled()
        if (after.descriptors, after.kept_threads) != (descriptors, 0):
            raise Violation(f"when all was over there were left: {after}. {soak}")
    say(f"soaked for {soak}")
