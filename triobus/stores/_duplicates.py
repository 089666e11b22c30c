"""Whether two events of one id are the same event: it is accepted once, and another is refused.

1. What counts is the event's type and its own fields. When it happened, what caused it and its
   metadata do not, so that a program that derives ids from the content may publish it again.
2. Most events that come again are the same in JSON, which is seen here, without their classes.
3. JSON can differ where the events do not: a set has no order, an older version has other fields.
   So a commit leaves out what seems to be another event, and its store, which knows the classes,
   looks again.
"""

from collections.abc import Callable
from typing import NamedTuple

import attrs
import msgspec

from triobus._errors import EventIdConflict, EventNotDecodable, EventNotEncodable
from triobus._events import DomainEvent, EventCodec
from triobus._text import shown
from triobus.stores._values import Append, LogPosition, NewRow, Row, Schedule

Content = NewRow | Row

_SHARED = frozenset(field.name for field in attrs.fields(DomainEvent))
LONGEST_NAME = 4 * 2**20
"""How many bytes an event type or an aggregate id may have in UTF-8."""
GREATEST_VERSION = 2**53 - 1
"""The greatest schema version; beyond it not every reader of JSON tells two numbers apart."""
_SHORT = LONGEST_NAME // 4
"""How many characters of a name are certainly no more bytes than that."""
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Known(NamedTuple):
    """An event that the log has already, or gets in the same commit."""

    place: LogPosition
    content: Content


class Differs(Exception):  # a result of a commit, which only the store sees
    """An append was left out, for the id of one of its events seems to be another event's."""

    def __init__(
        self,
        index: int,
        content: Content,
        position: int | None,
        field: str,
        *,
        is_scheduled: bool = False,
    ) -> None:
        super().__init__(index, content, position, field)
        self.is_scheduled = is_scheduled
        """Whether what the id stands for is scheduled, and in no log yet."""
        self.index = index
        """Which of the append's events it is."""
        self.content = content
        """What the id stands for."""
        self.position = position
        """Where that is in the log; None if it is another event of the same append."""
        self.field = field
        """What differs, or the first of it."""


def may_be_refused(record: NewRow) -> bool:
    """Whether to ask for `refusal`, in little time."""
    aggregate_id = record.aggregate_id
    return (
        type(record.event_type) is not str
        or len(record.event_type) > _SHORT
        or type(record.schema_version) is not int
        or not 0 <= record.schema_version <= GREATEST_VERSION
        or (aggregate_id is not None and len(aggregate_id) > _SHORT)
    )


def refusal(append: Append) -> EventNotEncodable | None:
    """Return why an append cannot be in a log at all, which its publisher alone shall hear."""
    for record in append.records:
        for what, name in (
            ("event type", record.event_type),
            ("aggregate id", record.aggregate_id),
        ):
            if name is not None and (fault := _fault_of_name(name)):
                return EventNotEncodable(f"{what} {shown(name)} {fault}")
        version = record.schema_version
        if type(version) is not int or not 0 <= version <= GREATEST_VERSION:
            return EventNotEncodable(
                f"schema version {shown(version)} of {record.event_type!r}: give a whole number "
                f"from 0 to {GREATEST_VERSION:,}"
            )
    return None


def _fault_of_name(name: object) -> str:
    if type(name) is not str:
        return f"is of type {type(name).__qualname__}: give a str"
    if "\0" in name:
        return "contains NUL: remove it"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "contains half of a surrogate pair and is no text: replace it"
    if size > LONGEST_NAME:
        return f"has {size:,} bytes: give at most {LONGEST_NAME:,}"
    return ""


def known_places(
    append: Append, find: Callable[[str], Known | None]
) -> list[LogPosition | None] | Differs:
    """Return where those events of an append are that the log has; None for each of the others.

    `find` returns what an id stands for. Of an event that is twice in the append, both are None.
    """
    own: dict[str, NewRow] = {}
    places: list[LogPosition | None] = []
    for index, record in enumerate(append.records):
        event_id = str(record.event_id)
        known = find(event_id)
        content = own.setdefault(event_id, record) if known is None else known.content
        if content is not record and index not in append.same:
            field = difference(content, record)
            if field is not None:
                position = None if known is None else known.place.position
                return Differs(index, content, position, field)
        places.append(None if known is None else known.place)
    return places


def difference(known: Content, record: NewRow) -> str | None:
    """Return the name of what is different in two events, the first of it, as JSON shows it."""
    if known.event_type != record.event_type:
        return "event_type"
    if known.data == record.data:
        return None
    try:
        before, now = _fields(known.data), _fields(record.data)
    except msgspec.DecodeError:
        return "data"
    for name in (*now, *before):
        if name in _SHARED:
            continue
        if name not in before or name not in now or bytes(before[name]) != bytes(now[name]):
            return name
    return None


def is_same(codec: EventCodec, known: Content, event: DomainEvent) -> bool:
    """Whether an event is the same as a known one, of which the JSON is different."""
    if known.event_type != event.event_type:
        return False
    try:
        before = codec.decode(known.event_type, known.schema_version, known.data)
    except EventNotDecodable:
        return False
    return has_same_content(before, event)


def has_same_content(one: DomainEvent, other: DomainEvent) -> bool:
    """Whether two events are of one class and have the same fields of their own."""
    return type(one) is type(other) and all(
        getattr(one, field.name) == getattr(other, field.name)
        for field in attrs.fields(type(one))
        if field.name not in _SHARED
    )


def refused(item: Schedule, there: Content | None, position: int | None) -> Exception | None:
    """Return why an event cannot be scheduled, given what its id stands for already, and where."""
    refusal_ = refusal(Append([item.record]))
    if refusal_ is not None or there is None or item.is_same:
        return refusal_
    field = difference(there, item.record)
    if field is None:
        return None
    return Differs(0, there, position, field, is_scheduled=position is None)


def check_same(codec: EventCodec, found: Differs, event: DomainEvent, record: NewRow) -> None:
    """Raise `EventIdConflict` unless an append was left out for an event that is the same."""
    if not is_same(codec, found.content, event):
        raise conflict_of(found, record) from None


def conflict_of(found: Differs, record: NewRow) -> EventIdConflict:
    """Return the error of publishing another event under an id that is taken."""
    known = found.content
    where = (
        "which is scheduled"
        if found.is_scheduled
        else "which comes before it in the same call"
        if found.position is None
        else f"which is at position {found.position}"
    )
    what = (
        "it is of another type" if found.field == "event_type" else f"it differs in {found.field!r}"
    )
    error = EventIdConflict(
        f"event {record.event_id}, a {record.event_type!r}, was not stored: its id is that of a "
        f"{known.event_type!r} {where}, and {what}. Give each event an id of its own; the same "
        "event may be published again, with another time, cause or metadata too"
    )
    error.event_id = record.event_id
    error.position = found.position
    error.field = found.field
    return error
