"""The documents: their text, their blocks of code and their tables."""

import ast
import asyncio
import builtins
import inspect
import re
from pathlib import Path

import trio

import triobus
import triobus.demo
import triobus.testing
from tests.kit.scenarios import in_memory
from triobus.testing import plugin

ROOT = Path(__file__).parent.parent
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in [ROOT / "README.md", *sorted(ROOT.glob("[!.]*/**/README.md"))]
}
ROOMS = sorted(path.parent.name for path in (ROOT / "tests").glob("*/__init__.py"))
EVERYTHING = "\n".join([*DOCUMENTS.values(), str(triobus.__doc__)])
PROSE = re.sub(r"^```.*?^```$", "", EVERYTHING, flags=re.MULTILINE | re.DOTALL)


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its two title lines."""
    section = PROSE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


VALUES = {
    "bus": triobus.EventBus(),
    "group": triobus.Group,
    "event_id": str,
    "empty_the_table": print,
    "subscription": triobus.Subscription,
    "event": triobus.DomainEvent,
    "letter": triobus.DeadLetter,
    "store": triobus.SqliteEventStore,
    "path": Path,
    "triobus_restore": print,
    "triobus_report": triobus.demo.triobus_report,
    "outcome": triobus.Outcome,
    "nursery": trio.Nursery,
    "trio": trio,
    "asyncio": asyncio,
    "triobus": triobus,
    "OrderPlaced": triobus.DomainEvent,
    "scenario": in_memory,
    "world": triobus.testing.World,
    "cluster": triobus.testing.Cluster,
    "check": triobus.testing.World.timeline,
    **{name: getattr(plugin, name) for name in ("recorded", "store_path")},
}


def look_up(node: ast.expr) -> object:
    """The object that an expression of the README stands for; raises if there is none."""
    match node:
        case ast.Name(id=name):
            if name in VALUES:
                return VALUES[name]
            homes = (triobus, triobus.testing, builtins)
            return next(getattr(home, name) for home in homes if hasattr(home, name))
        case ast.Attribute(value=value, attr=name):
            return getattr(look_up(value), name)
        case ast.Call(func=function, args=arguments, keywords=keywords):
            called = look_up(function)
            signature = inspect.signature(called)
            signature.bind_partial(*arguments, **{str(k.arg): k.value for k in keywords})
            for argument in arguments:
                look_up(argument)
            return None
        case ast.Constant():
            return node.value
        case ast.Await(value=value):
            return look_up(value)
    raise LookupError(ast.dump(node))
