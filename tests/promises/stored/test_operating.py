"""What operators ask of every store: an overview in little time, and to forget a group."""

import trio

from tests.events import Noted, Other
from triobus import EventBus, Retry
from triobus.stores._overview import GroupOverview
from triobus.stores._values import Commit, RemoveGroup

RETRY = Retry(attempts=2, delay=600, jitter=0)


def failing(_: Noted) -> None:
    raise ValueError("not now")


async def worked_on(new_store) -> None:
    bus = EventBus(new_store())
    bus.subscribe(Noted, failing, name="fails", retry=Retry(attempts=1))
    later = bus.group("later")
    later.subscribe(Other, failing, name="waits", retry=RETRY)
    async with bus:
        await bus.publish_many([Noted(1), Noted(2), Other(3)])
        await bus.publish(Noted(4), delay=10**6)
        await trio.sleep(1)
        await bus.stop(drain="running")


async def test_an_overview_has_what_is_there_and_what_waits(new_store, autojump_clock):
    await worked_on(new_store)
    async with new_store() as store:
        await store._claim()
        seen, exact = await store._overview(), await store._overview(exact=True)
    assert (seen.events, seen.types_of_last, seen.scheduled) == (3, 3, 1)
    assert dict(seen.types) == {Noted.event_type: 2, Other.event_type: 1}
    assert not seen.has_more_aggregates
    assert (seen.aggregates, dict(seen.groups)) == (exact.aggregates, dict(exact.groups))
    default, later = seen.groups["default"], seen.groups["later"]
    assert default == GroupOverview(offset=3, lag=0, retries=0, next_due=None, dead_letters=2)
    assert (later.offset, later.lag, later.retries, later.dead_letters) == (2, 1, 1, 0)
    assert later.next_due is not None


async def test_a_group_that_is_removed_begins_anew(new_store, autojump_clock):
    await worked_on(new_store)
    async with new_store() as store:
        await store._claim()
        gone, absent = RemoveGroup("default"), RemoveGroup("absent")
        assert await store._commit(Commit(others=[gone, absent])) == [True, False]
        groups = (await store._overview()).groups
        assert [*groups] == ["later"]
        assert (groups["later"].retries, await store._letter_keys()) == (1, [])
    bus, handled = EventBus(new_store(), start="beginning"), []
    bus.subscribe(Noted, handled.append)
    async with bus:
        pass
    assert sorted(event.number for event in handled) == [1, 2]


async def test_dead_letters_are_grouped_by_subscription_and_error(new_store, autojump_clock):
    await worked_on(new_store)
    async with new_store() as store:
        (found,) = await store._letter_groups()
        ((letter, _),) = await store._letters([2])
    assert (found.group, found.subscription, found.error_type) == ("default", "fails", "ValueError")
    assert (found.count, found.held_back, found.first, found.last) == (2, 0, 1, 2)
    assert (found.message, found.last_failed_at) == ("not now", letter.last_failed_at)
