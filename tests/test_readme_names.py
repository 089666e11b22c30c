"""Names in backticks exist.

What parses as a Python expression is looked up in the package; foreign names have to be listed
here, or be in the first column of a table for people who come from elsewhere.
"""

import ast
import inspect
import re
import shlex

import triobus
import triobus.demo
import triobus.testing
from benchmarks.__main__ import BENCHMARKS
from tests.documents import PROSE, ROOMS, look_up
from tests.proofs import __main__ as proofs
from tests.proofs.effects import command as effects
from tests.proofs.torture.command import SABOTAGES

NOT_OURS = {
    *("autojump_clock", "TrioEventEmitter", "'*'"),  # of pytest-trio, pyee and bubus
    *("def", "async for", "pytest"),
    *BENCHMARKS,
    "/readyz",
    *(
        "cli",
        "metrics",
        "postgres",
        "test",
        "bench",
        "dev",
    ),  # extras, which have a test of their own
    *("aggregate", "metadata"),  # keys of an event on the command line
    *("-wal",),  # files of SQLite
    *SABOTAGES,
    *effects.BUGS,
    *proofs.PROOFS,
    "python -m tests.proofs NAME",
    *(f"tests/{room}" for room in ROOMS),
}


PUBLIC_CLASSES = [
    value
    for value in (*vars(triobus).values(), *vars(triobus.testing).values())
    if isinstance(value, type)
]


MEMBERS = {name for cls in PUBLIC_CLASSES for name in dir(cls)}


PARAMETERS = {
    parameter
    for cls in (
        triobus.EventBus,
        triobus.Group,
        triobus.DeadLetters,
        triobus.Retry,
        triobus.RetryAfter,
        triobus.SqliteEventStore,
    )
    for name, function in [("__init__", cls), *vars(cls).items()]
    if (inspect.isfunction(function) and not name.startswith("_")) or function is cls
    for parameter in inspect.signature(function).parameters
}
"""What options are called; those of the values that the bus returns are none."""


def spans() -> list[str]:
    """Everything in backticks, without the first columns of the tables of other libraries."""
    ours = []
    for section in PROSE.split("\n## "):
        for line in section.splitlines():
            is_foreign = section.startswith("Coming from") and line.startswith("|")
            ours.append(line.split("|", 2)[2] if is_foreign else line)
    return sorted(set(re.findall(r"`([^`\n]+)`", "\n".join(ours))))


def explain(span: str) -> str | None:
    """Why what is in backticks is no name of ours, or None if it is one."""
    source = span.removeprefix("await ").removeprefix("async with ").removesuffix(":")
    if span in NOT_OURS or span.startswith(("--", "@", "pytest ", "triobus ", "sqlite3 ")):
        return None
    if command := re.fullmatch(r"python -m tests\.proofs(?: (.*))?", span):
        try:
            proofs.parser().parse_args(shlex.split(command[1] or "--help"))
        except SystemExit as end:
            return "no such command" if end.code else None
        return None
    if span.startswith("python -m benchmarks"):
        return None
    if re.fullmatch(r"\w+=[\w\".]+", source):  # an option, such as `workers=1`
        return None if source.split("=")[0] in PARAMETERS else "no such option"
    if source.isidentifier() and source in MEMBERS | PARAMETERS:
        return None
    try:
        look_up(ast.parse(source, mode="eval").body)
    except (SyntaxError, LookupError, AttributeError, TypeError, StopIteration) as error:
        return f"{type(error).__name__}: {error}"
    return None


def test_every_name_in_backticks_exists():
    assert {span: why for span in spans() if (why := explain(span)) is not None} == {}
    assert NOT_OURS - set(spans()) == set()


def test_a_name_that_does_not_exist_would_be_noticed():
    wrong = [
        "bus.publish_batch()",
        "bus.stop(wait=True)",
        "retries=3",
        "BusBroken",
        "publish_all",
        "trio.Overload",
        "bus.dead_letters.purge()",
    ]
    assert [span for span in wrong if explain(span) is None] == []
