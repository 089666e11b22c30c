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
"""The same in objects: far less than one for each life, dead letter or thousand events."""
_MIB = 2**20


@attrs.frozen
class Sample:
    """What there is between two lives."""

    memory: float
    """The resident set in MiB, as the system counts it; nothing is done to make it smaller."""
    objects: int
    """What the garbage collector knows, after a collection."""
    descriptors: int
    threads: int
    """Without those that Trio keeps for a while, for the next call."""
    kept_threads: int


def sampled() -> Sample:
    """Look at this process."""
    gc.collect()
    process = psutil.Process()
    kept = sum(thread.name.startswith("Trio thread") for thread in threading.enumerate())
    return Sample(
        memory=process.memory_info().rss / _MIB,
        objects=len(gc.get_objects()),
        descriptors=process.num_handles() if sys.platform == "win32" else process.num_fds(),
        threads=threading.active_count() - kept,
        kept_threads=kept,
    )


@attrs.define(eq=False)
class Growth:
    """Compares samples of the same phase with one another."""

    first: Sample
    """Before anything was done."""
    warm: Sample | None = None
    """At the end of the warm-up."""
    last: Sample | None = None
    most_memory: float = 0
    most_objects: int = 0
    most_kept_threads: int = 0

    def note(self, sample: Sample, *, is_comparable: bool, is_warming_up: bool) -> None:
        """Take in a sample; memory is compared if everything is as empty as it ever is."""
        self.most_kept_threads = max(self.most_kept_threads, sample.kept_threads)
        if is_comparable:
            self.last = sample
            if is_warming_up or self.warm is None:
                self.warm = sample
                self.most_memory, self.most_objects = sample.memory, sample.objects
            self.most_memory = max(self.most_memory, sample.memory)
            self.most_objects = max(self.most_objects, sample.objects)

    def wrong(self, sample: Sample, most_threads_kept: int) -> Iterator[str]:
        """Yield what a sample has too much of."""
        if sample.descriptors != self.first.descriptors:
            yield f"{sample.descriptors} descriptors are open, {self.first.descriptors} at first"
        if sample.threads != self.first.threads:
            yield f"{sample.threads} threads run, {self.first.threads} at first"
        if sample.kept_threads > most_threads_kept:
            yield f"Trio keeps {sample.kept_threads} threads, for {most_threads_kept} workers"
        if self.warm is not None:
            memory = self.most_memory - self.warm.memory
            if memory >= MEMORY_GROWTH:
                yield f"memory has grown by {memory:.1f} MiB since the warm-up"
            objects = self.most_objects - self.warm.objects
            if objects >= OBJECT_GROWTH:
                yield f"there are {objects} objects more than after the warm-up"

    def __str__(self) -> str:
        if self.warm is None or self.last is None:
            return "warming up"
        return (
            f"memory {self.warm.memory:.1f} MiB after the warm-up, {self.last.memory:.1f} at the "
            f"end, {self.most_memory - self.warm.memory:+.1f} at most; "
            f"objects {self.warm.objects}, {self.last.objects - self.warm.objects:+} at the end, "
            f"{self.most_objects - self.warm.objects:+} at most; "
            f"descriptors {self.last.descriptors}, threads {self.last.threads} "
            f"(Trio kept up to {self.most_kept_threads} more)"
        )
