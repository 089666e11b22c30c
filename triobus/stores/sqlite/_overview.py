"""What a person wants to know of a store first, in bounded time however long the log is."""

from collections.abc import Mapping, Sequence
from typing import Any

from triobus.stores._overview import GroupOverview, LetterGroup, Overview, by_count
from triobus.stores.sqlite import _rows
from triobus.stores.sqlite._reading import Reader

_LOOKED_AT = 200_000
"""Of how many events, the last ones, the types are counted; no index has them."""
_ENTRIES = 1_000_000
"""How many entries of the index of aggregates are counted; that takes a twentieth of a second."""
_ENDLESS = 2**62
_WAITING = (
    "SELECT group_name, count(*), min(due_at) FROM attempts WHERE due_at >= 0 "
    "GROUP BY group_name ORDER BY group_name"
)
_AGGREGATES = (
    "SELECT count(DISTINCT aggregate_id), count(*) FROM (SELECT aggregate_id FROM events "
    "WHERE aggregate_id IS NOT NULL ORDER BY aggregate_id LIMIT ?)"
)
_TYPES = "SELECT event_type, count(*) FROM events WHERE position > ? GROUP BY 1 ORDER BY 1"
_LETTERS = (
    "SELECT group_name, subscription, error_type, count(*), sum(attempts = 0), min(id), max(id), "
    "min(first_failed_at), max(last_failed_at) FROM dead_letters GROUP BY 1, 2, 3"
)


def letter_groups(reader: Reader) -> list[LetterGroup]:
    """Return the dead letters by subscription and error, counted by SQLite. Raises `StoreError`."""
    db = reader._db
    with db.faults.explained("be read"), db.one_moment():
        rows = db.ready().execute(_LETTERS).fetchall()
        return sorted((_letter_group(reader, row) for row in rows), key=by_count)


def _letter_group(reader: Reader, row: Sequence[Any]) -> LetterGroup:
    group, subscription, _, count, held_back, first, last, first_failed_at, last_failed_at = row
    latest = reader.letter(_rows.whole(last))
    return LetterGroup(
        group=_rows.text(group),
        subscription=_rows.text(subscription),
        error_type=latest.error_type,
        message=latest.message,
        count=_rows.whole(count),
        held_back=_rows.whole(held_back, least=0),
        first=_rows.whole(first),
        last=_rows.whole(last),
        first_failed_at=_rows.moment(first_failed_at),
        last_failed_at=_rows.moment(last_failed_at),
    )


def overview(reader: Reader, exact: bool) -> Overview:
    """Return what a store holds. Raises `StoreError`."""
    db = reader._db
    with db.faults.explained("be read"), db.one_moment():
        execute = db.ready().execute
        held = reader.counted()
        limit = _ENDLESS if exact else _ENTRIES
        aggregates, entries = execute(_AGGREGATES, (limit,)).fetchone()
        looked_at = held.events if exact else min(held.events, _LOOKED_AT)
        types = execute(_TYPES, (held.events - looked_at,)).fetchall()
        scheduled, due = execute("SELECT count(*), min(due_at) FROM scheduled").fetchone()
        waiting = {name: (count, due) for name, count, due in execute(_WAITING).fetchall()}
        return Overview(
            events=held.events,
            aggregates=aggregates,
            has_more_aggregates=entries == limit,
            types={_rows.text(name): _rows.whole(count) for name, count in types},
            types_of_last=looked_at,
            first_recorded_at=held.first_recorded_at,
            last_recorded_at=held.last_recorded_at,
            size_bytes=held.size_bytes,
            scheduled=scheduled,
            next_due=None if due is None else _rows.seconds(due),
            groups={
                name: GroupOverview(
                    offset=group.offset,
                    lag=group.lag,
                    dead_letters=group.dead_letters,
                    **_of_group(waiting, name),
                )
                for name, group in held.groups.items()
            },
        )


def _of_group(waiting: Mapping[bytes, tuple[int, float]], name: str) -> dict[str, Any]:
    retries, due = waiting.get(name.encode(), (0, None))
    return {"retries": retries, "next_due": None if due is None else _rows.seconds(due)}
