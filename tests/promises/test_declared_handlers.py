"""Handlers that are declared apart from a bus, and included in one."""

import pytest

from tests.events import Noted, Other
from triobus import (
    BatchHandlers,
    DuplicateName,
    EventBus,
    Handlers,
    InvalidEvent,
    InvalidHandler,
    InvalidOption,
    MemoryEventStore,
    Retry,
    Transaction,
    current_delivery,
)


def declared(calls):
    """Return two handlers as a module of a program declares them."""
    handlers = Handlers()

    @handlers.subscribe(Noted, name="second")
    async def second(event):
        calls.append((current_delivery().group, "second", event.number))

    @handlers.subscribe((Noted, Other), name="first", priority=1, where=lambda event: event.number)
    def first(event):
        calls.append((current_delivery().group, "first", event.number))

    return handlers


async def test_what_is_declared_is_subscribed_with_all_its_options(new_bus, autojump_clock):
    bus, calls = new_bus(), []
    mail = bus.group("mail", workers=1)
    made = bus.include(declared(calls), group="mail")
    assert made == mail.subscriptions
    assert [(s.name, s.group, s.priority) for s in made] == [
        ("second", "mail", 0),
        ("first", "mail", 1),
    ]
    async with bus:
        await bus.publish_many([Noted(1), Noted(0), Other(2)])
    assert calls == [
        ("mail", "first", 1),
        ("mail", "second", 1),
        ("mail", "second", 0),
        ("mail", "first", 2),
    ]


async def test_one_declaration_serves_several_groups_and_buses(autojump_clock):
    calls = []
    handlers = declared(calls)
    for _ in range(2):
        bus = EventBus(workers=1)
        bus.include(handlers)
        bus.include(handlers, group="mail")
        async with bus:
            await bus.publish(Noted(0))
    assert sorted(calls) == [("default", "second", 0)] * 2 + [("mail", "second", 0)] * 2


async def test_a_group_that_is_not_there_is_made(autojump_clock):
    bus, calls = EventBus(), []
    bus.include(declared(calls), group="mail")
    with pytest.raises(DuplicateName):
        bus.group("mail")
    async with bus:
        await bus.publish(Noted(0))
        await bus.wait_idle()
        assert bus.statistics().groups["mail"].subscription_count == 2


async def test_handlers_are_included_while_the_bus_runs_and_later_ones_are_not(
    new_bus, autojump_clock
):
    bus, calls = new_bus(), []
    handlers = declared(calls)
    async with bus:
        bus.include(handlers)
        handlers.subscribe(Noted, lambda event: calls.append("late"), name="late")
        await bus.publish(Noted(0))
    assert calls == [("default", "second", 0)]


async def test_transactional_handlers_and_batches_can_be_declared(autojump_clock):
    seen = []
    handlers, batches = Handlers(), BatchHandlers()

    @handlers.subscribe(Noted, transactional=True, retry=Retry(attempts=1))
    def keep(event: Noted, transaction: Transaction) -> None:
        seen.append(type(transaction).__name__)

    @batches.subscribe(Noted)
    async def store(events: tuple[Noted, ...]) -> None:
        seen.append([event.number for event in events])

    bus = EventBus(MemoryEventStore())
    bus.group("bulk", batch=10)
    bus.include(handlers)
    bus.include(batches, group="bulk")
    async with bus:
        await bus.publish(Noted(1))
    assert len(seen) == 2
    assert [1] in seen


def test_a_bad_declaration_is_refused_where_it_stands():
    handlers = Handlers()

    @handlers.subscribe(Noted)
    def note(event):
        """Do nothing."""

    with pytest.raises(DuplicateName, match="note' is declared already; give this one another na"):
        handlers.subscribe(Noted, note)
    with pytest.raises(InvalidHandler, match="takes exactly one argument"):
        handlers.subscribe(Noted, lambda: None)
    with pytest.raises(InvalidEvent, match="is no event type"):
        handlers.subscribe(int, note)
    with pytest.raises(InvalidOption, match="timeout=-1"):
        handlers.subscribe(Noted, note, name="other", timeout=-1)
    assert repr(handlers).endswith("locals>.note>")
    assert repr(Handlers()) == "<Handlers: none>"


def test_what_cannot_be_included_leaves_nothing_behind():
    bus, handlers = EventBus(), Handlers()
    handlers.subscribe(Noted, lambda event: None, name="a")
    handlers.subscribe(Noted, lambda event: None, name="b")
    bus.subscribe(Noted, lambda event: None, name="b")
    with pytest.raises(DuplicateName, match="already has a subscription named 'b'"):
        bus.include(handlers)
    assert [s.name for s in bus._default.subscriptions] == ["b"]
    transactional = Handlers()
    transactional.subscribe(Noted, lambda event, transaction: None, transactional=True)
    with pytest.raises(InvalidOption, match="transactional=True: a bus without a store"):
        bus.include(transactional)
    with pytest.raises(InvalidOption, match="give a Handlers, with what is declared there"):
        bus.include([handlers])
    with pytest.raises(InvalidOption, match="group=''"):
        bus.include(handlers, group="")


def test_batches_and_single_events_are_not_mixed_up():
    bus = EventBus()
    bus.group("bulk", batch=10)
    with pytest.raises(InvalidOption, match=r"gives its handlers batches.*in BatchHandlers\(\)"):
        bus.include(Handlers(), group="bulk")
    with pytest.raises(InvalidOption, match=r"single events.*make the group before, with batch"):
        bus.include(BatchHandlers(), group="mail")
