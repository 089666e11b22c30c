"""Rows that no triobus has written, in a file that is whole in SQLite's eyes.

Each is put into a good store as an attacker would, with the checksums made to fit, and then the
store is read, given to a bus and verified. Who notices it raises an error of the tree; whoever
notices nothing has worked as if nothing were. An event that cannot be decoded is a dead letter.
"""

import itertools
import math

import pytest

from tests.sqlite.hostile.forging import event_id, forge, values
from tests.sqlite.hostile.probing import FINE, probe

ALL = "read bus verify"
HUGE = 2**63 - 1
WHERE = {
    "events": "position = 4",
    "progress": "name = 'default'",
    "finished": "first_position = 9",
    "attempts": "position = 8",
    "dead_letters": "id = 1",
}
TEXTS = {
    "events": "event_id event_type aggregate_id recorded_at data",
    "progress": "name",
    "finished": "group_name",
    "attempts": "group_name subscription done",
    "dead_letters": "group_name subscription aggregate_id first_failed_at last_failed_at "
    "error_type message traceback",
}
NUMBERS = {
    "events": "schema_version sequence checksum",
    "progress": "position",
    "finished": "first_position last_position",
    "attempts": "position attempts due_at delay",
    "dead_letters": "position attempts",
}
NO_TEXTS = ["NULL", "7", "x'ff1b5b'"]
NO_NUMBERS = ["NULL", "0.5", "9e999", "'\x1b[31m'", "x'ff1b5b'", str(HUGE), str(-HUGE - 1)]
MEANT = {
    "NULL": None,
    "7": 7,
    "0.5": 0.5,
    "9e999": math.inf,
    str(HUGE): HUGE,
    str(-HUGE - 1): -HUGE - 1,
    "x'ff1b5b'": b"\xff\x1b[",
    "'\x1b[31m'": b"\x1b[31m",
}
IMPOSSIBLE = {
    # Primary keys of tables WITHOUT ROWID, in which SQLite itself allows no NULL.
    ("progress", "name", "NULL"),
    ("finished", "group_name", "NULL"),
    ("finished", "first_position", "NULL"),
    ("attempts", "group_name", "NULL"),
    ("attempts", "position", "NULL"),
}
HARMLESS = {
    # What an error said may be anything, and so may the number of an older or newer version: it is
    # a dead letter. Rows of groups that are not there are nobody's.
    ("events", "data", "x'ff1b5b'"),
    ("events", "schema_version", str(HUGE)),
    ("events", "schema_version", str(-HUGE - 1)),
    ("progress", "name", "7"),
    ("finished", "group_name", "x'ff1b5b'"),
    ("attempts", "group_name", "7"),
    ("attempts", "group_name", "x'ff1b5b'"),
    ("attempts", "due_at", "0.5"),
    ("attempts", "due_at", str(-HUGE - 1)),
    ("attempts", "delay", "0.5"),
    ("attempts", "delay", str(-HUGE - 1)),
    ("dead_letters", "aggregate_id", "NULL"),
    ("dead_letters", "error_type", "x'ff1b5b'"),
    ("dead_letters", "message", "x'ff1b5b'"),
    ("dead_letters", "traceback", "x'ff1b5b'"),
}
# Of these `verify` alone tells; the rest may be what a triobus has written.
TOLD = HARMLESS - {
    ("events", "schema_version", str(HUGE)),
    ("events", "schema_version", str(-HUGE - 1)),
    ("attempts", "due_at", "0.5"),
    ("attempts", "due_at", str(-HUGE - 1)),
    ("attempts", "delay", "0.5"),
}
WRONG_TYPES = [
    (table, column, value)
    for values, columns in ((NO_TEXTS, TEXTS), (NO_NUMBERS, NUMBERS))
    for table, names in columns.items()
    for column, value in itertools.product(names.split(), values)
    if (table, column, value) not in IMPOSSIBLE
    and (column not in ("due_at", "delay") or value != str(HUGE))  # a float is not as exact
]


def test_a_good_store_is_fine_in_every_way(path):
    forge(path)
    found = probe(path)
    assert (found.read, found.bus, found.verify) == (FINE, FINE, 0)


