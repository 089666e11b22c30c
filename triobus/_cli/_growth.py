"""Waiting until a store has changed, asleep meanwhile."""

import ctypes
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from triobus._cli._messages import CommandError
from triobus._cli._stores import name_of
from triobus._text import leaves
from triobus._threads import run_in_thread
from triobus.stores import EventStore, PostgresEventStore

_LIBRARY = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_MODIFIED, _MOVED_HERE, _CREATED = 0x02, 0x80, 0x100
"""Of inotify(7): what is written to, renamed or made in a directory."""
_SECONDS_BETWEEN_LOOKS = 1.0
"""Where there is no inotify."""
_BYTES = 65536


@asynccontextmanager
async def growing(store: EventStore) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Have a function that returns when something was stored since it was called last."""
    if not isinstance(store, PostgresEventStore):
        with Growth(name_of(store)) as growth:
            yield growth.wait
        return
    grown = trio.Event()

    def hear(*_: object) -> None:
        grown.set()

    async def wait() -> None:
        nonlocal grown
        await grown.wait()
        grown = trio.Event()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store._listen, hear)
            yield wait
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise leaves(group)[0] from None  # of the block, or of the connection


class Growth:
    """Tells that something was written beside a path since it was asked last."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._identity = _identity(path)
        self._descriptor: int | None = None

    async def wait(self) -> None:
        """Return when something has been written. Raises `CommandError` if the file is gone."""
        if self._descriptor is not None:
            await trio.lowlevel.wait_readable(self._descriptor)
            # What comes at once is one change, however often it was written.
            while self._drain():
                pass
        else:
            await _changed(self._path)
        if _identity(self._path) != self._identity:
            raise CommandError(f"store {self._path!r} was removed or replaced; look again")

    def _drain(self) -> bool:
        assert self._descriptor is not None
        with suppress(BlockingIOError):
            return len(os.read(self._descriptor, _BYTES)) > 0
        return False

    def __enter__(self) -> "Growth":
        if _LIBRARY is None:
            return self
        self._descriptor = _LIBRARY.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        directory = os.fsencode(os.path.dirname(os.path.realpath(self._path)))
        mask = _MODIFIED | _MOVED_HERE | _CREATED
        if (
            self._descriptor < 0
            or _LIBRARY.inotify_add_watch(self._descriptor, directory, mask) < 0
        ):
            self._close()  # there are no more watches to be had
        return self

    def __exit__(self, *_: Any) -> None:
        self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None and descriptor >= 0:
            os.close(descriptor)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


async def _changed(path: str) -> None:
    before = await run_in_thread(_times, path)
    while await run_in_thread(_times, path) == before:  # noqa: ASYNC110  # a file tells nobody
        await trio.sleep(_SECONDS_BETWEEN_LOOKS)


def _times(path: str) -> list[tuple[int, int] | None]:
    found: list[tuple[int, int] | None] = []
    for name in (path, path + "-wal"):
        try:
            status = os.stat(name)
        except OSError:
            found.append(None)
        else:
            found.append((status.st_mtime_ns, status.st_size))
    return found
