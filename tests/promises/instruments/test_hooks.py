"""What instruments are told, and when: written for a bus without a store and for those with one."""

import pytest
import trio

from tests.events import Noted, Other
from tests.promises.failing import ONCE, SECONDS, failing
from tests.promises.instruments.journal import Journal
from triobus import EventBus, Instrument, InvalidOption, MemoryEventStore, Transaction


def watched(bus, *instruments):
    """Return a journal of a bus."""
    journal = Journal()
    for instrument in (*instruments, journal):
        bus.add_instrument(instrument)
    journal.lines.clear()
    return journal


async def test_each_step_of_an_event_is_told_in_its_order(autojump_clock):
    bus = EventBus()
    journal = watched(bus)

    @bus.subscribe(Noted, name="note")
    async def note(event):
        await trio.sleep(2)
        journal.lines.append(("the handler itself",))

    async with bus:
        await bus.publish(Noted(7))
    told = (7, "default", "note", 1)
    journal.lines.remove(("left publishing",))  # before the handler begins or after it, as may be
    assert journal.lines == [
        ("publishing", [7]),
        ("published", 7, None),
        ("attempt_started", *told),
        ("handling", *told),
        ("the handler itself",),
        ("left", *told),
        ("attempt_finished", *told, 2.0, None),
        ("settled", *told),
    ]


async def test_with_a_store_an_event_is_settled_when_that_is_recorded(autojump_clock):
    class SlowStore(MemoryEventStore):
        async def _commit(self, transaction):
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            return await super()._commit(transaction)

    bus = EventBus(SlowStore())
    bus.subscribe(Noted, failing(), name="note")
    journal = watched(bus)
    times = []
    journal.settled = lambda delivery: times.append(trio.current_time())
    journal.published = lambda event, position: times.append((trio.current_time(), position))
    bus.remove_instrument(journal)
    bus.add_instrument(journal)
    async with bus:
        await bus.publish(Noted(1))
        await trio.sleep(10)
        # The first commit tells of the new group; the second has the event, the third its end.
        assert times == [(2.0, 1), 3.0]


async def test_commits_are_told_with_their_events_and_how_long_they_took(autojump_clock):
    bus = EventBus(MemoryEventStore())
    bus.subscribe(Noted, failing(), name="note")
    journal = watched(bus)
    async with bus:
        await bus.wait_idle()
        journal.lines.clear()
        first = Noted(1)
        await bus.publish_many([first, Noted(2)])
        await bus.publish_many([first, Noted(3)])
    commits = journal.only("committed")
    assert [line for line in commits if line[1]] == [
        ("committed", [1, 2], 0.0, None),
        ("committed", [3], 0.0, None),
    ]
    assert ("committed", [], 0.0, None) in commits  # progress alone


async def test_a_commit_that_failed_is_told_with_its_error(autojump_clock):
    from triobus import StoreFull

    class FullStore(MemoryEventStore):
        is_full = False

        async def _commit(self, transaction):
            if self.is_full:
                await trio.lowlevel.checkpoint()
                raise StoreFull("no room")
            return await super()._commit(transaction)

    store = FullStore()
    bus = EventBus(store)
    bus.subscribe(Noted, failing(), name="note")
    journal = watched(bus)
    async with bus:
        await bus.wait_idle()
        journal.lines.clear()
        store.is_full = True
        with pytest.raises(StoreFull):
            await bus.publish(Noted(1))
        store.is_full = False
    assert journal.lines[:3] == [
        ("publishing", [1]),
        ("committed", [1], 0.0, "StoreFull"),
        ("not published", "StoreFull"),
    ]
    assert journal.only("published") == []


async def test_failures_are_told_with_retries_and_the_dead_letter(new_bus, autojump_clock):
    bus = new_bus()
    bus.subscribe(Noted, failing(*[OSError()] * 4), name="note", retry=SECONDS)
    journal = watched(bus)
    async with bus:
        await bus.publish(Noted(1))
    hooks = ("attempt_finished", "retry_scheduled", "dead_lettered", "settled")
    assert journal.only(*hooks) == [
        ("attempt_finished", 1, "default", "note", 1, 0.0, "OSError"),
        ("retry_scheduled", 1, "default", "note", 1, 1.0),
        ("attempt_finished", 1, "default", "note", 2, 0.0, "OSError"),
        ("retry_scheduled", 1, "default", "note", 2, 3.0),
        ("attempt_finished", 1, "default", "note", 3, 0.0, "OSError"),
        ("retry_scheduled", 1, "default", "note", 3, 7.0),
        ("attempt_finished", 1, "default", "note", 4, 0.0, "OSError"),
        ("dead_lettered", 1, 1, 4, "OSError"),
        ("settled", 1, "default", "note", 4),
    ]


