"""What other processes, disks and careless people do to a store. Each proves that it was done."""

import itertools
import math
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.proofs.torture.children import Child, Server
from tests.proofs.torture.contents import contents
from tests.proofs.torture.history import History
from tests.proofs.torture.violation import NotPossible, Violation

Lines = list[list[str]]


# Two processes and one file


def two_processes(servers: Sequence[Server], events: int = 25) -> str:
    """Two processes fight for one file; a third is killed while it has it."""
    with tempfile.TemporaryDirectory(prefix="triobus-") as directory:
        path = Path(directory, "torture.db")
        one, other = servers
        children = [
            server.start("contend", str(path), first, events)
            for server, first in ((one, 1), (other, 1001))
        ]
        with ThreadPoolExecutor(2) as pool:
            lines = list(pool.map(Child.run, children))
        _check_fight(lines, [child.pid for child in children])
        accepted = _accepted(lines[0] + lines[1])
        _check_kept(path, accepted)
        with one.start("hold", str(path)) as holder:
            if ["has"] not in [words[:1] for words in _until(holder.lines(), "has")]:
                raise Violation("the one that was to be killed never had the store")
            with other.start("contend", str(path), 2001, 1) as waiting:
                refusal = _until(waiting.lines(), "in-use")[-1]
                holder.kill()
                holder.wait()
                rest = waiting.run()
        if refusal != ["in-use", str(holder.pid)] or ["has"] not in [w[:1] for w in rest]:
            raise Violation(f"after the kill the other had {refusal} and {rest}")
        _check_kept(path, accepted | _accepted(rest))
    refusals = sum(words[0] == "in-use" for words in lines[0] + lines[1])
    return (
        f"{len(accepted)} events accepted, all kept; {refusals} times "
        "StoreInUse with the right pid, never both at once; after a kill the other gets in"
    )


def _check_fight(lines: list[Lines], pids: list[int]) -> None:
    spans: list[tuple[int, int]] = []
    for mine, other in zip(lines, reversed(pids), strict=True):
        refusals = {words[1] for words in mine if words[0] == "in-use"}
        if not refusals:
            raise Violation("one of two processes was never refused: there was no fight")
        # None if the other has let go before it could be asked for its pid.
        if not refusals <= {str(other), "None"} or str(other) not in refusals:
            raise Violation(f"process {other} had the store and {refusals} was named")
        starts = [int(words[1]) for words in mine if words[0] == "has"]
        ends = [int(words[1]) for words in mine if words[0] == "lets-go"]
        spans.extend(zip(starts, ends, strict=True))
    spans.sort()
    for (_, end), (start, _) in itertools.pairwise(spans):
        if start < end:
            raise Violation("both processes had the store at the same time")


# A reader


def a_reader(servers: Sequence[Server], events: int = 300) -> str:
    """A process reads from end to end, again and again, what another one writes."""
    with tempfile.TemporaryDirectory(prefix="triobus-") as directory:
        path = Path(directory, "torture.db")
        with servers[1].start("read", str(path), events) as reader:
            _until(reader.lines(), "waiting")
            writer = servers[0].start("write", str(path), events)
            with ThreadPoolExecutor(2) as pool:
                written, read = pool.map(Child.run, (writer, reader))
        _check_kept(path, _accepted(written))
    times = [int(words[2]) for words in written if words[0] == "wrote"]
    midway = 0
    for _, began, *found in read:
        if len(found) > 1:
            raise Violation(f"a reader found {' '.join(found)}")
        accepted = sum(moment < int(began) for moment in times)
        if int(found[0]) < accepted:
            raise Violation(f"a reader saw {found[0]} of {accepted} events", "lost")
        midway += 0 < int(found[0]) < events
    if not midway:
        raise Violation("the reader has never read while there was writing")
    return (
        f"{len(read)} readings during {events} writes, {midway} of them midway; each whole, "
        "without gaps, and with everything that was accepted before it began"
    )


# A full disk


def a_full_disk(server: Server) -> str:
    """A small disk fills and empties again, and a program crashes on it when it is full."""
    if os.getuid() != 0 or shutil.which("mount") is None:
        raise NotPossible("mounting a small disk needs root; the limit of file sizes stands for it")
    said = []
    for crashes in (False, True):
        with tempfile.TemporaryDirectory(prefix="triobus-") as directory, _mounted(directory):
            said.append(_fill(server, Path(directory), "StoreFull", crashes=crashes))
    return f"{said[0]}; with a crash when it was full, {said[1]}"


def a_file_limit(server: Server) -> str:
    """The same with a limit of file sizes, which anyone can set."""
    said = []
    for crashes in (False, True):
        with tempfile.TemporaryDirectory(prefix="triobus-") as directory:
            said.append(_fill(server, Path(directory), "StoreIOError", crashes=crashes))
    return f"{said[0]}; with a crash at the limit, {said[1]}"


@contextmanager
def _mounted(directory: str) -> Iterator[None]:
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", directory]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        raise NotPossible(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


