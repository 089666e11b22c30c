"""Lines of JSON as events of a log, without their classes."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import attrs
import msgspec

from triobus._text import said, shown
from triobus.stores._values import NewRow

LONGEST = 32 * 2**20
"""In bytes: the longest line that is taken; a store may have larger events than a bus publishes."""


class BadLine(Exception):
    """A line is no event; the message says why."""


@attrs.frozen
class Parsed:
    """An event of a line."""

    record: NewRow
    recorded_at: datetime | None
    position: int | None
    sequence: int | None


class _Line(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What `line_of` writes, and `triobus run` takes."""

    type: str
    data: dict[str, msgspec.Raw]
    aggregate: str | None = None
    metadata: dict[str, str] = {}
    schema_version: int = 1
    position: int | None = None
    sequence: int | None = None
    recorded_at: datetime | None = None


class _CloudEvent(msgspec.Struct, gc=False):
    """What `cloud_event_of` writes; attributes that are not known are passed over."""

    specversion: str
    id: UUID
    type: str
    source: str
    data: dict[str, msgspec.Raw]
    time: datetime
    subject: str | None = None
    correlationid: UUID | None = None
    causationid: UUID | None = None
    position: str | None = None
    sequence: str | None = None
    recordedtime: datetime | None = None
    schemaversion: int = 1
    metadata: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None


class _Base(msgspec.Struct, gc=False):
    """What the data of every event have."""

    event_id: UUID
    occurred_at: datetime
    correlation_id: UUID | None = None
    causation_id: UUID | None = None


class _Kind(msgspec.Struct, gc=False):
    specversion: Any = None


_kind = msgspec.json.Decoder(_Kind).decode
_line = msgspec.json.Decoder(_Line).decode
_cloud_event = msgspec.json.Decoder(_CloudEvent).decode
_base = msgspec.json.Decoder(_Base).decode
_metadata = msgspec.json.Decoder(dict[str, str]).decode
_read, _write = msgspec.json.decode, msgspec.json.encode


def parsed(text: bytes | None) -> Parsed:
    """Return the event that a line describes. Raises `BadLine`."""
    if text is None:
        raise BadLine(f"it is longer than {LONGEST:,} bytes")
    try:
        found = _of_cloud_event(text) if _kind(text).specversion is not None else _of_line(text)
        _check(found)
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        raise BadLine(said(error)) from None
    return found


def _of_line(text: bytes) -> Parsed:
    line = _line(text)
    return _parsed(line.type, line.data, line.metadata, line.aggregate, line)


def _of_cloud_event(text: bytes) -> Parsed:
    event = _cloud_event(text)
    if event.specversion != "1.0":
        raise BadLine(f"specversion is {shown(event.specversion)}, and only 1.0 is known")
    data = event.data | {
        "event_id": _raw(event.id),
        "occurred_at": _raw(event.time),
        "correlation_id": _raw(event.correlationid),
        "causation_id": _raw(event.causationid),
    }
    trace = {
        name: value
        for name in ("traceparent", "tracestate")
        if (value := getattr(event, name)) is not None
    }
    metadata = trace | (_metadata(event.metadata) if event.metadata is not None else {})
    line = _Line(
        event.type,
        data,
        event.subject,
        schema_version=event.schemaversion,
        position=None if event.position is None else int(event.position),
        sequence=None if event.sequence is None else int(event.sequence),
        recorded_at=event.recordedtime,
    )
    return _parsed(event.type, data, metadata, event.subject, line)


def _parsed(
    event_type: str,
    data: dict[str, msgspec.Raw],
    metadata: dict[str, str],
    aggregate: str | None,
    line: _Line,
) -> Parsed:
    fields = {name: _as_written(raw) for name, raw in data.items()}
    written = _write(fields | {"metadata": metadata})
    base = _base(written)
    if base.occurred_at.tzinfo is None:
        raise BadLine(f"occurred_at {base.occurred_at} has no time zone")
    correlation = None if base.correlation_id is None else str(base.correlation_id)
    return Parsed(
        NewRow(base.event_id, event_type, line.schema_version, aggregate, written, correlation),
        None if line.recorded_at is None else line.recorded_at,
        line.position,
        line.sequence,
    )


def _check(found: Parsed) -> None:
    if found.recorded_at is not None:
        if found.recorded_at.tzinfo is None:
            raise BadLine(f"recorded_at {found.recorded_at} has no time zone")
        found.recorded_at.astimezone(UTC)
    if not found.record.event_type:
        raise BadLine("type is empty")
    for what, number in (("position", found.position), ("sequence", found.sequence)):
        if number is not None and not 0 < number < 2**62:
            raise BadLine(f"{what} {number} is no whole number from 1 up")
    if found.sequence is not None and found.record.aggregate_id is None:
        raise BadLine(f"sequence {found.sequence} is one of an aggregate, and there is none")


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(_write(value))


def _as_written(raw: msgspec.Raw) -> msgspec.Raw:
    """Return JSON as the store would have it: what a terminal would obey is escaped in lines."""
    text = bytes(raw)
    value = _read(text)  # all the way down, for a store keeps no damaged JSON
    return msgspec.Raw(_write(value)) if b"\\u" in text else raw
