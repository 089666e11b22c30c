"""Whether an event is still what it was when it was published.

A frozen event can hold a list or a dict. A handler that changes that changes the event for the next
attempt, for every other handler, and for what a store has not written yet.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import attrs

from triobus._events import DomainEvent
from triobus._events.limits import field_names
from triobus._text import shown

_LONGEST = 200


class EventChanged(AssertionError):
    """What an event holds was changed; the message has the field and both values."""


@attrs.define(eq=False)
class Snapshots:
    """Copies of the fields of events, as they were when they were first seen."""

    _on_change: Callable[[str], None]
    _fields: dict[UUID, Mapping[str, Any]] = attrs.field(factory=dict, init=False)

    def take(self, event: DomainEvent) -> None:
        """Keep what an event is now, as far as it can be copied and compared."""
        copies = self._fields[event.event_id] = {}
        for name, value in _values(event).items():
            try:
                copied = copy.deepcopy(value)
            except Exception:  # noqa: BLE001  # a lock, a socket: nothing that could be compared
                continue
            if _are_equal(copied, value):
                copies[name] = copied

    def compare(self, event: DomainEvent, when: str) -> None:
        """Report an event that is not what it was, once; `when` ends the sentence."""
        before, now = self._fields.get(event.event_id), _values(event)
        if before is None:  # published before the recording began
            self.take(event)
            return
        for name in before:
            if name in now and not _are_equal(before[name], now[name]):
                self.take(event)
                self._on_change(
                    f"{type(event).__qualname__}.{name} was changed {when}: it was "
                    f"{shown(before[name], _LONGEST)} and is {shown(now[name], _LONGEST)}. An "
                    "event is a fact that others see, too: change a copy, or let the field be a "
                    "tuple or a frozen class"
                )
                return


def _values(event: DomainEvent) -> Mapping[str, Any]:
    names = field_names(event)
    return {name: getattr(event, name) for name in names if hasattr(event, name)}


def _are_equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # noqa: BLE001  # an array, say, answers neither yes nor no
        return one is other
