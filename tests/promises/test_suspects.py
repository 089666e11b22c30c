"""An event in which the process dies: nothing else is lost by it, and in the end it is left out."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.events import Noted
from triobus import EventBus, Retry, current_delivery

ROOT = Path(__file__).parents[2]


class Deadly:
    """A handler that crashes the bus in some events, and notes what it is called with."""

    def __init__(self, *numbers):
        self.numbers = numbers
        self.calls = []
        self.deaths = trio.Event()

    async def __call__(self, event):
        self.calls.append((event.number, current_delivery().attempt))
        if event.number in self.numbers:
            self.deaths.set()
            await trio.sleep_forever()


async def live(store, handler, events=(), **options):
    """Run a bus until it dies or has nothing left to do; return its dead letters in the latter."""
    handler.deaths = trio.Event()
    retry = options.pop("retry", Retry(attempts=3))
    bus = EventBus(store, **options)
    bus.subscribe(Noted, handler, name="handler", retry=retry)
    letters = None

    async def end(scope):
        nonlocal letters
        await bus.wait_idle()
        letters = await bus.dead_letters.list()
        await bus.stop()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await bus.publish_many(events)
        async with trio.open_nursery() as inner:
            inner.start_soon(end, inner.cancel_scope)
            await handler.deaths.wait()
            await trio.testing.wait_all_tasks_blocked()
            inner.cancel_scope.cancel()
        if letters is None:
            await bus._crash()
    return letters


async def lives_until_the_end(new_store, handler, events, **options):
    """Start again and again; return how often it died, and the dead letters at the end."""
    for count in range(20):
        letters = await live(new_store(), handler, events, **options)
        events = ()
        if letters is not None:
            return count, letters
    raise AssertionError("it never ended")


async def test_an_event_in_which_the_process_dies_becomes_a_dead_letter_after_its_attempts(
    new_store,
):
    handler = Deadly(1)
    events = [Noted(n, "a") for n in range(4)]
    deaths, (letter,) = await lives_until_the_end(new_store, handler, events, workers=1)
    # Of the first death nobody knew before that there would be one.
    assert deaths == 4
    assert [attempt for number, attempt in handler.calls if number == 1] == [1, 1, 2, 3]
    assert {number for number, _ in handler.calls} == {0, 1, 2, 3}
    assert (letter.event.number, letter.attempts, letter.error_type) == (1, 3, "ProcessDied")
    assert letter.message.startswith("the process died in it at each of 3 attempts")


@pytest.mark.parametrize("attempts", [1, 2])
async def test_as_many_attempts_are_made_as_the_policy_grants(new_store, attempts):
    handler, retry = Deadly(0), Retry(attempts=attempts)
    deaths, (letter,) = await lives_until_the_end(new_store, handler, [Noted(0)], retry=retry)
    assert (deaths, letter.attempts) == (attempts + 1, attempts)


async def test_those_beside_it_are_handled_and_not_blamed(new_store, autojump_clock):
    handler = Deadly(5)
    events = [Noted(n, f"{n}") for n in range(12)]
    retry = Retry(attempts=2)
    _, (letter,) = await lives_until_the_end(new_store, handler, events, workers=4, retry=retry)
    assert letter.event.number == 5
    assert {number for number, _ in handler.calls} == set(range(12))


async def test_two_of_them_are_both_left_out_in_the_end(new_store, autojump_clock):
    handler = Deadly(2, 9)
    events = [Noted(n, f"{n}") for n in range(12)]
    _, letters = await lives_until_the_end(new_store, handler, events, workers=4)
    assert sorted(letter.event.number for letter in letters) == [2, 9]
    assert {letter.error_type for letter in letters} == {"ProcessDied"}


async def test_after_a_clean_end_nothing_is_suspect(new_store):
    handler = Deadly()
    bus = EventBus(new_store())
    bus.subscribe(Noted, handler, name="handler")
    async with bus:
        await bus.publish(Noted(1))
    store = new_store()
    commits = 0
    bus = EventBus(store)
    bus.subscribe(Noted, handler, name="handler")
    async with bus:
        commit = store._commit

        async def count(transaction):
            nonlocal commits
            commits += any(change.attempts for change in transaction.changes.groups.values())
            return await commit(transaction)

        store._commits._commit = count
        await bus.publish(Noted(2))
        await bus.wait_idle()
    assert commits == 0


async def test_a_suspect_that_fails_is_retried_as_ever(new_store, autojump_clock):
    calls = []

    async def handler(event):
        calls.append(current_delivery().attempt)
        if len(calls) == 1:
            died.set()
            await trio.sleep_forever()
        raise OSError

    retry = Retry(attempts=3, delay=1, jitter=0)
    died = trio.Event()
    bus = EventBus(new_store())
    bus.subscribe(Noted, handler, name="handler", retry=retry)
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await bus.publish(Noted(1))
        await died.wait()
        await bus._crash()
    bus = EventBus(new_store())
    bus.subscribe(Noted, handler, name="handler", retry=retry)
    async with bus:
        await bus.wait_idle()
        (letter,) = await bus.dead_letters.list()
    assert calls == [1, 1, 2, 3]
    assert (letter.attempts, letter.error_type) == (3, "OSError")


async def test_an_event_in_which_the_process_dies_at_a_retry_becomes_a_dead_letter_too(
    new_store, autojump_clock
):
    class DeadlyLater(Deadly):
        async def __call__(self, event):
            if event.number == 1 and not self.calls:
                self.calls.append((1, 1))
                raise OSError
            await super().__call__(event)

    handler = DeadlyLater(1)
    retry = Retry(attempts=3, delay=1, jitter=0)
    options = {"retry": retry, "workers": 1}
    deaths, (letter,) = await lives_until_the_end(new_store, handler, [Noted(1)], **options)
    assert (letter.attempts, letter.error_type) == (3, "ProcessDied")
    assert [attempt for _, attempt in handler.calls] == [1, 2, 2, 3]
    assert deaths == 3


async def test_a_suspect_whose_subscription_has_gone_is_not_handled(new_store):
    deadly, calls = Deadly(0), []
    assert await live(new_store(), deadly, [Noted(0), Noted(1)], workers=1) is None
    bus = EventBus(new_store(), workers=1)

    @bus.subscribe(Noted, name="handler")
    async def handler(event):
        calls.append(event.number)
        (subscription,) = bus._default.subscriptions
        subscription.unsubscribe()

    async with bus:
        pass
    assert calls == [0]
    assert bus.statistics().handled == 2


PROGRAM = """
import os, signal, sys
import trio
from tests.events import Noted
from triobus import EventBus, Retry, SqliteEventStore, current_delivery

