"""Taking events over from elsewhere, with their positions, ids and times: all of them or none."""

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime

import attrs

from triobus._errors import StoreError
from triobus.stores._duplicates import Differs, conflict_of
from triobus.stores._values import Append, Imported, LogPosition
from triobus.stores.sqlite import _rows
from triobus.stores.sqlite._arrangement import Arrangement
from triobus.stores.sqlite._calls import INSERT
from triobus.stores.sqlite._connection import Database
from triobus.stores.sqlite._writing import Writer

_SEQUENCES_KEPT = 100_000


@attrs.define(eq=False)
class Importer:
    """One transaction that takes events over, some at a time. Nothing else uses the store then."""

    _db: Database
    _writer: Writer
    _position: int = 0
    _checksum: int = 0
    _sequences: dict[str, int] = attrs.field(factory=dict)

    def begin(self) -> int:
        """Claim the store and begin; return the position of its last event."""
        self._writer.claim()
        self._position, self._checksum = self._db.position, self._db.checksum
        with self._db.faults.explained("be written"):
            self._db.ready().execute("BEGIN IMMEDIATE")
        return self._position

    def add(self, events: Sequence[Imported]) -> list[LogPosition]:
        """Append events, but for those that the log has; return where each of them is.

        Raises `EventIdConflict` and `EventNotEncodable`, with the index of the event as a note, and
        `StoreError`; then nothing is left but `abandon`.
        """
        with self._db.faults.explained("be written"):
            arranged = self._arrangement(self._db.ready())
            found = self._placed(arranged, events)
            self._db.ready().executemany(INSERT, arranged.rows)
            for event_id in arranged.unscheduled:
                self._writer.scheduled.remove(event_id)
        if isinstance(found, Exception):
            raise found  # outside, where it would be taken for damage
        self._position, self._checksum = arranged.position, arranged.checksum
        if len(arranged.sequences) > _SEQUENCES_KEPT:
            arranged.sequences.clear()
        self._sequences = arranged.sequences
        return found

    @staticmethod
    def _placed(arranged: Arrangement, events: Sequence[Imported]) -> list[LogPosition] | Exception:
        """Give events their places, or return why one of them gets none."""
        places: list[LogPosition] = []
        for index, event in enumerate(events):
            recorded_at = event.recorded_at or datetime.now(UTC)
            found = arranged.place_at(Append([event.record]), recorded_at.astimezone(UTC))
            if isinstance(found, Differs):
                found = conflict_of(found, event.record)
            if isinstance(found, Exception):
                found.add_note(str(index))
                return found
            places += found
        return places

    def _arrangement(self, connection: sqlite3.Connection) -> Arrangement:
        def last_sequence(aggregate_id: str) -> int:
            query = (
                "SELECT sequence FROM events WHERE aggregate_id = ? ORDER BY position DESC LIMIT 1"
            )
            row = connection.execute(query, (aggregate_id,)).fetchone()
            return 0 if row is None else _rows.whole(row[0])

        scheduled = self._writer.scheduled
        arranged = Arrangement(
            self._position,
            self._checksum,
            datetime.now(UTC),
            looks=True,
            last_sequence=last_sequence,
            known=self._writer.known,
            scheduled=scheduled.find if scheduled.count else None,
        )
        arranged.sequences.update(self._sequences)
        return arranged

    def finish(self) -> None:
        """Commit. Raises `StoreError`, and then nothing was taken over."""
        with self._db.faults.explained("be written"):
            connection = self._db.ready()
            connection.execute(
                "UPDATE progress SET position = ?, checksum = ? WHERE name = ''",
                (self._position, self._checksum),
            )
            self._writer._finish_commit(connection)
        self._db.position, self._db.checksum = self._position, self._checksum
        self._writer.forget_sequences()
        self._db.checkpoint("PASSIVE")

    def abandon(self) -> None:
        """Take everything back."""
        try:
            self._db.roll_back()
        except (sqlite3.Error, StoreError):
            return  # the end of the connection does it too
        self._writer.scheduled.look()
