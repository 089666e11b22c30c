"""Records what a bus with a store lets reach the disk, in order, by a shim built on the spot."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import attrs

from tests.proofs.torture.power_disk import Disk, Operation, operations
from tests.proofs.torture.power_life import GROUPS, LIVES
from tests.proofs.torture.violation import ROOT, Violation

STORE = "power.db"
MAPPED = "-shm"
"""What is written through a mapping and cannot be recorded; SQLite makes it anew."""
SECONDS = 120


@attrs.frozen
class Recording:
    """Everything that reached the disk, in order, and the marks between."""

    directory: int
    """The inode of the directory, as the operations call it."""
    operations: tuple[Operation, ...]
    synchronous: str


def reason_against() -> str | None:
    """Say why nothing can be recorded here; None if it can."""
    if not sys.platform.startswith("linux"):
        return f"the simulation of power cuts was left out: no LD_PRELOAD on {sys.platform}"
    if shutil.which("cc") is None:
        return "the simulation of power cuts was left out: there is no C compiler (cc)"
    return None


def scratch() -> str | None:
    """Return where temporary directories are fastest."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def record(synchronous: str, bug: str = "") -> Recording:
    """Let a bus live three times, once until it dies, and return what reached the disk.

    `bug` is one of those of `power_effects`, or nothing.
    Raises `Violation` if the recording does not explain the files that are there afterwards.
    """
    with tempfile.TemporaryDirectory(prefix="triobus-power-", dir=scratch()) as parent:
        library, log, directory = Path(parent, "shim.so"), Path(parent, "log"), Path(parent, "disk")
        source = Path(__file__).with_name("power_shim.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        directory.mkdir()
        disk = Disk(directory.stat().st_ino)
        recorded: list[Operation] = []
        for life in range(LIVES):
            arguments = [str(directory / STORE), str(life), synchronous, bug]
            subprocess.run(
                [sys.executable, "-m", "tests.proofs.torture.power_life", *arguments],
                env=os.environ
                | {
                    "LD_PRELOAD": str(library),
                    "POWER_LOG": str(log),
                    "POWER_DIRECTORY": str(directory),
                },
                cwd=ROOT,
                timeout=SECONDS,
                check=True,
            )
            new = list(operations(log.read_bytes()))
            log.unlink()
            for operation in new:
                disk.apply(operation)
            recorded += new
            if different := disk.differs(directory, MAPPED):
                raise Violation(f"life {life}: the recording does not explain {different}")
    _check_recorded(recorded, synchronous)
    return Recording(disk.inode, tuple(recorded), synchronous)


def _check_recorded(recorded: list[Operation], synchronous: str) -> None:
    """See that there was something to lose."""
    kinds = {operation.kind for operation in recorded}
    words = {operation.data.split()[0] for operation in recorded if operation.kind == "mark"}
    missing = {"create", "write", "truncate", "sync", "unlink", "mark"} - kinds
    missing |= {str(word) for word in {b"accepted", b"handled", b"recorded"} - words}
    for group in GROUPS:
        mark = f"handled {group} ".encode()
        if not any(operation.data.startswith(mark) for operation in recorded):
            missing.add(mark.decode())
    if missing:
        raise Violation(f"with synchronous={synchronous} nothing was recorded of {missing}")
