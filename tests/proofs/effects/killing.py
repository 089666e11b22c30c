"""Kills the ledger at random moments, and then counts what is in its tables."""

import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import attrs
import trio

from tests.proofs.effects.ledger import TABLES
from triobus import SqliteEventStore


class NotExactlyOnce(AssertionError):
    """An effect is missing, or is there twice."""


@attrs.define
class Tally:
    """What has been looked at."""

    kills: int = 0
    accepted: int = 0


def lives(path: Path, chance: random.Random, rounds: int, bug: str | None, tally: Tally) -> None:
    """Run the ledger again and again, killed at random, and then to its end; count its effects."""
    accepted: set[int] = set()
    for _ in range(rounds):
        accepted |= _run(path, chance.randrange(2**30), bug, chance.random() * 1.2 + 0.3)
        tally.kills += 1
    accepted |= _run(path, -1, bug if bug == "no-acknowledgement" else None, None)
    tally.accepted += len(accepted)
    _count(path, accepted)


def _run(path: Path, seed: int, bug: str | None, seconds: float | None) -> set[int]:
    """Run it and kill it after some time, unless that is None; return what it has accepted."""
    command = [sys.executable, "-m", "tests.proofs.effects.ledger", str(path), str(seed)]
    with subprocess.Popen(
        [*command, *([bug] if bug else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        if seconds is not None:
            time.sleep(seconds)
            child.send_signal(signal.SIGKILL)
        output, _ = child.communicate()
        if seconds is None and child.returncode:
            raise NotExactlyOnce("the program cannot go on in its store")
    # What was cut off in the middle of a line was accepted as well, and is counted in the store.
    return {int(line) for line in output.split("\n")[:-1]}


def _count(path: Path, accepted: set[int]) -> None:
    with closing(sqlite3.connect(path)) as connection:
        stored = {
            number
            for (number,) in connection.execute(
                "SELECT data ->> 'number' FROM events WHERE event_type = 'Entered'"
            )
        }
        if accepted - stored:
            raise NotExactlyOnce(f"accepted and lost: {sorted(accepted - stored)[:10]}")
        for table in TABLES:
            found = Counter(n for (n,) in connection.execute(f"SELECT number FROM {table}"))
            if set(found) != stored or set(found.values()) > {1}:
                twice = [number for number, count in found.items() if count > 1]
                raise NotExactlyOnce(
                    f"table {table}: {len(stored - set(found))} effects are missing, "
                    f"{len(set(found) - stored)} are of events that are not there, and "
                    f"{len(twice)} are there more than once"
                )
    problems = trio.run(_problems, path)
    if problems:
        raise NotExactlyOnce(f"verify says: {problems}")


async def _problems(path: Path) -> list[str]:
    async with SqliteEventStore(path, read_only=True) as store:
        return await store.problems()
