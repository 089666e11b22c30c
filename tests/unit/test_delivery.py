"""The core of a group, by its rules."""

import math
from collections.abc import Iterable
from itertools import count

import attrs
import pytest

from tests.events import Noted
from tests.unit.lanes import lanes_with, number_of, subscription
from triobus._durability.lanes import KEPT_AWAKE, StoredLanes, place_of
from triobus._groups.delivery import InFlight, Lanes, Queued


def stored_lanes_with(*keys: str) -> StoredLanes:
    lanes = StoredLanes()
    events = [Noted(number, key) for number, key in enumerate(keys)]
    lanes.add_many(events, keys, (subscription(),), positions=count(1))
    return lanes


def take(lanes: Lanes) -> InFlight:
    delivery = lanes.take()
    assert delivery is not None
    return delivery


def taken(lanes: Lanes) -> list[int | None]:
    """Take all that is ready; return the numbers."""
    numbers = []
    while (delivery := lanes.take()) is not None:
        numbers.append(number_of(delivery))
    return numbers


# Rule 1


def test_deliveries_are_taken_in_the_order_of_publication() -> None:
    assert taken(lanes_with("a", None, "b", "c", None)) == [0, 1, 2, 3, 4]


def test_one_worker_alone_handles_all_aggregates_in_the_order_of_publication() -> None:
    lanes = lanes_with("a", "a", "b", None, "a", "b")
    order = []
    while (delivery := lanes.take()) is not None:
        order.append(number_of(delivery))
        lanes.advance(delivery)
    assert order == [0, 1, 2, 3, 4, 5]


def test_the_oldest_ready_delivery_goes_first_whatever_made_it_ready() -> None:
    lanes = lanes_with("a", "b", "a", "b", "c", "d")
    first, second = take(lanes), take(lanes)
    third = take(lanes)  # passes over 2 and 3, which line up
    assert number_of(third) == 4
    lanes.advance(second)
    lanes.advance(first)
    assert taken(lanes) == [2, 3, 5]


# Rule 2


def test_a_busy_aggregate_is_passed_over() -> None:
    lanes = lanes_with("a", "a", "a", "b")
    assert taken(lanes) == [0, 3]


def test_the_followers_of_an_aggregate_come_one_at_a_time() -> None:
    lanes = lanes_with("a", "a", "a")
    order = []
    while (delivery := lanes.take()) is not None:
        assert lanes.take() is None
        order.append(number_of(delivery))
        lanes.advance(delivery)
    assert order == [0, 1, 2]


def test_a_delivery_that_is_added_after_its_aggregate_became_free_finds_it_free() -> None:
    lanes = lanes_with("a")
    lanes.advance(take(lanes))
    lanes.add(Noted(1, "a"), "a", (subscription(),))
    assert taken(lanes) == [1]


# Rule 3


def test_deliveries_without_a_key_wait_for_nothing() -> None:
    assert taken(lanes_with(None, None, None)) == [0, 1, 2]


def test_the_empty_string_is_a_key_like_any_other() -> None:
    assert taken(lanes_with("", "", "b")) == [0, 2]


def test_lanes_that_are_not_ordered_ignore_keys() -> None:
    assert taken(lanes_with("a", "a", "a", is_ordered=False)) == [0, 1, 2]


# Rule 4


def test_a_delivery_is_finished_when_its_last_subscription_is() -> None:
    plan = (subscription("one"), subscription("two"), subscription("three"))
    lanes = lanes_with("a", plan=plan)
    delivery = take(lanes)
    seen = [delivery.subscription.name]
    while not lanes.advance(delivery):
        assert lanes.finished == 0
        seen.append(delivery.subscription.name)
    assert seen == ["one", "two", "three"]
    assert lanes.finished == 1


def test_a_retry_goes_on_with_the_subscription_that_failed() -> None:
    plan = (subscription("one"), subscription("two"), subscription("three"))
    lanes = lanes_with("a", plan=plan)
    delivery = take(lanes)
    delivery.attempt += 1
    assert not lanes.advance(delivery)
    assert delivery.attempt == 0
    delivery.attempt += 1
    assert lanes.fail(delivery, ValueError(), now=10.0) == 11.0
    lanes.release(11.0)
    resumed = take(lanes)
    assert resumed is delivery
    assert (resumed.subscription.name, resumed.attempt) == ("two", 1)


