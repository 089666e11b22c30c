"""A disk as a power cut leaves it: what was synchronised is there, of the rest anything may be.

1. A file has, for each sector of 512 bytes, what was synchronised last, or any of the contents that
   it was given since: sectors are written whole, in any order. Its size is likewise one of those
   that it has had since.
   A file is shortened as a whole: none of its sectors is empty while the file is as long as before.
2. A synchronised file keeps its contents, and not its name: creating, renaming and removing are the
   directory's, each of which has happened or not until the directory is synchronised.
3. Nothing else changes: no sector gets what was never written to it.
"""

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import attrs

SECTOR = 512
_HEAD = struct.Struct("=cQQQ")


@attrs.frozen
class Operation:
    """What reached the disk, or a mark that the program has set."""

    kind: str
    """create, write, truncate, sync, unlink, rename or mark."""
    inode: int = 0
    number: int = 0
    """Where it was written, or the new size."""
    data: bytes = b""
    """What was written; the name, or "old/new"; the text of a mark."""

    def __str__(self) -> str:
        if self.kind == "write":
            return f"a write of {len(self.data)} bytes at {self.number}"
        if self.kind in ("truncate", "sync"):
            return f"{self.kind} of inode {self.inode} ({self.number})"
        return f"{self.kind} {self.data.decode()}"


_KINDS = {
    b"c": "create",
    b"w": "write",
    b"t": "truncate",
    b"s": "sync",
    b"u": "unlink",
    b"r": "rename",
    b"m": "mark",
}


def operations(log: bytes) -> Iterator[Operation]:
    """Read what the shim has recorded."""
    at = 0
    while at < len(log):
        kind, inode, number, size = _HEAD.unpack_from(log, at)
        at += _HEAD.size + size
        yield Operation(_KINDS[kind], inode, number, log[at - size : at])


@attrs.frozen
class Content:
    """What a sector was given at a moment."""

    moment: int
    data: bytes
    is_cut: bool
    """Whether it was so by another size of the file, not by a write."""


