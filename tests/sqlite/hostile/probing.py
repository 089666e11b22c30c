"""Everything that a program does with a store, done with one that is not to be trusted."""

import contextlib
import io
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Set
from pathlib import Path
from typing import Any

import attrs
import psutil  # noqa: F401  # `health` imports it when it is first asked
import trio
import trio.testing

from tests.sqlite.hostile.forging import KEYS, event_id
from triobus import DomainEvent, EventBus, EventNotDecodable, Retry, SqliteEventStore, TriobusError
from triobus.__main__ import main

FINE = "fine"
_VIRTUAL_DAYS = 1000
SECONDS = 5.0
"""How long one use of a small store may take; a hundred times what it takes."""
_LOOKED_AT = ("import", "open", "os.remove", "os.truncate", "sqlite3.connect")
_ALARMING = (
    "exec",
    "os.chmod",
    "os.exec",
    "os.link",
    "os.mkdir",
    "os.posix_spawn",
    "os.rename",
    "os.rmdir",
    "os.symlink",
    "os.system",
    "pickle.find_class",
    "socket.connect",
    "sqlite3.enable_load_extension",
    "subprocess.Popen",
)


class Alarm(AssertionError):
    """Something was done that no data may cause."""


@attrs.frozen
class Findings:
    """What became of each use: "fine", or the names of the errors of ours."""

    read: str
    bus: str
    verify: int
    """The exit code."""
    said: str
    """All that was said to the user."""

    @property
    def noticed(self) -> str:
        """Who has noticed something, such as "read bus"."""
        found = {"read": self.read != FINE, "bus": self.bus != FINE, "verify": self.verify != 0}
        return " ".join(name for name, is_so in found.items() if is_so)


def probe(path: Path) -> Findings:
    """Use a store in every way, each with the file as it was, and look at what that does."""
    before = path.read_bytes()
    log = path.with_name(path.name + "-wal")
    has_log = log.exists()
    # Who only looks leaves a log where it is, and with it what SQLite makes anew.
    index = {path.name + "-shm"} if has_log else set()
    with watched(path.parent, allowed={log.name, *index}):
        verify, said_by_verify = verified(path)
        read, said_by_read = read_all(path)
        assert has_log or path.read_bytes() == before
        assert has_log or not log.exists()
        bus, said_by_bus = carry(path)
    said = said_by_read + said_by_bus + said_by_verify
    check_printable(said)
    return Findings(read, bus, verify, said)


def read_all(path: Path) -> tuple[str, str]:
    """Read everything in every way, and return what became of it and what was said."""
    return outcome(_read_all, path)


def carry(path: Path) -> tuple[str, str]:
    """Have a bus carry everything, and return what became of it and what was said."""
    return outcome(_carry, path)


def check_printable(text: str) -> None:
    """See that there is nothing in a text that a terminal would take for a command."""
    raw = [c for c in text if not (c.isprintable() or c == "\n")]
    assert raw == [], text


def verified(path: Path) -> tuple[int, str]:
    """Return exit code and output of `triobus verify`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), quick("verify"):
        code = main(["verify", str(path)])
    assert code in (0, 1, 2)
    assert "Traceback" not in err.getvalue()
    return code, out.getvalue() + err.getvalue()


def memory_peak() -> int:
    """Return the most memory that this process has had since the last call; 0 but on Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    (peak,) = (line.split()[1] for line in status.read_text().splitlines() if "VmHWM" in line)
    Path("/proc/self/clear_refs").write_text("5")
    return int(peak) * 1024


@contextlib.contextmanager
def quick(what: str, seconds: float = SECONDS) -> Iterator[None]:
    """See that something does not take long, however busy the machine is with something else."""
    begun = time.process_time()
    yield
    taken = time.process_time() - begun
    assert taken < seconds, f"{what} took {taken:.1f} s"


def outcome(use: Callable[[Path], Awaitable[list[str]]], path: Path) -> tuple[str, str]:
    """Return what became of one use, and everything that was said."""
    names, said = set(), []
    with quick(use.__name__):
        try:
            said += trio.run(use, path, clock=trio.testing.MockClock(autojump_threshold=0))
        except* TriobusError as group:
            for error in _leaves(group):
                names.add(type(error).__name__)
                said.append(str(error))
    return " ".join(sorted(names)) or FINE, "\n".join([*said, ""])


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


