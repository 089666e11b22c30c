"""The path of a store, checked before SQLite sees it.

SQLite takes "" for a temporary database, creates what a dangling link points to, notices a
read-only file at the first write, and lets one file with two names have two write-ahead logs. All
that is found here before SQLite sees the path. Every function blocks: call them in a worker thread.

Nothing here opens the file of a store that may be open: closing a second descriptor of a file drops
the locks that SQLite holds on it in this process.
"""

import errno
import os
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import attrs

from triobus._errors import (
    InvalidStorePath,
    StoreError,
    StoreForked,
    StoreFull,
    StoreIOError,
    StoreNotFound,
    StoreReadOnly,
    StoreReplaced,
)

_BESIDE = ("-wal", "-shm", "-journal")
"""What SQLite appends to the path for the files that it keeps beside the store."""

_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
"""With it a `-journal` begins, and ends if it names a super-journal."""

_LONGEST = 504
"""In bytes: SQLite's limit on Unix, whatever the file system allows; "-journal" is on top of it."""

NOT_FOLLOWED: int = getattr(os, "O_NOFOLLOW", 0)
NOT_WAITED_FOR: int = getattr(os, "O_NONBLOCK", 0)
NOT_INHERITED: int = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOINHERIT", 0)
BINARY: int = getattr(os, "O_BINARY", 0)

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


class ForkSafeLock:
    """A lock between threads, which a forked child gets anew.

    The thread that may have held it does not exist in the child.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Make a new lock, in the child."""
        self._lock = threading.Lock()


guard = ForkSafeLock()
"""While a path is being checked, or a claim taken or released, in this process."""

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
            f"a store cannot be at {named(path)}: give a path as str, bytes or os.PathLike"
        ) from None
    if not text:
        raise InvalidStorePath(
            "a store cannot be at '', which SQLite takes for a temporary database: give the path "
            "of a file"
        )
    if "\0" in text:
        raise InvalidStorePath(f"a store cannot be at {named(text)}: give a path without NUL")
    if text.startswith("file:"):
        raise InvalidStorePath(
            f"a store cannot be at {named(text)}: give the plain path, not a URI (and './file:…' "
            "for a file that really has this name)"
        )
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise InvalidStorePath(
            f"a store cannot be at {named(text)}: the character at {error.start:,} cannot be part "
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
            f"store {named(text)}: the working directory was removed, give an absolute path"
        ) from None


def open_or_create(path: str) -> StoreFile:
    """Check the file of a store that is to be written; create it, empty and 0600, if it is missing.

    A symbolic link to a regular file stands for that file, so that all its names agree. Raises
    `StoreNotFound` without the directory, or without the file while its "-wal" is there (SQLite
    would delete that, and the events in it); `InvalidStorePath`, `StoreReadOnly`, `StoreFull`, and
    `StoreIOError` for any other refusal.
    """
    with guard:  # so that no thread of ours goes on to SQLite while the new file is still open
        path = _resolved(path)
        if status_of(path) is None:
            _check_beside(path)
            _refuse_log_without_file(path)
            _create(path)
        return _checked(path, writable=True)


def existing(path: str, *, writable: bool = False) -> StoreFile:
    """Check the file of a store as `open_or_create` does; `StoreNotFound` if it is missing.

    Only with `writable` must the file and its directory be writable.
    """
    with guard:
        return _checked(_resolved(path), writable=writable)


def check_unchanged(file: StoreFile, wal: tuple[int, int] | None) -> None:
    """Raise `StoreReplaced` unless the path still names the file, and its "-wal" is still `wal`.

    `wal` is what `wal_identity` said; None leaves it out. Both files must be open all the while,
    for the system may give the inode of a file that no process has open to a new one. About 3 µs.
    """
    _check_identity(file.path, file.path, (file.device, file.inode))
    if wal is not None:
        _check_identity(file.path, file.path + "-wal", wal)


def wal_identity(path: str) -> tuple[int, int] | None:
    """Return device and inode of the store's "-wal"; None if there is none."""
    status = status_of(path + "-wal")
    return None if status is None else identity_of(status)


def forked(pid: int, path: str) -> StoreForked:
    """Return the error of using a store in a forked child of process `pid`, which opened it."""
    return StoreForked(
        f"store {named(path)} was opened by process {pid} and used in its forked child "
        f"{os.getpid()}: open it in the child after the parent has closed it, or use a process "
        "that was not forked"
    )


def _resolved(path: str) -> str:
    """Return the path, or its target if it is a symbolic link, once SQLite can open its name."""
    status = status_of(path)
    if os.path.basename(path) in ("", os.curdir, os.pardir):
        raise InvalidStorePath(f"store {named(path)}: the path of a directory, give a file's")
    if status is not None and stat.S_ISLNK(status.st_mode):
        try:
            path = os.path.realpath(path, strict=True)
        except (FileNotFoundError, NotADirectoryError):
            raise InvalidStorePath(
                f"store {named(path)}: a symbolic link to {named(_target(path))}, where nothing "
                "is; create that file or give its path"
            ) from None
        except OSError as error:
            raise _explanation(error, path, "follow the symbolic link", writing=False) from error
    size = len(os.fsencode(os.path.realpath(path)))
    if os.name == "posix" and size > _LONGEST:
        raise InvalidStorePath(
            f"store {named(path)}: the path has {size:,} bytes, SQLite can open up to {_LONGEST}; "
            "give a shorter one"
        )
    return path


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return "?"


