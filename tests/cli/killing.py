"""Kills commands at every write to the disk, in a process in which the shim is preloaded.

    python -m tests.cli.killing STORE COMMAND... [planted]

A child is forked for each place, so that Python starts once. What a command leaves behind has to be
what was there before it, or what is there after it, and whole.
"""

import json
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import trio

from tests.proofs.torture.shim import How, Shim
from triobus import SqliteEventStore
from triobus._cli import main
from triobus._cli._verify import examined
from triobus.stores.sqlite import _writing

COMMANDS = {
    "discard": ["dead-letters", "shop.db", "discard", "--all", "--yes"],
    "reset": ["groups", "shop.db", "reset", "mail", "--to", "beginning", "--yes"],
    "remove": ["groups", "shop.db", "remove", "mail", "--yes"],
    "import": ["import", "shop.db", "new.jsonl"],
    "backup": ["backup", "shop.db", "copy.db"],
    "erase": ["erase", "shop.db", "--aggregate", "A-2", "--yes"],
}
HOWS = (How.DIE_BEFORE, How.DIE_HALF_WAY)
"""After an operation is before the next one."""
IN_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""Where hundreds of stores are made in no time; what is killed are calls of the process."""
TABLES = ("events", "progress", "finished", "attempts", "dead_letters", "scheduled")
MOST = 500


def run_all(store: str, names: list[str]) -> dict[str, Any]:
    """Return for each command at how many places it was killed, and what was left that way."""
    return {name: killed_everywhere(store, COMMANDS[name]) for name in names}


def plant() -> None:
    """Let a group be removed in two commits, as a careless change could."""
    remove = _writing._remove_group

    def in_two(connection: sqlite3.Connection, group: str) -> bool:
        connection.execute("DELETE FROM dead_letters WHERE group_name = ?", (group,))
        connection.execute("COMMIT")
        connection.execute("BEGIN IMMEDIATE")
        return remove(connection, group)

    _writing._remove_group = in_two


def killed_everywhere(store: str, command: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as parent:
        before = after_run(store, parent, command, How.NOTHING, 0, runs=False)
        after = after_run(store, parent, command, How.NOTHING, MOST)
        assert before != after, command
        counts = {"before": 0, "after": 0, "between": [], "places": 0}
        for how in HOWS:
            for at in range(1, MOST):
                found = after_run(store, parent, command, how, at)
                if found["code"] == 0:
                    break  # it was through before that place
                counts["places"] += 1
                kinds = [k for k, v in (("before", before), ("after", after)) if same(found, v)]
                if kinds:
                    counts[kinds[0]] += 1
                else:
                    counts["between"].append([how.name, at, found["complaints"]])
        return counts


def same(found: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(found[name] == other[name] for name in ("tables", "copy", "complaints"))


def after_run(
    store: str, parent: str, command: list[str], how: How, at: int, *, runs: bool = True
) -> dict[str, Any]:
    """Run a command in a child, kill it there, and return what is left."""
    directory = Path(tempfile.mkdtemp(dir=parent))
    shutil.copy(store, directory / "shop.db")
    shutil.copy(store + ".jsonl", directory / "new.jsonl")
    code = in_child(lambda: killed(directory, command, how, at)) if runs else None
    left = {"code": code, "tables": None, "copy": None, "complaints": None}
    left["complaints"] = [*recovered(directory / "shop.db")]
    left["tables"] = tables_of(directory / "shop.db")
    if (directory / "copy.db").exists():
        left["complaints"] += recovered(directory / "copy.db")
        left["copy"] = tables_of(directory / "copy.db")
    shutil.rmtree(directory)
    return left


def in_child(function: Callable[[], int]) -> int:
    pid = os.fork()
    if not pid:
        code = 99
        try:
            code = function()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed(directory: Path, command: list[str], how: How, at: int) -> int:
    os.chdir(directory)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    shim = Shim()
    shim.plan(how, at)
    shim.watch(directory)
    return main(command)


def recovered(path: Path) -> Iterator[str]:
    """Open a store as its next bus does, and yield what is wrong in it."""

    async def look() -> tuple[str, ...]:
        async with SqliteEventStore(path) as store:
            await store._claim()
        async with SqliteEventStore(path, read_only=True) as store:
            return (await examined(store)).complaints

    yield from trio.run(look)


def tables_of(path: Path) -> dict[str, list[Any]]:
    with closing(sqlite3.connect(path)) as file:
        return {table: file.execute(f"SELECT * FROM {table}").fetchall() for table in TABLES}


if __name__ == "__main__":
    _, of, *asked = sys.argv
    if "planted" in asked:
        plant()
    print(json.dumps(run_all(of, [name for name in asked if name in COMMANDS])))