def test_attempts_are_counted_for_each_subscription() -> None:
    plan = (subscription("one"), subscription("two"))
    lanes = lanes_with("a", plan=plan)
    delivery = take(lanes)
    due: list[float | None] = []
    for _ in range(2):
        for _ in range(3):
            delivery.attempt += 1
            due.append(lanes.fail(delivery, ValueError(), now=0.0))
            if due[-1] is not None:
                lanes.release(math.inf)
                assert take(lanes) is delivery
        lanes.advance(delivery)
    assert due == [1.0, 2.0, None, 1.0, 2.0, None]


# Rule 5


def test_a_delivery_that_waits_for_a_retry_keeps_its_aggregate() -> None:
    lanes = lanes_with("a", "a", "b")
    delivery = take(lanes)
    delivery.attempt = 1
    lanes.fail(delivery, ValueError(), now=0.0)
    assert taken(lanes) == [2]
    lanes.release(1.0)
    assert taken(lanes) == [0]


def test_a_retry_is_released_when_it_is_due_and_not_before() -> None:
    lanes = lanes_with("a")
    delivery = take(lanes)
    delivery.attempt = 1
    assert lanes.next_due() is None
    assert lanes.fail(delivery, ValueError(), now=5.0) == 6.0
    assert lanes.next_due() == 6.0
    lanes.release(math.nextafter(6.0, 0.0))
    assert lanes.take() is None
    lanes.release(6.0)
    assert lanes.next_due() is None
    assert lanes.take() is delivery


def test_retries_due_at_one_moment_go_in_the_order_of_publication() -> None:
    lanes = lanes_with("a", "b", "c", "d")
    deliveries = [take(lanes) for _ in range(3)]
    for delivery in reversed(deliveries):
        delivery.attempt = 1
        lanes.fail(delivery, ValueError(), now=0.0)
    lanes.release(1.0)
    assert taken(lanes) == [0, 1, 2, 3]


def test_a_replay_keeps_its_place_in_its_aggregate_though_lanes_are_not_ordered() -> None:
    lanes = Lanes(is_ordered=False)
    for number in range(3):
        letter_id = number + 1 if number < 2 else None
        lanes.add(Noted(number, "a"), "a", (subscription(),), None, letter_id)
    first = take(lanes)
    assert number_of(first) == 0
    assert taken(lanes) == [2]
    lanes.advance(first)
    assert taken(lanes) == [1]


def places(evicted: Iterable[tuple[str, Iterable[Queued]]]) -> list[tuple[str, list[int]]]:
    return [(key, [place_of(queued) for queued in line]) for key, line in evicted]


def test_what_lines_up_behind_busy_and_waiting_deliveries_can_be_given_up() -> None:
    lanes = stored_lanes_with("a", "a", "b", "a", "b", "c")
    busy, waiting, _ = (take(lanes) for _ in range(3))
    lanes.fail(waiting, OSError(), now=0.0)
    assert lanes.ready == 0
    assert places(lanes.evict_lines()) == [("a", [2, 4]), ("b", [5])]
    assert (lanes.held, lanes.outside, lanes.waiting, lanes.in_flight) == (0, 4, 1, 2)
    assert (lanes.added, lanes.unsettled, lanes.queued) == (6, 6, 3)
    lanes.advance(busy)
    assert not lanes.has_lane("a")
    assert lanes.take() is None
    lanes.take_in(Noted(1, "a"), "a", (subscription(),), None, 2)
    assert number_of(lanes.take()) == 1
    assert (lanes.held, lanes.outside, lanes.in_flight, lanes.added) == (0, 3, 2, 6)


def test_a_replay_that_lines_up_is_given_up_and_keeps_its_place() -> None:
    lanes = stored_lanes_with("a", "a", "a")
    take(lanes)
    lanes.add(Noted(9, "a"), "a", (subscription(),), letter_id=7, position=1, after=3)
    lanes.add(Noted(4, "a"), "a", (subscription(),), position=4)
    assert lanes.take() is None
    ((key, line),) = lanes.evict_lines()
    assert (key, [(place_of(queued), queued[5]) for queued in line]) == (
        "a",
        [(2, None), (3, None), (3, 7), (4, None)],
    )
    assert (lanes.held, lanes.outside, lanes.added, lanes.in_flight) == (0, 4, 5, 1)


