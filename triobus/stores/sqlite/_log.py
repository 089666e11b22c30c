"""The rows of the log: each is compared with its checksum, and their end with what is on record.

Nothing that is read from a file is believed: it may be damaged, or come from anywhere.
"""

import os
import zlib
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from typing import Any

from triobus._errors import StoreClosed, StoreError, StoreReplaced
from triobus._text import line
from triobus.stores._values import Row
from triobus.stores.sqlite import _rows
from triobus.stores.sqlite._connection import MEMORY, Database
from triobus.stores.sqlite._faults import Faults

COLUMNS = (
    "position, event_id, event_type, schema_version, aggregate_id, sequence, recorded_at, data, "
    "checksum, (SELECT checksum FROM events AS before WHERE before.position = events.position - 1)"
)
_LEAST_LOOKED_AT = 2**16
"""How many bytes of the last events are looked at after a crash, however short the `-wal` is."""
_GREATEST_LOG = 2**20
"""How many more at most, however long it is; that takes some hundredths of a second."""
_LOOKED_UP = 100
"""How many of the last events are looked for in the indexes."""
_LEAST_BYTES_AN_EVENT = 50
"""Its id and the time alone have more."""


def record_of(faults: Faults, row: Sequence[Any], before: int) -> Row:
    """Return a row of the log, after comparing it with its checksum."""
    position, id_, type_, version, aggregate, sequence, recorded, data, checksum, _ = row
    try:
        place = b"" if sequence is None else b"%d" % sequence
        names = (position, id_, type_, version, aggregate or b"", place, recorded)
        head = b"%d\0%b\0%b\0%d\0%b\0%b\0%b\0" % names
        if zlib.crc32(data, zlib.crc32(head, before)) != checksum or (
            (aggregate is None) != (sequence is None)
        ):
            raise faults.corrupt(position, "the event or the one before it was changed")
        recorded_at = datetime.fromisoformat(recorded.decode())
        if (
            recorded_at.tzinfo is None
            or type(version) is not int
            or (sequence is not None and not 0 < sequence < _rows.GREATEST)
        ):
            raise ValueError("a time without its zone, or a number that cannot be")
        aggregate_id = None if aggregate is None else aggregate.decode()
        texts = (id_.decode(), type_.decode(), version, aggregate_id)
        return tuple.__new__(Row, (position, *texts, sequence, recorded_at, data))
    except StoreError:
        raise  # some are a ValueError, too
    except _rows.UNREADABLE as error:
        raise faults.corrupt(position, f"the row cannot be read: {line(str(error))}") from None


def row_of_id(db: Database, event_id: str) -> Any:
    """Return the row of an event's id, or None."""
    row = (
        db.ready()
        .execute(f"SELECT {COLUMNS} FROM events WHERE event_id = ?", (event_id,))
        .fetchone()
    )
    # A damaged page can lead from the index of ids to another event.
    if row is not None and row[1] != event_id.encode():
        raise db.faults.corrupt(row[0], "it has another id than the index says")
    return row


def head(db: Database) -> tuple[int, int]:
    """Return position and checksum of the last event, after a look whether it is there."""
    with db.one_moment():
        (position, checksum) = db.ready().execute(
            "SELECT position, checksum FROM progress WHERE name = ''"
        ).fetchone() or (-1, 0)
        last = db.ready().execute(
            "SELECT position, checksum FROM events ORDER BY position DESC LIMIT 1"
        ).fetchone() or (0, 0)
    if position != -1:
        check_possible(db, _rows.whole(position, least=0))
        _rows.whole(checksum, least=0)
    if (position, checksum) != last:
        raise db.faults.corrupt(
            min(max(position, 0), last[0]) + 1,
            f"the log should end at position {position} and ends at {last[0]}"
            if position != last[0]
            else "its last event has another checksum than the log says",
        )
    return position, checksum


def last_position(db: Database) -> int:
    """Return where the log says that it ends."""
    row = db.ready().execute("SELECT position FROM progress WHERE name = ''").fetchone()
    if row is None:
        raise db.faults.corrupt(1, "nothing says where the log ends")
    return check_possible(db, _rows.whole(row[0], least=0))


