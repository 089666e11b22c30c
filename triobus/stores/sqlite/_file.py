"""The file of a store as the file system sees it: checked before SQLite opens it, one writer each.

SQLite takes "" for a temporary database, creates what a dangling link points to, notices a
read-only file at the first write, and lets one file with two names have two write-ahead logs. All
that is found here before SQLite sees the path. Every function blocks: call them in a worker thread.

Nothing here opens the file of a store that may be open: closing a second descriptor of a file drops
the locks that SQLite holds on it in this process.
"""

import errno
import os
import stat
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import attrs

from triobus._errors import (
    InvalidStorePath,
    StoreError,
    StoreForked,
    StoreFull,
    StoreInUse,
    StoreIOError,
    StoreNotFound,
    StoreReadOnly,
    StoreReplaced,
)

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_BESIDE = ("-wal", "-shm", "-journal")
"""What SQLite appends to the path for the files that it keeps beside the store."""

_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
"""With it a `-journal` begins, and ends if it names a super-journal."""

_LONGEST = 504
"""In bytes: SQLite's limit on Unix, whatever the file system allows; "-journal" is on top of it."""

_ATTEMPTS = 1_000
"""How often a lock file may vanish while it is claimed; each time another writer has released."""

_NOT_FOLLOWED: int = getattr(os, "O_NOFOLLOW", 0)
_NOT_WAITED_FOR: int = getattr(os, "O_NONBLOCK", 0)
_NOT_INHERITED: int = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOINHERIT", 0)
_BINARY: int = getattr(os, "O_BINARY", 0)

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


AnyPath: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]


@attrs.frozen
class StoreFile:
    """A path that has been checked, and the file that it named then."""

    path: str
    """Absolute, and no symbolic link itself; names that are no UTF-8 have surrogate escapes."""
    device: int
    inode: int


def check_path(path: AnyPath) -> str:
    """Return the path as absolute text, without a look at the disk.

    Raises `InvalidStorePath` for what is no path, or one that SQLite takes for something else, and
    `StoreNotFound` for a relative path if the working directory is gone.
    """
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise InvalidStorePath(
            f"a store cannot be at {_shown(path)}: give a path as str, bytes or os.PathLike"
        ) from None
    if not text:
        raise InvalidStorePath(
            "a store cannot be at '', which SQLite takes for a temporary database: give the path "
            "of a file"
        )
    if "\0" in text:
        raise InvalidStorePath(f"a store cannot be at {_shown(text)}: give a path without NUL")
    if text.startswith("file:"):
        raise InvalidStorePath(
            f"a store cannot be at {_shown(text)}: give the plain path, not a URI (and './file:…' "
            "for a file that really has this name)"
        )
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise InvalidStorePath(
            f"a store cannot be at {_shown(text)}: the character at {error.start:,} cannot be part "
            "of a file name here, give another"
        ) from None
    if sys.platform == "win32":
        return os.path.abspath(text)
    if os.path.isabs(text):
        return text
    try:
        # Not normalised: if a is a symbolic link, a/../b is not b.
        return os.path.join(os.getcwd(), text)
    except FileNotFoundError:
        raise StoreNotFound(
            f"store {_shown(text)}: the working directory was removed, give an absolute path"
        ) from None


def open_or_create(path: str) -> StoreFile:
    """Check the file of a store that is to be written; create it, empty and 0600, if it is missing.

    A symbolic link to a regular file stands for that file, so that all its names agree. Raises
    `StoreNotFound` without the directory, or without the file while its "-wal" is there (SQLite
    would delete that, and the events in it); `InvalidStorePath`, `StoreReadOnly`, `StoreFull`, and
    `StoreIOError` for any other refusal.
    """
    with _guard:  # so that no thread of ours goes on to SQLite while the new file is still open
        path = _resolved(path)
        if _status(path) is None:
            _check_beside(path)
            _refuse_log_without_file(path)
            _create(path)
        return _checked(path, writable=True)


def existing(path: str, *, writable: bool = False) -> StoreFile:
    """Check the file of a store as `open_or_create` does; `StoreNotFound` if it is missing.

    Only with `writable` must the file and its directory be writable.
    """
    with _guard:
        return _checked(_resolved(path), writable=writable)


def check_unchanged(file: StoreFile, wal: tuple[int, int] | None) -> None:
    """Raise `StoreReplaced` unless the path still names the file, and its "-wal" is still `wal`.

    `wal` is what `wal_identity` said; None leaves it out. Both files must be open all the while,
    for the system may give the inode of a file that nobody has open to a new one. About 3 µs.
    """
    _check_identity(file.path, file.path, (file.device, file.inode))
    if wal is not None:
        _check_identity(file.path, file.path + "-wal", wal)


