"""A copy of a store, made while another process may write it."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from urllib.parse import quote

from triobus._errors import StoreFull, StoreIOError
from triobus._text import line
from triobus.stores.sqlite._connection import Database

_PAGES_AT_ONCE = 4096


def back_up(db: Database, path: str, progress: Callable[[int, int], None]) -> None:
    """Copy the store, as it is at one moment, into a file that is empty. Raises `StoreError`.

    It is SQLite's own way of copying, page by page, inside one read transaction: the writer goes
    on, and what it commits meanwhile is not in the copy.
    """
    source = db.ready()
    with db.faults.explained("be read"), db.one_moment():
        source.execute("SELECT position FROM progress WHERE name = ''").fetchall()
        try:
            with closing(sqlite3.connect(f"file:{quote(path)}?mode=rw", uri=True)) as target:
                source.backup(
                    target,
                    pages=_PAGES_AT_ONCE,
                    progress=lambda _, left, total: progress(left, total),
                )
        except sqlite3.Error as error:
            # Of the source it would be damage, which the look at the copy finds too.
            name = getattr(error, "sqlite_errorname", "")
            kind = StoreFull if name == "SQLITE_FULL" else StoreIOError
            raise kind(f"the copy {path!r} could not be written: {line(str(error))}") from error