def check_possible(db: Database, last: int) -> int:
    """Raise `StoreCorrupt` if the file is too short for as many events."""
    if last * _LEAST_BYTES_AN_EVENT > db.faults.room():
        raise db.faults.corrupt(
            1, f"it says that it has {last:,} events, and the file is too short for them"
        )
    return last


def check_end(db: Database) -> None:
    """Raise `StoreCorrupt` unless the log is whole where a killed writer was at work.

    SQLite leaves out what was torn in the `-wal`, by its checksums. It cannot know whether a
    `-wal` belongs to the file, or whether one is missing that a checkpoint was being made of.
    So as much of the log as there can have been in it, within bounds, is compared with its
    checksums, and of the last events what the indexes say. What is wrong elsewhere is found
    where it is read, and by `triobus verify`.
    """
    left = _LEAST_LOOKED_AT + _log_size(db)
    looked_up, due = _LOOKED_UP, db.position
    query = f"SELECT {COLUMNS} FROM events ORDER BY position DESC"
    with closing(db.ready().execute(query)) as cursor:
        for row in cursor:
            if row[0] != due:
                raise db.faults.corrupt(due, "the event is missing")
            record = record_of(db.faults, row, row[9] or 0)
            if looked_up:
                looked_up -= 1
                _check_indexes(db, record)
            due -= 1
            left -= len(row[7])
            if left < 0:
                return
    if due > 0:
        raise db.faults.corrupt(due, "the event is missing")


def _check_indexes(db: Database, record: Row) -> None:
    """Raise `StoreCorrupt` unless the indexes lead to an event and to the one before it."""
    found = row_of_id(db, record.event_id)
    if found is None or found[0] != record.position:
        raise db.faults.corrupt(record.position, "the index of ids does not have it")
    if record.aggregate_id is None:
        return
    places = (
        db.ready()
        .execute(
            "SELECT position, sequence FROM events INDEXED BY events_by_aggregate "
            "WHERE aggregate_id = ? AND position <= ? ORDER BY position DESC LIMIT 2",
            (record.aggregate_id, record.position),
        )
        .fetchall()
    )
    sequence = record.sequence or 0
    due = [sequence, sequence - 1][: min(sequence, 2)]
    if places[:1] != [(record.position, sequence)] or [n for _, n in places] != due:
        raise db.faults.corrupt(
            record.position, "the index of aggregates does not lead from it to the one before"
        )


def _log_size(db: Database) -> int:
    """Return how long the `-wal` is, in bytes, or how long one is looked at that is gone."""
    if db.at is None:
        return 0
    try:
        return min(os.stat(db.at.path + "-wal").st_size, _GREATEST_LOG)
    except FileNotFoundError:
        return _GREATEST_LOG


def reopen(db: Database) -> None:
    """Open the file again to read on in what it had when it was closed, and nothing else.

    Raises `StoreNotFound` or `StoreReplaced` where that is no more.
    """
    if db.path == MEMORY:
        raise StoreClosed(
            "the store in memory has been closed, and what was in it is gone: keep it open "
            "around the bus with 'async with store:' while a task still reads from it"
        )
    before, position, checksum = db.was_at, db.position, db.checksum
    db.open(creates=False)
    try:
        if before is not None and db.at != before:
            raise _replaced(db)
        if head(db) < (position, 0):
            raise _replaced(db)
        if position:
            with db.faults.explained("be read"):
                row = (
                    db.ready()
                    .execute("SELECT checksum FROM events WHERE position = ?", (position,))
                    .fetchone()
                )
            if row != (checksum,):
                raise _replaced(db)
    except BaseException:
        db.let_go()
        raise


def _replaced(db: Database) -> StoreReplaced:
    return StoreReplaced(
        f"{db.faults.shown} was replaced after it had been closed, and what was to be read on in "
        "it is gone: keep it open around the bus with 'async with store:' while a task still "
        "reads from it"
    )