@attrs.define(eq=False)
class File:
    """One file: as it certainly is on the disk, as the program sees it, and all between."""

    durable: bytearray = attrs.field(factory=bytearray)
    latest: bytearray = attrs.field(factory=bytearray)
    _sectors: dict[int, list[Content]] = attrs.field(factory=dict)
    """What each sector was given since."""
    _sizes: list[tuple[int, int]] = attrs.field(factory=list)
    """The sizes that it has had since, each with its moment."""

    @property
    def is_pending(self) -> bool:
        """Whether something of it was not synchronised."""
        return bool(self._sectors or self._sizes)

    @property
    def moments(self) -> set[int]:
        """When something happened that was not synchronised."""
        contents = (content.moment for one in self._sectors.values() for content in one)
        return {*contents, *(moment for moment, _ in self._sizes)}

    def write(self, moment: int, at: int, data: bytes) -> None:
        """Put data at a place, behind the end with zeros between."""
        size = len(self.latest)
        self.latest.extend(bytes(max(0, at - size)))
        self.latest[at : at + len(data)] = data
        self._note(moment, at, at + len(data), is_cut=False)
        if len(self.latest) != size:
            self._sizes.append((moment, len(self.latest)))

    def truncate(self, moment: int, size: int) -> None:
        """Give it another size."""
        before = len(self.latest)
        del self.latest[size:]
        self.latest.extend(bytes(size - len(self.latest)))
        if size != before:
            self._note(moment, size, before, is_cut=True)
            self._sizes.append((moment, size))

    def _note(self, moment: int, start: int, end: int, *, is_cut: bool) -> None:
        for sector in range(start // SECTOR, -(-end // SECTOR)):
            data = bytes(self.latest[sector * SECTOR : (sector + 1) * SECTOR])
            content = Content(moment, data.ljust(SECTOR, b"\0"), is_cut)
            self._sectors.setdefault(sector, []).append(content)

    def sync(self) -> None:
        """Have everything on the disk."""
        self.durable = bytearray(self.latest)
        self._sectors.clear()
        self._sizes.clear()

    def cut(self, chance: random.Random, mode: str, moment: int) -> bytes:
        """Return its contents after a power cut: everything from before `moment` with "prefix"."""
        if mode == "none" or not self.is_pending:
            return bytes(self.durable)
        if mode == "all":
            return bytes(self.latest)
        likely = chance.choice((0.1, 0.5, 0.8, 0.95))

        def drawn(moments: list[int]) -> int:
            """Return how many of these changes, which come one after the other, have happened."""
            if mode == "prefix":
                return sum(when <= moment for when in moments)
            return chance.randint(1, len(moments)) if moments and chance.random() < likely else 0

        happened = drawn([when for when, _ in self._sizes])
        sized_at, size = self._sizes[happened - 1] if happened else (0, len(self.durable))
        image = bytearray(self.durable[:size].ljust(size, b"\0"))
        for sector, contents in self._sectors.items():
            possible = _possible(contents, sized_at)
            chosen = drawn([content.moment for content in possible])
            if possible and possible[0].is_cut:
                chosen = max(chosen, 1)
            if chosen:
                start = sector * SECTOR
                image[start : start + SECTOR] = possible[chosen - 1].data
        return bytes(image[:size])


def _possible(contents: list[Content], sized_at: int) -> list[Content]:
    """Return what a sector can hold once the file had the size of that moment.

    A file is shortened as a whole or not at all: then what a sector held before is gone.
    """
    first = 0
    for index, content in enumerate(contents):
        if content.is_cut and content.moment <= sized_at:
            first = index
    return [c for c in contents[first:] if not c.is_cut or c.moment <= sized_at]


@attrs.define(eq=False)
class Disk:
    """One directory and its files."""

    inode: int
    """That of the directory."""
    moment: int = 0
    """How many operations there have been."""
    _files: dict[int, File] = attrs.field(factory=dict)
    _durable: dict[str, File] = attrs.field(factory=dict)
    _latest: dict[str, File] = attrs.field(factory=dict)
    _pending: list[tuple[int, Operation, File | None]] = attrs.field(factory=list)

    def apply(self, operation: Operation) -> None:
        """Let an operation happen."""
        self.moment += 1
        match operation.kind:
            case "write":
                self._files[operation.inode].write(self.moment, operation.number, operation.data)
            case "truncate":
                self._files[operation.inode].truncate(self.moment, operation.number)
            case "sync" if operation.inode == self.inode:
                self._durable = dict(self._latest)
                self._pending.clear()
            case "sync":
                self._files[operation.inode].sync()
            case "create" | "unlink" | "rename":
                file = None
                if operation.kind == "create":
                    file = self._files[operation.inode] = File()
                _change(self._latest, operation, file)
                self._pending.append((self.moment, operation, file))

    def is_pending(self, ignoring: tuple[str, ...]) -> bool:
        """Whether a power cut could leave more than one state of files that matter."""
        named = [*self._durable.items(), *self._latest.items()]
        names = [operation.data.decode() for _, operation, _ in self._pending]
        return not all(name.endswith(ignoring) for name in names) or any(
            file.is_pending for name, file in named if not name.endswith(ignoring)
        )

    def cut(self, chance: random.Random, mode: str | None) -> dict[str, bytes]:
        """Return names and contents after a power cut.

        `mode` is "none" or "all" for the extremes, "prefix" for what was there at some moment
        before, None for anything: each file in a way of its own.
        """
        moment = chance.randint(0, self.moment)
        if mode == "prefix":
            moments = {when for when, _, _ in self._pending}
            for file in {*self._durable.values(), *self._latest.values()}:
                moments |= file.moments
            moment = chance.choice(sorted(moments) or [0])

        def drawn() -> str:
            return mode or chance.choice(("none", "all", "prefix", "random", "random", "random"))

        names = dict(self._durable)
        way = drawn()
        for when, operation, made in self._pending:
            has_happened = {"none": False, "all": True, "prefix": when <= moment}.get(way)
            if has_happened is None:
                has_happened = chance.random() < 0.5
            if has_happened:
                _change(names, operation, made)
        return {
            name: file.cut(chance, drawn(), chance.randint(0, self.moment) if not mode else moment)
            for name, file in sorted(names.items())
        }

    def differs(self, directory: Path, ignoring: str) -> list[str]:
        """Return the names of files that are not as they should be if all was recorded."""
        found = {path.name: path.read_bytes() for path in directory.iterdir()}
        latest = {name: bytes(file.latest) for name, file in self._latest.items()}
        return sorted(
            name
            for name in {*found, *latest}
            if found.get(name) != latest.get(name)
            and not (name.endswith(ignoring) and name in found and name in latest)
        )


def _change(names: dict[str, File], operation: Operation, made: File | None) -> None:
    name = operation.data.decode()
    if operation.kind == "create":
        assert made is not None
        names[name] = made
    elif operation.kind == "unlink":
        names.pop(name, None)
    else:
        old, new = name.split("/")
        if old in names:
            names[new] = names.pop(old)
