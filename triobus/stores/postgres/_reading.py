"""Reading one schema: blocking functions, called in the store's thread for reading.

Nobody who commits waits for them. Plans are made anew for each query, for those that are kept from
a time when the log was empty would go through all of it.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs
import msgspec

from triobus.stores._overview import LetterGroup, Overview, by_count, overview_of
from triobus.stores._transaction import Call
from triobus.stores._values import (
    EVERYTHING,
    Attempts,
    DeadLetterKey,
    DeadLetterRow,
    GroupRow,
    Row,
    Selection,
    Snapshot,
    StoredGroup,
    StoreStatistics,
)
from triobus.stores.postgres._node import Node
from triobus.stores.postgres._rows import COLUMNS, record_of
from triobus.stores.postgres._schema import TABLES
from triobus.stores.postgres._server import Connection, Link, Server
from triobus.stores.postgres._transaction import PostgresTransaction

_BYTES_A_BATCH = 4 * 2**20
"""After how many bytes of events a batch ends that is read."""
_ENDLESS = 2**63 - 1
_LETTER = (
    "id, position, group_name, subscription, aggregate_id, attempts, first_failed_at, "
    "last_failed_at, error_type, message, traceback"
)
_GROUPED = (
    "SELECT g.group_name, g.subscription, g.error_type, l.message, g.n, g.held_back, g.first, "
    "g.last, g.first_failed_at, g.last_failed_at FROM (SELECT group_name, subscription, "
    "error_type, count(*) AS n, count(*) FILTER (WHERE attempts = 0) AS held_back, "
    "min(id) AS first, max(id) AS last, min(first_failed_at) AS first_failed_at, "
    "max(last_failed_at) AS last_failed_at FROM {schema}.dead_letters GROUP BY 1, 2, 3) g "
    "JOIN {schema}.dead_letters l ON l.id = g.last"
)
_HEAD = "SELECT greatest((SELECT max(position) FROM {schema}.events), floor) FROM {schema}.log"


@attrs.define(eq=False)
class Reader:
    """Reads one schema."""

    _server: Server
    _link: Link

    def _use(self, function: Any) -> Any:
        return self._link.use("be read", function)

    def fetch(
        self,
        after: int,
        limit: int,
        up_to: int | None = None,
        selected: Selection = EVERYTHING,
        backwards: bool = False,  # a thread's call has no keywords
    ) -> list[Row]:
        """Return the first events behind a position, or the last ones; by bytes, fewer of them."""
        aggregate_id, types, correlation_id = selected
        if after >= _ENDLESS or not _is_text(aggregate_id, *types or ()):
            return []  # no such number or text is in a database, so that nothing can have it
        terms = ["position > %s", "position <= %s"]
        terms += ["aggregate_id = %s"] if aggregate_id is not None else []
        terms += ["correlation_id = %s::uuid"] if correlation_id is not None else []
        terms += ["event_type = ANY (%s)"] if types is not None else []
        end = _ENDLESS if up_to is None else min(up_to, _ENDLESS)
        given = (after, end, aggregate_id, correlation_id, None if types is None else list(types))
        direction = "DESC" if backwards else "ASC"
        query = self._server.sql(
            f"SELECT {COLUMNS} FROM (SELECT *, sum(octet_length(data)) OVER "
            f"(ORDER BY position {direction}) - octet_length(data) AS before FROM "
            f"(SELECT * FROM {{schema}}.events WHERE {' AND '.join(terms)} "
            f"ORDER BY position {direction} LIMIT %s) AS found) AS summed "
            f"WHERE before < {_BYTES_A_BATCH} ORDER BY position {direction}"
        )
        values = [value for value in given if value is not None]
        rows = self._use(
            lambda connection: connection.execute(query, (*values, limit), prepare=False).fetchall()
        )
        if selected == EVERYTHING and not backwards:
            rows = list(self._without_gaps(rows, after))
        return [record_of(self._server.faults, row) for row in rows]

    def _without_gaps(self, rows: Iterable[Any], before: int) -> Iterator[Any]:
        """Yield the rows of the whole log; raise `StoreCorrupt` where one is missing."""
        for row in rows:
            before += 1
            if row[0] != before:
                raise self._server.faults.corrupt(before, "the event is missing")
            yield row

    def position_of(self, aggregate_id: str, sequence: int) -> int | None:
        """Return where an aggregate has its event of a sequence."""
        if not _is_text(aggregate_id) or sequence > _ENDLESS:
            return None
        query = "SELECT position FROM {schema}.events WHERE aggregate_id = %s AND sequence = %s"
        found: int | None = self._one(query, aggregate_id, sequence)
        return found

    def _one(self, query: str, *values: Any) -> Any:
        statement = self._server.sql(query)
        row = self._use(lambda c: c.execute(statement, values, prepare=False).fetchone())
        return None if row is None else row[0]

    def find(self, event_id: str) -> Row | None:
        """Return the event of an id."""
        query = self._server.sql(
            f"SELECT {COLUMNS} FROM {{schema}}.events WHERE event_id = %s::uuid"
        )
        row = self._use(lambda c: c.execute(query, (event_id,), prepare=False).fetchone())
        return None if row is None else record_of(self._server.faults, row)

    def last_position(self) -> int:
        """Return the position of the last event."""
        return int(self._one(_HEAD))

    def log_id(self) -> str:
        """Return what no other log has."""
        return str(self._one("SELECT id FROM {schema}.log"))

    def ask(self, call: Call) -> Any:
        """Make a call that only reads, at one moment."""

        def asked(connection: Connection) -> Any:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            return PostgresTransaction(call, connection, is_read_only=True)._ask()

        try:
            return self._link.use("be asked", asked)
        finally:
            self._link.roll_back()

    # What is beside the log, of one moment

    def _at_one_moment(self, function: Any) -> Any:
        def looked(connection: Connection) -> Any:
            with connection.transaction():
                connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                return function(_Look(self._server, connection))

        return self._use(looked)

    def groups(self) -> list[GroupRow]:
        """Return the progress of all groups."""
        found: list[GroupRow] = self._at_one_moment(lambda look: look.groups())
        return found

    def holder(self) -> str | None:
        """Return the name of the bus that has the log."""
        found: str | None = self._at_one_moment(lambda look: look.holder())
        return found

    def letter_keys(self) -> list[DeadLetterKey]:
        """Return what identifies each dead letter."""
        found: list[DeadLetterKey] = self._at_one_moment(lambda look: look.letter_keys())
        return found

    def snapshot(self, node: Node) -> Snapshot:
        """Return what a bus has to know that begins."""

        def seen(look: _Look) -> Snapshot:
            scheduled, next_due = look.scheduled()
            return Snapshot(
                look.head(),
                tuple(look.groups()),
                tuple(look.letter_keys()),
                node.was_unclean,
                look.row("SELECT {schema}.last_letter_1()")[0],
                scheduled,
                next_due,
            )

        found: Snapshot = self._at_one_moment(seen)
        return found

    def letters(self, ids: Sequence[int]) -> list[tuple[DeadLetterRow, Row]]:
        """Return dead letters with their events; without those that are no more."""
        found: list[tuple[DeadLetterRow, Row]] = self._at_one_moment(lambda look: look.letters(ids))
        return found

    def letter_groups(self) -> list[LetterGroup]:
        """Return the dead letters by subscription and error, counted by the server."""
        found: list[LetterGroup] = self._at_one_moment(lambda look: look.letter_groups())
        return found

    def overview(self) -> Overview:
        """Return what a person wants to know first."""

        def seen(look: _Look) -> Overview:
            count, next_due = look.scheduled()
            found = overview_of(look.statistics(), look.groups(), count)
            return attrs.evolve(found, next_due=next_due)

        found: Overview = self._at_one_moment(seen)
        return found

    def statistics(self) -> StoreStatistics:
        """Return what the store holds."""
        found: StoreStatistics = self._at_one_moment(lambda look: look.statistics())
        return found


@attrs.frozen(eq=False)
class _Look:
    """One look at a schema, in the transaction of the caller."""

    _server: Server
    _connection: Connection

    def rows(self, query: str, *values: Any) -> list[Any]:
        """Return what a query finds."""
        statement = self._server.sql(query)
        return self._connection.execute(statement, values, prepare=False).fetchall()

    def row(self, query: str, *values: Any) -> Any:
        """Return the one row that a query finds."""
        (found,) = self.rows(query, *values)
        return found

    def head(self) -> int:
        """Return the position of the last event."""
        return int(self.row(_HEAD)[0])

    def scheduled(self) -> tuple[int, float | None]:
        """Return how many events are scheduled, and when the first is due."""
        count, next_due = self.row("SELECT count(*), min(due_at) FROM {schema}.scheduled")
        return count, next_due

    def groups(self) -> list[GroupRow]:
        """Return the progress of all groups."""
        ranges: dict[str, list[tuple[int, int]]] = {}
        for name, first, last in self.rows(
            "SELECT group_name, first_position, last_position FROM {schema}.finished "
            "ORDER BY group_name, first_position"
        ):
            ranges.setdefault(name, []).append((first, last))
        attempts: dict[str, list[Attempts]] = {}
        for name, position, subscription, count, due_at, delay, done in self.rows(
            "SELECT group_name, position, subscription, attempts, due_at, delay, done "
            "FROM {schema}.attempts ORDER BY group_name, position"
        ):
            names = tuple(msgspec.json.decode(done, type=list[str]))
            row = Attempts(position, subscription, count, due_at, delay, names)
            attempts.setdefault(name, []).append(row)
        return [
            GroupRow(name, offset, tuple(ranges.get(name, ())), tuple(attempts.get(name, ())))
            for name, offset in self.rows(
                "SELECT group_name, position FROM {schema}.segments WHERE group_name > '' "
                "ORDER BY group_name"
            )
        ]

    def holder(self) -> str | None:
        """Return the name of the bus that has the log, if one has."""
        found = self.rows(
            "SELECT n.name FROM {schema}.segments s JOIN {schema}.nodes n ON n.node = s.owner "
            "WHERE s.group_name = '' AND n.lease_until > clock_timestamp()"
        )
        return found[0][0] if found else None

    def letter_keys(self) -> list[DeadLetterKey]:
        """Return what identifies each dead letter, by rising id."""
        return [
            DeadLetterKey(*row)
            for row in self.rows(
                "SELECT id, position, group_name, subscription, aggregate_id "
                "FROM {schema}.dead_letters ORDER BY id"
            )
        ]

    def letter_groups(self) -> list[LetterGroup]:
        """Return the dead letters by subscription and error, the most numerous first."""
        names = [field.name for field in attrs.fields(LetterGroup)]
        found = [LetterGroup(**dict(zip(names, row, strict=True))) for row in self.rows(_GROUPED)]
        return sorted(found, key=by_count)

    def letters(self, ids: Sequence[int]) -> list[tuple[DeadLetterRow, Row]]:
        """Return dead letters with their events, in the order of the ids."""
        letters = {
            row[0]: _letter(row)
            for row in self.rows(
                f"SELECT {_LETTER} FROM {{schema}}.dead_letters WHERE id = ANY (%s)", list(ids)
            )
        }
        positions = [letter.position for letter in letters.values()]
        events = {
            row[0]: row
            for row in self.rows(
                f"SELECT {COLUMNS} FROM {{schema}}.events WHERE position = ANY (%s)", positions
            )
        }
        found = []
        for id_ in ids:
            if id_ not in letters:
                continue
            position = letters[id_].position
            if position not in events:
                raise self._server.faults.corrupt(
                    position, f"dead letter {id_} is about it, and it is missing"
                )
            found.append((letters[id_], record_of(self._server.faults, events[position])))
        return found

    def statistics(self) -> StoreStatistics:
        """Return what the store holds."""
        last = self.head()
        first_at, last_at, aggregates = self.row(
            "SELECT min(recorded_at) FILTER (WHERE position = 1), "
            "max(recorded_at) FILTER (WHERE position = %s), count(DISTINCT aggregate_id) "
            "FROM {schema}.events",
            last,
        )
        types = self.rows(
            "SELECT event_type, count(*) FROM {schema}.events GROUP BY 1 "
            'ORDER BY event_type COLLATE "C"'
        )
        finished, letters = self._per_group(), self._letters_per_group()
        size = sum(
            self.row("SELECT pg_total_relation_size(to_regclass(%s))", self._table(name))[0]
            for name in TABLES
        )
        return StoreStatistics(
            events=last,
            aggregates=aggregates,
            types=dict(types),
            first_recorded_at=first_at,
            last_recorded_at=last_at,
            size_bytes=size,
            groups={
                group.name: StoredGroup(
                    offset=group.offset,
                    lag=last - group.offset - finished.get(group.name, 0),
                    dead_letters=letters.get(group.name, 0),
                )
                for group in self.groups()
            },
        )

    def _per_group(self) -> dict[str, int]:
        query = (
            "SELECT group_name, sum(last_position - first_position + 1)::bigint "
            "FROM {schema}.finished GROUP BY 1"
        )
        return dict(self.rows(query))

    def _letters_per_group(self) -> dict[str, int]:
        return dict(self.rows("SELECT group_name, count(*) FROM {schema}.dead_letters GROUP BY 1"))

    def _table(self, name: str) -> str:
        return self._server.sql(f"{{schema}}.{name}").as_string(self._connection)


def _letter(row: Sequence[Any]) -> DeadLetterRow:
    id_, position, group, subscription, aggregate_id, attempts, first, last, *error = row
    error_type, message, traceback = error
    return DeadLetterRow(
        id=id_,
        position=position,
        group=group,
        subscription=subscription,
        aggregate_id=aggregate_id,
        attempts=attempts,
        first_failed_at=first,
        last_failed_at=last,
        error_type=error_type,
        message=message,
        traceback=traceback,
    )


def _is_text(*values: str | None) -> bool:
    """Whether all that is there can be looked for: halves of pairs and NUL are in no database."""
    try:
        return not any(value is not None and b"\0" in value.encode() for value in values)
    except UnicodeEncodeError:
        return False
