"""Standard output and standard error, whose reader may go away while handlers print."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class ReaderGone(BaseException):
    """The reader of the output has gone, so that there is nothing left to do.

    As with KeyboardInterrupt it is no failure of the handler that printed. It ends the run, and
    with a store the event comes on the next start.
    """


class _Descriptor(io.FileIO):
    """A file descriptor whose reader may go away."""

    is_reader_gone = False

    def write(self, data: object, /) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]  # a buffer hands it over
        except BrokenPipeError:
            self.is_reader_gone = True
            raise ReaderGone from None


def is_reader_gone() -> bool:
    """Whether the reader of the output has gone, so that the run is ending."""
    return any(
        isinstance(raw := getattr(getattr(stream, "buffer", None), "raw", None), _Descriptor)
        and raw.is_reader_gone
        for stream in (sys.stdout, sys.stderr)
    )


@contextmanager
def readers_watched() -> Iterator[None]:
    """Let printing inside the block raise `ReaderGone` when the reader has gone.

    A stream that is no file, such as a test's, stays as it is.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _watched(before[0]), _watched(before[1])
    try:
        yield
        _flush(sys.stdout)
    finally:
        sys.stdout, sys.stderr = before


def drop_output() -> None:
    """Let all that is printed from now on go nowhere, as the interpreter's own last flush does."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _watched(stream: TextIO | None) -> TextIO:
    if stream is None:  # it was closed before the program began
        return open(os.devnull, "w")  # it lives as long as the program
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return stream
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    _flush(stream)
    return io.TextIOWrapper(
        io.BufferedWriter(_Descriptor(descriptor, "wb", closefd=False)),
        stream.encoding,
        "backslashreplace",  # a text that the terminal cannot show must not end the run
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _flush(stream: TextIO) -> None:
    try:
        stream.flush()
    except BrokenPipeError:
        raise ReaderGone from None