def test_a_line_with_an_event_of_whose_attempts_a_store_knows_is_not_given_up() -> None:
    lanes = stored_lanes_with("a", "a")
    busy = take(lanes)
    lanes.restore_delay(2, 1, None, ())
    assert lanes.take() is None
    assert lanes.evict_lines() == []
    lanes.advance(busy)
    again = take(lanes)
    assert (number_of(again), again.attempt) == (1, 1)


def test_a_delivery_that_comes_with_a_time_waits_for_it_with_its_lane() -> None:
    lanes = StoredLanes()
    lanes.add(Noted(0, "a"), "a", (subscription(),), position=1)
    lanes.restore_delay(1, 2, 10.0, ("another",))
    lanes.add(Noted(1, "a"), "a", (subscription(),), position=2)
    lanes.add(Noted(2, "b"), "b", (subscription(),), position=3)
    assert lanes.next_due() == 10.0
    assert number_of(lanes.take()) == 2
    assert lanes.take() is None
    assert (lanes.held, lanes.waiting, lanes.outside) == (1, 1, 1)
    lanes.release(9.0)
    assert lanes.take() is None
    lanes.release(10.0)
    assert lanes.next_due() is None
    resumed = take(lanes)
    assert (number_of(resumed), resumed.attempt) == (0, 2)
    assert lanes.take() is None
    lanes.advance(resumed)
    assert number_of(lanes.take()) == 1


def test_a_time_that_has_come_while_the_delivery_was_queued_is_no_reason_to_wait() -> None:
    lanes = stored_lanes_with("a")
    first = take(lanes)
    lanes.add(Noted(1, "a"), "a", (subscription(),), position=2)
    lanes.restore_delay(2, 1, 10.0, ())
    assert lanes.take() is None
    lanes.release(10.0)
    lanes.advance(first)
    assert number_of(lanes.take()) == 1


def test_what_is_read_back_has_its_old_place_in_the_order() -> None:
    lanes = stored_lanes_with("a", "a", "b", "a", "b")
    first, third = take(lanes), take(lanes)
    assert lanes.take() is None
    assert places(lanes.evict_lines()) == [("a", [2, 4]), ("b", [5])]
    for position in (6, 7):
        lanes.add(
            Noted(position - 1, str(position)), str(position), (first.plan), position=position
        )
    lanes.advance(first)
    lanes.advance(third)
    lanes.take_in(Noted(1, "a"), "a", first.plan, None, 2)
    lanes.take_in(Noted(3, "a"), "a", first.plan, None, 4)
    order = []
    while (delivery := lanes.take()) is not None:
        order.append(number_of(delivery))
        lanes.advance(delivery)
    assert order == [1, 3, 5, 6]
    lanes.take_in(Noted(4, "b"), "b", first.plan, None, 5)
    assert taken(lanes) == [4]


@pytest.mark.parametrize("queued", [[(4, "k"), (7, "b")], [(4, "k")]])
def test_what_lines_up_does_not_hide_what_is_read_back_and_younger(
    queued: list[tuple[int, str]],
) -> None:
    lanes = stored_lanes_with("k")
    waits = take(lanes)
    assert lanes.fail(waits, OSError(), now=0.0) is not None
    plan = waits.plan
    for position, key in queued:
        lanes.add(Noted(position, key), key, plan, position=position)
    lanes.add_outside()
    lanes.take_in(Noted(5, "a"), "a", plan, None, 5)
    assert taken(lanes) == [5, 7][: len(queued)]


def test_in_total_order_nothing_overtakes_what_has_still_to_be_read_back() -> None:
    lanes = StoredLanes(is_total=True)
    plan = (subscription(),)
    for position, key in enumerate("aabacd", 1):
        lanes.add(Noted(position, key), key, plan, position=position)
    first = take(lanes)
    lanes.fail(first, OSError(), now=0.0)
    second = take(lanes)
    assert (first.position, second.position) == (1, 3)
    lanes.advance(second)
    assert places(lanes.evict_lines()) == [("a", [2])]  # the fourth has not lined up yet
    lanes.release(1.0)
    assert take(lanes) is first
    lanes.advance(first)
    lanes.bar(2)
    assert lanes.take() is None
    lanes.add(Noted(7, "e"), "e", plan, position=7)
    lanes.take_in(Noted(2, "a"), "a", plan, None, 2)
    lanes.bar(None)
    order = []
    while (delivery := lanes.take()) is not None:
        order.append(number_of(delivery))
        lanes.advance(delivery)
    assert order == [2, 4, 5, 6, 7]


