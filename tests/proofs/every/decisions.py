"""The bits that Trio's scheduler decides by chance, decided here.

Trio takes the runnable tasks in batches, and one random bit decides for each whether it takes them
in the order in which they became runnable or in the reverse one. That is all its chance, and every
sequence of bits is a schedule that can happen. Where one cancellation or one time-out wakes several
tasks, their order in the batch is that of a set, which changes with the addresses of objects; here
it is that of their age, so that a sequence of bits means the same schedule each time.

This rests on privates of Trio: `trio._core._run._r` is the random source, `unrolled_run` has the
batch in a local variable of that name when it asks, and a task has a `_counter` and a `_next_send`;
a flag, which pytest-trio sets, would have it do something else.
Checked with Trio 0.35; where they are missing, `RuntimeError` says so.
"""

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import attrs
import outcome
import trio


@attrs.define(eq=False)
class NotRepeatable(Exception):
    """The same bits have led to another schedule: something is left to chance that is not known."""

    message: str

    def __str__(self) -> str:
        return self.message


class Decisions(random.Random):
    """Gives Trio the bits of a prefix, and noughts or chance after it; notes what it was asked."""

    def __init__(self, prefix: Sequence[bool] = (), chance: random.Random | None = None) -> None:
        super().__init__(0)
        self.bits: list[bool] = []
        """What was decided, for each batch of more than one task."""
        self.batches: list[tuple[int, ...]] = []
        """The tasks of those batches, by age."""
        self._prefix = prefix
        self._chance = chance
        self._first: int | None = None

    def random(self) -> float:
        """Decide about one batch: less than a half reverses it."""
        frame = sys._getframe(1)
        if frame.f_code.co_name != "unrolled_run":
            return super().random()  # a clock has its offset from the same source
        batch: list[Any] = frame.f_locals["batch"]
        if len(batch) < 2:
            return 0.75
        _settle_cancelled(batch)
        if self._first is None:
            self._first = batch[0]._counter
        first = self._first
        self.batches.append(tuple(task._counter - first for task in batch))
        if len(self.bits) < len(self._prefix):
            bit = self._prefix[len(self.bits)]
        else:
            bit = self._chance is not None and self._chance.random() < 0.5
        self.bits.append(bit)
        return 0.25 if bit else 0.75


def _settle_cancelled(batch: list[Any]) -> None:
    """Put tasks that were cancelled side by side into the order of their age."""
    if any(map(_is_cancelled, batch)):
        batch[:] = [
            task
            for is_cancelled, tasks in groupby(batch, _is_cancelled)
            for task in (sorted(tasks, key=lambda t: t._counter) if is_cancelled else tasks)
        ]


def _is_cancelled(task: Any) -> bool:
    sent = task._next_send
    return isinstance(sent, outcome.Error) and isinstance(sent.error, trio.Cancelled)


@contextmanager
def decided_by(decisions: Decisions) -> Iterator[None]:
    """Let `decisions` decide in the runs inside the block."""
    scheduler: Any = getattr(trio._core, "_run", None)
    source = getattr(scheduler, "_r", None)
    names = getattr(getattr(scheduler, "unrolled_run", None), "__code__", None)
    fields = {field.name for field in attrs.fields(trio.lowlevel.Task)}
    if not (
        isinstance(source, random.Random)
        and names is not None
        and "batch" in names.co_varnames
        and {"_counter", "_next_send"} <= fields
        and hasattr(scheduler, _FLAG)
    ):
        raise RuntimeError(
            f"trio {trio.__version__} has another scheduler than the one whose decisions are known "
            "here: read unrolled_run in trio/_core/_run.py, and bring decisions.py up to date"
        )
    flag = getattr(scheduler, _FLAG)
    scheduler._r = decisions
    setattr(scheduler, _FLAG, False)
    try:
        yield
    finally:
        scheduler._r = source
        setattr(scheduler, _FLAG, flag)


_FLAG = "_ALLOW_DETERMINISTIC_SCHEDULING"
"""With it Trio would sort and shuffle its batches, which it never does outside of tests."""
