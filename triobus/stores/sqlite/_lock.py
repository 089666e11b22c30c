"""The lock of a store: one writer at a time, and none that outlives its process."""

import errno
import os
import struct
import sys
from contextlib import suppress

import attrs

from triobus._errors import InvalidStorePath, StoreInUse
from triobus.stores._overview import Holder
from triobus.stores.sqlite._path import (
    BINARY,
    NOT_FOLLOWED,
    NOT_INHERITED,
    NOT_WAITED_FOR,
    StoreFile,
    check_regular,
    explained,
    guard,
    identity_of,
    named,
    status_of,
)

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_ATTEMPTS = 1_000
"""How often a lock file may vanish while it is claimed; each time another writer has released."""


@attrs.define(eq=False)
class Claim:
    """The right to write a store, which one writer has at a time; it ends with its process.

    It is a POSIX lock on `<path>-lock`, which holds the pid of the writer. A process
    can take such a lock twice, and loses it when any descriptor of the file is closed: so the
    claims of this process are registered, and a lock file is opened once. Removing it by
    hand removes the protection.
    """

    file: StoreFile
    pid: int
    """The process that took it."""
    _lock: tuple[int, int]
    _descriptor: int | None
    was_left: bool = False
    """Whether the lock file was there, of a process that ended without releasing its claim."""

    @classmethod
    def take(cls, file: StoreFile) -> "Claim":
        """Claim the store. The lock file of a process that was killed is taken over.

        Raises `StoreInUse` with the pid of the holder, `StoreReadOnly` if the lock file cannot be
        made, `StoreFull`, `InvalidStorePath` if its name is that of something else, `StoreIOError`.
        """
        path = file.path + "-lock"
        with guard:
            for _ in range(_ATTEMPTS):
                _refuse_if_held_here(file, status_of(path))
                with explained(path, "write the lock file", writing=True):
                    locked = _locked(file, path)
                if locked is not None:
                    descriptor, was_left = locked
                    lock = identity_of(os.fstat(descriptor))
                    claim = cls(file, os.getpid(), lock, descriptor, was_left)
                    _held.add(claim)
                    return claim
        raise StoreInUse(
            f"store {named(file.path)} is in use: its lock file {named(path)} was removed or "
            f"replaced {_ATTEMPTS:,} times while it was being locked; look who does that"
        )

    def release(self) -> None:
        """Let the next writer in and remove the lock file. Harmless when repeated or in a fork."""
        with guard:
            if self._descriptor is None or self.pid != os.getpid():
                return
            descriptor, self._descriptor = self._descriptor, None
            _held.discard(self)
            # What cannot be removed stays unlocked, and the next writer takes it over.
            with suppress(OSError):
                _remove_and_close(self.file.path + "-lock", self._lock, descriptor)

    def abandon(self) -> None:
        """Let the next writer in, and leave the lock file there, as a killed process does."""
        with guard:
            _held.discard(self)
            self._close()

    def _close(self) -> None:
        """Close the descriptor; in a forked child, too, which has no lock to lose by it.

        Were it closed later, it would drop the lock that the child may have taken by then.
        """
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)


_held: set[Claim] = set()
"""The claims of this process."""


def holder(file: StoreFile) -> Holder | None:
    """Return who has a store, without a claim to it; None if nobody does. For readers.

    A lock file that this process has locked is not opened: closing it would drop the lock.
    """
    path = file.path + "-lock"
    with guard:
        for claim in _held:
            if (claim.file.device, claim.file.inode) == (file.device, file.inode):
                return Holder(claim.pid)
        try:
            descriptor = os.open(path, os.O_RDONLY | NOT_FOLLOWED | NOT_INHERITED | NOT_WAITED_FOR)
        except FileNotFoundError:
            return None
        except OSError:
            return Holder(None)  # it is there, and is not ours to look into
        try:
            return _seen(descriptor)
        finally:
            os.close(descriptor)


def _forget_in_child() -> None:
    guard.renew()
    for claim in _held:
        claim._close()
    _held.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_in_child)


def _refuse_if_held_here(file: StoreFile, lock: os.stat_result | None) -> None:
    pid = os.getpid()
    for claim in _held:
        # By the lock file, too: another file may have been put in the place of a store in use.
        same_store = (claim.file.device, claim.file.inode) == (file.device, file.inode)
        same_lock = lock is not None and claim._lock == identity_of(lock)
        if claim.pid == pid and (same_store or same_lock):
            raise _in_use(
                file.path, pid, f"in this process ({pid}); use the open store or close it"
            )


