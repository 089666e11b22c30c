"""A process forks while its bus runs: the child is refused in clear words, the parent goes on.

Everything happens in a process of its own, for a fork is no affair of other tests, and newer Python
versions warn of one beside threads. The child never comes to a checkpoint: it shares the epoll and
the wake-up socket of its parent, and a step of Trio's loop in it may take what was for that.
"""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = '''
import os
import sys
import uuid

import trio

from tests.events import Noted, Other
from triobus import EventBus, SqliteEventStore, StoreForked

where, path = sys.argv[1:]
handled = []


def tell(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())


async def be_a_child(bus):
    """Try everything that goes to the store."""
    calls = [
        lambda: bus.publish(Noted(100)),
        lambda: bus.publish_many([Noted(100), Noted(101)]),
        lambda: bus.store.append([Noted(100)]),
        lambda: bus.store.get(uuid.uuid4()),
        lambda: bus.store.statistics(),
    ]
    for number, call in enumerate(calls):
        try:
            with trio.fail_after(60):
                await call()
        except StoreForked as error:
            if str(os.getpid()) in str(error):
                continue
            tell("child", number, "unclear", error)
        except BaseException as error:
            tell("child", number, type(error).__name__)
        else:
            tell("child", number, "was not refused")
    tell("child done")


def be_a_child_in_a_thread(bus):
    for call in (
        lambda: bus.publish_from_thread(Noted(100)),
        lambda: trio.run(bus.store.append, [Noted(100)]),
        lambda: trio.run(bus.store.get, uuid.uuid4()),
    ):
        try:
            call()
        except StoreForked:
            continue
        except BaseException as error:
            tell("child", type(error).__name__, error)
        else:
            tell("child was not refused")
    tell("child done")
    os._exit(0)


def wait_for(pid):
    """See that the child has ended by itself."""
    _, status = os.waitpid(pid, 0)
    tell("child ended with", os.waitstatus_to_exitcode(status))


async def main():
    bus = EventBus(SqliteEventStore(path))

    async def fork(event):
        if event.number == 1 and where == "handler":
            pid = os.fork()
            if not pid:
                await be_a_child(bus)
                os._exit(0)
            wait_for(pid)
        handled.append(event.number)

    def fork_in_thread(event):
        if event.number == 1 and where == "thread":
            pid = os.fork()
            if not pid:
                be_a_child_in_a_thread(bus)
            wait_for(pid)

    bus.subscribe(Noted, fork, name="fork")
    bus.group("plain").subscribe(Noted, fork_in_thread)
    stored = []

    async def publish_many():
        stored.extend(await bus.publish_many([Other(number=n) for n in range(10_000)]))

    async with bus:
        await bus.publish_many([Noted(n) for n in range(3)])
        await bus.wait_idle()
        if where == "commit":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publish_many)
                while not bus.store._commits._turn.locked():
                    await trio.lowlevel.checkpoint()
                for _ in range(3):
                    await trio.lowlevel.checkpoint()
                connection = bus.store._database.connection
                while not connection.in_transaction:
                    pass  # until the thread has begun
                pid = os.fork()
                if not pid:
                    # As it was at the fork; the thread is not there any more.
                    tell("in a transaction:", connection.in_transaction)
                    await be_a_child(bus)
                    os._exit(0)
                wait_for(pid)
        await bus.publish_many([Noted(n) for n in range(3, 6)])
    tell("handled", *sorted(handled))
    async with SqliteEventStore(path) as store:
        last, damaged = await store.check(0, 100_000)
        tell("stored", last, damaged, len(stored))
    tell("beside", *sorted(set(os.listdir(os.path.dirname(path))) - {"a.db"}))


trio.run(main)
'''


@pytest.mark.parametrize("where", ["handler", "thread", "commit"])
def test_a_child_that_is_forked_while_the_bus_runs_is_refused_and_the_parent_goes_on(
    where, tmp_path
):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, where, str(tmp_path / "a.db")],
        capture_output=True,
        text=True,
        timeout=20,
        cwd=Path(__file__).parent.parent.parent,
    )
    more = 10_000 if where == "commit" else 0
    assert (done.stdout.splitlines(), done.returncode) == (
        [
            *(["in a transaction: True"] if where == "commit" else []),
            "child done",
            "child ended with 0",
            "handled 0 1 2 3 4 5",
            f"stored {6 + more} [] {more}",
            "beside",
        ],
        0,
    ), done.stderr


WITHOUT_A_STORE = """
import os

import trio

from tests.events import Noted
from triobus import BusClosed, EventBus

bus = EventBus()


@bus.subscribe(Noted)
def fork(event):
    if event.number == 0:
        pid = os.fork()
        if not pid:
            try:
                bus.publish_from_thread(Noted(1))
            except BusClosed as error:
                print("refused", str(os.getpid()) in str(error), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        bus.publish_from_thread(Noted(2))


async def main():
    async with bus:
        await bus.publish(Noted(0))
    print("handled", bus.statistics().handled)


trio.run(main)
"""


def test_a_child_that_a_plain_handler_forks_cannot_publish_to_a_bus_in_memory_that_it_left():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_A_STORE],
        capture_output=True,
        text=True,
        timeout=20,
        cwd=Path(__file__).parent.parent.parent,
    )
    assert (done.stdout.splitlines(), done.returncode) == (["refused True", "handled 2"], 0)
