"""What the subscriptions of a soak owe and have done: the promises, in memory that does not grow.

A book knows of one subscription which accepted events it has not settled yet, and nothing of the
others; so it is as large as the backlog. An event is entered before it is published, so that none
can be handled unknown. After each life of a bus the store is asked what is not finished, and the
books have to say the same.
"""

import threading
from collections.abc import Callable, Iterator
from typing import ClassVar
from uuid import UUID

import attrs

import triobus

Identity = tuple[str, int]
"""Aggregate and number of an event; the number grows in every aggregate, with gaps."""


@attrs.frozen
class Ticked(triobus.DomainEvent):
    """Something has happened to an aggregate."""

    event_type: ClassVar[str] = "soak.ticked"
    number: int
    key: str

    @property
    def aggregate_id(self) -> str:
        return self.key


@attrs.frozen
class Pinged(triobus.DomainEvent):
    """Something that a handler tells; it is about nothing in particular."""

    event_type: ClassVar[str] = "soak.pinged"
    number: int


Soaked = Ticked | Pinged


def identity(event: Soaked) -> Identity:
    """Return what an event is known by."""
    return (event.key if isinstance(event, Ticked) else ""), event.number


@attrs.define(eq=False)
class Breaches:
    """What was seen that must not be."""

    lost: int = 0
    reordered: int = 0
    first: str | None = None

    def note(self, message: str, *, lost: int = 0, reordered: int = 0) -> None:
        """Note a broken promise; the first one is told."""
        self.lost += lost
        self.reordered += reordered
        self.first = self.first or message


