"""Reading a log: what is asked for, and one way through it."""

from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Protocol
from uuid import UUID

import attrs
import trio

from triobus import _checks
from triobus._errors import InvalidOption
from triobus._events import DomainEvent, event_classes
from triobus.stores._values import Row, Selection, Stored

BATCH = 512
"""How many events are read at a time, at most."""

Types = type[DomainEvent] | str | tuple[type[DomainEvent] | str, ...]


class Readable(Protocol):
    """A store, as reading needs it."""

    async def _fetch(
        self, after: int, limit: int, up_to: int | None, selected: Selection, /, *, backwards: bool
    ) -> list[Row]:
        """Return the first events behind a position, or the last ones."""

    async def _position_of(self, aggregate_id: str, sequence: int, /) -> int | None:
        """Return where an aggregate has its event of that sequence."""

    def _stored(self, record: Row, /) -> Stored:
        """Return a record with its event."""


def reading(
    store: Readable,
    after: int,
    until: int | None,
    limit: int | None,
    *,
    aggregate_id: str | None,
    types: Types | None,
    correlation_id: UUID | None,
    after_sequence: int,
    backwards: bool,
) -> AsyncIterator[Stored]:
    """Return what `EventStore.read` does. Raises `InvalidOption`."""
    _checks.whole_number("after", after, least=0)
    _checks.whole_number("after_sequence", after_sequence, least=0)
    if aggregate_id is not None and not isinstance(aggregate_id, str):
        raise InvalidOption(
            f"aggregate_id={aggregate_id!r}: give the str that aggregate_id of its events "
            "returns, or None for all events"
        )
    if after_sequence and aggregate_id is None:
        raise InvalidOption(
            f"after_sequence={after_sequence}: a sequence is one of an aggregate, so give "
            "aggregate_id too; a place in the whole log is after=..."
        )
    if correlation_id is not None and not isinstance(correlation_id, UUID):
        raise InvalidOption(
            f"correlation_id={correlation_id!r}: give a UUID, such as event.correlation_id"
        )
    if limit is not None:
        _checks.whole_number("limit", limit, least=0)
    if until is not None:
        _checks.whole_number("until", until, least=0)
    _checks.boolean("backwards", backwards)
    correlation = None if correlation_id is None else str(correlation_id)
    selected = Selection(aggregate_id, type_names(types), correlation)
    return _Reading(store, after, until, limit, selected, after_sequence, backwards)


@attrs.define(eq=False)
class _Reading(AsyncIterator[Stored]):
    """One way through a log. No generator, for Trio minds when one is left in the middle."""

    _store: Readable
    _after: int
    _up_to: int | None
    _left: int | None
    _selected: Selection
    _after_sequence: int
    _is_backwards: bool
    _records: deque[Row] = attrs.field(factory=deque, init=False)

    async def __anext__(self) -> Stored:
        if self._records:
            await trio.lowlevel.checkpoint()
        else:
            if self._after_sequence:
                await self._find_sequence()
            await self._fetch(BATCH if self._left is None else min(self._left, BATCH))
        return self._store._stored(self._records.popleft())

    async def _find_sequence(self) -> None:
        """Go to the aggregate's event behind which reading begins."""
        assert self._selected.aggregate_id is not None
        at = await self._store._position_of(self._selected.aggregate_id, self._after_sequence)
        if at is None:
            raise StopAsyncIteration  # it may have come by the next time
        self._after, self._after_sequence = max(self._after, at), 0

    async def _fetch(self, limit: int) -> None:
        """Read on, or end."""
        if not limit:
            await trio.lowlevel.checkpoint()
            raise StopAsyncIteration
        self._records.extend(
            await self._store._fetch(
                self._after, limit, self._up_to, self._selected, backwards=self._is_backwards
            )
        )
        if not self._records:
            raise StopAsyncIteration
        if self._is_backwards:
            self._up_to = self._records[-1].position - 1
        else:
            self._after = self._records[-1].position
        if self._left is not None:
            self._left -= len(self._records)


def type_names(types: Any) -> list[str] | None:
    """Return the names of event types, or None for all."""
    if types is None:
        return None
    given = types if isinstance(types, tuple) else (types,)
    names: dict[str, None] = {}
    for type_ in given:
        if isinstance(type_, str):
            names[type_] = None
        elif isinstance(type_, type) and issubclass(type_, DomainEvent):
            if type_ is DomainEvent:
                return None
            names[type_.event_type] = None
            names.update(
                {cls.event_type: None for cls in event_classes() if issubclass(cls, type_)}
            )
        else:
            raise InvalidOption(
                f"types={types!r}: give an event class, the name of an event type, or a tuple"
            )
    return list(names)
