"""Files that SQLite opens, made by hand to mislead it or us.

What is no store at all, and stores that are damaged by accident, are in `tests/sqlite`.
"""

import random
import sqlite3
import struct

import pytest

from tests.sqlite.hostile.forging import forge, good, opened
from tests.sqlite.hostile.probing import FINE, carry, probe, read_all, verified

PAGE = 4096
EVIL = "\x1b]0;owned\x07\x9b31m\u202e"


def schema(path, *statements):
    """Change the schema of a good store behind SQLite's back."""
    path.write_bytes(good())
    with opened(path) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        before = connection.execute("SELECT * FROM sqlite_schema").fetchall()
        for statement in statements:
            connection.execute(statement)
        assert connection.execute("SELECT * FROM sqlite_schema").fetchall() != before


def root(path, name):
    with opened(path) as connection:
        ((page,),) = connection.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)
        )
    return page


def _trigger(name: str) -> str:
    return (
        f"INSERT INTO sqlite_schema VALUES ('trigger', '{name}', 'events', 0, 'CREATE TRIGGER "
        f"{name} BEFORE INSERT ON events WHEN NEW.position % 2 BEGIN SELECT raise(IGNORE); END')"
    )


SCHEMAS = {
    "a trigger that eats events": [_trigger("eats")],
    "the same, named as if it were SQLite's": [_trigger("sqlite_eats")],
    "a view in the place of a table": [
        "UPDATE sqlite_schema SET type = 'view', rootpage = 0, sql = 'CREATE VIEW attempts AS "
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n' "
        "WHERE name = 'attempts'"
    ],
    "a column that is computed": [
        "UPDATE sqlite_schema SET sql = replace(sql, 'fences INTEGER', 'fences INTEGER AS "
        "(randomblob(1000000000))') WHERE name = 'progress'"
    ],
    "a check": [
        "UPDATE sqlite_schema SET sql = replace(sql, 'fences INTEGER', 'fences INTEGER CHECK "
        "(load_extension(''/tmp/evil''))') WHERE name = 'progress'"
    ],
    "an index on an expression": [
        "UPDATE sqlite_schema SET sql = 'CREATE UNIQUE INDEX events_by_id ON events "
        "(randomblob(1000000000))' WHERE name = 'events_by_id'"
    ],
    "a type that is not STRICT": [
        "UPDATE sqlite_schema SET sql = replace(sql, ' STRICT', '') WHERE name = 'events'"
    ],
    "escapes in the text of a table": [
        "UPDATE sqlite_schema SET sql = replace(sql, 'position', "
        f"'\"{EVIL}\"') WHERE name = 'events'"
    ],
    "escapes in the name of a table": [
        f"INSERT INTO sqlite_schema VALUES ('table', '{EVIL}', '{EVIL}', 0, 'CREATE TABLE')"
    ],
    "escapes in a text that is no SQL": [
        f"UPDATE sqlite_schema SET sql = 'CREATE {EVIL}' WHERE name = 'attempts'"
    ],
    "a text of 10 MiB": [
        "UPDATE sqlite_schema SET sql = sql || '--' || hex(zeroblob(5242880)) "
        "WHERE name = 'attempts'"
    ],
    "a million parentheses": [
        "UPDATE sqlite_schema SET sql = 'CREATE TABLE attempts (a CHECK (' || "
        "replace(hex(zeroblob(500000)), '0', '(') WHERE name = 'attempts'"
    ],
}


@pytest.mark.parametrize("statements", SCHEMAS.values(), ids=SCHEMAS)
def test_a_schema_that_no_triobus_has_written_is_refused(path, statements):
    schema(path, *statements)
    found = probe(path)
    assert found.noticed == "read bus verify"
    assert found.verify == 2
    assert set(found.read.split()) | set(found.bus.split()) <= {"NotAStore", "StoreCorrupt"}


def test_a_table_beside_the_stores_own_is_never_asked_for_anything(path):
    schema(
        path,
        "INSERT INTO sqlite_schema VALUES ('table', 'more', 'more', 0, 'CREATE VIRTUAL TABLE more "
        "USING fts3tokenize(''/tmp/evil'')')",
    )
    found = probe(path)
    assert (found.read, found.bus) == (FINE, FINE)


def test_what_analyze_leaves_is_harmless(path):
    path.write_bytes(good())
    with opened(path) as connection:
        connection.execute("ANALYZE")
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    assert "sqlite_stat1" in names
    assert probe(path).noticed == ""


def test_statistics_of_somebody_elses_making_are_harmless_too(path):
    path.write_bytes(good())
    with opened(path) as connection:
        connection.execute("ANALYZE")
        connection.execute("UPDATE sqlite_stat1 SET stat = '-1 99999999999999999999 \x1b[31m'")
    assert probe(path).noticed == ""


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("events", "progress"),
        ("events", "dead_letters"),
        ("finished", "attempts"),
        ("progress", "events_by_id"),
        ("events_by_id", "events_by_aggregate"),
    ],
)
def test_tables_that_changed_places_are_noticed(path, first, second):
    pages = f"(SELECT rootpage FROM sqlite_schema WHERE name = '{second}')"
    schema(path, f"UPDATE sqlite_schema SET rootpage = {pages} WHERE name = '{first}'")
    found = probe(path)
    assert found.noticed != ""
    assert {*found.read.split(), *found.bus.split()} <= {"StoreCorrupt", "fine"}


