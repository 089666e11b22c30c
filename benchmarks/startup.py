"""How long it takes until a bus runs: importing it, starting it, opening its store."""

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import trio

import triobus
from benchmarks.measuring import Benchmark, Competitor
from benchmarks.work import new_paths

TRIO = "import trio"
_IMPORT = """
import sys, time
sys.path[:0] = {path!r}
for module in {before!r}:
    __import__(module)
started = time.perf_counter()
__import__({module!r})
print(time.perf_counter() - started)
"""


def import_ms(module: str, *before: str) -> float:
    """Return the milliseconds that an import takes after others, in a process of its own.

    It is made twice: what is installed has been compiled before, and a checkout may not have been.
    """
    program = _IMPORT.format(path=sys.path, before=before, module=module)
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            capture_output=True,
            text=True,
            env=environment,
        )
    return float(done.stdout) * 1e3


def start_and_stop_ms(path: Path | None) -> float:
    """Return the milliseconds of starting and stopping a bus, with a new store or without."""

    async def run() -> float:
        started = time.perf_counter()
        store = None if path is None else triobus.SqliteEventStore(path)
        async with triobus.EventBus(store):
            pass
        return (time.perf_counter() - started) * 1e3

    return trio.run(run)


def benchmark(stack: ExitStack, *, quick: bool) -> Benchmark:  # noqa: ARG001  # as every benchmark
    """Return the competitors."""
    paths = new_paths(stack)
    return Benchmark(
        "startup",
        "Milliseconds until it runs",
        [
            Competitor(TRIO, lambda: import_ms("trio"), "ms", kind="limit"),
            Competitor(
                "import triobus after it", lambda: import_ms("triobus", "trio"), "ms", bound=60
            ),
            Competitor("a bus, started and stopped", lambda: start_and_stop_ms(None), "ms"),
            Competitor("the same with a new store", lambda: start_and_stop_ms(next(paths)), "ms"),
        ],
    )
