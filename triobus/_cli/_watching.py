"""Showing something again when it has changed: in place with rich on a terminal, else below."""

import argparse
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from triobus._text import escaped

try:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text
except ImportError:  # the extra "cli" is not installed
    Live = None  # type: ignore[assignment,misc]  # there is no other way to say so

T = TypeVar("T")


async def watched(
    look: Callable[[], Awaitable[T]], described: Callable[[T], str], options: argparse.Namespace
) -> None:
    """Show what a look finds, and again whenever it finds something else, until Ctrl-C."""
    terminal = sys.__stdout__
    if Live is None or options.json or terminal is None or not terminal.isatty():
        await _printed(look, described, options)
        return
    with Live(console=Console(), screen=True, auto_refresh=False) as live:
        while True:
            # Drawn each time, for it says how long ago something was.
            live.update(Text(escaped(described(await look()), kept="\n")), refresh=True)
            await trio.sleep(options.every)


async def _printed(
    look: Callable[[], Awaitable[T]], described: Callable[[T], str], options: argparse.Namespace
) -> None:
    before: T | None = None
    while True:
        found = await look()
        if found != before:
            print(escaped(described(found), kept="\n"), file=options.stdout, flush=True)
        before = found
        await trio.sleep(options.every)
