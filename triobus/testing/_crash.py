"""`crash`: a bus ends as if its process had been killed, and the test goes on."""

from triobus._bus import EventBus


async def crash(bus: EventBus) -> None:
    """End a bus as a killed process would: nothing is drained, and nothing more is recorded.

    Its handlers are cancelled, and what they still do has no effect on the store. Publishers get
    `BusClosed`, or `OutcomeUnknown` if their commit was under way: that one may be on disk or not,
    as with a real kill. When this returns, the file and the `-wal`, `-shm` and `-lock` beside it
    are as they were on disk, and a new bus on the same path recovers. A `MemoryEventStore` keeps
    what was committed, for the next bus; a store `":memory:"` is lost.

    A handler may call it, and is cancelled by it. Raises `BusClosed` when the bus is not running.
    """
    await bus._crash()
