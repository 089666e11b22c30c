"""Peers, each in a process of its own: `python -m benchmarks.peers NAME` works for this one.

A peer's process is started once and asked over its pipes, so that its imports and its memory are
its own affair, and its rounds take their turns with everybody's.
"""

import asyncio
import gc
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.measuring import Competitor
from benchmarks.peers_durable import DURABLE
from benchmarks.peers_in_memory import IN_MEMORY, no_op_handlers
from benchmarks.work import BATCH

EVENTS = {"bubus": 300, "abxbus": 600}
"""How many events the slow ones get where the others get ten thousand."""


def package_of(name: str) -> str:
    """Return the package of a peer, or of one of its variants."""
    return name.partition(",")[0]


def versions() -> dict[str, str]:
    """Return the versions of the peers that are installed."""
    found = {}
    for name in (*IN_MEMORY, *DURABLE):
        try:
            found[package_of(name)] = version(package_of(name))
        except PackageNotFoundError:
            continue
    return found


# This side


@contextmanager
def process(name: str) -> Iterator[subprocess.Popen[str]]:
    """Start the process of a peer, and end it in the end."""
    quiet = {"BUBUS_LOGGING_LEVEL": "ERROR", "ABXBUS_LOGGING_LEVEL": "ERROR"}
    started = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.peers", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        env=os.environ | quiet,
        text=True,
    )
    try:
        yield started
    finally:
        started.communicate()  # its input ends, and so does it


def ask(peer: subprocess.Popen[str], **question: Any) -> float:
    """Let a peer measure something, and return the figure."""
    assert peer.stdin is not None
    assert peer.stdout is not None
    print(json.dumps(question), file=peer.stdin, flush=True)
    answer = peer.stdout.readline()
    if not answer:
        raise RuntimeError(f"the process of a peer ended with {peer.wait()} at {question}")
    return float(json.loads(answer))


def competitors(
    stack: ExitStack,
    work: str,
    *,
    is_durable: bool = False,
    scale: float = 1.0,
    handlers: int = 1,
    bounds: Mapping[str, float] | None = None,
    **options: Any,
) -> Iterator[Competitor]:
    """Yield the peers that are installed, each with a process for as long as the stack."""
    installed = versions()
    for name, (_, lacks) in (DURABLE if is_durable else IN_MEMORY).items():
        if package_of(name) not in installed:
            continue
        peer = stack.enter_context(process(name))
        count = max(100, round(scale * EVENTS.get(name, 1000 if is_durable else 10_000)))

        def measure(peer: subprocess.Popen[str] = peer, count: int = count) -> float:
            return ask(peer, work=work, count=count, handlers=handlers)

        bound = (bounds or {}).get(name)
        yield Competitor(name, measure, lacks=lacks, kind="peer", bound=bound, **options)


# That side


async def throughput(name: str, count: int, handlers: int) -> float:
    """Return the handler calls a second, in batches that are waited for."""
    async with IN_MEMORY[name][0](no_op_handlers(handlers)) as bus:
        events = [bus.make(f"aggregate-{number % 100}") for number in range(count)]
        gc.collect()
        gc.freeze()
        started = time.perf_counter()
        for first in range(0, count, BATCH):
            await bus.publish(events[first : first + BATCH])
            await bus.settle()
        return count * handlers / (time.perf_counter() - started)


async def latency(name: str, count: int, handlers: int) -> float:  # noqa: ARG001  # one
    """Return the median of the microseconds to the first line of the handler, on an idle bus."""
    begun = 0.0

    async def handler(event: Any) -> None:  # noqa: ARG001  # the time is what counts
        nonlocal begun
        begun = time.perf_counter()

    took = []
    async with IN_MEMORY[name][0]([handler]) as bus:
        for _ in range(count):
            event = bus.make("aggregate")
            started = time.perf_counter()
            await bus.publish([event])
            await bus.settle()
            took.append(begun - started)
            await asyncio.sleep(0)
    return sorted(took)[count // 2] * 1e6


def durable(name: str, count: int) -> float:
    """Return how many events a second are stored, handled and acknowledged."""
    with tempfile.TemporaryDirectory(prefix="triobus-") as directory:
        started = time.perf_counter()
        DURABLE[name][0](Path(directory, "peer.db"), count)
        return count / (time.perf_counter() - started)


def main(name: str) -> None:
    """Answer a question a line until there is none left."""
    logging.disable(logging.CRITICAL)
    answers, sys.stdout = sys.stdout, sys.stderr  # nothing that a peer prints is an answer
    for line in sys.stdin:
        question = json.loads(line)
        count, handlers = question["count"], question["handlers"]
        if question["work"] == "durable":
            answer = durable(name, count)
        else:
            work = latency if question["work"] == "latency" else throughput
            answer = asyncio.run(work(name, count, handlers))
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
