"""Asking before something is deleted."""

import argparse
import sys

from triobus._cli._messages import CommandError, say


def ask(question: str, options: argparse.Namespace) -> None:
    """Return if the user agrees, or has with `--yes`. Raises `CommandError` otherwise."""
    if options.yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise CommandError(f"{question} There is no terminal to ask at: give --yes to do it")
    say(f"{question} [y/N]")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CommandError("nothing was done")