bus = EventBus(SqliteEventStore(sys.argv[1]), workers=int(sys.argv[2]))

@bus.subscribe(Noted, name="handler", retry=Retry(attempts=3))
async def handle(event):
    print(event.number, current_delivery().attempt, flush=True)
    if event.number == 7:
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with bus:
        if sys.argv[3] == "publish":
            await bus.publish_many([Noted(n, str(n % 5)) for n in range(40)])
    for letter in await bus.dead_letters.list():
        print("letter", letter.event.number, letter.attempts, letter.error_type)

trio.run(main)
"""


@pytest.mark.parametrize("workers", [1, 4])
def test_a_killed_process_that_starts_again_and_again_comes_to_an_end(tmp_path, workers):
    said = []
    for start in range(12):
        ended = subprocess.run(
            [
                sys.executable,
                "-c",
                PROGRAM,
                tmp_path / "events.db",
                str(workers),
                "go on" if start else "publish",
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        said += ended.stdout.splitlines()
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL
    assert ended.returncode == 0
    assert said[-1] == "letter 7 3 ProcessDied"
    assert {int(line.split()[0]) for line in said[:-1]} == set(range(40))
    assert 4 <= sum(line.split()[0] == "7" for line in said) <= 6


SHARING = """
import os, signal, sys
import trio
from tests.events import Noted
from triobus import EventBus, Retry, SqliteEventStore

