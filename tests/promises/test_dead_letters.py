"""Dead letters: what they tell, and how they are listed."""

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.events import Noted
from tests.promises.patients import ids, numbers, patient_in, publish
from triobus import BusClosed, EventBus, InvalidOption, Retry


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
