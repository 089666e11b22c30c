"""Publishing and waiting for the handlers: the outcome."""

import pytest
import trio

from tests.events import Noted, Other
from tests.promises.gated import Gated
from tests.settled import settled
from triobus import EventBus, Outcome, Retry, WouldDeadlock


async def test_publish_and_wait_returns_every_result_and_error_by_subscription(autojump_clock):
    bus = EventBus()
    mail = bus.group("mail")
    broken = ValueError("broken")

    @bus.subscribe(Noted)
    def double(event):
        return event.number * 2

    async def fails(event):
        raise broken

    async def slow(event):
        await trio.sleep(60)
        return "late"

    mail.subscribe(Noted, fails, name="fails", retry=Retry(attempts=3, delay=1, jitter=0))
    mail.subscribe(Noted, slow, name="slow")
    async with bus:
        event = Noted(21)
        started = trio.current_time()
        outcome = await bus.publish_and_wait(event)
        assert trio.current_time() - started == 1 + 2 + 60
    qualified = double.__qualname__
    assert outcome == Outcome(
        event_id=event.event_id,
        position=None,
        results={qualified: 42, "slow": "late"},
        errors={"fails": broken},
    )


async def test_an_outcome_has_no_entry_for_a_handler_whose_where_did_not_match(
    new_bus, autojump_clock
):
    bus = new_bus()

    async def handler(event):
        return event.number

    bus.subscribe(Noted, handler, name="even", where=lambda event: event.number % 2 == 0)
    bus.subscribe(Noted, handler, name="odd", where=lambda event: event.number % 2 == 1)
    async with bus:
        outcome = await bus.publish_and_wait(Noted(3))
    assert (outcome.results, outcome.errors) == ({"odd": 3}, {})


async def test_an_outcome_keeps_apart_groups_with_a_subscription_of_one_name(
    new_bus, autojump_clock
):
    bus = new_bus()

    def answering(answer, delay):
        async def handler(event):
            await trio.sleep(delay)
            return answer

        return handler

    # The group that was made later answers first, which must not change who is called what.
    bus.subscribe(Noted, answering("ours", 2), name="note")
    bus.group("mail").subscribe(Noted, answering("theirs", 1), name="note")
    async with bus:
        outcome = await bus.publish_and_wait(Noted(1))
    assert outcome.results == {"note": "ours", "mail/note": "theirs"}


async def test_the_outcome_of_an_event_without_a_subscriber_is_empty(autojump_clock):
    async with EventBus() as bus:
        event = Noted(1)
        outcome = await bus.publish_and_wait(event)
    assert outcome == Outcome(event_id=event.event_id, position=None, results={}, errors={})


async def test_publish_and_wait_cancelled_while_it_waits_for_handlers_leaves_them_at_work(
    new_bus, autojump_clock
):
    gated = Gated()
    bus = new_bus()
    bus.subscribe(Noted, gated)
    async with bus:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bus.publish_and_wait, Noted(1))
                await settled()
                scope.cancel()
        gated.let_through(1)
    assert gated.begun == [1]
    assert bus.statistics().handled == 1


WAITS_FOR_HANDLERS = {
    "publish_and_wait()": lambda bus: bus.publish_and_wait(Noted(2)),
    "wait_idle()": lambda bus: bus.wait_idle(),
    "stop()": lambda bus: bus.stop(),
    "dead_letters.replay()": lambda bus: bus.dead_letters.replay(group="default"),
}


@pytest.mark.parametrize("call", WAITS_FOR_HANDLERS)
async def test_what_would_wait_for_the_handler_that_calls_it_raises_would_deadlock(
    new_bus, autojump_clock, call
):
    bus = new_bus()
    caught = []

    async def call_it(event):
        try:
            await WAITS_FOR_HANDLERS[call](bus)
        except WouldDeadlock as error:
            caught.append(str(error))

    bus.subscribe(Noted, call_it, name="call_it")
    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        assert bus.statistics().running
    (message,) = caught
    assert message.startswith(f"{call} was called inside the handler 'call_it' of the same bus")
    assert bus.statistics().published == 1


async def test_a_handler_may_wait_for_the_handlers_of_another_bus(new_bus, autojump_clock):
    near, far = new_bus(), new_bus()

    @near.subscribe(Noted)
    async def ask(event):
        await far.wait_idle()
        return (await far.publish_and_wait(Other(event.number))).results

    @far.subscribe(Other)
    async def answer(event):
        return event.number + 1

    async with far, near:
        outcome = await near.publish_and_wait(Noted(1))
    assert outcome.results == {ask.__qualname__: {answer.__qualname__: 2}}
