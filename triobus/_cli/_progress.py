"""How far a command has come: a bar of rich on a terminal, nothing elsewhere."""

import sys
from typing import Any

try:
    import rich.progress as rich_progress
    from rich.console import Console
except ImportError:  # the extra "cli" is not installed
    rich_progress = None  # type: ignore[assignment]  # there is no other way to say so


class Bar:
    """A progress bar inside its block. It leaves nothing behind: the summary says it all."""

    def __init__(self, doing: str, total: int | None) -> None:
        self._bar: Any = None
        if rich_progress is not None and sys.stderr.isatty():
            self._bar = rich_progress.Progress(
                rich_progress.TextColumn("{task.description}", markup=False),
                rich_progress.BarColumn(),
                rich_progress.TextColumn("{task.fields[counts]}"),
                console=Console(stderr=True),
                redirect_stdout=False,
                transient=True,
            )
            self._task = self._bar.add_task(doing, total=total or None, counts="")

    @property
    def is_shown(self) -> bool:
        """Whether there is a terminal to show it on, and rich."""
        return self._bar is not None

    def show(self, completed: int, counts: str = "") -> None:
        """Draw it anew."""
        if self._bar is not None:
            self._bar.update(self._task, completed=completed, counts=counts)

    def stop(self) -> None:
        """Take the bar away and show the cursor again. Harmless when repeated."""
        if self._bar is not None:
            self._bar.stop()

    def __enter__(self) -> "Bar":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
