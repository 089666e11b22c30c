"""What stands between a child and its disk: built on the spot, preloaded, told what to do.

It is a library in C (`shim.c`) that takes the place of write, fsync, ftruncate and unlink. It can
kill the process at any of them, before it, half-way through or after it, or let it fail.
"""

import atexit
import ctypes
import errno
import functools
import shutil
import subprocess
import sys
import tempfile
from enum import IntEnum, IntFlag
from pathlib import Path

import attrs

_SOURCE = Path(__file__).with_name("shim.c")


class Kind(IntFlag):
    """Kinds of operations, as `shim.c` has them."""

    WRITE = 1
    SYNC = 2
    TRUNCATE = 4
    REMOVE = 8
    ANY = 15


class How(IntEnum):
    """What happens to an operation, as `shim.c` has it."""

    NOTHING = 0
    DIE_BEFORE = 1
    DIE_HALF_WAY = 2
    DIE_AFTER = 3
    FAIL = 4


@functools.cache
def built() -> Path | None:
    """Build the library, once a process; None without Linux or a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        return None
    directory = tempfile.TemporaryDirectory(prefix="triobus-shim-")
    atexit.register(directory.cleanup)
    library = Path(directory.name, "shim.so")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, _SOURCE, "-ldl"],
        check=True,
    )
    return library


@attrs.define
class Shim:
    """The library that was preloaded into this process."""

    _library: ctypes.CDLL = attrs.field(factory=lambda: ctypes.CDLL(None), init=False)

    def watch(self, directory: Path, *, reports: int = -1) -> None:
        """Count what is done to the files of a directory, and say it on a file descriptor."""
        self._set("shim_reports", ctypes.c_int, reports)
        self._set_text("shim_directory", 4096, str(directory.resolve(strict=True)))

    def plan(
        self,
        how: How,
        first: int = 1,
        times: int = 1,
        *,
        kinds: Kind = Kind.ANY,
        suffix: str = "",
        error: int = errno.EIO,
    ) -> None:
        """Let that happen to operation `first`, counted from now on, and to those after it."""
        self._set("shim_how", ctypes.c_int, How.NOTHING)
        self._set("shim_kinds", ctypes.c_int, kinds)
        self._set_text("shim_suffix", 64, suffix)
        self._set("shim_error", ctypes.c_int, error)
        self._set("shim_seen", ctypes.c_long, 0)
        self._set("shim_first", ctypes.c_long, first)
        self._set("shim_last", ctypes.c_long, first + times - 1)
        self._set("shim_how", ctypes.c_int, how)

    @property
    def last(self) -> int:
        """The last operation to which the planned happens."""
        return int(ctypes.c_long.in_dll(self._library, "shim_last").value)

    @property
    def seen(self) -> int:
        """How many operations there were since the plan."""
        return int(ctypes.c_long.in_dll(self._library, "shim_seen").value)

    def _set(self, name: str, kind: type[ctypes.c_int] | type[ctypes.c_long], value: int) -> None:
        kind.in_dll(self._library, name).value = value

    def _set_text(self, name: str, size: int, value: str) -> None:
        (ctypes.c_char * size).in_dll(self._library, name).value = value.encode()
