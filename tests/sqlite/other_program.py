"""What another program reads in a store."""

import sqlite3
from contextlib import closing


def logged(path):
    """Return the numbers in a store's log, read by another program."""
    with closing(sqlite3.connect(path)) as connection:
        return [n for (n,) in connection.execute("SELECT data ->> 'number' FROM events ORDER BY 1")]
