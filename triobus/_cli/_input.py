"""Where lines come from: in chunks, and never more of one line in memory than is allowed."""

import errno
import os
import stat
import sys
from typing import NamedTuple

import attrs

from triobus._cli._messages import CommandError
from triobus._threads import run_in_thread

LONGEST_LINE = 1024 * 1024
_CHUNK = 64 * 1024


class Line(NamedTuple):
    """One line that is not blank."""

    number: int
    """Its place in the input, from 1."""
    text: bytes | None
    """The line without its end, or None for one that is too long."""


@attrs.define(eq=False)
class BytesSource:
    """Bytes that are there already."""

    _rest: bytes
    name: str
    """What messages call it."""
    size: int | None = attrs.field(init=False)
    """How many bytes there are, if that is known."""

    def __attrs_post_init__(self) -> None:
        self.size = len(self._rest)

    async def open(self) -> None:
        """Do nothing."""

    async def read(self) -> bytes:
        """Return the next chunk, or nothing at the end."""
        chunk, self._rest = self._rest[:_CHUNK], self._rest[_CHUNK:]
        return chunk

    def close(self) -> None:
        """Do nothing."""


@attrs.define(eq=False)
class FileSource:
    """A file, or standard input for the path "-".

    It reads the file descriptor: the buffered readers of Python hold a lock while they wait, over
    which the interpreter would stumble at its end when the read was abandoned.
    """

    _path: str
    name: str = attrs.field(init=False)
    size: int | None = attrs.field(default=None, init=False)
    _fd: int | None = attrs.field(default=None, init=False)
    _may_block: bool = attrs.field(default=True, init=False)
    """Whether a read can take for ever, as with a terminal or a pipe; then it may be abandoned."""

    def __attrs_post_init__(self) -> None:
        self.name = "standard input" if self._path == "-" else repr(self._path)

    async def open(self) -> None:
        """Open the file; raises `CommandError`."""
        if "\0" in self._path:  # every Python version words this differently
            raise CommandError(f"cannot read {self.name}: a path holds no null character")
        try:
            # Opening a named pipe waits for its writer.
            fd = await run_in_thread(self._open, abandon_on_cancel=True)
            status = os.fstat(fd)
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from None
        self._fd = fd
        if stat.S_ISDIR(status.st_mode):
            raise CommandError(f"cannot read {self.name}: it is a directory")
        self._may_block = not stat.S_ISREG(status.st_mode)
        self.size = None if self._may_block else status.st_size

    async def read(self) -> bytes:
        """Return the bytes that are there, or nothing at the end; raises `CommandError`."""
        fd = self._fd
        assert fd is not None
        if self._may_block:
            self._fd = None  # an abandoned read still uses the descriptor, so it stays open
        try:
            chunk = await run_in_thread(os.read, fd, _CHUNK, abandon_on_cancel=self._may_block)
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from None
        self._fd = fd
        return chunk

    def close(self) -> None:
        """Close the file, unless it is standard input."""
        if self._fd is not None and self._path != "-":
            os.close(self._fd)
        self._fd = None

    def _open(self) -> int:
        if self._path == "-":
            if sys.__stdin__ is None:
                raise OSError(errno.EBADF, "it is closed")
            return 0
        return os.open(self._path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def _unreadable(self, error: OSError | ValueError) -> CommandError:
        return CommandError(f"cannot read {self.name}: {getattr(error, 'strerror', None) or error}")


Source = BytesSource | FileSource


@attrs.define(eq=False)
class LineSplitter:
    """Cuts chunks of bytes into lines, passing over blank ones.

    A line that is too long is reported as soon as that is known, and the rest of it is dropped.
    """

    longest: int = LONGEST_LINE
    _number: int = 1
    _pending: bytearray = attrs.field(factory=bytearray)
    _is_too_long: bool = False

    def feed(self, chunk: bytes) -> list[Line]:
        """Return the lines that end in this chunk."""
        *ends, rest = chunk.split(b"\n")
        lines = [line for end in ends for line in [*self._add(end), *self.end()]]
        return lines + self._add(rest)

    def end(self) -> list[Line]:
        """Return the line that has come so far, unless it is blank, and begin the next one."""
        text = bytes(self._pending)
        lines = [Line(self._number, text)] if text.strip() else []
        self._pending.clear()
        self._is_too_long = False
        self._number += 1
        return lines

    def _add(self, part: bytes) -> list[Line]:
        if self._is_too_long:
            return []
        if len(self._pending) + len(part) > self.longest:
            self._is_too_long = True
            self._pending.clear()
            return [Line(self._number, None)]
        self._pending += part
        return []
