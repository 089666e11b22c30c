"""The order in which Trio takes runnable tasks, fixed by a seed."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio


@contextmanager
def scheduled_by(seed: int) -> Iterator[None]:
    """Let a seed decide the order in which Trio takes runnable tasks, in the runs inside the block.

    Raises `RuntimeError` if a version of Trio lacks the two privates that this needs.
    """
    # There is no public way. With the flag, which pytest-trio sets for Hypothesis too, Trio sorts
    # the tasks of a batch by age and lets its random source shuffle them.
    scheduler: Any = getattr(trio._core, "_run", None)
    source = getattr(scheduler, "_r", None)
    if not (isinstance(source, random.Random) and hasattr(scheduler, _FLAG)):
        raise RuntimeError(
            f"trio {trio.__version__} keeps the random source of its scheduler elsewhere than "
            "expected (trio._core._run._r): this version of triobus.testing cannot repeat a run"
        )
    state, flag = source.getstate(), getattr(scheduler, _FLAG)
    source.seed(seed)
    setattr(scheduler, _FLAG, True)
    try:
        yield
    finally:
        source.setstate(state)
        setattr(scheduler, _FLAG, flag)


_FLAG = "_ALLOW_DETERMINISTIC_SCHEDULING"