def endless(path, table):
    """Put pages over the root of a table that make it practically endless.

    Each of fifteen pages has 400 times the next one below it, and the last has the old root.
    """
    page = root(path, table)
    data = bytearray(path.read_bytes())
    count = len(data) // PAGE
    data += data[(page - 1) * PAGE : page * PAGE]
    below = count + 1
    for _ in range(15):
        data += _interior(below)
        below = len(data) // PAGE
    data[(page - 1) * PAGE : page * PAGE] = data[-PAGE:]
    data[28:32] = struct.pack(">I", len(data) // PAGE)
    path.write_bytes(data)


def _interior(below: int) -> bytes:
    """Return an inner page of a table, all of whose children are one page."""
    cells = [struct.pack(">IB", below, 1)] * 400
    begin = PAGE - 5 * len(cells)
    header = struct.pack(">BHHHBI", 5, 0, len(cells), begin, 0, below)
    pointers = b"".join(struct.pack(">H", begin + 5 * n) for n in range(len(cells)))
    page = header + pointers
    return page + bytes(begin - len(page)) + b"".join(cells)


def test_a_log_of_endless_pages_is_an_error_and_no_hang(path):
    forge(path)
    endless(path, "events")
    with opened(path) as connection:
        # SQLite itself would go on and on.
        connection.set_progress_handler(lambda: 1, 20_000_000)
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            connection.execute("SELECT count(*), sum(length(event_type)) FROM events").fetchall()
    found = probe(path)
    assert found.noticed == "read bus verify"
    assert "longer to read than its file is long" in found.said


def test_dead_letters_without_end_are_an_error_and_no_hang(path):
    forge(path)
    endless(path, "dead_letters")
    found = probe(path)
    assert found.noticed == "read bus verify"
    assert "comes behind row" in found.said


def test_rows_that_share_their_bytes_are_no_more_than_the_file(path):
    """Rows of 4 MiB each, all in the same pages: as a bomb in a zip file."""
    forge(path, "UPDATE dead_letters SET group_name = CAST(zeroblob(4194304) AS TEXT)")
    page = root(path, "dead_letters")
    data = bytearray(path.read_bytes())
    begin = (page - 1) * PAGE
    (count,) = struct.unpack(">H", data[begin + 3 : begin + 5])
    (cell,) = struct.unpack(">H", data[begin + 8 : begin + 10])
    assert (data[begin], count) == (13, 1)
    # The cell is its size (4 bytes), its id (1), a piece, and the page on which the rest begins.
    size = PAGE - cell
    copies = (PAGE - 8) // (size + 2)
    cells = []
    for number in range(1, copies + 1):
        copy = bytearray(data[begin + cell : begin + PAGE])
        copy[4] = number
        cells.append(bytes(copy))
    top = PAGE - size * copies
    data[begin + 3 : begin + 7] = struct.pack(">HH", copies, top)
    data[begin + 8 : begin + 8 + 2 * copies] = b"".join(
        struct.pack(">H", top + size * n) for n in range(copies)
    )
    data[begin + top : begin + PAGE] = b"".join(cells)
    path.write_bytes(data)
    with opened(path) as connection:
        assert connection.execute(
            "SELECT count(*), sum(length(CAST(group_name AS BLOB))) FROM dead_letters"
        ).fetchone() == (copies, copies * 4194304)
    assert copies >= 5
    assert carry(path)[0] == "StoreCorrupt"
    assert verified(path)[0] == 1


def test_a_file_that_claims_to_be_long_is_believed_no_more_than_it_has_on_disk(path):
    forge(path, "UPDATE events SET position = 5000000000 WHERE position = 12")
    with path.open("r+b") as file:
        file.truncate(10**12)
    assert path.stat().st_blocks * 512 < 10**6
    for use in (read_all, carry):
        assert use(path)[0] == "StoreCorrupt"
    assert verified(path)[0] == 1


@pytest.mark.parametrize("index", ["events_by_id", "events_by_aggregate"])
def test_an_index_that_leads_to_other_events_is_noticed(path, index):
    """The ids (or aggregates) of an index are exchanged, the rows that they lead to are not."""
    forge(path)
    page = root(path, index)
    data = bytearray(path.read_bytes())
    begin = (page - 1) * PAGE
    (count,) = struct.unpack(">H", data[begin + 3 : begin + 5])
    assert (data[begin], count >= 8) == (10, True)
    for number in range(count):
        at = begin + 8 + 2 * number
        (cell,) = struct.unpack(">H", data[at : at + 2])
        size, header = data[begin + cell : begin + cell + 2]
        if data[begin + cell + header] == 1:  # the position is one byte, the last
            data[begin + cell + size] = 14 - data[begin + cell + size]
    path.write_bytes(data)
    found = probe(path)
    assert "read" in found.noticed
    assert set(found.read.split()) == {"StoreCorrupt"}


def test_pages_of_garbage_behind_a_good_header_are_errors_of_ours(path):
    chance = random.Random(5)
    for _ in range(20):
        data = bytearray(good())
        page = chance.randrange(1, len(data) // PAGE)
        data[page * PAGE : (page + 1) * PAGE] = chance.randbytes(PAGE)
        path.write_bytes(data)
        found = probe(path)
        assert {*found.read.split(), *found.bus.split()} <= {"StoreCorrupt", "NotAStore", "fine"}