async def test_a_replay_that_fails_is_a_dead_letter_again_with_all_its_attempts(
    new_bus, autojump_clock
):
    bus = new_bus()
    bus.subscribe(Noted, failing(OSError(), ValueError()), name="note", retry=ONCE)
    journal = watched(bus)
    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        assert await bus.dead_letters.replay() == 0
        assert await bus.dead_letters.replay() == 1
        await bus.wait_idle()
    assert journal.only("dead_lettered", "settled") == [
        ("dead_lettered", 1, 1, 1, "OSError"),
        ("settled", 1, "default", "note", 1),
        ("dead_lettered", 1, 1, 2, "ValueError"),
        ("settled", 1, "default", "note", 1),
        ("settled", 1, "default", "note", 1),
    ]


async def test_a_delivery_of_several_handlers_is_settled_once(new_bus, autojump_clock):
    bus = new_bus()
    bus.subscribe(Noted, failing(OSError()), name="first", retry=ONCE)
    bus.subscribe(Noted, failing(), name="last")
    journal = watched(bus)
    async with bus:
        await bus.publish(Noted(1))
    assert journal.only("attempt_started", "dead_lettered", "settled") == [
        ("attempt_started", 1, "default", "first", 1),
        ("dead_lettered", 1, 1, 1, "OSError"),
        ("attempt_started", 1, "default", "last", 1),
        ("settled", 1, "default", "last", 1),
    ]


async def test_what_where_does_not_want_is_no_attempt(new_bus, autojump_clock):
    bus = new_bus()
    bus.subscribe(Noted, failing(), name="note", where=lambda event: event.number > 1)
    journal = watched(bus)
    async with bus:
        await bus.publish(Noted(1))
        await bus.publish(Noted(2))
    assert journal.only("attempt_started") == [("attempt_started", 2, "default", "note", 1)]
    assert len(journal.only("settled")) == 2


async def test_a_batch_is_one_attempt_of_which_all_deliveries_are_told(new_bus, autojump_clock):
    bus = new_bus()
    journal = watched(bus)
    batches = []
    journal.attempt_started = lambda delivery: batches.append(
        [(each.event.number, each.attempt) for each in delivery.batch]
    )
    bus.remove_instrument(journal)
    bus.add_instrument(journal)
    bulk = bus.group("bulk", batch=10, workers=1)
    calls = []

    async def store(events):
        calls.append([event.number for event in events])
        if len(calls) == 1:
            raise OSError

    bulk.subscribe(Noted, store, name="store", where=lambda event: event.number != 2)
    async with bus:
        await bus.publish_many([Noted(1), Noted(2), Noted(3)])
    assert calls == [[1, 3], [1, 3]]
    assert batches == [[(1, 1), (3, 1)], [(1, 2), (3, 2)]]
    assert len(journal.only("attempt_finished")) == 2
    assert [line[:2] for line in journal.only("retry_scheduled")] == [
        ("retry_scheduled", number) for number in (1, 2, 3)
    ]
    assert sorted(line[1] for line in journal.only("settled")) == [1, 2, 3]


async def test_a_transactional_handler_and_what_it_publishes_are_watched(autojump_clock):
    bus = EventBus(MemoryEventStore())
    journal = watched(bus)

    @bus.subscribe(Noted, name="keep", transactional=True)
    def keep(event: Noted, transaction: Transaction) -> None:
        transaction.publish(Other(event.number + 1))

    async with bus:
        await bus.publish(Noted(1))
    told = (1, "default", "keep", 1)
    hooks = ("publishing", "published", "handling", "left", "settled")
    assert journal.only(*hooks) == [
        ("publishing", [1]),
        ("published", 1, 1),
        ("handling", *told),
        ("publishing", [2]),
        ("published", 2, 2),
        ("left", *told),
        ("settled", *told),
    ]


async def test_pausing_and_resuming_is_told_once(new_bus, autojump_clock):
    bus = new_bus()
    group = bus.group("mail")
    journal = watched(bus)
    async with bus:
        await group.pause()
        await group.pause()
        await group.resume()
        await group.resume()
    assert journal.only("group_paused", "group_resumed") == [
        ("group_paused", "mail"),
        ("group_resumed", "mail"),
    ]