@attrs.define(eq=False)
class Book:
    """What one subscription owes. Handlers in threads may write into it too."""

    bus: str
    group: str
    subscription: str
    breaches: Breaches
    is_ordered: bool = True
    is_held: bool = False
    """Whether a dead letter holds back what is behind it: then letters are still owed."""
    cls: type[Soaked] = Ticked
    where: Callable[[Soaked], bool] = lambda _: True
    is_alone: bool = True
    """Whether it is the only subscription of its group, which can finish a delivery by itself."""
    handled: int = 0
    """Events that were handled or given up."""
    repeated: int = 0
    """Events that had been settled and have to be again, because a crash took the record along."""
    letters: set[Identity] = attrs.field(factory=set)
    """Dead letters, in a book that is not held."""
    replaying: set[Identity] = attrs.field(factory=set)
    _owed: dict[str, dict[int, UUID]] = attrs.field(factory=dict)
    """By aggregate the numbers that are not settled, in the order of publication."""
    _count: int = 0
    _withdrawn: set[Identity] = attrs.field(factory=set)
    _doubtful: set[Identity] = attrs.field(factory=set)
    _begun: dict[str, int] = attrs.field(factory=dict)
    """By aggregate the number that has been begun in this life and is not settled."""
    _running: set[str] = attrs.field(factory=set)
    _fresh: set[Identity] = attrs.field(factory=set)
    """Letters that were made in this life."""
    _resolved: set[Identity] = attrs.field(factory=set)
    """Letters that were handled or discarded in this life."""
    _uncertain: set[Identity] = attrs.field(factory=set)
    """Letters whose discarding was begun in this life and has not returned."""
    _lock: threading.Lock = attrs.field(factory=threading.Lock)

    def __len__(self) -> int:
        return self._count

    def __str__(self) -> str:
        return f"{self.group}/{self.subscription} of the {self.bus} bus"

    def wants(self, event: Soaked) -> bool:
        """Whether the subscription is for such events."""
        return isinstance(event, self.cls) and self.where(event)

    # What publishers write

    def expect(self, event: Soaked) -> None:
        """An event is about to be published."""
        key, number = identity(event)
        with self._lock:
            owed = self._owed.setdefault(key, {})
            self._count += number not in owed  # an event may be published again
            owed[number] = event.event_id

    def withdraw(self, event: Soaked) -> None:
        """It was not accepted, and nobody must see it."""
        with self._lock:
            if not self._strike(*identity(event)):
                self._breach(f"settled {identity(event)}, whose publishing raised")
            self._withdrawn.add(identity(event))

    def doubt(self, event: Soaked) -> None:
        """Nobody can know whether it was accepted."""
        with self._lock:
            self._strike(*identity(event))
            self._doubtful.add(identity(event))

    # What handlers write

    def begin(self, event: Soaked) -> None:
        """An attempt begins: it must be this event's turn."""
        key, number = identity(event)
        with self._lock:
            if self.is_ordered:
                if key in self._running:
                    self._breach(f"works twice at a time on {key!r}", reordered=1)
                self._running.add(key)
            if (key, number) in self._doubtful:
                return
            if (key, number) in self._withdrawn:
                self._breach(f"was given {(key, number)}, whose publishing raised")
            if not self.is_held and (key, number) in self.replaying:
                return
            owed = self._owed.get(key, {})
            if owed.get(number) != event.event_id:
                self._breach(f"was given {(key, number)}, which it had settled")
            elif self.is_ordered and next(iter(owed)) != number:
                self._breach(
                    f"was given {number} before {next(iter(owed))} of {key!r}", reordered=1
                )
            if self.is_ordered and self._begun.setdefault(key, number) != number:
                self._breach(f"{number} of {key!r} went past {self._begun[key]}", reordered=1)

    def settle(self, event: Soaked) -> None:
        """It was handled."""
        with self._lock:
            self._end(*identity(event))

    def give_up(self, event: Soaked) -> None:
        """It has become a dead letter, or remains one."""
        key, number = identity(event)
        with self._lock:
            if self.is_held:
                self._begun.pop(key, None)
            elif (key, number) not in self.replaying:
                self._end(key, number)
                self.letters.add((key, number))
                self._fresh.add((key, number))

    def rest(self, event: Soaked) -> None:
        """The attempt is over, whatever came of it."""
        with self._lock:
            self._running.discard(identity(event)[0])

    def begin_discard(self, found: Identity) -> None:
        """A dead letter is about to be discarded; cut off, it may be there still."""
        with self._lock:
            self.letters.discard(found)
            self._uncertain.add(found)

    def end_discard(self, found: Identity) -> None:
        """It is discarded."""
        with self._lock:
            self._uncertain.discard(found)
            self._resolved.add(found)

    def _end(self, key: str, number: int) -> None:
        self._doubtful.discard((key, number))
        if not self.is_held and (key, number) in self.replaying:
            self.letters.discard((key, number))
            self._resolved.add((key, number))
        else:
            self._begun.pop(key, None)
            self.handled += self._strike(key, number)

    def _strike(self, key: str, number: int) -> bool:
        owed = self._owed.get(key, {})
        if owed.pop(number, None) is None:
            return False
        self._count -= 1
        if not owed:
            del self._owed[key]
        return True

    def _breach(self, message: str, *, lost: int = 0, reordered: int = 0) -> None:
        self.breaches.note(f"{self} {message}", lost=lost, reordered=reordered)

    # Between two lives

    def owed(self) -> Iterator[Identity]:
        """Yield what is not settled."""
        return ((key, number) for key, numbers in self._owed.items() for number in numbers)

    def forget(self) -> None:
        """A bus in memory is gone, and so is what it has left."""
        self._owed.clear()
        self._count = 0
        self.letters.clear()
        self.begin_life()

    def begin_life(self) -> None:
        """Nothing runs any more, and the next bus has not begun."""
        self._begun.clear()
        for identities in (
            self._fresh,
            self._resolved,
            self._uncertain,
            self.replaying,
            self._withdrawn,
            self._doubtful,
        ):
            identities.clear()
        self._running.clear()

    def compare(
        self,
        unfinished: dict[Identity, UUID],
        letters: dict[Identity, UUID],
        unsure: set[Identity],
        *,
        was_crashed: bool,
    ) -> None:
        """See that a store has as not finished what is owed, and the dead letters that there are.

        `unsure` are those of which nobody could know whether they were accepted: they will be
        published again. Take over what a crash has undone.
        """
        owed = set(self.owed())
        if self.is_held:
            unfinished = unfinished | letters
        else:
            self._compare_letters(set(letters), was_crashed=was_crashed)
        if missing := owed - unfinished.keys() - unsure:
            self._breach(
                f"lost {len(missing)} accepted events: {min(missing)} and so on", lost=len(missing)
            )
        again = unfinished.keys() - owed
        if again and self.is_alone and not was_crashed:
            self._breach(f"finished {len(again)} events unrecorded: {min(again)} and so on")
        self.repeated += len(again)
        for key, number in again:
            self._owed.setdefault(key, {})[number] = unfinished[key, number]
            self._count += 1
        for key in {key for key, _ in again}:
            self._owed[key] = dict(sorted(self._owed[key].items()))

    def _compare_letters(self, letters: set[Identity], *, was_crashed: bool) -> None:
        missing, more = self.letters - letters, letters - self.letters
        if missing and not (was_crashed and missing <= self._fresh):
            self._breach(f"lost dead letters: {min(missing)} and so on", lost=len(missing))
        excused = self._uncertain | self._resolved if was_crashed else self._uncertain
        if more - excused:
            self._breach(f"has unknown dead letters: {min(more)} and so on")
        self.letters = letters
