"""What a process has at one moment, and whether that grows."""

import gc
import sys
import threading
from collections.abc import Iterator

import attrs
import psutil

MEMORY_GROWTH = 5.0
"""How many MiB of growth are too much."""
OBJECT_GROWTH = 400
"""The same in objects: a long soak has more lives, and thousands of times as many events."""
BLOCK_GROWTH = 20_000
"""The same in blocks of Python's allocator, which the system's noise is a part of."""
_MIB = 2**20


@attrs.frozen
class Sample:
    """What there is between two lives."""

    memory: float
    """The resident set in MiB, as the system counts it; nothing is done to make it smaller."""
    objects: int
    """What the garbage collector knows, after a collection: no strings, numbers or their tuples."""
    blocks: int
    """What Python's own allocator has given out: these too, if they are not large."""
    descriptors: int
    threads: tuple[str, ...]
    """Their names, without those that Trio keeps for a while, for the next call."""
    kept_threads: int


def sampled() -> Sample:
    """Look at this process."""
    gc.collect()
    process = psutil.Process()
    names = sorted(thread.name for thread in threading.enumerate())
    others = tuple(name for name in names if not name.startswith("Trio thread"))
    return Sample(
        memory=process.memory_info().rss / _MIB,
        objects=len(gc.get_objects()),
        blocks=sys.getallocatedblocks(),
        descriptors=process.num_handles() if sys.platform == "win32" else process.num_fds(),
        threads=others,
        kept_threads=len(names) - len(others),
    )


@attrs.define(eq=False)
class Growth:
    """Compares the most that there was after the warm-up with the most in it."""

    first: Sample
    """Before anything was done."""
    last: Sample
    is_warm: bool = False
    warm_memory: float = 0
    most_memory: float = 0
    warm_objects: int = 0
    most_objects: int = 0
    warm_blocks: int = 0
    most_blocks: int = 0
    most_kept_threads: int = 0

    def note(self, sample: Sample, *, is_quiet: bool, is_warm: bool) -> None:
        """Take in a sample. Objects and blocks are compared if all is as empty as it ever is."""
        self.last = sample
        self.is_warm = is_warm
        self.most_kept_threads = max(self.most_kept_threads, sample.kept_threads)
        self.most_memory = max(self.most_memory, sample.memory)
        if is_quiet:
            self.most_objects = max(self.most_objects, sample.objects)
            self.most_blocks = max(self.most_blocks, sample.blocks)
        if not is_warm:
            self.warm_memory = self.most_memory
            self.warm_objects = self.most_objects
            self.warm_blocks = self.most_blocks

    def wrong(self, most_threads_kept: int) -> Iterator[str]:
        """Yield what there is too much of."""
        if self.last.descriptors != self.first.descriptors:
            yield f"there are not {self.first.descriptors} descriptors, as at first"
        if self.last.threads != self.first.threads:
            yield f"there are threads {self.last.threads}, and at first {self.first.threads}"
        if self.most_kept_threads > most_threads_kept:
            yield f"Trio keeps more threads than {most_threads_kept}"
        for what, warm, most, limit in (
            ("memory", self.warm_memory, self.most_memory, MEMORY_GROWTH),
            ("objects", self.warm_objects, self.most_objects, OBJECT_GROWTH),
            ("blocks", self.warm_blocks, self.most_blocks, BLOCK_GROWTH),
        ):
            if most - warm >= limit:
                yield f"{what}: after the warm-up it grew by {most - warm:.1f}"

    def __str__(self) -> str:
        last = self.last
        threads = f"threads {len(last.threads)} (Trio kept up to {self.most_kept_threads} more)"
        if not self.is_warm:
            return f"memory {last.memory:.1f} MiB, warming up; {threads}"
        return (
            f"memory {self.warm_memory:.1f} MiB in the warm-up and {self.most_memory:.1f} after it "
            f"at most, {last.memory:.1f} at the end: growth "
            f"{self.most_memory - self.warm_memory:.1f} MiB, "
            f"{self.most_objects - self.warm_objects} objects of {self.warm_objects}, "
            f"{self.most_blocks - self.warm_blocks} blocks of {self.warm_blocks}; "
            f"descriptors {last.descriptors}, {threads}"
        )
