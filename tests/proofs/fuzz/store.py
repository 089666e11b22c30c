"""The file of a store: a good one, spoiled in its bytes, pages or rows, and used in every way.

Whoever reads it, has a bus carry it or verifies it gets an error of the tree, or is not disturbed.
"""

import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.proofs.fuzz.hunting import Quarry
from tests.proofs.fuzz.mutations import Mutation
from tests.sqlite.hostile.forging import forge, good
from tests.sqlite.hostile.probing import probe
from tests.sqlite.hostile.test_rows import NUMBERS, TEXTS

_PAGE = 4096
_TABLES = {table: (TEXTS[table] + " " + NUMBERS[table]).split() for table in TEXTS}
_LITERALS = (
    *("NULL", "''", "0", "1", "-1", "0.5", "9e999", "9223372036854775807", "x'ff'", "'[]'"),
    *("'default'", "'noted'", "'\x1b[31m'", "zeroblob(20000)", "hex(randomblob(3000))", "position"),
    *("'2025-01-01T00:00:00+00:00'", "CAST(x'efbbbf' AS TEXT)", "'{\"number\":1}'", "12", "13"),
)


@st.composite
def _statements(draw: st.DrawFn) -> tuple[str, ...]:
    table = draw(st.sampled_from(sorted(_TABLES)))
    column = draw(st.sampled_from(_TABLES[table]))
    value = draw(st.sampled_from(_LITERALS))
    key = {"progress": "name", "finished": "first_position", "dead_letters": "id"}.get(
        table, "position"
    )
    if table == "progress":
        value = value.replace("12", "'default'")
    row = draw(st.integers(1, 12))
    where = draw(st.sampled_from(["1", f"{key} = {row}", f"{key} > {row}"]))
    return draw(
        st.sampled_from(
            [
                ("sql", f"UPDATE {table} SET {column} = {value} WHERE {where}"),
                ("sql", f"DELETE FROM {table} WHERE {where}"),
                ("sql", f"UPDATE {table} SET {key} = {key} + {row} WHERE {where}"),
                (
                    "sql",
                    f"UPDATE {table} SET {column} = substr({column}, {row}) WHERE {where}",
                ),
                (
                    "sql",
                    f"UPDATE {table} SET {column} = {column} || {value} WHERE {where}",
                ),
            ]
        )
    )


_pages = st.integers(0, 9)
_bytes = st.integers(0, 10 * _PAGE)
_changes = st.one_of(
    st.tuples(st.just("byte"), _bytes, st.integers(0, 255)),
    st.tuples(st.just("bit"), _bytes, st.integers(0, 7)),
    st.tuples(st.just("head"), st.integers(0, 100), st.integers(0, 255)),
    st.tuples(st.just("page head"), _pages, st.integers(0, 11), st.integers(0, 255)),
    st.tuples(st.just("swap"), _pages, _pages),
    st.tuples(st.just("copy"), _pages, _pages),
    st.tuples(st.just("zero"), _pages),
    st.tuples(st.just("garbage"), _pages, st.integers(0, 2**32)),
    st.tuples(st.just("shift"), _bytes, st.integers(-50, 50)),
    st.tuples(st.just("cut"), _bytes),
    st.tuples(st.just("more"), st.integers(1, 10_000)),
)
_examples = st.tuples(
    st.lists(_statements(), max_size=2),
    st.booleans(),
    st.lists(_changes, max_size=4),
    st.sampled_from([None, None, None, b"", bytes(4096), b"\x37\x7f\x06\x82" + bytes(5000)]),
)


def check(example: tuple[list[Mutation], bool, list[Mutation], bytes | None]) -> None:
    """Spoil a store and use it; raise what must not be."""
    statements, is_chained, changes, log = example
    folder = Path(tempfile.mkdtemp(prefix="triobus-fuzz-"))
    try:
        path = folder / "spoiled.db"
        path.write_bytes(good())
        if statements:
            try:
                forge(
                    path,
                    *(statement for _, statement in statements),
                    is_chained=is_chained,
                    has_to_change=False,
                )
            except sqlite3.Error:
                return  # SQLite itself does not let that in
        data = path.read_bytes()
        for kind, *more in changes:
            data = _DONE[kind](data, *more)
        path.write_bytes(data)
        if log is not None:
            path.with_name(path.name + "-wal").write_bytes(log)
        probe(path)
    finally:
        shutil.rmtree(folder)


def _over(data: bytes, at: int, piece: bytes) -> bytes:
    at %= max(len(data), 1)
    return data[:at] + piece + data[at + len(piece) :]


def _page(data: bytes, number: int) -> bytes:
    count = max(len(data) // _PAGE, 1)
    return data[number % count * _PAGE :][:_PAGE]


def _place(data: bytes, number: int) -> int:
    return number % max(len(data) // _PAGE, 1) * _PAGE


def _flipped(data: bytes, at: int, bit: int) -> bytes:
    at %= max(len(data), 1)
    return _over(data, at, bytes([data[at] ^ 1 << bit])) if data else data


def _swapped(data: bytes, first: int, second: int) -> bytes:
    one, other = _page(data, first), _page(data, second)
    return _over(_over(data, _place(data, first), other), _place(data, second), one)


_DONE: dict[str, Callable[..., Any]] = {
    "byte": lambda data, at, value: _over(data, at, bytes([value])),
    "bit": _flipped,
    "head": lambda data, at, value: _over(data, at, bytes([value])),
    "page head": lambda data, page, at, value: _over(data, _place(data, page) + at, bytes([value])),
    "swap": _swapped,
    "copy": lambda data, source, target: _over(data, _place(data, target), _page(data, source)),
    "zero": lambda data, page: _over(data, _place(data, page), bytes(_PAGE)),
    "garbage": lambda data, page, seed: _over(
        data, _place(data, page), random.Random(seed).randbytes(_PAGE)
    ),
    "shift": lambda data, at, by: (
        data[:at] + (bytes(by) if by > 0 else b"") + data[at - min(by, 0) :]
    ),
    "cut": lambda data, at: data[:at],
    "more": lambda data, size: data + bytes(size),
}

QUARRY = Quarry(_examples, check)
