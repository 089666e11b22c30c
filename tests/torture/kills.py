"""Kill a program that publishes and handles, again and again, and look at what its store has kept.

Each round is a store and several lives of a child process. The child reports on a pipe what was
accepted and what was handled, in lines that are written whole; after a number of lines that is
drawn from the seed it is killed with SIGKILL. Between two lives the store tells how far each group
is.

What is looked at: nothing is lost that was reported as accepted; each group handles each aggregate
in order; what the store had as settled is not handled again, and it had everything that was
finished before the last commit began; positions have no gaps; the chain of checksums is whole; and
after a clean end nothing is left beside the file.
"""

import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import attrs
import trio

import triobus
from tests.torture.violation import ROOT, Violation

GROUPS = ("default", "mail")
LIVES = 3
AGGREGATES = 7
PUBLISHERS = 4
POISON = 13
"""Every number that is divisible by it fails for good."""


@attrs.frozen
class Moved(triobus.DomainEvent):
    """Something has happened to an aggregate."""

    event_type: ClassVar[str] = "torture.moved"
    number: int

    @property
    def aggregate_id(self) -> str:
        return f"aggregate-{self.number % AGGREGATES}"


# The child


def report(*words: object) -> None:
    """Write a line that is there whole or not at all, and that outlives the process."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def live(path: str, first: int, is_last: bool) -> None:
    """Publish and handle until killed; the last time, until everything is done."""
    logging.getLogger("triobus").addHandler(logging.NullHandler())
    bus = triobus.EventBus(triobus.SqliteEventStore(path), workers=3, buffer=20)
    retry = triobus.Retry(attempts=2, delay=0.0001)

    def handler(group: str) -> Callable[[Moved], object]:
        async def handle(event: Moved) -> None:
            report("begin", group, event.number)
            await trio.lowlevel.checkpoint()
            attempt = triobus.current_delivery().attempt
            if event.number % POISON == 0 or (event.number % 11 == 0 and attempt == 1):
                raise ValueError(event.number)
            report("handled", group, event.number)

        return handle

    bus.subscribe(Moved, handler("default"), name="it", retry=retry)
    bus.group("mail", workers=2, start="beginning").subscribe(
        Moved, handler("mail"), name="it", retry=retry
    )
    numbers = iter(range(first, first + (40 if is_last else 10**9)))

    async def publish_singly() -> None:
        for number in numbers:
            report("publishing", number)
            published = await bus.publish(Moved(number))
            report("accepted", number, published.position)

    async def publish_in_batches() -> None:
        while batch := [number for _, number in zip(range(5), numbers, strict=False)]:
            report("publishing", batch[0])
            published = await bus.publish_many([Moved(number) for number in batch])
            for number, place in zip(batch, published, strict=True):
                report("accepted", number, place.position)

    async with bus, trio.open_nursery() as nursery:
        nursery.start_soon(publish_in_batches)
        for _ in range(PUBLISHERS):
            nursery.start_soon(publish_singly)
    report("done")


# The parent


@attrs.define
class Round:
    """What the lives of one store have reported."""

    accepted: dict[int, int] = attrs.field(factory=dict)
    """Positions by number."""
    handled: dict[str, list[list[int]]] = attrs.field(factory=dict)
    """For each group the numbers that were handled, in a list for each life."""
    settled: dict[str, list[set[int]]] = attrs.field(factory=dict)
    """For each group the numbers that the store had as settled after each life."""
    repeated: int = 0
    _begun: dict[int, list[int]] = attrs.field(factory=dict)
    """By number how many each group had handled when its publishing began."""
    _recorded: list[int] = attrs.field(factory=list)
    """How many of what each group handled in this life a commit must have recorded."""

    def run_life(self, path: Path, first: int, lines: int | None) -> int:
        """Let a child live until it has reported so many lines, or for as long as it likes.

        Return a number that it cannot have come to.
        """
        arguments = [str(path), str(first), str(int(lines is None))]
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.torture", "--live", *arguments],
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert child.stdout is not None
        for group in GROUPS:
            self.handled.setdefault(group, []).append([])
        self._recorded = [0 for _ in GROUPS]
        last = None
        with child.stdout as reports:
            for count, line in enumerate(reports, 1):
                last = self._note(line)
                if lines is not None and count == lines:
                    child.send_signal(signal.SIGKILL)
                    # What is in the pipe was reported before the kill came.
        code = child.wait()
        if lines is None and (code or last != "done"):
            raise Violation(f"the last life ended with {code} after {last!r}")
        if lines is not None and code != -signal.SIGKILL:
            raise Violation(f"the child was to be killed and ended with {code}")
        return first + 100_000

    def _note(self, line: bytes) -> str:
        kind, *words = line.decode().split()
        if kind == "publishing":
            self._begun[int(words[0])] = [len(self.handled[group][-1]) for group in GROUPS]
        elif kind == "accepted":
            number, position = map(int, words)
            self.accepted[number] = position
            # The commit that stored it began later, and took along what was finished before.
            if number in self._begun:
                self._recorded = list(map(max, self._recorded, self._begun[number]))
        elif kind == "handled":
            group, number = words[0], int(words[1])
            self.handled[group][-1].append(number)
        return kind

    def look_at(self, path: Path) -> None:
        """See how far the store says that each group is."""
        numbers, groups, letters = trio.run(_contents, path)
        for number, position in self.accepted.items():
            if numbers.get(position) != number:
                found = numbers.get(position)
                raise Violation(f"{number} was accepted at {position}, which has {found}")
        if sorted(numbers) != list(range(1, len(numbers) + 1)):
            raise Violation(f"the positions have gaps: {sorted(numbers)}")
        places = {number: position for position, number in numbers.items()}
        for group in GROUPS:
            ranges = groups.get(group, [])
            settled = {
                number
                for position, number in numbers.items()
                if any(first <= position <= last for first, last in ranges)
            }
            lives = self.handled[group]
            for number in lives[-1]:
                if number not in places:
                    raise Violation(f"group {group!r} handled {number}, which is not stored")
            before = self.settled.setdefault(group, [])
            again = before[-1] & set(lives[-1]) if before else set()
            if again:
                raise Violation(f"group {group!r} handled {again} again, which was settled")
            for life in lives:
                _check_order(group, life, places)
            done = {number for life in lives for number in life}
            lost = {n for n in settled if n not in done and (group, n) not in letters}
            # The line about a handled event can be lost with the process, its record cannot be
            # there without the handler having returned: so nothing settled may be unreported.
            if lost:
                raise Violation(f"group {group!r} has {lost} as settled and never handled it")
            must = set(lives[-1][: self._recorded[GROUPS.index(group)]]) - settled
            if must:
                raise Violation(f"group {group!r} handled {must}, which a later commit left out")
            earlier = {number for life in lives[:-1] for number in life}
            self.repeated += len(earlier & set(lives[-1]))
            before.append(settled)

    def look_at_the_end(self, path: Path) -> None:
        """See that everything was dealt with."""
        numbers, _, letters = trio.run(_contents, path)
        for group in GROUPS:
            done = {number for life in self.handled[group] for number in life}
            dead = {number for name, number in letters if name == group}
            missing = set(numbers.values()) - done - dead
            if missing:
                raise Violation(f"group {group!r} has not handled {sorted(missing)}")
            wrongly = {n for n in dead if n % POISON} | {n for n in done if n % POISON == 0}
            if wrongly:
                raise Violation(f"group {group!r} has the wrong dead letters: {sorted(wrongly)}")
        beside = sorted(entry.name for entry in path.parent.iterdir())
        if beside != [path.name]:
            raise Violation(f"beside the store was left: {beside}")


def _check_order(group: str, life: list[int], places: dict[int, int]) -> None:
    lanes = defaultdict(list)
    for number in life:
        lanes[number % AGGREGATES].append(places[number])
    for key, positions in lanes.items():
        if positions != sorted(set(positions)):
            raise Violation(f"group {group!r} handled aggregate {key} as {positions}")


async def _contents(
    path: Path,
) -> tuple[dict[int, int], dict[str, list[tuple[int, int]]], set[tuple[str, int]]]:
    """Return numbers by position, settled ranges by group, and the numbers of dead letters."""
    async with triobus.SqliteEventStore(path) as store:
        after = -1
        position = 0
        while position != after:
            after = position
            position, damaged = await store.check(after)
            if damaged:
                raise Violation(f"the log is damaged at {damaged}")
        numbers = {stored.position: stored.event.number async for stored in store.read()}
        groups = {group.name: [(1, group.offset), *group.ranges] for group in await store.groups()}
        keys = await store.letter_keys()
        return numbers, groups, {(key.group, numbers[key.position]) for key in keys}


def torture(rounds: int, seed: int, say: Callable[[str], None]) -> int:
    """Run so many rounds; return how many events were handled twice. Raises `Violation`."""
    repeated = accepted = 0
    for number in range(rounds):
        chance = random.Random(f"{seed} {number}")
        with tempfile.TemporaryDirectory(prefix="triobus-") as directory:
            path = Path(directory, "torture.db")
            found = Round()
            first = 1
            for _ in range(chance.randrange(1, LIVES)):
                first = found.run_life(path, first, lines=chance.randrange(1, 400))
                found.look_at(path)
            found.run_life(path, first, lines=None)
            found.look_at(path)
            found.look_at_the_end(path)
        repeated += found.repeated
        accepted += len(found.accepted)
        say(
            f"round {number + 1} of {rounds}: {len(found.accepted)} accepted, none lost, "
            f"{found.repeated} handled twice"
        )
    say(f"{rounds} rounds: {accepted} accepted, none lost, {repeated} handled twice")
    return repeated
