"""Dead letters: kept until they are replayed or discarded."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import trio

from tests.events import Noted, Other
from tests.settled import settled
from triobus import (
    BusClosed,
    DeadLetter,
    DomainEvent,
    EventBus,
    Group,
    InvalidOption,
    Retry,
    UnknownDeadLetter,
    UnknownSubscription,
    WouldDeadlock,
)

ONCE = Retry(attempts=1)


class Patient:
    """A handler that fails until it is cured, and notes what it was called with."""

    def __init__(self) -> None:
        self.is_ill = True
        self.calls: list[int] = []

    async def __call__(self, event: Noted) -> None:
        self.calls.append(event.number)
        if self.is_ill:
            raise ValueError(f"number {event.number}")


async def fail(event: DomainEvent) -> None:
    raise ValueError


def patient_in(place: EventBus | Group, name: str = "patient", **options: Any) -> Patient:
    patient = Patient()
    options.setdefault("retry", ONCE)
    place.subscribe(Noted, patient, name=name, **options)
    return patient


async def publish(bus: EventBus, *events: DomainEvent) -> None:
    await bus.publish_many(events)
    await bus.wait_idle()


def numbers(letters: list[DeadLetter]) -> list[Any]:
    return [letter.event.number for letter in letters if isinstance(letter.event, Noted)]


def ids(letters: list[DeadLetter]) -> list[int]:
    return [letter.id for letter in letters]


# list


async def test_a_dead_letter_tells_all_about_the_failure(autojump_clock) -> None:
    bus = EventBus()
    patient_in(bus.group("mail"), retry=Retry(attempts=3))
    event = Noted(7, "a")
    before = datetime.now(UTC)
    async with bus:
        await publish(bus, event)
        [letter] = await bus.dead_letters.list()
    assert letter.event is event
    assert (letter.group, letter.subscription, letter.attempts) == ("mail", "patient", 3)
    assert (letter.error_type, letter.message) == ("ValueError", "number 7")
    assert letter.traceback.endswith("ValueError: number 7\n")
    assert before <= letter.first_failed_at == letter.last_failed_at <= datetime.now(UTC)
    assert letter.first_failed_at.tzinfo is UTC


async def test_the_oldest_letters_are_listed_first(new_bus, autojump_clock) -> None:
    bus = new_bus(workers=1)
    patient_in(bus)
    async with bus:
        assert await bus.dead_letters.list() == []
        await publish(bus, *[Noted(n) for n in range(150)])
        assert numbers(await bus.dead_letters.list()) == list(range(100))
        assert numbers(await bus.dead_letters.list(limit=3)) == [0, 1, 2]
        assert numbers(await bus.dead_letters.list(limit=0)) == []
        assert numbers(await bus.dead_letters.list(limit=1000)) == list(range(150))
        letters = await bus.dead_letters.list()
    assert ids(letters) == sorted(set(ids(letters)))


async def test_letters_can_be_listed_by_group_and_by_aggregate(new_bus, autojump_clock) -> None:
    bus = new_bus(workers=1)
    patient_in(bus)
    patient_in(bus.group("mail", workers=1))
    async with bus:
        await publish(bus, Noted(1, "a"), Noted(2, "b"), Noted(3, "a"))
        listed = bus.dead_letters.list
        assert numbers(await listed(group="mail")) == [1, 2, 3]
        assert {letter.group for letter in await listed(group="mail")} == {"mail"}
        assert sorted(numbers(await listed(aggregate_id="a"))) == [1, 1, 3, 3]
        assert numbers(await listed("mail", "b")) == [2]
        assert numbers(await listed(group="mail", aggregate_id="a", limit=1)) == [1]
        assert await listed(group="nobody") == []
        assert await listed(aggregate_id="c") == []


@pytest.mark.parametrize("limit", [-1, 1.5, None, True, "3"])
async def test_a_limit_that_cannot_work_is_refused(new_bus, autojump_clock, limit: Any) -> None:
    with pytest.raises(InvalidOption, match=r"^limit=.*: give a whole number of 0 or more$"):
        await new_bus().dead_letters.list(limit=limit)


async def test_every_failing_handler_makes_a_letter_of_its_own(new_bus, autojump_clock) -> None:
    bus = new_bus()
    for name in ("one", "two"):
        patient_in(bus, name)
    async with bus:
        await publish(bus, Noted(1))
        letters = await bus.dead_letters.list()
    assert [letter.subscription for letter in letters] == ["one", "two"]
    assert [letter.event for letter in letters] == [letters[0].event] * 2


async def test_letters_can_still_be_listed_and_discarded_after_the_stop(
    autojump_clock,
) -> None:
    bus = EventBus()
    patient_in(bus)
    async with bus:
        await publish(bus, Noted(1))
    [letter] = await bus.dead_letters.list()
    assert letter.message == "number 1"
    with pytest.raises(BusClosed, match=r"^dead_letters.replay\(\): the bus is not open"):
        await bus.dead_letters.replay(letter.id)
    assert await bus.dead_letters.discard(letter.id) == 1
    assert await bus.dead_letters.list() == []


# replay


async def three_letters(bus: EventBus, patient: Patient) -> list[DeadLetter]:
    await publish(bus, *[Noted(n, "a") for n in (1, 2, 3)])
    letters = await bus.dead_letters.list()
    assert patient.calls == numbers(letters) == [1, 2, 3]
    patient.calls.clear()
    patient.is_ill = False
    return letters


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


# What is refused


def gone(letter_id: object, count: int) -> str:
    return (
        f"there is no dead letter {letter_id!r}: it never was, or it has been replayed, "
        f"discarded or dropped; dead_letters.list() shows the {count} there are"
    )


async def test_an_unknown_id_is_refused_and_nothing_happens(new_bus, autojump_clock) -> None:
    bus = new_bus()
    patient = patient_in(bus)
    async with bus:
        letters = await three_letters(bus, patient)
        for call in (bus.dead_letters.replay, bus.dead_letters.discard):
            with pytest.raises(UnknownDeadLetter) as caught:
                await call([letters[0].id, 99])
            assert str(caught.value) == gone(99, 3)
            with pytest.raises(UnknownDeadLetter):
                await call(-1)
        await bus.wait_idle()
        assert await bus.dead_letters.list() == letters
    assert patient.calls == []


async def test_a_letter_is_unknown_once_it_is_dealt_with(new_bus, autojump_clock) -> None:
    bus = new_bus()
    patient = patient_in(bus)
    async with bus:
        first, second, _ = await three_letters(bus, patient)
        await bus.dead_letters.replay(first.id)
        await bus.dead_letters.discard(second.id)
        for letter in (first, second):
            with pytest.raises(UnknownDeadLetter) as caught:
                await bus.dead_letters.replay(letter.id)
            assert str(caught.value) == gone(letter.id, 1)


async def test_without_ids_and_group_all_letters_of_the_bus_are_replayed(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus()
    patients = patient_in(bus), patient_in(bus.group("further"))
    async with bus:
        await publish(bus, Noted(1), Noted(2))
        for patient in patients:
            patient.is_ill = False
        assert await bus.dead_letters.replay() == 4
        assert await bus.dead_letters.list() == []
        assert await bus.dead_letters.replay() == 0


async def test_ids_and_a_group_together_are_refused(new_bus, autojump_clock) -> None:
    bus = new_bus()
    async with bus:
        with pytest.raises(InvalidOption, match="give either, or nothing for all of the bus"):
            await bus.dead_letters.replay(1, group="default")


async def test_a_letter_is_taken_as_its_id(new_bus, autojump_clock) -> None:
    bus = new_bus()
    patient = patient_in(bus)
    async with bus:
        first, second, third = await three_letters(bus, patient)
        assert await bus.dead_letters.replay(first) == 1
        assert await bus.dead_letters.discard([second, third.id]) == 2
        with pytest.raises(UnknownDeadLetter) as caught:
            await bus.dead_letters.replay([first])
        assert str(caught.value) == gone(first.id, 0)


@pytest.mark.parametrize("wrong", ["1", 1.0, True, b"1", [None], [[1]], {"a": 1}])
async def test_what_is_no_dead_letter_is_refused(new_bus, autojump_clock, wrong: Any) -> None:
    bus = new_bus()
    patient = patient_in(bus)
    async with bus:
        letters = await three_letters(bus, patient)
        for call in (bus.dead_letters.replay, bus.dead_letters.discard):
            with pytest.raises(InvalidOption, match="is no dead letter: give what"):
                await call(wrong)
        assert await bus.dead_letters.list() == letters


async def test_the_dead_letters_of_a_bus_are_one_object_that_shows_its_count_on_one_line(
    autojump_clock,
) -> None:
    bus = EventBus()
    patient_in(bus)
    found = bus.dead_letters
    async with bus:
        await publish(bus, Noted(1))
        assert repr(found) == "<DeadLetters, 1 of them>"
    async with bus:
        assert bus.dead_letters is found
        assert await found.list() == []
        await publish(bus, Noted(2))
        assert numbers(await found.list()) == [2]


async def test_a_subscription_that_is_gone_is_named_with_those_that_exist(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus()
    patient = patient_in(bus)
    group = bus.group("mail")
    subscription = group.subscribe(Noted, Patient(), name="old", retry=ONCE)
    async with bus:
        await publish(bus, Noted(1, "a"))
        patient.is_ill = False
        patient.calls.clear()
        subscription.unsubscribe()
        [letter] = await bus.dead_letters.list(group="mail")
        with pytest.raises(UnknownSubscription) as caught:
            await bus.dead_letters.replay(ids(await bus.dead_letters.list()))
        assert str(caught.value) == (
            f"dead letter {letter.id} belongs to 'old' in group 'mail', which has no such "
            "subscription now; it has: none. Subscribe under that name again, or discard the letter"
        )
        assert patient.calls == []
        for name in ("new", "newer"):
            patient_in(group, name)
        with pytest.raises(UnknownSubscription, match="it has: 'new', 'newer'"):
            await bus.dead_letters.replay(letter.id)
        again = patient_in(group, "old")
        again.is_ill = False
        assert await bus.dead_letters.replay(letter.id) == 1
    assert again.calls == [1]


async def test_a_letter_stays_if_its_subscription_goes_before_its_turn(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus(workers=1)
    calls: list[int] = []

    async def slow(event: Noted) -> None:
        calls.append(event.number)
        if len(calls) == 1:
            raise ValueError
        await trio.sleep(10)

    subscription = bus.subscribe(Noted, slow, retry=ONCE)
    async with bus:
        await publish(bus, Noted(1))
        letters = await bus.dead_letters.list()
        await bus.publish(Noted(2))  # it has the only worker for ten seconds
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _unsubscribe() -> None:
                await trio.sleep(5)
                subscription.unsubscribe()

            assert await bus.dead_letters.replay(group="default") == 0
        assert await bus.dead_letters.list() == letters
    assert calls == [1, 2]


# discard


async def test_discarded_letters_are_forgotten(new_bus, autojump_clock) -> None:
    bus = new_bus()
    patient = patient_in(bus)
    async with bus:
        first, second, third = await three_letters(bus, patient)
        assert await bus.dead_letters.discard([third.id, first.id]) == 2
        assert await bus.dead_letters.list() == [second]
        assert await bus.dead_letters.discard([]) == 0
    assert patient.calls == []


async def test_a_letter_that_is_discarded_before_its_replay_is_not_delivered(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus(workers=1)
    calls: list[int] = []

    async def slow(event: Noted) -> None:
        calls.append(event.number)
        if event.number < 3 and len(calls) <= 2:
            raise ValueError
        await trio.sleep(1)

    bus.subscribe(Noted, slow, retry=ONCE)
    async with bus:
        await publish(bus, Noted(1), Noted(2))
        first, second = await bus.dead_letters.list()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _discard() -> None:
                await trio.sleep(0.5)
                await bus.dead_letters.discard(second.id)

            assert await bus.dead_letters.replay([first.id, second.id]) == 1
        assert await bus.dead_letters.list() == []
    assert calls == [1, 2, 1]


async def test_a_letter_that_is_discarded_while_its_replay_waits_for_a_retry_holds_up_nothing(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus()
    patient = patient_in(bus, retry=Retry(attempts=2, delay=60, max_delay=60, jitter=0))
    async with bus:
        await publish(bus, Noted(1, "a"))
        (letter,) = await bus.dead_letters.list()
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.dead_letters.replay, letter.id)
            await settled()
            patient.is_ill = False
            await bus.publish(Noted(2, "a"))
            await bus.dead_letters.discard(letter.id)
            await bus.wait_idle()
        assert trio.current_time() == started
        assert await bus.dead_letters.list() == []
    assert patient.calls == [1, 1, 1, 2]


async def test_a_letter_that_is_discarded_while_its_replay_runs_is_not_retried_when_that_fails(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus()
    calls: list[int] = []

    @bus.subscribe(Noted, retry=Retry(attempts=2, delay=60, max_delay=60, jitter=0))
    async def handle(event: Noted) -> None:
        calls.append(event.number)
        if event.number == 1:
            await trio.sleep(1)
            raise ValueError

    async with bus:
        await publish(bus, Noted(1, "a"))
        (letter,) = await bus.dead_letters.list()
        calls.clear()
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.dead_letters.replay)
            await trio.sleep(0.5)
            await bus.dead_letters.discard(letter)
            await bus.publish(Noted(2, "a"))
        assert trio.current_time() == started + 1
        await bus.wait_idle()
        assert await bus.dead_letters.list() == []
    assert calls == [1, 2]


async def test_a_letter_of_an_earlier_start_is_not_taken_for_one_of_now(
    autojump_clock,
) -> None:
    bus = EventBus()
    patient_in(bus)
    async with bus:
        await publish(bus, Noted(1))
        (before,) = await bus.dead_letters.list()
    async with bus:
        await publish(bus, Noted(2))
        with pytest.raises(UnknownDeadLetter):
            await bus.dead_letters.discard(before)
        with pytest.raises(UnknownDeadLetter):
            await bus.dead_letters.replay(before)
        assert numbers(await bus.dead_letters.list()) == [2]


# The bound


async def test_a_thousand_letters_are_kept_and_the_dropped_are_counted(
    autojump_clock,
) -> None:
    bus = EventBus(workers=1, buffer=10_000)
    patient_in(bus)
    async with bus:
        await publish(bus, *[Noted(n) for n in range(1000)])
        assert bus.dead_letters.dropped == 0
        await publish(bus, *[Noted(n) for n in range(1000, 1003)])
        assert bus.dead_letters.dropped == 3
        letters = await bus.dead_letters.list(limit=5000)
    assert numbers(letters) == list(range(3, 1003))


async def test_a_letter_that_holds_back_its_aggregate_is_not_dropped_for_newer_ones(
    autojump_clock,
) -> None:
    bus = EventBus(workers=1, buffer=10_000)
    patient = patient_in(bus, hold=True)
    async with bus:
        await publish(bus, Noted(0, "held"), Noted(1, "held"))
        await publish(bus, *[Noted(n) for n in range(2, 2002)])
        assert numbers(await bus.dead_letters.list(aggregate_id="held")) == [0]
        assert bus.dead_letters.dropped == 1001
        patient.is_ill = False
        await publish(bus, Noted(2002, "held"))
        assert numbers(await bus.dead_letters.list(aggregate_id="held")) == [0, 2002]
        assert await bus.dead_letters.replay() == 1001
    replayed = patient.calls[-1001:]
    assert sorted(replayed) == [0, *range(1003, 2003)]
    assert replayed.index(0) < replayed.index(2002)


async def test_a_letter_that_is_being_replayed_is_not_dropped_for_newer_ones(
    autojump_clock,
) -> None:
    bus = EventBus(workers=2, buffer=10_000)
    patient = patient_in(bus, retry=Retry(attempts=2, delay=60, max_delay=60, jitter=0))
    bus.subscribe(Other, fail, retry=ONCE)
    async with bus:
        await publish(bus, Noted(1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.dead_letters.replay)
            await settled()
            patient.is_ill = False
            await bus.publish_many([Other(n) for n in range(1001)])
            await settled()
            assert bus.dead_letters.dropped == 1
        letters = await bus.dead_letters.list(limit=2000)
    assert patient.calls == [1, 1, 1, 1]
    assert len(letters) == 1000


async def test_no_more_than_the_bound_are_kept_once_a_replay_has_failed_again(
    autojump_clock,
) -> None:
    bus = EventBus(workers=2, buffer=10_000)
    patient_in(bus, retry=Retry(attempts=2, delay=60, max_delay=60, jitter=0))
    bus.subscribe(Other, fail, retry=ONCE)
    async with bus:
        await publish(bus, *[Noted(n) for n in range(1000)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.dead_letters.replay)
            await settled()
            await bus.publish_many([Other(n) for n in range(50)])
            await settled()
        letters = await bus.dead_letters.list(limit=2000)
        assert len(letters) == 1050
        await publish(bus, Other(50))
        letters = await bus.dead_letters.list(limit=2000)
        assert len(letters) == 1000
        assert bus.dead_letters.dropped == 51


async def test_a_letter_from_before_its_handler_held_back_is_not_dropped_when_it_does(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus(workers=1, buffer=10_000)
    before = bus.subscribe(Noted, fail, name="it", retry=ONCE)
    async with bus:
        await publish(bus, Noted(0, "held"))
        before.unsubscribe()
        patient_in(bus, name="it", hold=True)
        await publish(bus, Noted(1, "held"), *[Noted(n) for n in range(2, 1100)])
        assert numbers(await bus.dead_letters.list(limit=1)) == [0]


# hold


async def test_with_hold_later_events_of_the_aggregate_follow_untried(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus()
    patient = patient_in(bus, hold=True, retry=Retry(attempts=2))
    async with bus:
        await publish(bus, *[Noted(n, "a") for n in (1, 2, 3)])
        letters = await bus.dead_letters.list()
        statistics = bus.statistics()
    assert patient.calls == [1, 1]
    assert numbers(letters) == [1, 2, 3]
    assert [letter.attempts for letter in letters] == [2, 0, 0]
    assert [letter.error_type for letter in letters] == ["ValueError", "HeldBack", "HeldBack"]
    assert letters[1].message == letters[2].message
    assert letters[1].message == (
        f"not tried, for dead letter {letters[0].id} is an earlier event of 'a': "
        "replay or discard that one first"
    )
    assert (statistics.failed_attempts, statistics.dead_lettered) == (2, 3)


async def test_hold_concerns_neither_other_aggregates_nor_other_handlers(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus(workers=1)
    calls: list[Any] = []

    def handler(name: str) -> Callable[[Noted], Any]:
        async def handle(event: Noted) -> None:
            calls.append((name, event.key, event.number))
            if name == "holds" and event.number == 1:
                raise ValueError

        return handle

    bus.subscribe(Noted, handler("holds"), name="holds", hold=True, retry=ONCE)
    bus.subscribe(Noted, handler("next"), name="next")
    bus.group("other", workers=1).subscribe(Noted, handler("other"), name="holds", hold=True)
    async with bus:
        await publish(
            bus, Noted(1, "a"), Noted(2, "a"), Noted(3, "b"), Noted(1, None), Noted(5, None)
        )
        letters = await bus.dead_letters.list()
    assert [call for call in calls if call[0] == "holds"] == [
        ("holds", "a", 1),
        ("holds", "b", 3),
        ("holds", None, 1),
        ("holds", None, 5),
    ]
    for name in ("next", "other"):
        assert [number for other, _, number in calls if other == name] == [1, 2, 3, 1, 5]
    assert [(letter.subscription, letter.group) for letter in letters] == [("holds", "default")] * 3


async def test_without_hold_later_events_are_tried(new_bus, autojump_clock) -> None:
    bus = new_bus()
    patient = patient_in(bus)
    async with bus:
        await publish(bus, Noted(1, "a"))
        patient.is_ill = False
        await publish(bus, Noted(2, "a"))
    assert patient.calls == [1, 2]


async def held(bus: EventBus, patient: Patient) -> list[DeadLetter]:
    """Three letters of one aggregate, the second and third held back; the patient is cured."""
    await publish(bus, Noted(1, "a"))
    patient.is_ill = False
    await publish(bus, Noted(2, "a"), Noted(3, "a"))
    assert patient.calls == [1]
    patient.calls.clear()
    return await bus.dead_letters.list()


async def test_a_replay_in_order_lifts_the_hold(new_bus, autojump_clock) -> None:
    bus = new_bus()
    patient = patient_in(bus, hold=True)
    async with bus:
        letters = await held(bus, patient)
        assert await bus.dead_letters.replay(reversed(ids(letters))) == 3
        assert patient.calls == [1, 2, 3]
        await publish(bus, Noted(4, "a"))
        assert await bus.dead_letters.list() == []
    assert patient.calls == [1, 2, 3, 4]


async def test_what_is_published_during_the_replay_comes_after_it(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus()
    patient = patient_in(bus, hold=True)
    async with bus:
        letters = await held(bus, patient)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.dead_letters.replay, ids(letters))
            for number in (4, 5):
                await bus.publish(Noted(number, "a"))
        await bus.wait_idle()
        left = await bus.dead_letters.list()
    seen = patient.calls + numbers(left)
    assert seen == [1, 2, 3, 4, 5]


async def test_what_is_held_back_during_a_long_replay_goes_with_it(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus(buffer=10_000)
    patient = patient_in(bus, hold=True)
    async with bus:
        await publish(bus, *[Noted(n, "a") for n in range(250)])
        patient.calls.clear()
        patient.is_ill = False
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _publish() -> None:
                for number in range(250, 300):
                    await bus.publish(Noted(number, "a"))
                    for _ in range(10):
                        await trio.lowlevel.checkpoint()

            count = await bus.dead_letters.replay()
        await bus.wait_idle()
        assert await bus.dead_letters.list() == []
        await publish(bus, Noted(300, "a"))
    assert count >= 250
    assert patient.calls == list(range(301))


async def test_several_replays_at_once_keep_the_order_of_an_aggregate_and_leave_nothing_held_back(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus(buffer=10_000)
    calls: list[int] = []
    ill = True

    @bus.subscribe(Noted, hold=True, retry=ONCE)
    async def handle(event: Noted) -> None:
        calls.append(event.number)
        if ill:
            raise ValueError
        await trio.sleep(1)

    async with bus:
        await publish(bus, *[Noted(n, "a") for n in range(250)])
        calls.clear()
        ill = False
        counts: dict[str, int] = {}

        async def replay(name: str, chosen: range) -> None:
            counts[name] = await bus.dead_letters.replay(chosen)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(replay, "first", range(1, 151))
            await trio.sleep(50.5)
            await bus.publish(Noted(250, "a"))
            await trio.sleep(60)
            assert ids(await bus.dead_letters.list(limit=1000))[-1] == 251
            nursery.start_soon(replay, "later", range(151, 251))
        assert await bus.dead_letters.list() == []
    assert counts == {"first": 150, "later": 101}
    assert calls == list(range(251))


async def test_a_replay_does_not_wait_for_another_one_of_other_aggregates(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus(buffer=10_000)
    patient = patient_in(bus, retry=Retry(attempts=2, delay=60, max_delay=60, jitter=0))
    async with bus:
        await publish(bus, *[Noted(n, "a") for n in range(150)], Noted(150, "b"))
        *first, last = ids(await bus.dead_letters.list(limit=200))
        (letter,) = await bus.dead_letters.list(aggregate_id="b")
        chosen = [id_ for id_ in (*first, last) if id_ != letter.id]
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.dead_letters.replay, chosen)
            await settled()
            patient.is_ill = False
            assert await bus.dead_letters.replay(letter) == 1
            assert trio.current_time() == started
        assert await bus.dead_letters.list() == []


async def test_a_replay_that_is_cancelled_makes_way_for_a_later_one(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus(buffer=10_000)
    calls: list[int] = []
    ill = True

    @bus.subscribe(Noted, hold=True, retry=ONCE)
    async def handle(event: Noted) -> None:
        calls.append(event.number)
        if ill:
            raise ValueError
        await trio.sleep(1)

    async with bus:
        await publish(bus, *[Noted(n, "a") for n in range(150)])
        calls.clear()
        ill = False
        counts = []

        async def replay_later() -> None:
            counts.append(await bus.dead_letters.replay(range(121, 151)))

        async with trio.open_nursery() as later:
            with trio.move_on_after(50):
                async with trio.open_nursery() as first:
                    first.start_soon(bus.dead_letters.replay, range(1, 121))
                    await trio.sleep(0.5)
                    later.start_soon(replay_later)
        await bus.wait_idle()
        assert counts == [0]  # for what the cancelled one had not begun comes before
        assert await bus.dead_letters.replay() == 50
    assert calls == list(range(150))


async def test_a_subscription_that_goes_during_a_long_replay_leaves_what_it_held_back(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus(buffer=10_000)
    ill = True

    async def handle(event: Noted) -> None:
        if ill:
            raise ValueError
        if event.number == 149:
            subscription.unsubscribe()
        await trio.sleep(1)

    subscription = bus.subscribe(Noted, handle, hold=True, retry=ONCE)
    async with bus:
        await publish(bus, *[Noted(n, "a") for n in range(150)])
        ill = False
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _publish() -> None:
                await trio.sleep(0.5)
                await bus.publish(Noted(150, "a"))

            assert await bus.dead_letters.replay() == 150
        assert numbers(await bus.dead_letters.list()) == [150]


async def test_what_failed_by_itself_during_a_long_replay_does_not_go_with_it(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus(buffer=10_000)
    seen: list[int] = []

    @bus.subscribe(Noted, retry=ONCE)
    async def handle(event: Noted) -> None:
        seen.append(event.number)
        if len(seen) <= 250 or event.number == 999:
            raise ValueError

    async with bus:
        await publish(bus, *[Noted(n, "a") for n in range(250)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.publish, Noted(999, "a"))
            assert await bus.dead_letters.replay() == 250
        await bus.wait_idle()
        assert numbers(await bus.dead_letters.list()) == [999]
    assert seen.count(999) == 1


async def test_the_hold_stays_until_the_last_letter_is_dealt_with(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus()
    patient = patient_in(bus, hold=True)
    async with bus:
        first, second, third = await held(bus, patient)
        assert await bus.dead_letters.replay(first.id) == 1
        await publish(bus, Noted(4, "a"))
        letters = await bus.dead_letters.list()
        assert letters[:2] == [second, third]
        assert numbers(letters) == [2, 3, 4]
        assert await bus.dead_letters.replay(group="default") == 3
    assert patient.calls == [1, 2, 3, 4]


async def test_a_letter_is_not_replayed_before_an_earlier_one_of_its_aggregate(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus()
    patient = patient_in(bus, hold=True)
    async with bus:
        letters = await held(bus, patient)
        assert await bus.dead_letters.replay([letters[1].id, letters[2].id]) == 0
        assert await bus.dead_letters.list() == letters
    assert patient.calls == []


async def test_a_replay_that_fails_again_holds_the_rest_back(new_bus, autojump_clock) -> None:
    bus = new_bus()
    patient = patient_in(bus, hold=True)
    async with bus:
        first, second, third = await held(bus, patient)
        patient.is_ill = True
        assert await bus.dead_letters.replay(group="default") == 0
        assert patient.calls == [1]
        again, *others = await bus.dead_letters.list()
        assert (again.id, again.attempts) == (first.id, 2)
        assert others == [second, third]


async def test_discarding_lifts_the_hold(new_bus, autojump_clock) -> None:
    bus = new_bus()
    patient = patient_in(bus, hold=True)
    async with bus:
        first, second, third = await held(bus, patient)
        await bus.dead_letters.discard(first.id)
        assert await bus.dead_letters.replay([second.id, third.id]) == 2
        await publish(bus, Noted(4, "a"))
    assert patient.calls == [2, 3, 4]


async def test_with_hold_an_event_that_where_does_not_want_is_no_letter(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus()
    patient = patient_in(bus, hold=True, where=lambda event: event.number < 10)
    async with bus:
        await publish(bus, Noted(1, "a"), Noted(11, "a"), Noted(2, "a"))
        assert numbers(await bus.dead_letters.list()) == [1, 2]
    assert patient.calls == [1]


async def test_a_group_that_is_not_ordered_replays_what_it_held_back(
    new_bus,
    autojump_clock,
) -> None:
    bus = new_bus()
    group = bus.group("unordered", ordering="none", workers=4)
    calls: list[Any] = []

    async def slow(event: Noted) -> None:
        calls.append(event.number)
        await trio.sleep(1)
        if len(calls) == 1:
            raise ValueError

    group.subscribe(Noted, slow, hold=True, retry=ONCE)
    async with bus:
        for number in (1, 2, 3):
            await publish(bus, Noted(number, "a"))
        assert numbers(await bus.dead_letters.list()) == [1, 2, 3]
        assert await bus.dead_letters.replay(group="unordered") == 3
    assert calls == [1, 1, 2, 3]


async def test_replaying_a_group_that_is_not_there_names_those_that_are(
    new_bus, autojump_clock
) -> None:
    bus = new_bus()
    bus.group("mail")
    async with bus:
        with pytest.raises(InvalidOption, match=r"'male': .* it has: 'default', 'mail'"):
            await bus.dead_letters.replay(group="male")
