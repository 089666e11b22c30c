"""Looks into a write-ahead log for commits that SQLite has to pass over.

SQLite reads a log up to the first frame whose checksum is wrong and takes what is behind it for the
rest of a commit that was cut short. Behind a frame that was damaged later there are whole commits;
no power cut leaves those with synchronous=FULL, for each is on disk before the next one begins. The
format is that of https://sqlite.org/fileformat.html#the_write_ahead_log.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

_HEADER = struct.Struct(">8I")
"""Magic number, version, page size, checkpoints, two salts, two checksums."""
_FRAME = struct.Struct(">6I")
"""Page, pages of the database after a commit or 0, two salts, two checksums."""
_MAGIC = 0x377F0682
"""With its last bit set the checksums are made of big-endian numbers."""
_SECTOR = 512
"""What a disk writes as a whole, if it writes it at all."""
_PAGE_SIZES = {1 << bits for bits in range(9, 17)}


def commits_passed_over(path: str) -> int:
    """Return how many commits are behind a damaged frame, without the last of the log.

    SQLite locks nothing in this file, so that it may be opened beside it. Of a log that was begun
    anew meanwhile 0 is returned.
    """
    try:
        log = Path(path).read_bytes()
        with open(path, "rb") as again:
            begun_anew = again.read(_HEADER.size) != log[: _HEADER.size]
    except FileNotFoundError:
        return 0
    if begun_anew or len(log) < _HEADER.size + _FRAME.size:
        return 0
    magic, _, page_size, _, *salts, first, second = _HEADER.unpack_from(log)
    order = ">" if magic & 1 else "<"
    checksum = _summed(log[: _HEADER.size - 8], order, (0, 0))
    is_sound = magic & ~1 == _MAGIC and page_size in _PAGE_SIZES and checksum == (first, second)
    if not is_sound:
        # Then nothing of it is read. The salts that its frames share were the header's.
        page_size = 4096
        salts = list(_FRAME.unpack_from(log, _HEADER.size)[2:4])
    commits, since, stored = 0, 0, checksum
    for at, (_, pages, one, other, *sums) in _frames(log, page_size):
        head, page = log[at : at + 8], log[at + _FRAME.size : at + _FRAME.size + page_size]
        if is_sound:
            checksum = _summed(page, order, _summed(head, order, checksum))
            is_sound = checksum == (sums[0], sums[1]) and [one, other] == salts
        # What was left by an earlier use of the file has neither of them, a damaged frame one.
        if not is_sound and (one == salts[0] or other == salts[1]):
            if (at + len(head)) % _SECTOR == 0 and pages:
                # What says that it is a commit may be of that earlier use, in another sector.
                pages *= _summed(page, order, _summed(head, order, stored)) == (sums[0], sums[1])
            commits += since
            since = int(pages > 0)
        stored = sums[0], sums[1]
    return commits


def _frames(log: bytes, page_size: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield where each frame begins, and its head."""
    size = _FRAME.size + page_size
    for at in range(_HEADER.size, len(log) - size + 1, size):
        yield at, _FRAME.unpack_from(log, at)


def _summed(data: bytes, order: str, start: tuple[int, int]) -> tuple[int, int]:
    """Go on with SQLite's checksum."""
    first, second = start
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    for one, other in zip(words, words, strict=True):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return first, second