async def test_a_handler_that_is_cancelled_leaves_its_context_manager(new_bus, autojump_clock):
    bus = new_bus()
    bus.subscribe(Noted, lambda event: None, name="plain", priority=-1)

    @bus.subscribe(Noted, name="slow")
    async def slow(event):
        await trio.sleep_forever()

    journal = watched(bus)
    async with bus:
        await bus.publish(Noted(1))
        await trio.sleep(1)
        await bus.stop(drain=False)
    told = (1, "default", "slow", 1)
    assert journal.only("left", "attempt_finished", "settled") == [
        ("left", *told),
        ("attempt_finished", *told, 1.0, "Cancelled"),
    ]


async def test_an_instrument_comes_and_goes_while_the_bus_runs(new_bus, autojump_clock):
    bus = new_bus()
    bus.subscribe(Noted, failing(), name="note")
    journal = Journal()
    async with bus:
        for number in range(1, 5):
            if number == 2:
                bus.add_instrument(journal)
            if number == 4:
                bus.remove_instrument(journal)
            await bus.publish(Noted(number))
            await bus.wait_idle()
    hooks = ("added_to", "published", "attempt_started", "settled", "removed_from")
    assert [line[:2] for line in journal.only(*hooks)] == [
        ("added_to", bus),
        *(line for number in (2, 3) for line in _of(number)),
        ("removed_from", bus),
    ]


def _of(number):
    return [(hook, number) for hook in ("published", "attempt_started", "settled")]


async def test_instruments_stay_when_the_bus_is_started_again(new_bus, autojump_clock):
    bus = new_bus()
    bus.subscribe(Noted, failing(), name="note")
    journal = watched(bus)
    for number in (1, 2):
        async with bus:
            await bus.publish(Noted(number))
    assert [line[1] for line in journal.only("settled")] == [1, 2]


async def test_metadata_that_an_instrument_yields_is_added_and_nothing_else_changes(
    new_bus, autojump_clock
):
    class Stamp(Instrument):
        def publishing(self, events):
            return _Yields([{"stamp": f"by {event.number}", "own": "lost"} for event in events])

    bus = new_bus()
    seen = []

    @bus.subscribe(Noted)
    async def note(event):
        seen.append(event)
        if event.number < 2:
            await bus.publish(Noted(2))

    bus.add_instrument(Stamp())
    event = Noted(1, metadata={"own": "kept"})
    async with bus:
        await bus.publish(event)
    assert [dict(found.metadata) for found in seen] == [
        {"own": "kept", "stamp": "by 1"},
        {"own": "lost", "stamp": "by 2"},
    ]
    assert seen[1].causation_id == event.event_id
    assert (seen[0].event_id, seen[0].occurred_at) == (event.event_id, event.occurred_at)
    assert event.metadata == {"own": "kept"}


async def test_metadata_that_does_not_fit_is_left_out(new_bus, autojump_clock):
    class Stamp(Instrument):
        def publishing(self, events):
            return _Yields([{"long": "x" * 1025, "short": "x", "more": "x"}])

    bus = new_bus()
    seen = []
    bus.subscribe(Noted, lambda event: seen.append(event.metadata))
    bus.add_instrument(Stamp())
    full = {f"key {number}": "" for number in range(63)}
    async with bus:
        await bus.publish(Noted(1, metadata=full))
    assert seen == [{**full, "short": "x"}]


class _Yields:
    def __init__(self, given):
        self.given = given

    def __enter__(self):
        return self.given

    def __exit__(self, *_):
        return None


async def test_a_context_manager_around_a_handler_cannot_swallow_its_error(new_bus, autojump_clock):
    class Swallows(Instrument):
        def handling(self, delivery):
            return _Swallowing()

    bus = new_bus()
    bus.subscribe(Noted, failing(OSError()), retry=ONCE)
    bus.add_instrument(Swallows())
    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        assert bus.statistics().dead_lettered == 1


class _Swallowing(_Yields):
    def __init__(self):
        super().__init__(None)

    def __exit__(self, *_):
        return True


def test_what_is_no_instrument_is_refused():
    with pytest.raises(InvalidOption, match=r"instrument=<object.*derived from triobus.Instrument"):
        EventBus().add_instrument(object())


def test_adding_one_twice_is_harmless_and_removing_one_that_is_not_there_is_an_error():
    bus, journal = EventBus(), Journal()
    bus.add_instrument(journal)
    bus.add_instrument(journal)
    bus.remove_instrument(journal)
    assert journal.lines == [("added_to", bus), ("removed_from", bus)]
    with pytest.raises(InvalidOption, match="is none of the bus: it was not added, or it was rem"):
        bus.remove_instrument(journal)
