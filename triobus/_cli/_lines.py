"""Events of a log as lines: those that `triobus run` and `triobus import` take, and CloudEvents."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from triobus._errors import StoreCorrupt
from triobus.stores._values import Row

_BASE = ("event_id", "occurred_at", "correlation_id", "causation_id", "metadata")
"""What every event has; the rest is its own."""
_TRACE = ("traceparent", "tracestate")
"""What metadata may have that CloudEvents has a place for."""
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_compact = msgspec.json.format

Fields = dict[str, msgspec.Raw]


def fields_of(row: Row) -> Fields:
    """Return the fields of an event, each as JSON. Raises `StoreCorrupt`."""
    try:
        found = _fields(row.data)
        msgspec.json.decode(row.data)  # all the way down
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        failure = StoreCorrupt(f"position {row.position}: its data cannot be read: {error}")
        failure.position = row.position
        raise failure from None
    return {name: _on_one_line(raw) for name, raw in found.items()}


def _on_one_line(raw: msgspec.Raw) -> msgspec.Raw:
    text = bytes(raw)
    return msgspec.Raw(_compact(text, indent=-1)) if b"\n" in text or b"\r" in text else raw


def own_of(fields: Fields) -> Fields:
    """Return the fields of an event that are its own."""
    return {name: raw for name, raw in fields.items() if name not in _BASE}


def text_of(fields: Mapping[str, msgspec.Raw], name: str) -> str | None:
    """Return a field that is a text; None if it is not there, or something else."""
    found = msgspec.json.decode(fields.get(name, b"null"))
    return found if isinstance(found, str) else None


def line_of(row: Row) -> dict[str, Any]:
    """Return an event as the object that `triobus run` and `triobus import` take."""
    fields = fields_of(row)
    line = {
        "position": row.position,
        "recorded_at": row.recorded_at.astimezone(UTC),
        "type": row.event_type,
        "schema_version": row.schema_version,
        "aggregate": row.aggregate_id,
        "sequence": row.sequence,
        "data": {name: raw for name, raw in fields.items() if name != "metadata"},
    }
    if (metadata := bytes(fields.get("metadata", b"{}"))) != b"{}":
        line["metadata"] = msgspec.Raw(metadata)
    return line


def cloud_event_of(row: Row, source: str) -> dict[str, Any]:
    """Return an event as a CloudEvent 1.0 in JSON.

    What it has no attribute for is in extensions: their names have small letters and digits only,
    and numbers that may be large are texts.
    """
    fields = fields_of(row)
    metadata = msgspec.json.decode(fields.get("metadata", b"{}"))
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": row.event_id,
        "source": source,
        "type": row.event_type,
        "time": text_of(fields, "occurred_at"),
        "datacontenttype": "application/json",
        "subject": row.aggregate_id,
        "correlationid": text_of(fields, "correlation_id"),
        "causationid": text_of(fields, "causation_id"),
        "position": str(row.position),
        "sequence": None if row.sequence is None else str(row.sequence),
        "recordedtime": row.recorded_at.astimezone(UTC),
        "schemaversion": row.schema_version,
        "metadata": msgspec.json.encode(metadata).decode() if metadata else None,
        "data": own_of(fields),
    }
    if isinstance(metadata, dict):
        event |= {name: metadata[name] for name in _TRACE if name in metadata}
    return {name: value for name, value in event.items() if value is not None}


def occurred_at(fields: Fields) -> datetime | None:
    """Return when an event occurred, if that can be read."""
    try:
        return datetime.fromisoformat(text_of(fields, "occurred_at") or "")
    except ValueError:
        return None
