"""Dead letters are replayed: in which order, how often, and what an ended replay says."""

from typing import Any

import pytest
import trio

from tests.events import Noted
from tests.promises.patients import ONCE, ids, numbers, patient_in, publish, three_letters
from tests.settled import settled
from triobus import BusClosed, EventBus, Retry, WouldDeadlock


async def test_letters_are_replayed_by_their_ids_in_the_order_of_failure(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus()
    patient = patient_in(bus)
    async with bus:
        letters = await three_letters(bus, patient)
        assert await bus.dead_letters.replay([letters[2].id, letters[0].id]) == 2
        assert patient.calls == [1, 3]
        assert await bus.dead_letters.list() == [letters[1]]
        assert await bus.dead_letters.replay(letters[1].id) == 1
        assert patient.calls == [1, 3, 2]
        assert await bus.dead_letters.list() == []
        assert bus.statistics().dead_lettered == 3


async def test_the_order_of_the_ids_does_not_matter(new_bus, autojump_clock) -> None:
    bus = new_bus()
    patient = patient_in(bus)
    async with bus:
        await publish(bus, *[Noted(n, "a") for n in range(1, 18)])
        patient.is_ill = False
        patient.calls.clear()
        letters = await bus.dead_letters.list()
        # A set of 16, 8 and 1 does not happen to come in order.
        assert await bus.dead_letters.replay({letters[n - 1].id for n in (16, 8, 1)}) == 3
    assert patient.calls == [1, 8, 16]


async def test_an_id_that_is_given_twice_is_replayed_once(new_bus, autojump_clock) -> None:
    bus = new_bus()
    patient = patient_in(bus)
    async with bus:
        letters = await three_letters(bus, patient)
        assert await bus.dead_letters.replay(iter([letters[0].id] * 2)) == 1
    assert patient.calls == [1]


async def test_all_letters_of_a_group_are_replayed(new_bus, autojump_clock) -> None:
    bus = new_bus()
    patient = patient_in(bus, retry=Retry(attempts=1, never_on=OSError))
    other = patient_in(bus.group("other"))
    async with bus:
        await publish(bus, *[Noted(n, "a") for n in range(200)])
        patient.is_ill = other.is_ill = False
        patient.calls.clear()
        other.calls.clear()
        assert await bus.dead_letters.replay(group="other") == 200
        assert other.calls == list(range(200))
        assert patient.calls == []
        assert len(await bus.dead_letters.list(limit=999)) == 200
        assert await bus.dead_letters.replay(group="other") == 0


async def test_nothing_to_replay_is_no_error(new_bus, autojump_clock) -> None:
    bus = new_bus()
    async with bus:
        assert await bus.dead_letters.replay([]) == 0
        assert await bus.dead_letters.replay(group="default") == 0


async def test_a_replay_that_fails_again_keeps_the_letter_and_counts(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus()
    patient = patient_in(bus, retry=Retry(attempts=3, delay=1, jitter=0))
    async with bus:
        await publish(bus, Noted(1, "a"))
        [letter] = await bus.dead_letters.list()
        assert trio.current_time() == 3
        assert await bus.dead_letters.replay(letter.id) == 0
        assert trio.current_time() == 6
        [again] = await bus.dead_letters.list()
        statistics = bus.statistics()
    assert patient.calls == [1] * 6
    assert (again.id, again.attempts, letter.attempts) == (letter.id, 6, 3)
    assert again.first_failed_at == letter.first_failed_at < again.last_failed_at
    assert (statistics.failed_attempts, statistics.dead_lettered) == (6, 1)


async def test_a_replay_brings_the_error_up_to_date(new_bus, autojump_clock) -> None:
    errors: list[Exception] = [ValueError("first"), KeyError("second")]
    bus = new_bus()

    async def fails(event: Noted) -> None:
        raise errors.pop(0)

    bus.subscribe(Noted, fails, retry=ONCE)
    async with bus:
        await publish(bus, Noted(1))
        [letter] = await bus.dead_letters.list()
        await bus.dead_letters.replay(letter.id)
        [again] = await bus.dead_letters.list()
    assert (letter.error_type, letter.message) == ("ValueError", "first")
    assert (again.error_type, again.message) == ("KeyError", "'second'")
    assert again.traceback.endswith("KeyError: 'second'\n")


async def test_a_replay_returns_when_all_are_done_retries_included(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus()
    patient = patient_in(bus, retry=Retry(attempts=2, delay=60, max_delay=60, jitter=0))
    async with bus:
        await publish(bus, Noted(1))
        [letter] = await bus.dead_letters.list()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _cure() -> None:
                await trio.sleep(30)
                patient.is_ill = False

            assert await bus.dead_letters.replay(letter.id) == 1
        assert trio.current_time() - began == 60
    assert patient.calls == [1, 1, 1, 1]


async def test_only_the_handler_that_failed_is_called_again(new_bus, autojump_clock) -> None:
    bus = new_bus()
    calls: list[str] = []

    async def fine(event: Noted) -> None:
        calls.append("fine")

    bus.subscribe(Noted, fine, name="before", priority=1)
    patient = patient_in(bus)
    bus.subscribe(Noted, fine, name="after", priority=-1)
    bus.group("other").subscribe(Noted, fine)
    async with bus:
        await publish(bus, Noted(1))
        assert calls == ["fine"] * 3
        patient.is_ill = False
        assert await bus.dead_letters.replay(group="default") == 1
    assert calls == ["fine"] * 3
    assert patient.calls == [1, 1]


async def test_a_replay_goes_behind_what_is_queued_for_its_aggregate(
    autojump_clock,
) -> None:
    bus = EventBus(workers=1)
    patient = patient_in(bus)
    async with bus:
        [letter, *_] = await three_letters(bus, patient)
        bus.publish_nowait(Noted(4, "a"))
        assert await bus.dead_letters.replay(letter.id) == 1
    assert patient.calls == [4, 1]


@pytest.mark.parametrize("ordering", ["aggregate", "none"])
@pytest.mark.parametrize("key", ["a", None])
async def test_two_replays_at_once_deliver_once(
    new_bus, autojump_clock, ordering: Any, key: str | None
) -> None:
    bus = new_bus()
    group = bus.group("slow", workers=4, ordering=ordering)
    calls: list[float] = []

    @group.subscribe(Noted, retry=ONCE)
    async def slow(event: Noted) -> None:
        calls.append(trio.current_time())
        await trio.sleep(1)
        if len(calls) == 1:
            raise ValueError

    async with bus:
        await publish(bus, Noted(1, key))
        counts: list[int] = []

        async def replay() -> None:
            counts.append(await bus.dead_letters.replay(group="slow"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(replay)
            nursery.start_soon(replay)
    assert sorted(counts) == [0, 1]
    assert calls == [0, 1]


async def test_a_cancelled_replay_stops_waiting_and_goes_on(new_bus, autojump_clock) -> None:
    bus = new_bus()
    calls: list[float] = []

    async def slow(event: Noted) -> None:
        calls.append(trio.current_time())
        if len(calls) == 1:
            raise ValueError
        await trio.sleep(10)

    bus.subscribe(Noted, slow, retry=ONCE)
    async with bus:
        await publish(bus, Noted(1))
        with trio.move_on_after(1) as scope:
            await bus.dead_letters.replay(group="default")
        assert scope.cancelled_caught
        assert trio.current_time() == 1
        await bus.wait_idle()
        assert trio.current_time() == 10
        assert await bus.dead_letters.list() == []


async def test_a_replay_that_the_stop_cuts_off_says_so(autojump_clock) -> None:
    bus = EventBus()
    calls: list[float] = []

    async def slow(event: Noted) -> None:
        calls.append(trio.current_time())
        if len(calls) == 1:
            raise ValueError
        await trio.sleep_forever()

    bus.subscribe(Noted, slow, retry=ONCE)
    with trio.fail_after(60):
        async with bus:
            await publish(bus, Noted(1))
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def _replay() -> None:
                    with pytest.raises(BusClosed):
                        await bus.dead_letters.replay(group="default")

                await settled()
                await bus.stop(drain=False)
    assert len(await bus.dead_letters.list()) == 1


async def test_a_replay_inside_a_handler_would_wait_for_itself(new_bus, autojump_clock) -> None:
    bus = new_bus()

    async def replays(event: Noted) -> None:
        await bus.dead_letters.replay(group="default")

    bus.subscribe(Noted, replays, name="h", retry=ONCE)
    async with bus:
        outcome = await bus.publish_and_wait(Noted(1))
    error = outcome.errors["h"]
    assert type(error) is WouldDeadlock
    assert str(error).startswith(
        "dead_letters.replay() was called inside the handler 'h' of the same bus"
    )


async def test_a_handler_may_list_and_discard(new_bus, autojump_clock) -> None:
    bus = new_bus(workers=1)
    found: list[Any] = []
    patient_in(bus, where=lambda event: event.number == 1)

    @bus.subscribe(Noted)
    async def cleans_up(event: Noted) -> None:
        letters = await bus.dead_letters.list()
        found.append((numbers(letters), await bus.dead_letters.discard(ids(letters))))

    async with bus:
        await publish(bus, Noted(1), Noted(2))
    assert found == [([1], 1), ([], 0)]
