"""What goes wrong with a store's file, as errors that say what to do."""

import math
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from triobus._errors import (
    NotAStore,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreInUse,
    StoreIOError,
    StoreReadOnly,
)
from triobus._text import line
from triobus.stores.sqlite._rows import UNREADABLE

BUSY_SECONDS = 1.0
"""How long SQLite waits for a lock that is not ours; a checkpoint of another process is shorter."""
STEPS_BETWEEN_LOOKS = 10_000
"""After how many steps of its virtual machine SQLite asks whether a call is endless."""
RESTORE = "Restore the file from a backup"

_ROOM_TO_SPARE = 2**20
_COMPRESSION = 16
"""By how much a file system may make a file smaller than it is."""
_STEPS_TO_SPARE = 2_000_000
_STEPS_A_BYTE = 4
"""How much of SQLite's work may be done for a byte of the file in one call; statistics take 0.2. A
file whose pages refer to each other in a circle would make work without end."""


@attrs.define(eq=False)
class Faults:
    """Explains what goes wrong with one file."""

    shown: str
    """The store, as messages name it."""
    path: str | None = None
    """The path of the open file; None while it is closed, and for a store in memory."""
    _work: int = 0
    _is_bounded: bool = True
    """Whether the call only reads, so that the file bounds its work."""
    deadline: float | None = None
    """Until when a program's own function may work, by `time.monotonic`; None for no end."""

    def corrupt(self, position: int, what: str) -> StoreCorrupt:
        """Return the error of a log that is damaged at a position."""
        error = StoreCorrupt(
            f"{self.shown} is damaged at position {position}: {what}. 'triobus verify' says what "
            f"is whole. {RESTORE}"
        )
        error.position = position
        return error

    @contextmanager
    def explained(self, action: str) -> Iterator[None]:
        """Raise what SQLite says, and what cannot be read, as an error of ours."""
        self._work, self._is_bounded = 0, action not in ("be written", "be asked")
        try:
            yield
        except sqlite3.Error as error:
            raise self._explanation(error, action) from error
        except StoreError:
            raise  # some are a ValueError or an OSError, too
        except OSError as error:
            raise StoreIOError(
                f"{self.shown} could not {action}: {line(str(error))}. Look at the disk, then try "
                "it again"
            ) from error
        except UNREADABLE as error:
            raise StoreCorrupt(
                f"{self.shown} is damaged: it has a row that cannot be read ({line(str(error))}). "
                f"{RESTORE}"
            ) from error

    def room(self) -> float:
        """Return about how many bytes there are, however long an empty file claims to be."""
        if self.path is None:
            return float("inf")
        room: float = _ROOM_TO_SPARE
        for path in (self.path, self.path + "-wal"):
            try:
                status = os.stat(path)
            except FileNotFoundError:
                continue
            on_disk = getattr(status, "st_blocks", math.inf) * 512 * _COMPRESSION
            room += min(status.st_size, on_disk)
        return room

    def is_endless(self) -> bool:
        """Whether a call does more work than there can be in the file; SQLite asks now and then."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            return True
        self._work += STEPS_BETWEEN_LOOKS
        return self._is_overworked

    @property
    def _is_overworked(self) -> bool:
        return self._is_bounded and self._work > _STEPS_TO_SPARE + _STEPS_A_BYTE * self.room()

    def _explanation(self, error: sqlite3.Error, action: str) -> StoreError:
        name = getattr(error, "sqlite_errorname", "")
        # What SQLite says quotes the file, such as the name of a table.
        failed = f"{self.shown} could not {action}: {line(str(error))}"
        if name == "SQLITE_FULL":
            return StoreFull(f"{failed}. Make room on the disk, and try it again")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return StoreInUse(
                f"{failed}. Another program than triobus has locked it for more than "
                f"{BUSY_SECONDS:g} s: end that program"
            )
        if name.startswith("SQLITE_READONLY"):
            return StoreReadOnly(f"{failed}. Make file and directory writable")
        if name.startswith("SQLITE_NOTADB"):
            return NotAStore(
                f"{failed}. Give the path of a store, or one where there is no file yet"
            )
        if name == "SQLITE_INTERRUPT" and not self._is_overworked:
            return StoreIOError(f"{failed}. Try it again")
        if name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_PROTOCOL")):
            return StoreIOError(f"{failed} ({name}). Look at the disk and its limits")
        if name.startswith("SQLITE_CORRUPT"):
            failed = f"{self.shown} is damaged and could not {action}: {line(str(error))}"
        if name == "SQLITE_INTERRUPT":
            failed = f"{self.shown} is damaged: it is longer to read than its file is long"
        return StoreCorrupt(f"{failed}. {RESTORE}")