@pytest.mark.parametrize(
    ("table", "column", "value"),
    WRONG_TYPES,
    ids=[f"{table}.{column} is {value!r}" for table, column, value in WRONG_TYPES],
)
def test_a_value_that_no_column_can_have_is_an_error_of_ours(path, table, column, value):
    is_chained = column != "checksum"
    forge(
        path, f"UPDATE {table} SET {column} = {value} WHERE {WHERE[table]}", is_chained=is_chained
    )
    assert MEANT[value] in values(path, table, column)
    found = probe(path)
    if (table, column, value) in HARMLESS:
        told = int((table, column, value) in TOLD)
        assert (found.read, found.bus, found.verify) == (FINE, FINE, told)
    else:
        assert (found.read, found.bus, found.verify) == ("StoreCorrupt", "StoreCorrupt", 1)
        assert "damaged" in found.said


EVIL = "\x1b]0;owned\x07\x9b31m\u202e\u2066\r\n"
SQL = "'); DROP TABLE events; --"


def sql(text: str) -> str:
    """Return a text as SQL, whatever is in it."""
    return f"CAST(x'{text.encode().hex()}' AS TEXT)"


ROWS = {
    # id: statements, and who notices it
    "a position of -5": (["UPDATE events SET position = -5 WHERE position = 1"], ALL),
    "a position of 0": (["UPDATE events SET position = 0 WHERE position = 1"], ALL),
    "a last position of 2^63-1": (
        [f"UPDATE events SET position = {HUGE} WHERE position = 12"],
        ALL,
    ),
    "a last position of 2^40": ([f"UPDATE events SET position = {2**40} WHERE position = 12"], ALL),
    "a last position of 20,000": (["UPDATE events SET position = 20000 WHERE position = 12"], ALL),
    "no events": (["DELETE FROM events"], ALL),
    "no progress": (["DELETE FROM progress"], ALL),
    "two events of one sequence": (
        ["UPDATE events SET sequence = 1 WHERE position = 4"],
        "read verify",
    ),
    "a sequence that goes back": (
        ["UPDATE events SET sequence = 3 WHERE position = 1"],
        "read verify",
    ),
    "a sequence of 0": (["UPDATE events SET sequence = 0 WHERE position = 4"], ALL),
    "a last sequence of 2^63-1": (
        [f"UPDATE events SET sequence = {HUGE} WHERE position = 10"],
        ALL,
    ),
    "a sequence without an aggregate": (
        ["UPDATE events SET sequence = 9 WHERE position = 3"],
        ALL,
    ),
    "an event that caused itself": (
        [f"UPDATE events SET data = replace(data, '{event_id(4)}', '{event_id(3)}')"],
        "",
    ),
    "ids in capitals": (["UPDATE events SET event_id = upper(event_id)"], "verify"),
    "an id that is no UUID, of an event that is none": (
        ["UPDATE events SET event_id = 'x', data = 'x' WHERE position = 12"],
        "bus verify",
    ),
    "a time without its zone": (
        ["UPDATE events SET recorded_at = '2025-01-01T00:00:00' WHERE position = 4"],
        ALL,
    ),
    "a time in the year 99999": (
        ["UPDATE events SET recorded_at = '99999-01-01T00:00:00+00:00' WHERE position = 4"],
        ALL,
    ),
    "a group that is beyond the log": (
        ["UPDATE progress SET position = 13 WHERE name = 'default'"],
        ALL,
    ),
    "a range beyond the log": (["UPDATE finished SET last_position = 13"], ALL),
    "a range that ends before it begins": (["UPDATE finished SET last_position = 3"], ALL),
    "ranges that overlap": (["INSERT INTO finished VALUES ('default', 10, 12, NULL)"], ALL),
    "a range in a range": (["INSERT INTO finished VALUES ('default', 10, 10, NULL)"], ALL),
    "a million attempts": (["UPDATE attempts SET attempts = 1000000"], ""),
    "a retry in the year 30,000": (["UPDATE attempts SET due_at = 1e12"], ""),
    "a retry after 1e308 seconds": (["UPDATE attempts SET due_at = 1e308, delay = 1e308"], ""),
    "a retry after endless seconds": (["UPDATE attempts SET due_at = 9e999, delay = 9e999"], ALL),
    "attempts at an event beyond the log": (["UPDATE attempts SET position = 99"], ALL),
    "subscriptions that are no JSON": (["UPDATE attempts SET done = '[\"send\"'"], ALL),
    "subscriptions in an object": (["UPDATE attempts SET done = '{}'"], ALL),
    "subscriptions that are numbers": (["UPDATE attempts SET done = '[1]'"], ALL),
    "subscriptions nested deeply": (
        ["UPDATE attempts SET done = replace(hex(zeroblob(50000)), '0', '[')"],
        ALL,
    ),
    "a dead letter about an event beyond the log": (
        ["UPDATE dead_letters SET position = 99"],
        ALL,
    ),
    "a dead letter with a huge id": ([f"UPDATE dead_letters SET id = {HUGE}"], ALL),
    "a dead letter with a negative id": (["UPDATE dead_letters SET id = -1"], ALL),
    "a dead letter of a group that is not there": (
        ["UPDATE dead_letters SET group_name = 'gone'"],
        "",
    ),
    "a dead letter of a subscription that is not there": (
        ["UPDATE dead_letters SET subscription = 'gone'"],
        "bus",
    ),
    "a dead letter with a naive time": (
        ["UPDATE dead_letters SET first_failed_at = '2025-01-01T00:00:00'"],
        ALL,
    ),
    **{
        f"{what} in {table}.{column}": (
            [f"UPDATE {table} SET {column} = {sql(text)} WHERE {WHERE[table]}"],
            who,
        )
        for what, text in (("escapes", EVIL), ("SQL", SQL))
        for table, column, who in (
            ("events", "event_type", ""),
            ("events", "aggregate_id", "read verify"),
            ("events", "recorded_at", ALL),
            ("progress", "name", "verify"),
            ("finished", "group_name", "verify"),
            ("attempts", "group_name", "verify"),
            ("attempts", "subscription", ""),
            ("attempts", "done", ALL),
            ("dead_letters", "group_name", ""),
            ("dead_letters", "subscription", "bus"),
            ("dead_letters", "aggregate_id", "verify"),
            ("dead_letters", "first_failed_at", ALL),
            ("dead_letters", "error_type", ""),
            ("dead_letters", "message", ""),
            ("dead_letters", "traceback", ""),
        )
    },
}


