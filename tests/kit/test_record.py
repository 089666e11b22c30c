"""`record`: what a bus did, as values, assertions that explain themselves, and a timeline."""

import pytest
import trio

from tests.kit.scenarios import Confirmed, Ordered
from triobus import EventBus, InvalidOption, MemoryEventStore, Retry
from triobus.testing import FlakyHandler, record


async def a_bus_with_a_failure_and_a_consequence():
    bus = EventBus()
    recording = record(bus)

    @bus.subscribe(Ordered, name="confirm", retry=Retry(delay=1, jitter=0))
    async def confirm(event):
        if trio.current_time() < 1:
            raise ConnectionError("no network")
        await trio.sleep(0.5)
        await bus.publish(Confirmed(event.number))

    bus.subscribe(
        Confirmed, FlakyHandler(failures=1, error=ValueError), name="mail", retry=Retry(attempts=1)
    )
    async with bus:
        await bus.publish(Ordered("Ada", 1))
    return recording


TIMELINE = """\
     0.000  #1 Ordered(customer='Ada', number=1) published
     0.000    #1 default/confirm attempt 1 failed: ConnectionError: no network
     0.000    #1 default/confirm again at 1.000
     1.000    #1 default/confirm attempt 2 handled after 0.500 s
     1.500      #2 Confirmed(number=1) published
     1.500        #2 default/mail attempt 1 failed: ValueError
     1.500        #2 default/mail dead letter after attempt 1: ValueError"""


async def test_the_timeline_has_a_line_for_each_thing_indented_by_its_cause(autojump_clock):
    recording = await a_bus_with_a_failure_and_a_consequence()
    assert [line.rstrip() for line in recording.timeline().splitlines()] == TIMELINE.splitlines()


async def test_everything_is_recorded_with_its_virtual_time(autojump_clock):
    recording = await a_bus_with_a_failure_and_a_consequence()
    assert [(e.event.number, e.time, e.position) for e in recording.published] == [
        (1, 0, None),
        (1, 1.5, None),
    ]
    assert [(a.subscription, a.attempt, a.time, a.ended) for a in recording.attempts] == [
        ("confirm", 1, 0, 0),
        ("confirm", 2, 1, 1.5),
        ("mail", 1, 1.5, 1.5),
    ]
    assert [(r.subscription, r.attempt, r.time, r.due) for r in recording.retries] == [
        ("confirm", 1, 0, 1)
    ]
    assert [(d.subscription, d.attempts, d.time) for d in recording.dead_letters] == [
        ("mail", 1, 1.5)
    ]
    assert [(d.group, len(d.attempts)) for d in recording.deliveries] == [
        ("default", 2),
        ("default", 1),
    ]


async def test_assertions_that_hold_say_nothing(autojump_clock):
    recording = await a_bus_with_a_failure_and_a_consequence()
    assert recording.assert_published(Ordered, customer="Ada").number == 1
    recording.assert_published(Ordered)
    recording.assert_not_published(Ordered, customer="Bob")
    recording.assert_handled_in_order("Ada")
    assert recording.assert_dead_lettered(Confirmed, number=1).attempts == 1


@pytest.mark.parametrize(
    ("assertion", "message"),
    [
        (
            lambda r: r.assert_published(Ordered, customer="Bob"),
            r"no Ordered\(customer='Bob'\) was",
        ),
        (lambda r: r.assert_not_published(Ordered), r"a Ordered was published, once"),
        (lambda r: r.assert_handled_in_order("Bob"), r"no event of aggregate 'Bob' was for any"),
        (lambda r: r.assert_handled_in_order("Ada", group="x"), r"for any handler in group 'x'"),
        (lambda r: r.assert_dead_lettered(Ordered), r"no Ordered became a dead letter"),
        (lambda r: r.assert_nothing_failed(), r"2 attempts failed, and 1 events became dead"),
    ],
)
async def test_one_that_does_not_prints_what_happened(autojump_clock, assertion, message):
    recording = await a_bus_with_a_failure_and_a_consequence()
    with pytest.raises(AssertionError, match=message) as caught:
        assertion(recording)
    assert "What happened:\n     0.000  #1 Ordered(" in str(caught.value)


async def test_a_field_that_the_event_does_not_have_is_an_error():
    with pytest.raises(InvalidOption, match=r"Ordered has no field 'colour': it has .*customer"):
        record(EventBus()).assert_not_published(Ordered, colour="red")


async def test_an_event_that_was_not_handled_is_missing_in_the_order(autojump_clock):
    bus = EventBus()
    recording = record(bus)
    bus.subscribe(Ordered, FlakyHandler(failures=1), name="mail", retry=Retry(attempts=1))
    async with bus:
        await bus.publish_many([Ordered("Ada", 1), Ordered("Ada", 2)])
    with pytest.raises(AssertionError, match="in the order #1, #2, and handled #2"):
        recording.assert_handled_in_order("Ada")


async def test_events_that_a_handler_does_not_want_are_not_missed():
    bus = EventBus()
    recording = record(bus)
    bus.subscribe(Ordered, FlakyHandler(failures=0), where=lambda event: event.number > 1)
    async with bus:
        await bus.publish_many([Ordered("Ada", 1), Ordered("Ada", 2)])
    recording.assert_handled_in_order("Ada")
    recording.assert_nothing_failed()
    assert len(recording.attempts) == 1


async def test_a_bus_has_one_recording_which_may_begin_while_it_runs():
    bus = EventBus(store=MemoryEventStore())
    async with bus:
        recording = record(bus)
        bus.subscribe(Ordered, FlakyHandler(failures=0), name="mail")
        await bus.publish(Ordered("Ada", 1))
    assert record(bus) is recording
    assert "Ordered(customer='Ada', number=1) published at position 1" in recording.timeline()
    recording.assert_handled_in_order("Ada")


async def test_a_call_that_is_cancelled_is_no_failure(autojump_clock):
    bus = EventBus()
    recording = record(bus)

    @bus.subscribe(Ordered, name="hang")
    async def hang(event):
        await trio.sleep_forever()

    async with bus:
        await bus.publish(Ordered("Ada", 1))
        await bus.stop(timeout=5)
    assert "default/hang attempt 1 cancelled after 5.000 s" in recording.timeline()
    recording.assert_nothing_failed()


async def test_what_is_printed_is_plain_text():
    bus = EventBus()
    recording = record(bus)
    async with bus:
        await bus.publish(Ordered("\x1b[31mAda\n", 1))
    assert "Ordered(customer='\\x1b[31mAda\\n', number=1)" in recording.timeline()
