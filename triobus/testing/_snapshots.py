"""Whether an event is still what it was when it was published.

A frozen event can hold what is not: a list, a dict. Whoever changes that changes the event for the
next attempt, for every other handler, and for what a store has not written yet.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import attrs

from triobus._events import DomainEvent

_LONGEST = 200
_Fields = Mapping[str, Any]


class EventChanged(AssertionError):
    """Somebody has changed what an event holds; the message has the field and both values."""


@attrs.define(eq=False)
class Snapshots:
    """Copies of the fields of events, as they were when they were first seen."""

    _on_change: Callable[[str], None]
    _fields: dict[UUID, _Fields] = attrs.field(factory=dict, init=False)

    def take(self, event: DomainEvent) -> None:
        """Keep what an event is now."""
        self._fields[event.event_id] = _copied(event)

    def compare(self, event: DomainEvent, when: str) -> None:
        """Tell if an event is not what it was, once for each change; `when` ends the sentence."""
        before = self._fields.get(event.event_id)
        if before is None:  # published before anybody looked
            self.take(event)
            return
        now = _values(event)
        for name in before:
            if name not in now or _are_equal(before[name], now[name]):
                continue
            self.take(event)
            self._on_change(
                f"{type(event).__qualname__}.{name} was changed {when}: it was "
                f"{_shown(before[name])} and is {_shown(now[name])}. An event is a fact that "
                "others see, too: change a copy, or let the field be a tuple or a frozen class"
            )
            return


def _values(event: DomainEvent) -> _Fields:
    fields = attrs.fields(type(event)) if attrs.has(type(event)) else ()
    names = [field.name for field in fields]
    return {name: getattr(event, name) for name in names if hasattr(event, name)}


def _copied(event: DomainEvent) -> _Fields:
    """Return copies of the fields that can be copied and compared."""
    copies = {}
    for name, value in _values(event).items():
        try:
            copied = copy.deepcopy(value)
        except Exception:  # noqa: BLE001  # a lock, a socket: nothing that could be compared
            continue
        if _are_equal(copied, value):
            copies[name] = copied
    return copies


def _are_equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # noqa: BLE001  # an array, say, says neither yes nor no
        return one is other


def _shown(value: Any) -> str:
    try:
        text = ascii(value)
    except Exception as error:  # noqa: BLE001  # a repr may raise anything
        return f"<its repr raised {type(error).__name__}>"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