async def _read_all(path: Path) -> list[str]:
    """Read by every way that there is. Events that cannot be decoded are passed over."""
    said = []
    errors = []
    async with SqliteEventStore(path, read_only=True) as store:
        for ask in (
            lambda: _read(store, None),
            *(lambda key=key: _read(store, key) for key in KEYS if key),
            lambda: _get(store),
            lambda: _check(store),
            store.statistics,
            store._groups,
            lambda: _letters(store),
        ):
            try:
                said.append(repr(await ask()))
            except TriobusError as error:
                errors.append(error)
    if errors:
        raise ExceptionGroup("", errors)
    return said


async def _read(store: SqliteEventStore, key: str | None) -> list[Any]:
    found: list[Any] = []
    position = 0
    while True:
        try:
            async for stored in store.read(after=position, aggregate_id=key):
                position = stored.position
                found.append(stored)
            return found
        except EventNotDecodable as error:
            position = _further(error, position)
            found.append(str(error))


def _further(error: EventNotDecodable, position: int) -> int:
    assert error.position is not None
    assert error.position > position
    return error.position


async def _get(store: SqliteEventStore) -> list[Any]:
    found: list[Any] = []
    for number in range(3):
        try:
            stored = await store.get(event_id(number))
        except EventNotDecodable as error:
            found.append(str(error))
        else:
            assert stored is None or stored.event.event_id == event_id(number)
            found.append(stored)
    return found


async def _letters(store: SqliteEventStore) -> list[Any]:
    return await store._letters([key.id for key in await store._letter_keys()])


async def _check(store: SqliteEventStore) -> list[int]:
    after, end, damaged = -1, 0, []
    while end != after:
        after = end
        end, found = await store.check(after)
        damaged += found
    return damaged


async def _carry(path: Path) -> list[str]:
    """Start a bus on the store, drain it, publish to it, replay, and look at the dead letters."""
    bus = EventBus(SqliteEventStore(path, synchronous="normal"), workers=2)
    for name in ("send", "wait"):
        bus.subscribe(DomainEvent, _keep, name=name, retry=Retry(delay=3600, max_delay=7200))
    everything = bus.group("everything", start="beginning")
    everything.subscribe(DomainEvent, _refuse, name="refuse", retry=Retry(attempts=1))
    with trio.fail_after(_VIRTUAL_DAYS * 86400):
        async with bus:
            await bus.wait_idle()
            await bus.publish(_New(key="a"))
            await bus.wait_idle()
            letters = await bus.dead_letters.list()
            await bus.dead_letters.replay(group="default")
            health, statistics = bus.health(), bus.statistics()
    assert all(group.lag == 0 for group in statistics.groups.values())
    return [*map(repr, letters), repr(health), repr(statistics)]


@attrs.frozen
class _New(DomainEvent):
    key: str

    @property
    def aggregate_id(self) -> str:
        return self.key


async def _keep(event: DomainEvent) -> None:
    """Handle an event."""


async def _refuse(event: DomainEvent) -> None:
    raise ValueError("no")


_seen: list[tuple[str, tuple[Any, ...]]] = []
_is_watching = False


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _is_watching and event in (*_LOOKED_AT, *_ALARMING):
        _seen.append((event, arguments))


sys.addaudithook(_watch)  # it cannot be taken away again, so it is one for all


@contextlib.contextmanager
def watched(folder: Path, allowed: Set[str] = frozenset()) -> Iterator[None]:
    """See that nothing is imported, run, or written outside a folder, and nothing left inside."""
    global _is_watching
    before = set(os.listdir(folder))
    _seen.clear()
    _is_watching = True
    try:
        yield
    finally:
        _is_watching = False
    found = [
        (event, arguments) for event, arguments in _seen if _is_alarming(event, arguments, folder)
    ]
    if found:
        raise Alarm(found)
    assert set(os.listdir(folder)) - allowed == before - allowed


def _is_alarming(event: str, arguments: tuple[Any, ...], folder: Path) -> bool:
    if event in _ALARMING:
        return True
    subject = arguments[0]
    if event == "import":
        return subject not in sys.stdlib_module_names
    if isinstance(subject, int):
        return False
    path = os.fsdecode(subject)
    if str(folder) in path:
        return False
    if event == "open":
        is_read = arguments[2] & (os.O_WRONLY | os.O_RDWR) == 0
        # Source is read to format a traceback, and what the system says of a process. Python parses
        # a line of it by itself then, whose file it calls "<unknown>" and looks for from 3.13 on.
        is_source = path.endswith((".py", ".so")) or path == "<unknown>"
        return not ((is_read and is_source) or path.startswith("/proc/"))
    return path != ":memory:"
