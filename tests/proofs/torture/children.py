"""Children that start in milliseconds: a server has imported everything and forks them.

Most of what a child costs is its start, and a torture needs thousands. So one process is started,
imports triobus, runs nothing and forks; it is asked over a socket, which also carries the pipe on
which the child reports. It has one child at a time, and lets go of its pid only when it is asked
for the next one, so that nobody kills a stranger.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import attrs

from tests.proofs.torture.shim import built
from tests.proofs.torture.violation import ROOT, Violation

PATIENCE = 60.0
"""Seconds after which a child is taken for one that hangs."""


@attrs.define
class Child:
    """A forked process, whose lines come as they are written. It is killed when its block ends."""

    pid: int
    _server: "Server"
    _reports: int
    _buffer: bytes = b""
    _code: int | None = None

    def __enter__(self) -> "Child":
        """Begin a block; the child runs already."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it, however the block has ended; the server could fork no other one before."""
        self.kill()
        self.wait()

    def lines(self) -> Iterator[list[str]]:
        """Yield the words of each line until its end. Raises `Violation` if that does not come."""
        deadline = time.monotonic() + PATIENCE
        while chunk := self._read(deadline):
            *lines, self._buffer = (self._buffer + chunk).split(b"\n")
            for line in lines:
                yield line.decode().split()

    def _read(self, deadline: float) -> bytes:
        left = max(deadline - time.monotonic(), 0)
        if not select.select([self._reports], [], [], left)[0]:
            raise Violation(f"a child had not ended after {PATIENCE:g} s")
        return os.read(self._reports, 65536)

    def kill(self) -> None:
        """Kill it, if it has not ended; lines that it has written still come."""
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Wait for its end; return its exit code, or minus the signal that has killed it."""
        if self._code is None:
            self._code = self._server.answer()
            os.close(self._reports)
        return self._code

    def run(self) -> list[list[str]]:
        """Return all its lines after a good end."""
        with self:
            found = list(self.lines())
            code = self.wait()
        if code:
            raise Violation(f"a child ended with {code} after {found[-3:]}")
        return found


@attrs.define
class Server:
    """The process that forks. Use it as `with serving() as server:`."""

    _socket: socket.socket
    _answers: Any
    has_shim: bool
    """Whether what it forks has `shim.c` between itself and the disk."""

    def start(self, role: str, *arguments: Any) -> Child:
        """Fork a child that plays a role, which is one of `ROLES` in `lives.py`."""
        ours, theirs = os.pipe()
        try:
            request = json.dumps([role, *arguments]).encode() + b"\n"
            socket.send_fds(self._socket, [request], [theirs])
        finally:
            os.close(theirs)
        return Child(self.answer(), self, ours)

    def close(self) -> None:
        """Fork no more."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def answer(self) -> int:
        """Wait for what the server says next."""
        line = self._answers.readline()
        if not line:
            raise Violation("the server of children has ended")
        return int(line)


@contextmanager
def serving(shim: Path | None) -> Iterator[Server]:
    """Run a server inside the block, and what it forks with the shim, if there is one."""
    # What a child would measure of its coverage dies with it, and costs half of its speed.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("COV_", "COVERAGE_"))}
    environment["PYTHONHASHSEED"] = "0"  # so that two servers' children do the same
    if shim is not None:
        environment["LD_PRELOAD"] = str(shim)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.proofs.torture.roles"],
            stdin=theirs.fileno(),
            cwd=ROOT,
            env=environment,
        )
        theirs.close()
        try:
            with ours.makefile("rb") as answers:
                yield Server(ours, answers, shim is not None)
        finally:
            ours.close()
            process.wait()


@contextmanager
def serving_two() -> Iterator[list[Server]]:
    """Run as many servers as work at once, with the shim where there is a C compiler."""
    library = built()
    with serving(library) as one, serving(library) as other:
        yield [one, other]


def in_parallel(servers: Sequence[Server], work: Callable[[Server], None]) -> None:
    """Do the same work with each server until all have ended; raise what one of them raises."""
    with ThreadPoolExecutor(len(servers)) as pool:
        workers = [pool.submit(work, server) for server in servers]
        try:
            for worker in workers:
                worker.result()
        except BaseException:
            # Interrupted, or one has failed: the others fork no more, and so end soon.
            for server in servers:
                server.close()
            raise


def serve(roles: Mapping[str, Callable[..., None]]) -> None:
    """Be the server: fork a child for every request that comes on standard input, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who was interrupted ends this by closing
    pid = 0
    with socket.socket(fileno=os.dup(0)) as asked:
        while True:
            request, descriptors, _, _ = socket.recv_fds(asked, 2**20, 1)
            if pid:
                os.waitpid(pid, 0)
            if not request:
                return
            assert request.endswith(b"\n")  # one request at a time, and a short one
            pid = os.fork()
            if not pid:
                asked.close()
                _live(roles, descriptors[0], *json.loads(request))
            os.close(descriptors[0])
            asked.send(b"%d\n" % pid)
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            assert ended is not None
            is_own = ended.si_code == os.CLD_EXITED
            with suppress(BrokenPipeError):
                asked.send(b"%d\n" % (ended.si_status if is_own else -ended.si_status))


def _live(
    roles: Mapping[str, Callable[..., None]], reports: int, role: str, *arguments: Any
) -> NoReturn:
    """Be a child: play the role, and never come back."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.dup2(reports, 1)
        os.close(reports)
        roles[role](*arguments)
        code = 0
    except BaseException:  # noqa: BLE001  # whatever it is, this is where the process ends
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
