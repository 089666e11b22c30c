"""Events on their way into the table and out of it, and their checksums.

A checksum is the crc32 of what the event is, mixed by the server with its place and time. It finds
accidents, not attackers.
"""

import zlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs

from triobus._errors import EventNotEncodable
from triobus._text import shown
from triobus.stores._duplicates import may_be_refused, refusal
from triobus.stores._values import Append, NewRow, Row
from triobus.stores.postgres import _arrays
from triobus.stores.postgres._faults import Faults

LONGEST_AGGREGATE_ID = 2000
"""How many bytes an aggregate id may have: more would not fit into an index."""
COLUMNS = (
    "position, event_id::text, event_type, schema_version, aggregate_id, sequence, recorded_at, "
    "data, checksum, correlation_id::text"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_PRIME = 2**31 - 1
_SLOTS = 0x7FFF


def slot_of(aggregate_id: str | None, event_id: str) -> int:
    """Return the slot of an event: that of its aggregate, or one of its own."""
    name = event_id if aggregate_id is None else aggregate_id
    return zlib.crc32(name.encode()) & _SLOTS


def _crc(
    event_id: str,
    event_type: str,
    version: int,
    aggregate_id: str | None,
    correlation_id: str | None,
    data: bytes,
) -> int:
    head = (
        f"{event_id}\0{event_type}\0{version}\0{aggregate_id or ''}\0"
        f"{aggregate_id is None}\0{correlation_id or ''}\0"
    )
    return zlib.crc32(data, zlib.crc32(head.encode()))


def record_of(faults: Faults, row: Sequence[Any]) -> Row:
    """Return a row of the log, after comparing it with its checksum. Raises `StoreCorrupt`."""
    position, id_, type_, version, aggregate_id, sequence, recorded_at, text, checksum, other = row
    data = text.encode()
    micros = (recorded_at - _EPOCH) // _MICROSECOND
    place = position % _PRIME * 40503 + (sequence or 0) % _PRIME * 30011 + micros % _PRIME
    if _crc(id_, type_, version, aggregate_id, other, data) ^ (place & 0xFFFFFFFF) != checksum:
        raise faults.corrupt(position, "the event was changed")
    return Row(position, id_, type_, version, aggregate_id, sequence, recorded_at, data)


def _is_plain(record: NewRow) -> bool:
    """Whether nothing can be wrong with an event, apart from texts that are none."""
    name = record.aggregate_id
    if may_be_refused(record) or "\0" in record.event_type:
        return False
    if name is None:
        return True
    return type(name) is str and len(name) * 4 <= LONGEST_AGGREGATE_ID and "\0" not in name


def refusal_of(append: Append) -> EventNotEncodable | None:
    """Return why an append cannot be in the log at all."""
    for record in append.records:
        name = record.aggregate_id
        if type(name) is str and len(name) * 4 > LONGEST_AGGREGATE_ID:
            size = len(name.encode("utf-8", "replace"))
            if size > LONGEST_AGGREGATE_ID:
                return EventNotEncodable(
                    f"aggregate id {shown(name)} has {size:,} bytes: a PostgresEventStore takes at "
                    f"most {LONGEST_AGGREGATE_ID:,}"
                )
    return refusal(append)


@attrs.define(eq=False)
class NewRows:
    """Events as the arguments of the function that appends them."""

    ids: list[str] = attrs.field(factory=list)
    aggregates: dict[str, int] = attrs.field(factory=dict)
    """The aggregates that are appended to, each with its number, from 1."""
    ranks: list[int] = attrs.field(factory=list)
    """For each event the how manieth of its aggregate it is here; 0 without one."""
    names: list[int | None] = attrs.field(factory=list)
    """For each event the number of its aggregate."""
    wanted: dict[str, int] = attrs.field(factory=dict)
    """The sequences that aggregates have to have before."""
    is_plain: bool = True
    """Whether nothing about them has to be looked at one by one."""
    _rows: list[NewRow] = attrs.field(factory=list)
    _counts: list[int] = attrs.field(factory=list)

    def add(self, append: Append) -> None:
        """Add the events of an append."""
        records, expected, same = append
        if same:
            self.is_plain = False
        if expected is not None and records:
            name = records[0].aggregate_id
            assert name is not None
            number = self.aggregates.get(name)
            before = expected - (0 if number is None else self._counts[number - 1])
            if self.wanted.setdefault(name, before) != before:
                self.is_plain = False
        for record in records:
            self._add(record)

    def _add(self, record: NewRow) -> None:
        name = record.aggregate_id
        self.is_plain = self.is_plain and _is_plain(record)
        if not self.is_plain:
            return  # they are looked at one by one
        if name is None:
            self.names.append(None)
            self.ranks.append(0)
        else:
            number = self.aggregates.get(name)
            if number is None:
                number = self.aggregates[name] = len(self._counts) + 1
                self._counts.append(0)
            self._counts[number - 1] += 1
            self.names.append(number)
            self.ranks.append(self._counts[number - 1])
        self.ids.append(str(record.event_id))
        self._rows.append(record)

    @property
    def have_one_id_twice(self) -> bool:
        """Whether one id is there twice."""
        return len(set(self.ids)) < len(self.ids)

    def arguments(self) -> tuple[str | None, ...]:
        """Return what the function is given."""
        rows, ids = self._rows, self.ids
        keys = list(self.aggregates)
        wanted = [self.wanted.get(name) for name in keys] if self.wanted else None
        return (
            _arrays.texts(ids),
            _arrays.texts([row.event_type for row in rows]),
            _arrays.numbers(row.schema_version for row in rows),
            _arrays.optional(self.names),
            _arrays.numbers(self.ranks),
            _arrays.texts(keys) if keys else None,
            None if wanted is None else _arrays.optional(wanted),
            _arrays.numbers(
                slot_of(row.aggregate_id, id_) for row, id_ in zip(rows, ids, strict=True)
            ),
            _arrays.texts([row.data.decode() for row in rows]),
            _arrays.numbers(
                _crc(id_, row[1], row[2], row[3], row[5], row[4])
                for row, id_ in zip(rows, ids, strict=True)
            ),
            _arrays.optional(row.correlation_id for row in rows),
        )

    def sequences(self, lasts: Sequence[int] | None) -> list[int | None]:
        """Return the sequences that the events have got, by the last ones of their aggregates."""
        if lasts is None:
            return [None] * len(self.ids)
        return [
            None if name is None else lasts[name - 1] + rank
            for name, rank in zip(self.names, self.ranks, strict=True)
        ]
