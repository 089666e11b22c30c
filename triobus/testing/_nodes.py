"""What can happen to one of several buses that share a `MemoryEventStore`, beside a crash."""

from triobus._bus import EventBus
from triobus._bus.stored_log import StoredLog
from triobus._errors import InvalidOption
from triobus.stores._memory_node import MemoryNode


def cut_off(bus: EventBus) -> None:
    """Let nothing that a bus asks reach its store, as if the network between them were cut.

    What it asks waits until `reconnect`. When its lease is over by its own clock, its handlers are
    cancelled, and soon the other buses have its share. The store is a `MemoryEventStore` with a
    `lease`.
    """
    _node_of(bus, "cut_off()").cut_off()


def hang(bus: EventBus) -> None:
    """Let a bus be to the others as one whose process is stopped, and goes on after `reconnect`.

    Like `cut_off`, but the bus does not see that its lease is over: its handlers go on as if it had
    its share, and may end while others handle the same events. Nothing of that is recorded.
    """
    _node_of(bus, "hang()").cut_off(is_stopped=True)


def reconnect(bus: EventBus) -> None:
    """Let a bus go on that hangs or is cut off; it takes a share again when it has one."""
    _node_of(bus, "reconnect()").reconnect()


def _node_of(bus: EventBus, call: str) -> MemoryNode:
    log = bus._life.log
    store = log.store if isinstance(log, StoredLog) else None
    if not isinstance(store, MemoryNode):
        raise InvalidOption(
            f"{call}: the bus shares no store in memory: give it a MemoryEventStore(lease=5.0)"
        )
    return store