def _fill(server: Server, directory: Path, error: str, *, crashes: bool) -> str:
    path = directory / "torture.db"
    history = History()
    lines = server.start("fill", str(path), error != "StoreFull", crashes).run()
    for words in lines:
        history.note(words)
    refused = [words[2] for words in lines if words[0] == "refused"]
    if set(refused) != {error}:
        raise Violation(f"a full disk was told as {refused}, not {error}")
    if any(words[0] == "still-full" for words in lines):
        raise Violation("there was room again, and events were refused")
    (directory / "ballast").unlink(missing_ok=True)
    _end(server, path, history)
    return f"{len(refused)} events refused ({error}), {len(history.accepted)} accepted and kept"


def _end(server: Server, path: Path, history: History) -> None:
    """Look at what a life has left, and let the next one come to its end."""
    history.look_at(path)
    again = sorted(history.uncertain)
    history.begin()
    for words in server.start("live", str(path), 10_000, again, "ending", None).run():
        history.note(words)
    history.look_at(path)
    history.look_at_the_end(path)


# Files that are removed or replaced


def _remove(path: Path) -> None:
    path.unlink()


def _rename(path: Path) -> None:
    path.rename(path.with_name("moved"))


def _replace(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(path.read_bytes() if path.name.endswith("-wal") else b"")
    new.replace(path)


HARMS: tuple[tuple[str, Callable[[Path], None]], ...] = tuple(
    (suffix, harm) for suffix in ("", "-wal") for harm in (_remove, _rename, _replace)
)


def replaced_files(server: Server, chance: random.Random, moments: int = 6) -> str:
    """The store's file or its `-wal` is removed, renamed or replaced while a bus writes."""
    kept = 0
    for suffix, harm in HARMS:
        for moment in (0, 1, *(chance.randint(2, 60) for _ in range(moments - 2))):
            kept += _harm(server, suffix, harm, moment)
    return (
        f"{len(HARMS) * moments} times while a bus ran: {kept} events accepted before, each time "
        "StoreReplaced at the next commit and nothing accepted after it"
    )


def _harm(server: Server, suffix: str, harm: Callable[[Path], None], moment: int) -> int:
    """Do harm after so many accepted events; return how many were accepted before."""
    what = f"{harm.__name__[1:]} of {suffix or 'the file'} after {moment} events"
    with tempfile.TemporaryDirectory(prefix="triobus-") as directory:
        path = Path(directory, "torture.db")
        with server.start("go-on", str(path)) as child:
            done_at = begun = accepted = 0
            refused = []
            for words in child.lines():
                if words[0] == "committing":
                    begun = int(words[1])
                elif words[0] == "accepted":
                    accepted += 1
                    if done_at and begun > done_at:
                        raise Violation(f"{what}: {words[1]} was accepted into the void", "lost")
                elif words[0] == "refused":
                    refused.append(words[2])
                if not done_at and words[0] in ("phase", "accepted") and accepted == moment:
                    harm(path.with_name(path.name + suffix))
                    done_at = time.monotonic_ns()
            code = child.wait()
    if code or not done_at or set(refused) != {"StoreReplaced"}:
        raise Violation(f"{what}: refused were {refused}, and it ended with {code}")
    return accepted


# What they share


def _accepted(lines: Lines) -> dict[int, int]:
    return {int(words[1]): int(words[2]) for words in lines if words[0] == "accepted"}


def _until(lines: Iterator[list[str]], kind: str) -> Lines:
    found = []
    for words in lines:
        found.append(words)
        if words[0] == kind:
            break
    return found


def _check_kept(path: Path, accepted: dict[int, int]) -> None:
    numbers = contents(path).numbers
    lost = [number for number, position in accepted.items() if numbers.get(position) != number]
    if lost:
        raise Violation(f"{lost} were accepted and are not in the log", "lost")


FAULTS: dict[str, Callable[[Sequence[Server], random.Random], str]] = {
    "two processes, one file": lambda servers, _: two_processes(servers),
    "a reader": lambda servers, _: a_reader(servers),
    "a full disk of 1 MiB": lambda servers, _: a_full_disk(servers[0]),
    "a limit of file sizes": lambda servers, _: a_file_limit(servers[0]),
    "files removed, renamed or replaced": lambda servers, chance: replaced_files(
        servers[0], chance
    ),
}


def torture(
    servers: Sequence[Server], seed: int, say: Callable[[str], None], *, ends: float = math.inf
) -> list[Violation]:
    """Try everything, say a line about each, and return what was violated."""
    violations = []
    for name, fault in FAULTS.items():
        try:
            if time.monotonic() > ends:
                raise NotPossible("the time is over")
            say(f"{name}: {fault(servers, random.Random(seed))}")
        except NotPossible as reason:
            say(f"{name}: skipped, {reason}")
        except Violation as violation:
            violations.append(violation)
            say(f"{name}: {violation}")
    return violations