def wal_identity(path: str) -> tuple[int, int] | None:
    """Return device and inode of the store's "-wal"; None if there is none."""
    status = _status(path + "-wal")
    return None if status is None else _identity(status)


def check_same_process(pid: int, path: str) -> None:
    """Raise `StoreForked` unless this is the process `pid`, which opened the store."""
    here = os.getpid()
    if here != pid:
        raise StoreForked(
            f"store {_shown(path)} was opened by process {pid} and used in its forked child "
            f"{here}: open it in the child after the parent has closed it, or use a process that "
            "was not forked"
        )


@attrs.define(eq=False)
class Claim:
    """The right to write a store, which one writer has at a time; it ends with its process.

    It is a POSIX lock on `<path>-lock`, which holds the pid for whoever wants to know. A process
    can take such a lock twice, and loses it when any descriptor of the file is closed: so the
    claims of this process are registered, and a lock file is opened once. Whoever removes it by
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
        with _guard:
            for _ in range(_ATTEMPTS):
                _refuse_if_held_here(file, _status(path))
                with _explained(path, "write the lock file", writing=True):
                    locked = _locked(file, path)
                if locked is not None:
                    descriptor, was_left = locked
                    lock = _identity(os.fstat(descriptor))
                    claim = cls(file, os.getpid(), lock, descriptor, was_left)
                    _held.add(claim)
                    return claim
        raise StoreInUse(
            f"store {_shown(file.path)} is in use: its lock file {_shown(path)} was removed or "
            f"replaced {_ATTEMPTS:,} times while it was being locked; look who does that"
        )

    def release(self) -> None:
        """Let the next writer in and remove the lock file. Harmless when repeated or in a fork."""
        with _guard:
            if self._descriptor is None or self.pid != os.getpid():
                return
            descriptor, self._descriptor = self._descriptor, None
            _held.discard(self)
            # What cannot be removed stays unlocked, and the next writer takes it over.
            with suppress(OSError):
                _remove_and_close(self.file.path + "-lock", self._lock, descriptor)

    def abandon(self) -> None:
        """Let the next writer in, and leave the lock file there, as a killed process does."""
        with _guard:
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


_guard = threading.Lock()
_held: set[Claim] = set()
"""The claims of this process."""


def _forget_in_child() -> None:
    global _guard
    _guard = threading.Lock()  # the thread that may have held it does not exist in the child
    for claim in _held:
        claim._close()
    _held.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_in_child)


# The path


def _resolved(path: str) -> str:
    """Return the path, or its target if it is a symbolic link, once SQLite can open its name."""
    status = _status(path)
    if os.path.basename(path) in ("", os.curdir, os.pardir):
        raise InvalidStorePath(f"store {_shown(path)}: the path of a directory, give a file's")
    if status is not None and stat.S_ISLNK(status.st_mode):
        try:
            path = os.path.realpath(path, strict=True)
        except (FileNotFoundError, NotADirectoryError):
            raise InvalidStorePath(
                f"store {_shown(path)}: a symbolic link to {_shown(_target(path))}, where nothing "
                "is; create that file or give its path"
            ) from None
        except OSError as error:
            raise _explanation(error, path, "follow the symbolic link", writing=False) from error
    size = len(os.fsencode(os.path.realpath(path)))
    if os.name == "posix" and size > _LONGEST:
        raise InvalidStorePath(
            f"store {_shown(path)}: the path has {size:,} bytes, SQLite can open up to {_LONGEST}; "
            "give a shorter one"
        )
    return path


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return "?"


def _checked(path: str, *, writable: bool) -> StoreFile:
    status = _status(path)
    if status is None:
        raise StoreNotFound(f"store {_shown(path)}: there is no such file; check the path")
    _check_regular(path, path, status)
    _check_beside(path)
    if writable:
        directory = os.path.dirname(path)
        if not _allowed(path, os.W_OK):
            raise StoreReadOnly(
                f"store {_shown(path)} cannot be written ({_why_read_only(path)}): make the file "
                "writable, or open the store for reading"
            )
        if not _allowed(directory, os.W_OK | os.X_OK):
            raise StoreReadOnly(
                f"store {_shown(path)} cannot be written: its '-wal' goes beside it, and the "
                f"directory {_shown(directory)} cannot be written ({_why_read_only(directory)}); "
                "make the directory writable, or open the store for reading"
            )
    if not _allowed(path, os.R_OK):
        raise StoreIOError(
            f"store {_shown(path)} cannot be read (mode {stat.S_IMODE(status.st_mode):04o}): make "
            "the file readable for this user"
        )
    return StoreFile(path, status.st_dev, status.st_ino)


def _check_beside(path: str) -> None:
    for suffix in _BESIDE:
        status = _status(path + suffix)
        if status is not None:
            _check_regular(path, path + suffix, status)
            if suffix == "-journal":
                _refuse_super_journal(path)


def _refuse_super_journal(path: str) -> None:
    """Refuse a `-journal` that names a further file.

    SQLite writes one where a transaction goes over several databases, which ours never do. After
    that one is rolled back it removes the file that is named, whatever file that is.
    """
    with _explained(path, "read what is beside it", writing=False):
        descriptor = os.open(
            path + "-journal",
            os.O_RDONLY | _NOT_FOLLOWED | _NOT_WAITED_FOR | _NOT_INHERITED | _BINARY,
        )
        try:
            size = os.fstat(descriptor).st_size
            os.lseek(descriptor, max(size - len(_JOURNAL_MAGIC), 0), os.SEEK_SET)
            end = os.read(descriptor, len(_JOURNAL_MAGIC))
        finally:
            os.close(descriptor)
    if end == _JOURNAL_MAGIC:
        raise InvalidStorePath(
            f"store {_shown(path)}: {_shown(path + '-journal')} names another file that SQLite "
            "would remove, and no store has such a journal; look where it comes from"
        )


def _check_regular(store: str, path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise InvalidStorePath(
            f"store {_shown(store)}: {_shown(path)} is {kind}, not a regular file; "
            + ("give the path of a file" if path == store else "remove it or give another path")
        )
    if status.st_nlink > 1:
        raise InvalidStorePath(
            f"store {_shown(store)}: {_shown(path)} has {status.st_nlink} names (hard links), and "
            "SQLite would keep a '-wal' for each; remove the other names, or copy the file"
        )


def _refuse_log_without_file(path: str) -> None:
    status = _status(path + "-wal")
    if status is not None and status.st_size > 0:
        raise StoreNotFound(
            f"store {_shown(path)}: there is no such file, but {_shown(path + '-wal')} has "
            f"{status.st_size:,} bytes that belong to it and that SQLite would delete; put the "
            "file back, or remove that one too for a new store"
        )


def _create(path: str) -> None:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NOT_FOLLOWED | _NOT_INHERITED | _BINARY
    with _explained(path, "create the file", writing=True):
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileExistsError:
            return  # another process was faster; its file is checked like any other
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _sync_directory(os.path.dirname(path))


def _sync_directory(path: str) -> None:
    """Make the new name durable, where directories can be synchronised at all."""
    if sys.platform == "win32":
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _NOT_INHERITED)
    except PermissionError:
        return  # a directory may be writable and not readable; SQLite goes on then, too
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _status(path: str) -> os.stat_result | None:
    """Return what the path itself names, or None if its directory is there and it is not."""
    try:
        return os.lstat(path)
    except FileNotFoundError as error:
        if os.path.isdir(os.path.dirname(path)):
            return None
        raise _explanation(error, path, "look for the file", writing=False) from None
    except OSError as error:
        raise _explanation(error, path, "look for the file", writing=False) from error


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _check_identity(store: str, path: str, identity: tuple[int, int]) -> None:
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        what = "removed or renamed"
    except OSError as error:
        raise _explanation(error, path, "look for the file", writing=False) from error
    else:
        if (status.st_dev, status.st_ino) == identity:
            return
        what = "replaced"
    raise StoreReplaced(
        f"store {_shown(store)}: {_shown(path)} was {what} while the store was open, so that what "
        "is written now cannot be found again; stop whoever did that and open the store again"
    )


def _allowed(path: str, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _why_read_only(path: str) -> str:
    if sys.platform != "win32" and os.statvfs(path).f_flag & os.ST_RDONLY:
        return "it is on a read-only file system"
    return f"mode {stat.S_IMODE(os.stat(path).st_mode):04o}"


# The lock file


def _refuse_if_held_here(file: StoreFile, lock: os.stat_result | None) -> None:
    pid = os.getpid()
    for claim in _held:
        # By the lock file, too: another file may have been put in the place of a store in use.
        same_store = (claim.file.device, claim.file.inode) == (file.device, file.inode)
        same_lock = lock is not None and claim._lock == _identity(lock)
        if claim.pid == pid and (same_store or same_lock):
            raise _in_use(
                file.path, pid, f"in this process ({pid}); use the open store or close it"
            )


def _in_use(path: str, pid: int | None, where: str) -> StoreInUse:
    error = StoreInUse(f"store {_shown(path)} is in use {where}, or open the store for reading")
    error.pid = pid
    return error


def _locked(file: StoreFile, path: str) -> tuple[int, bool] | None:
    """Return the descriptor of the lock file, locked and with our pid in it.

    And whether there was another's in it, which has ended without removing the file. None if
    another writer has removed it since it was opened, for then the lock protects nothing.
    """
    found = _status(path)
    if found is not None:
        _check_regular(file.path, path, found)
    flags = os.O_RDWR | os.O_CREAT | _NOT_FOLLOWED | _NOT_INHERITED | _NOT_WAITED_FOR | _BINARY
    descriptor = os.open(path, flags, 0o600)
    kept = False
    try:
        if not _lock(descriptor):
            pid = _holder(descriptor)
            named = "another process" if pid is None else f"process {pid}"
            raise _in_use(file.path, pid, f"by {named}; stop that one first")
        status, now = os.fstat(descriptor), _status(path)
        if now is None or _identity(now) != _identity(status):
            return None
        _check_regular(file.path, path, status)
        content = _content(descriptor)
        # After a power failure it may hold NULs. Whatever else has such a name is not ours.
        if not (content == b"" or content.isdigit()):
            raise InvalidStorePath(
                f"store {_shown(file.path)}: {_shown(path)} is needed for the lock file and is "
                f"another file, of {status.st_size:,} bytes; move it or give another path"
            )
        try:
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, b"%d\n" % os.getpid())
        except OSError:
            os.unlink(path)
            raise
        kept = True
    finally:
        if not kept:
            os.close(descriptor)
    return descriptor, bool(content)


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

    def _remove_and_close(path: str, lock: tuple[int, int], descriptor: int) -> None:
        os.close(descriptor)  # first, for an open file cannot be removed here, whoever has it open
        if _identity(os.lstat(path)) == lock:
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
        """Return the pid of whoever has the lock; None if it cannot be seen from here."""
        if sys.platform == "linux":
            # The system knows better than the file, whose holder may not have written yet, or have
            # written what it is called in its own container.
            layout = struct.Struct("@hhqqi0q")  # type, whence, start, length, pid
            asked = layout.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            with suppress(OSError):
                kind, _, _, _, pid = layout.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
                if kind != fcntl.F_UNLCK:
                    return pid if pid > 0 else None
        return _pid_in(_content(descriptor))

    def _remove_and_close(path: str, lock: tuple[int, int], descriptor: int) -> None:
        try:
            # By name alone it could be another's: a link in the path may have changed since.
            if _identity(os.lstat(path)) == lock:
                os.unlink(path)
        finally:
            os.close(descriptor)


# What the system refuses, in words


@contextmanager
def _explained(path: str, action: str, *, writing: bool) -> Iterator[None]:
    try:
        yield
    except StoreError:
        raise  # StoreNotFound is an OSError, too
    except OSError as error:
        raise _explanation(error, path, action, writing=writing) from error


def _explanation(error: OSError, path: str, action: str, *, writing: bool) -> StoreError:
    said = f"store path {_shown(path)}: cannot {action}: "
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"{said}{reason}; make room on the disk and open the store again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and writing:
        return StoreReadOnly(
            f"{said}{reason}; make the directory {_shown(os.path.dirname(path))} (and the file, if "
            "it is there) writable for this user"
        )
    if error.errno == errno.ENOENT:
        missing = [parent for parent in Path(path).parents if not os.path.isdir(parent)]
        if missing:
            return StoreNotFound(
                f"{said}there is no directory {_shown(str(missing[-1]))}; create it or give "
                "another path"
            )
    if error.errno == errno.ENOTDIR:
        found = next((str(one) for one in Path(path).parents if os.path.exists(one)), path)
        return InvalidStorePath(
            f"{said}{_shown(found)} is not a directory; give the path of a file in one"
        )
    if error.errno == errno.ELOOP:
        return InvalidStorePath(
            f"{said}its symbolic links lead back to themselves; give the path of the file itself"
        )
    if error.errno == errno.ENAMETOOLONG:
        return InvalidStorePath(
            f"{said}{reason} ({len(os.fsencode(path)):,} bytes); give a shorter path"
        )
    return StoreIOError(f"{said}{reason}; check the disk and the permissions, then try again")


def _shown(value: object) -> str:
    """Return the repr of a path, in short if it is endless."""
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 -- a repr of the caller's may raise anything
        return f"<{type(value).__name__}, whose repr raised {type(error).__name__}>"
    return text if len(text) <= 600 else f"{text[:100]}…{text[-100:]}"