bus = EventBus(SqliteEventStore(sys.argv[1]), workers=1)

@bus.subscribe(Noted, name="handler", transactional=True, retry=Retry(attempts=1))
def handle(event, transaction):
    print(event.number, flush=True)
    if event.number == 150:
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with bus:
        if sys.argv[2] == "publish":
            await bus.publish_many([Noted(n, str(n % 3)) for n in range(200)])
    for letter in await bus.dead_letters.list():
        print("letter", letter.event.number, letter.attempts, letter.error_type)

trio.run(main)
"""


def test_the_one_that_kills_the_process_is_found_among_those_of_its_commit(tmp_path):
    ends, said = [], []
    for start in range(12):
        path, way = tmp_path / "events.db", "go on" if start else "publish"
        ended = subprocess.run(
            [sys.executable, "-c", SHARING, path, way],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        said += ended.stdout.splitlines()
        ends.append(ended.returncode)
        if ended.returncode == 0:
            break
    # Of the first death nobody knew before that there would be one.
    assert ends == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert said.count("150") == 2
    assert said[-1] == "letter 150 1 ProcessDied"
    assert {int(line) for line in said[:-1]} == set(range(200))


# What is said at the start


async def test_the_start_tells_once_of_what_the_program_does_not_have_any_more(new_store, caplog):
    async def fail(event):
        raise OSError

    bus = EventBus(new_store())
    bus.group("mails").subscribe(Noted, fail, name="send", retry=Retry(attempts=1))
    bus.subscribe(Noted, fail, name="sell", retry=Retry(attempts=1))
    async with bus:
        await bus.publish(Noted(1))
    caplog.clear()
    bus = EventBus(new_store())
    bus.subscribe(Noted, fail, name="buy")
    async with bus:
        pass
    (said,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "group 'mails', subscription 'sell' of group 'default'" in said.getMessage()
    caplog.clear()
    bus.group("mails").subscribe(Noted, fail, name="send")
    bus.subscribe(Noted, fail, name="sell")
    async with bus:
        pass
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


async def test_the_start_tells_where_a_group_goes_on(new_store, caplog):
    caplog.set_level("INFO", "triobus")
    bus = EventBus(new_store())
    bus.subscribe(Noted, Deadly(), name="handler")
    async with bus:
        await bus.publish_many([Noted(1), Noted(2)])
        assert "goes on" not in caplog.text
    async with bus:
        pass
    assert (
        "group 'default' goes on behind position 2 of 2; a subscription that is new" in caplog.text
    )


async def test_an_event_that_waits_behind_a_dead_letter_of_its_own_is_not_blamed_for_a_crash(
    new_store, autojump_clock
):
    handled, running, retry = [], trio.Event(), Retry(attempts=1)

    async def fail(event):
        raise ValueError(event.number)

    async def hang(_):
        running.set()
        await trio.sleep_forever()

    async def note(event):
        handled.append((event.number, current_delivery().attempt))

    def bus_with(second):
        bus = EventBus(new_store())
        bus.subscribe(Noted, fail, name="first", retry=retry)
        bus.subscribe(Noted, second, name="second", retry=retry)
        return bus

    async with trio.open_nursery() as nursery:
        bus = bus_with(hang)
        await nursery.start(bus.run)
        await bus.publish(Noted(1))
        await running.wait()
        await trio.testing.wait_all_tasks_blocked()
        await bus._crash()
    async with bus_with(note) as again:
        await again.wait_idle()
        letters = await again.dead_letters.list()
    assert handled == [(1, 1)]
    assert [letter.subscription for letter in letters] == ["first"]