def _in_use(path: str, pid: int | None, where: str) -> StoreInUse:
    error = StoreInUse(f"store {named(path)} is in use {where}, or open the store for reading")
    error.pid = pid
    return error


def _locked(file: StoreFile, path: str) -> tuple[int, bool] | None:
    """Return the descriptor of the lock file, locked and with our pid in it.

    And whether there was another's in it, which has ended without removing the file. None if
    another writer has removed it since it was opened, for then the lock protects nothing.
    """
    found = status_of(path)
    if found is not None:
        check_regular(file.path, path, found)
    flags = os.O_RDWR | os.O_CREAT | NOT_FOLLOWED | NOT_INHERITED | NOT_WAITED_FOR | BINARY
    descriptor = os.open(path, flags, 0o600)
    content = None
    try:
        content = _locked_content(file, path, descriptor)
    finally:
        if content is None:
            os.close(descriptor)
    return None if content is None else (descriptor, bool(content))


def _locked_content(file: StoreFile, path: str, descriptor: int) -> bytes | None:
    """Lock the open lock file, write our pid into it, and return what was in it before."""
    if not _lock(descriptor):
        pid = _holder(descriptor)
        holder = "another process" if pid is None else f"process {pid}"
        raise _in_use(file.path, pid, f"by {holder}; stop that one first")
    status, now = os.fstat(descriptor), status_of(path)
    if now is None or identity_of(now) != identity_of(status):
        return None
    check_regular(file.path, path, status)
    content = _content(descriptor)
    # After a power failure it may hold NULs. Whatever else has such a name is not ours.
    if not (content == b"" or content.isdigit()):
        raise InvalidStorePath(
            f"store {named(file.path)}: {named(path)} is needed for the lock file and "
            f"is another file, of {status.st_size:,} bytes; move it or give another path"
        )
    try:
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, b"%d\n" % os.getpid())
    except OSError:
        os.unlink(path)
        raise
    return content


def _content(descriptor: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, 64).strip(b"\0\r\n")


def _pid_in(content: bytes) -> int | None:
    return int(content) if content.isdigit() and 0 < int(content) < 2**31 else None


if sys.platform == "win32":
    _FAR = 1 << 30
    """A locked byte cannot be read by others, so it is one far behind the pid."""

    def _lock(descriptor: int) -> bool:
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EDEADLK):
                return False
            raise
        return True

    def _holder(descriptor: int) -> int | None:
        return _pid_in(_content(descriptor))

    def _seen(descriptor: int) -> Holder | None:
        pid = _holder(descriptor)
        return None if pid is None else Holder(pid)

    def _remove_and_close(path: str, lock: tuple[int, int], descriptor: int) -> None:
        os.close(descriptor)  # first, for an open file cannot be removed here
        if identity_of(os.lstat(path)) == lock:
            os.unlink(path)

else:

    def _lock(descriptor: int) -> bool:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True

    def _holder(descriptor: int) -> int | None:
        """Return the pid of the process that has the lock; None if it cannot be seen from here."""
        # The system knows better than the file, whose holder may not have written yet, or have
        # written what it is called in its own container.
        if (pid := _locker(descriptor)) is not None and pid != _NOBODY:
            return pid if pid > 0 else None
        return _pid_in(_content(descriptor))

    _NOBODY = -(2**40)

    def _locker(descriptor: int) -> int | None:
        """Return the pid that the system knows for the lock's holder, or `_NOBODY`.

        0 or less for a process that has no pid here; None if the system cannot be asked.
        """
        if sys.platform != "linux":
            return None
        layout = struct.Struct("@hhqqi0q")  # type, whence, start, length, pid
        asked = layout.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        with suppress(OSError):
            kind, _, _, _, pid = layout.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
            return _NOBODY if kind == fcntl.F_UNLCK else int(pid)
        return None

    def _seen(descriptor: int) -> Holder | None:
        """Return who has the lock of a lock file that is open to read."""
        pid = _locker(descriptor)
        if pid is None:  # what a killed process has left is not told apart
            pid = _pid_in(_content(descriptor))
            return None if pid is None else Holder(pid)
        return None if pid == _NOBODY else Holder(pid if pid > 0 else None)

    def _remove_and_close(path: str, lock: tuple[int, int], descriptor: int) -> None:
        try:
            # By name alone it could be another's: a link in the path may have changed since.
            if identity_of(os.lstat(path)) == lock:
                os.unlink(path)
        finally:
            os.close(descriptor)
