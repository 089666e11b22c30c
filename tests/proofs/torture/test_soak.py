"""A soak for seconds; the long one is a command. And what would make it fail."""

from uuid import uuid4

import attrs
import pytest

from tests.proofs.torture.books import Book, Breaches, Ticked
from tests.proofs.torture.samples import Growth, Sample
from tests.proofs.torture.soak import run
from tests.proofs.torture.violation import Violation

FEW = Sample(memory=50, objects=1000, blocks=9000, descriptors=7, threads=("main",), kept_threads=0)


def test_nothing_grows_and_nothing_is_lost_in_a_short_soak():
    said = []
    run(2, 2026, said.append)
    last = said[-1]
    assert last.startswith("soaked for ")
    assert "; lost 0, reordered 0, " in last
    assert ": growth " in last


def test_a_soak_finds_a_program_that_keeps_its_events():
    kept = []
    with pytest.raises(Violation, match=r"(objects|blocks|memory): after the warm-up it grew"):
        run(1, 2026, lambda _: None, kept.append)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"memory": 55.0}, "memory: after the warm-up it grew by 5.0"),
        ({"objects": 1400}, "objects: after the warm-up it grew by 400.0"),
        ({"blocks": 29_000}, "blocks: after the warm-up it grew by 20000.0"),
        ({"descriptors": 8}, "there are not 7 descriptors, as at first"),
        ({"threads": ("a", "main")}, "there are threads ('a', 'main'), and at first ('main',)"),
        ({"kept_threads": 9}, "Trio keeps more threads than 8"),
    ],
)
def test_what_has_grown_since_the_warm_up_is_named(more, said):
    growth = Growth(FEW, FEW)
    growth.note(FEW, is_quiet=True, is_warm=False)
    growth.note(FEW, is_quiet=True, is_warm=True)
    assert [*growth.wrong(8)] == []
    growth.note(attrs.evolve(FEW, **more), is_quiet=True, is_warm=True)
    assert [*growth.wrong(8)] == [said]


def booked(*numbers, **options):
    book = Book("durable", "group", "it", Breaches(), **options)
    events = [Ticked(number, "a") for number in numbers]
    for event in events:
        book.expect(event)
    return book, events


def test_a_book_finds_an_event_that_is_neither_settled_nor_in_the_store():
    book, (first, second) = booked(1, 2)
    book.begin(first)
    book.settle(first)
    book.compare({("a", 2): second.event_id}, {}, set(), was_crashed=False)
    assert book.breaches.first is None
    book.compare({}, {}, set(), was_crashed=True)
    assert book.breaches.first == (
        "group/it of the durable bus lost 1 accepted events: ('a', 2) and so on"
    )
    assert book.breaches.lost == 1


def test_a_book_finds_an_event_that_was_settled_and_is_not_recorded_without_a_crash():
    for was_crashed in (True, False):
        book, (event,) = booked(1)
        book.begin(event)
        book.settle(event)
        book.compare({("a", 1): event.event_id}, {}, set(), was_crashed=was_crashed)
        assert (book.breaches.first is None) == was_crashed


def test_a_book_finds_what_comes_before_its_turn_again_or_without_having_been_accepted():
    book, (first, second) = booked(1, 2)
    book.begin(second)
    assert "given 2 before 1 of 'a'" in book.breaches.first
    assert book.breaches.reordered == 1

    book, (first, _) = booked(1, 2)
    for _ in range(2):
        book.begin(first)
        book.settle(first)
        book.rest(first)
    assert "given ('a', 1), which it had settled" in book.breaches.first

    book, (first, _) = booked(1, 2)
    book.withdraw(first)
    book.begin(first)
    assert "whose publishing raised" in book.breaches.first

    book, (first, _) = booked(1, 2)
    book.begin(first)
    book.begin(first)
    assert "works twice at a time on 'a'" in book.breaches.first


def test_a_book_finds_dead_letters_that_are_lost_or_that_nobody_made():
    book, (event,) = booked(1)
    book.begin(event)
    book.give_up(event)
    book.compare({}, {("a", 1): event.event_id}, set(), was_crashed=False)
    assert book.breaches.first is None
    book.begin_life()
    book.compare({}, {}, set(), was_crashed=True)
    assert "lost dead letters: ('a', 1)" in book.breaches.first
    book.breaches.first = None
    book.compare({}, {("a", 7): uuid4()}, set(), was_crashed=True)
    assert "unknown dead letters: ('a', 7)" in book.breaches.first
