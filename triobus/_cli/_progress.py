"""How far the reading is: a bar where there is a terminal and rich, plain lines elsewhere."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import attrs
import trio

from triobus._cli._messages import say

try:
    import rich.progress as rich_progress
    from rich.console import Console
except ImportError:  # the extra "cli" is not installed
    rich_progress = None  # type: ignore[assignment]  # there is no other way to say so

_SECONDS_BETWEEN_LOOKS = 0.1


class State(NamedTuple):
    """What there is to show."""

    bytes_read: int
    read: int
    handled: int
    unsettled: int


class Progress(Protocol):
    """Shows how far the reading is."""

    async def watch(self, look: Callable[[], State], /) -> None:
        """Show what `look` returns, again and again, until cancelled."""

    def stop(self) -> None:
        """Leave the terminal as it was. Harmless when repeated."""


def progress(name: str, size: int | None) -> Progress:
    """Return what suits the terminal, if there is one."""
    if rich_progress is not None and sys.stderr.isatty():
        return Bar(name, size)
    return Plain(name)


@attrs.define(eq=False)
class Plain:
    """Says once what is being read; the summary has the rest."""

    name: str

    async def watch(self, _look: Callable[[], State], /) -> None:
        """Say it, and sleep."""
        say(f"triobus: reading {self.name}")
        await trio.sleep_forever()

    def stop(self) -> None:
        """Do nothing."""


class Bar:
    """A progress bar of rich. It leaves nothing behind: the summary says it all."""

    def __init__(self, name: str, size: int | None) -> None:
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}", markup=False),
            rich_progress.BarColumn(),
            rich_progress.TextColumn("{task.fields[counts]}"),
            console=Console(stderr=True),
            redirect_stdout=False,
            transient=True,
        )
        self._task = self._bar.add_task(f"reading {name}", total=size or None, counts="")

    async def watch(self, look: Callable[[], State], /) -> None:
        """Draw it ten times a second."""
        self._bar.start()
        try:
            while True:
                state = look()
                counts = f"{state.read:,} read, {state.unsettled:,} to do, {state.handled:,} done"
                changes: dict[str, Any] = {"completed": state.bytes_read, "counts": counts}
                self._bar.update(self._task, **changes)
                await trio.sleep(_SECONDS_BETWEEN_LOOKS)
        finally:
            self._bar.stop()

    def stop(self) -> None:
        """Take the bar away and show the cursor again."""
        self._bar.stop()