@pytest.mark.parametrize(("statements", "noticed"), ROWS.values(), ids=ROWS)
def test_a_row_is_noticed_by_whoever_comes_to_it(path, statements, noticed):
    forge(path, *statements)
    found = probe(path)
    assert found.noticed == noticed, found


DATA = {
    # id: what is put in the place of the data, as SQL
    "nothing": "''",
    "a cut text": "substr(data, 1, 80)",
    "bytes behind the end": "data || 'x'",
    "a byte order mark": "CAST(x'efbbbf' || data AS TEXT)",
    "null": "'null'",
    "a list": "'[1]'",
    "NaN as a literal": "replace(data, '\"number\":3', '\"number\":NaN')",
    "an integer of 5,000 digits": f"replace(data, '\"number\":3', '\"number\":{'7' * 5000}')",
    "a number of 1e400": "replace(data, '\"number\":3', '\"number\":1e400')",
    "half of a surrogate pair": 'replace(data, \'"key":"a"\', \'"key":"\\ud800"\')',
    "an escape where a number is due": 'replace(data, \'"number":3\', \'"number":"\x1b[31m"\')',
    "an escape as name of a field": "replace(data, '\"number\":3', '\"\\u001b[31m\":3')",
    "a field too few": "replace(data, '\"number\":3,', '')",
    "a field too many": 'replace(data, \'"number":3\', \'"number":3,"more":3\')',
    "a time without zone": "replace(data, 'Z\",\"corr', '\",\"corr')",
    "a time that never was": 'replace(data, \'"occurred_at":"20\', \'"occurred_at":"99999\')',
    "another event's id": f"replace(data, '{event_id(3)}', '{event_id(9)}')",
    "an id that is none": f"replace(data, '{event_id(3)}', 'x')",
    "65 keys of metadata": 'replace(data, \'"metadata":{}\', \'"metadata":{'
    + ",".join(f'"{n}":""' for n in range(65))
    + "}')",
    "a key of 2 KiB": f'replace(data, \'"metadata":{{}}\', \'"metadata":{{"{"k" * 2048}":""}}\')',
    "nesting of 100,000": "replace(data, '\"number\":3', '\"number\":' || "
    "replace(hex(zeroblob(50000)), '0', '['))",
    "garbage": "CAST(randomblob(500) AS TEXT)",
}


@pytest.mark.parametrize("value", DATA.values(), ids=DATA)
def test_data_that_is_no_event_is_a_dead_letter_for_each_subscription(path, value):
    forge(path, f"UPDATE events SET data = {value} WHERE position = 4")
    found = probe(path)
    assert found.noticed == ""  # the log is whole, and other events are handled
    letters = [part for part in found.said.split("DeadLetter(")[1:] if "position=4," in part]
    assert [part.count("error_type='EventNotDecodable'") for part in letters] == [1]  # send is done