def test_beyond_a_few_only_place_and_time_are_kept_of_what_waits_for_a_retry() -> None:
    lanes = stored_lanes_with(*map(str, range(KEPT_AWAKE + 2)), "256")
    deliveries = [take(lanes) for _ in range(KEPT_AWAKE + 2)]
    assert lanes.take() is None
    for delivery in deliveries:
        delivery.attempt = 1
        lanes.fail(delivery, OSError(), now=float(delivery.number))
    count = KEPT_AWAKE + 2
    assert (lanes.held, lanes.waiting, lanes.in_flight) == (1, count, 0)
    assert (lanes.added, lanes.unsettled, lanes.queued) == (count + 1, count + 1, 1)
    last = deliveries[-1]
    lanes.release(lanes.next_due() or 0)
    assert lanes.take() is deliveries[0]
    lanes.release(last.number + 1.0)
    assert [*lanes.due] == [count - 1, count]
    assert len(taken(lanes)) == KEPT_AWAKE - 1
    asleep = lanes.due[count]
    lanes.wake(asleep, last.event)
    woken = take(lanes)
    assert attrs.asdict(woken, recurse=False) == {
        **attrs.asdict(last, recurse=False),
        "is_recorded": True,
    }
    assert [*lanes.due] == [count - 1]
    assert (lanes.waiting, lanes.in_flight, lanes.queued) == (0, KEPT_AWAKE + 1, 2)


def test_what_slept_is_read_back_when_its_subscription_is_gone() -> None:
    lanes = stored_lanes_with(*map(str, range(KEPT_AWAKE + 1)))
    deliveries = [take(lanes) for _ in range(KEPT_AWAKE + 1)]
    for delivery in deliveries:
        delivery.attempt = 1
        lanes.fail(delivery, OSError(), now=0.0)
    gone = deliveries[0].subscription
    lanes.let_go(lambda subscription, _: subscription is not gone)
    assert (lanes.waiting, [*lanes.due]) == (KEPT_AWAKE + 1, [])
    lanes.let_go(lambda subscription, _: subscription is gone)
    assert (lanes.waiting, [*lanes.due]) == (0, [KEPT_AWAKE + 1])
    assert len(taken(lanes)) == KEPT_AWAKE


def test_a_carriage_is_used_again_and_keeps_nothing_of_what_it_carried() -> None:
    lanes = lanes_with("a", "b")
    first = take(lanes)
    first.attempt = 2
    assert lanes.advance(first)
    second = lanes.take(first)
    assert second is first
    assert (number_of(second), second.key, second.index, second.attempt) == (1, "b", 0, 0)
    assert lanes.advance(second)
    assert lanes.take(second) is None


def test_many_deliveries_are_added_as_they_are_one_by_one() -> None:
    events = [Noted(n, key) for n, key in enumerate(["a", "a", None, "b"])]
    for is_ordered in (True, False):
        single, many = Lanes(is_ordered=is_ordered), Lanes(is_ordered=is_ordered)
        plan = (subscription(),)
        for lanes in (single, many):
            lanes.add(Noted(-1, "b"), "b", plan)
        for event in events:
            single.add(event, event.key, plan)
        many.add_many(events, [event.key for event in events], plan)
        assert (many.added, many.held) == (single.added, single.held) == (5, 5)
        expected = [-1, 0, 2] if is_ordered else [-1, 0, 1, 2, 3]
        assert taken(many) == taken(single) == expected


def test_a_failure_for_good_leaves_the_delivery_in_flight() -> None:
    lanes = lanes_with("a", "a")
    delivery = take(lanes)
    delivery.attempt = 3
    assert lanes.fail(delivery, ValueError(), now=0.0) is None
    assert (lanes.in_flight, lanes.waiting, lanes.held) == (1, 0, 1)


def test_a_free_aggregate_costs_nothing() -> None:
    lanes = lanes_with("a", "b", "a", None)
    while (delivery := lanes.take()) is not None:
        lanes.advance(delivery)
    assert (lanes._lanes, len(lanes._queue), lanes._resumed, lanes._waiting) == ({}, 0, [], [])
