"""A module with a bus, written for a test, and the command that runs it."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

MODULE = """
from typing import ClassVar

import attrs
import os
import trio

from triobus import DomainEvent, EventBus, Retry

@attrs.frozen
class Placed(DomainEvent):
    event_type: ClassVar[str] = "NAME.placed"
    order_id: str
    quantity: int = 1

    @property
    def aggregate_id(self):
        return self.order_id

bus = EventBus()
handled = []
"""


HANDLER = """
@bus.subscribe(Placed, retry=Retry(attempts=2, delay=0))
async def ship(event):
    if event.quantity == 13:
        raise ValueError("unlucky")
    handled.append((event.order_id, event.quantity))

def triobus_report():
    return [{"order": order, "quantity": quantity} for order, quantity in handled]
"""


def placed(order_id: str, name: str = "shop", **more: Any) -> str:
    return json.dumps({"type": f"{name}.placed", "data": {"order_id": order_id, **more}}) + "\n"


def written(folder: Path, code: str = HANDLER, name: str = "shop") -> None:
    (folder / f"{name}.py").write_text(MODULE.replace("NAME", name) + dedent(code))


def started(folder: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As in what a shell runs in the background; a child would ignore it too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        [sys.executable, "-m", "triobus", *arguments],
        cwd=folder,
        stdin=options.pop("stdin", subprocess.PIPE),
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=options.pop("stderr", subprocess.PIPE),
        text=True,
        **options,
    )


def run(folder: Path, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
    with started(folder, *arguments) as process:
        stdout, stderr = process.communicate(stdin)
    return process.returncode, stdout, stderr


Here = Callable[..., tuple[int, str, str]]
