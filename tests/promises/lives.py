"""Handlers that the tests of a bus's life use."""

import trio

from tests.events import Noted


def noting(bus, **options):
    """Subscribe a handler that notes the numbers of what it is given, and return the notes."""
    seen = []

    async def note(event):
        seen.append(event.number)

    bus.subscribe(Noted, note, **options)
    return seen


class Gate:
    """A handler that begins events and finishes none before it is opened."""

    def __init__(self):
        self.begun = []
        self.finished = []
        self.open = trio.Event()

    async def __call__(self, event):
        self.begun.append(event.number)
        await self.open.wait()
        self.finished.append(event.number)
