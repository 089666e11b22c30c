"""Which process this is: asked at every call, which asking the operating system would slow down."""

import os

import attrs


@attrs.define(eq=False)
class Process:
    """The process that runs this."""

    forks: int = 0
    """How often it was forked from another one: a child is one further than its parent."""

    def __attrs_post_init__(self) -> None:
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._count)

    def _count(self) -> None:
        self.forks += 1


process = Process()
