"""Where lines come from: in chunks, and never more of one line in memory than is allowed."""

import errno
import os
import stat
import sys
from typing import NamedTuple, Protocol

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


class Source(Protocol):
    """Something to read bytes from."""

    name: str
    """What messages call it."""
    size: int | None
    """How many bytes there are, if that is known."""

    async def open(self) -> None:
        """Get ready; raises `CommandError`."""

    async def read(self) -> bytes:
        """Return the next bytes, or none at the end; raises `CommandError`."""

    def close(self) -> None:
        """Let go of it."""


@attrs.define(eq=False)
class BytesSource:
    """Bytes that are there already."""

    _rest: bytes
    name: str
    size: int | None = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.size = len(self._rest)

    async def open(self) -> None:
        """Do nothing."""

    async def read(self) -> bytes:
        """Return the next chunk."""
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
            # Opening a named pipe waits for somebody to write to it.
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
        """Return the next bytes, as many as there are at once; none at the end."""
        fd = self._fd
        assert fd is not None
        if self._may_block:
            self._fd = None  # an abandoned read still has the descriptor, so nobody may close it
        try:
            chunk = await run_in_thread(os.read, fd, _CHUNK, abandon_on_cancel=self._may_block)
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from None
        self._fd = fd
        return chunk

    def close(self) -> None:
        """Close what was opened."""
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
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return CommandError(f"cannot read {self.name}: {reason}")


@attrs.define(eq=False)
class LineSplitter:
    """Cuts chunks of bytes into lines, passing over blank ones.

    A line that is too long is reported as soon as that is known, and the rest of it is dropped.
    """

    _number: int = 1
    _pending: bytearray = attrs.field(factory=bytearray)
    _is_too_long: bool = False

    def feed(self, chunk: bytes) -> list[Line]:
        """Return the lines that end in this chunk."""
        lines: list[Line] = []
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            self._add(end, lines)
            self._end_line(lines)
        self._add(rest, lines)
        return lines

    def end(self) -> list[Line]:
        """Return the last line, if it has no line end."""
        lines: list[Line] = []
        self._end_line(lines)
        return lines

    def _add(self, part: bytes, lines: list[Line]) -> None:
        if self._is_too_long:
            return
        if len(self._pending) + len(part) > LONGEST_LINE:
            self._is_too_long = True
            self._pending.clear()
            lines.append(Line(self._number, None))
        else:
            self._pending += part

    def _end_line(self, lines: list[Line]) -> None:
        text = bytes(self._pending)
        if text.strip():
            lines.append(Line(self._number, text))
        self._pending.clear()
        self._is_too_long = False
        self._number += 1