def _checked(path: str, *, writable: bool) -> StoreFile:
    status = status_of(path)
    if status is None:
        raise StoreNotFound(f"store {named(path)}: there is no such file; check the path")
    check_regular(path, path, status)
    _check_beside(path)
    if writable:
        directory = os.path.dirname(path)
        if not _allowed(path, os.W_OK):
            raise StoreReadOnly(
                f"store {named(path)} cannot be written ({_why_read_only(path)}): make the file "
                "writable, or open the store for reading"
            )
        if not _allowed(directory, os.W_OK | os.X_OK):
            raise StoreReadOnly(
                f"store {named(path)} cannot be written: its '-wal' goes beside it, and the "
                f"directory {named(directory)} cannot be written ({_why_read_only(directory)}); "
                "make the directory writable, or open the store for reading"
            )
    if not _allowed(path, os.R_OK):
        raise StoreIOError(
            f"store {named(path)} cannot be read (mode {stat.S_IMODE(status.st_mode):04o}): make "
            "the file readable for this user"
        )
    return StoreFile(path, status.st_dev, status.st_ino)


def _check_beside(path: str) -> None:
    for suffix in _BESIDE:
        status = status_of(path + suffix)
        if status is not None:
            check_regular(path, path + suffix, status)
            if suffix == "-journal":
                _refuse_super_journal(path)


def _refuse_super_journal(path: str) -> None:
    """Refuse a `-journal` that names a further file.

    SQLite writes one where a transaction goes over several databases, which ours never do. After
    that one is rolled back it removes the file that is named, whatever file that is.
    """
    with explained(path, "read what is beside it", writing=False):
        descriptor = os.open(
            path + "-journal",
            os.O_RDONLY | NOT_FOLLOWED | NOT_WAITED_FOR | NOT_INHERITED | BINARY,
        )
        try:
            size = os.fstat(descriptor).st_size
            os.lseek(descriptor, max(size - len(_JOURNAL_MAGIC), 0), os.SEEK_SET)
            end = os.read(descriptor, len(_JOURNAL_MAGIC))
        finally:
            os.close(descriptor)
    if end == _JOURNAL_MAGIC:
        raise InvalidStorePath(
            f"store {named(path)}: {named(path + '-journal')} names another file that SQLite "
            "would remove, and no store has such a journal; look where it comes from"
        )


def check_regular(store: str, path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise InvalidStorePath(
            f"store {named(store)}: {named(path)} is {kind}, not a regular file; "
            + ("give the path of a file" if path == store else "remove it or give another path")
        )
    if status.st_nlink > 1:
        raise InvalidStorePath(
            f"store {named(store)}: {named(path)} has {status.st_nlink} names (hard links), and "
            "SQLite would keep a '-wal' for each; remove the other names, or copy the file"
        )


def _refuse_log_without_file(path: str) -> None:
    status = status_of(path + "-wal")
    if status is not None and status.st_size > 0:
        raise StoreNotFound(
            f"store {named(path)}: there is no such file, but {named(path + '-wal')} has "
            f"{status.st_size:,} bytes that belong to it and that SQLite would delete; put the "
            "file back, or remove that one too for a new store"
        )


def _create(path: str) -> None:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | NOT_FOLLOWED | NOT_INHERITED | BINARY
    with explained(path, "create the file", writing=True):
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileExistsError:
            return  # another process was faster; its file is checked like any other
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_directory(os.path.dirname(path))


def sync_directory(path: str) -> None:
    """Make the new name durable, where directories can be synchronised at all."""
    if sys.platform == "win32":
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | NOT_INHERITED)
    except PermissionError:
        return  # a directory may be writable and not readable; SQLite goes on then, too
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def status_of(path: str) -> os.stat_result | None:
    """Return what the path itself names, or None if its directory is there and it is not."""
    try:
        return os.lstat(path)
    except FileNotFoundError as error:
        if os.path.isdir(os.path.dirname(path)):
            return None
        raise _explanation(error, path, "look for the file", writing=False) from None
    except OSError as error:
        raise _explanation(error, path, "look for the file", writing=False) from error


def identity_of(status: os.stat_result) -> tuple[int, int]:
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
        f"store {named(store)}: {named(path)} was {what} while the store was open, so that what "
        "is written now cannot be found again; stop the program that did that, then open the store "
        "again"
    )


def _allowed(path: str, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _why_read_only(path: str) -> str:
    if sys.platform != "win32" and os.statvfs(path).f_flag & os.ST_RDONLY:
        return "it is on a read-only file system"
    return f"mode {stat.S_IMODE(os.stat(path).st_mode):04o}"


@contextmanager
def explained(path: str, action: str, *, writing: bool) -> Iterator[None]:
    try:
        yield
    except StoreError:
        raise  # StoreNotFound is an OSError, too
    except OSError as error:
        raise _explanation(error, path, action, writing=writing) from error


def _explanation(error: OSError, path: str, action: str, *, writing: bool) -> StoreError:
    said = f"store path {named(path)}: cannot {action}: "
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"{said}{reason}; make room on the disk and open the store again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and writing:
        return StoreReadOnly(
            f"{said}{reason}; make the directory {named(os.path.dirname(path))} (and the file, if "
            "it is there) writable for this user"
        )
    if error.errno == errno.ENOENT:
        missing = [parent for parent in Path(path).parents if not os.path.isdir(parent)]
        if missing:
            return StoreNotFound(
                f"{said}there is no directory {named(str(missing[-1]))}; create it or give "
                "another path"
            )
    if error.errno == errno.ENOTDIR:
        found = next((str(one) for one in Path(path).parents if os.path.exists(one)), path)
        return InvalidStorePath(
            f"{said}{named(found)} is not a directory; give the path of a file in one"
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


def named(value: object) -> str:
    """Return the repr of a path, in short if it is endless."""
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 -- a repr of the caller's may raise anything
        return f"<{type(value).__name__}, whose repr raised {type(error).__name__}>"
    return text if len(text) <= 600 else f"{text[:100]}…{text[-100:]}"
